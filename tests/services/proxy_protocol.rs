//! The PROXY protocol, in and out, between real peers; and headers that are none.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use crate::Case;
use crate::process::{Folder, Process, free_address, read_to_any_end, run, tool};
use crate::pulsegate::{Pulsegate, closed, connect};
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new(
        "haproxy_before_and_behind_tell_who_the_client_is",
        &["haproxy", "curl"],
        haproxy_before_and_behind_tell_who_the_client_is,
    ),
    Case::new(
        "nginx_before_and_behind_tell_who_the_client_is",
        &["nginx", "curl"],
        nginx_before_and_behind_tell_who_the_client_is,
    ),
    Case::new(
        "curl_tells_who_it_is",
        &["nginx", "curl"],
        curl_tells_who_it_is,
    ),
    Case::new(
        "the_documented_example_works",
        &["haproxy", "nginx", "curl"],
        the_documented_example_works,
    ),
    Case::new(
        "the_operator_sees_the_client_and_the_balancer",
        &[],
        the_operator_sees_the_client_and_the_balancer,
    ),
    Case::new(
        "bad_headers_end_as_such_and_dial_nothing",
        &[],
        bad_headers_end_as_such_and_dial_nothing,
    ),
    Case::new(
        "headers_of_strangers_are_not_read",
        &[],
        headers_of_strangers_are_not_read,
    ),
    Case::new(
        "a_checker_that_leaves_dials_nothing",
        &[],
        a_checker_that_leaves_dials_nothing,
    ),
    Case::new("a_header_is_no_payload", &[], a_header_is_no_payload),
    Case::new(
        "a_service_is_dialled_at_the_first_byte",
        &[],
        a_service_is_dialled_at_the_first_byte,
    ),
    Case::new(
        "clients_that_send_nothing_are_ended",
        &[],
        clients_that_send_nothing_are_ended,
    ),
    Case::new(
        "the_client_of_the_header_is_admitted_or_not",
        &[],
        the_client_of_the_header_is_admitted_or_not,
    ),
    Case::new(
        "a_header_comes_before_the_queue",
        &[],
        a_header_comes_before_the_queue,
    ),
    Case::new(
        "clients_refused_by_their_header_are_counted_once",
        &[],
        clients_refused_by_their_header_are_counted_once,
    ),
    Case::new(
        "silent_clients_hold_places",
        &[],
        silent_clients_hold_places,
    ),
    Case::new(
        "a_silent_client_is_replaced",
        &[],
        a_silent_client_is_replaced,
    ),
];

/// Where curl comes from.
const CLIENT: &str = "127.0.0.9";
const IN: &[&str] = &[
    "--proxy-protocol",
    "require",
    "--proxy-protocol-trusted",
    "127.0.0.0/8",
];

/// A server that can be connected to. nginx and haproxy say nothing when they are ready.
fn serve(command: &mut Command, address: SocketAddr) -> Process {
    let mut process = Process::start(command);
    process.wait_until(|_| TcpStream::connect(address).is_ok());
    process
}

fn haproxy(folder: &Folder, text: &str, address: SocketAddr) -> Process {
    let file = folder.join(&format!("haproxy-{}.cfg", address.port()));
    let defaults = "defaults\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n";
    fs::write(&file, format!("{defaults}{text}\n")).expect("write a file");
    serve(tool("haproxy").args(["-db", "-f"]).arg(&file), address)
}

fn nginx(folder: &Folder, text: &str, address: SocketAddr) -> Process {
    let here = folder.path().display();
    let file = folder.join(&format!("nginx-{}.conf", address.port()));
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
        .concat();
    let text = text.replace("http {", &format!("http {{ access_log off;\n{paths}"));
    let port = address.port();
    let text = format!(
        "load_module {STREAM};\ndaemon off; pid {here}/pid-{port}; error_log stderr warn;\n\
         events {{}}\n{text}"
    );
    fs::write(&file, text).expect("write a file");
    serve(tool("nginx").args(["-p", "/", "-c"]).arg(&file), address)
}

const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn curl(to: SocketAddr, flags: &[&str]) -> String {
    let mut curl = tool("curl");
    curl.args(["-q", "-sS", "--fail", "--noproxy", "*", "--max-time", "60"]);
    curl.args(["--interface", CLIENT]).args(flags);
    run(curl.arg(format!("http://{to}/")))
}

fn haproxy_before_and_behind_tell_who_the_client_is() {
    let folder = Folder::new();
    let service = free_address();
    let answer = "%[src] %[dst_port] %[fc_pp_unique_id]";
    let text = format!(
        "frontend service\n mode http\n bind {service} accept-proxy\n \
         http-request return status 200 content-type text/plain lf-string \"{answer}\""
    );
    let _service = haproxy(&folder, &text, service);
    for sent in [
        "send-proxy",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    ] {
        for passed in ["v1", "v2"] {
            let out = ["--upstream-proxy-protocol", passed];
            let proxy = Pulsegate::start(service, &[IN, &out].concat());
            let front = free_address();
            let text = format!(
                "frontend front\n mode tcp\n bind {front}\n unique-id-format id-%ci-%cp\n \
                 default_backend pulsegate\nbackend pulsegate\n mode tcp\n \
                 server pulsegate {} {sent}",
                proxy.address
            );
            let _front = haproxy(&folder, &text, front);
            let answer = curl(front, &[]);
            let fields: Vec<&str> = answer.split_whitespace().collect();
            let known = [CLIENT, &front.port().to_string()];
            assert_eq!(fields[..2], known, "{sent}, {passed}: {answer}");
            let id = fields.get(2).copied().unwrap_or_default();
            match (sent.contains("unique-id"), passed) {
                (_, "v1") => assert_eq!(id, "", "{answer}"),
                (true, _) => assert!(id.starts_with("id-127.0.0.9-"), "{answer}"),
                (false, _) => assert!(id.contains('-') && !id.starts_with("id"), "{answer}"),
            }
        }
    }
}

fn nginx_before_and_behind_tell_who_the_client_is() {
    let folder = Folder::new();
    let (service, front) = (free_address(), free_address());
    let _service = nginx(
        &folder,
        &format!(
            "http {{ server {{ listen {service} proxy_protocol; \
             location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_server_port\\n\"; }} }} }}"
        ),
        service,
    );
    for passed in ["v1", "v2"] {
        let out = ["--upstream-proxy-protocol", passed];
        let proxy = Pulsegate::start(service, &[IN, &out].concat());
        let text = format!(
            "stream {{ server {{ listen {front}; proxy_protocol on; proxy_pass {}; }} }}",
            proxy.address
        );
        let _front = nginx(&folder, &text, front);
        let answer = curl(front, &[]);
        assert_eq!(answer, format!("{CLIENT} {}\n", front.port()), "{passed}");
    }
}

fn curl_tells_who_it_is() {
    let folder = Folder::new();
    let service = free_address();
    let text = format!(
        "http {{ server {{ listen {service}; location / {{ return 200 \"$remote_addr\\n\"; }} }} }}"
    );
    let _service = nginx(&folder, &text, service);
    let proxy = Pulsegate::start(service, IN);
    let answer = curl(proxy.address, &["--haproxy-protocol"]);
    assert_eq!(answer, "127.0.0.1\n", "the service is told nothing");
    proxy.expect_all_closed("finished", 1);
}

/// The blocks of the page in this language.
fn documented(language: &str) -> String {
    let page = include_str!("../../docs/PROXY-PROTOCOL.md");
    let begins = format!("```{language}\n");
    let block = page.split(&begins).nth(1).expect(language);
    block.split("```").next().expect("an end").to_owned()
}

fn the_documented_example_works() {
    let folder = Folder::new();
    let [front, address, service, admin] = [(); 4].map(|()| free_address());
    let here = |text: String| {
        text.replace("127.0.0.1:5000", &front.to_string())
            .replace("127.0.0.1:9000", &address.to_string())
            .replace("127.0.0.1:8080", &service.to_string())
    };
    let text = format!("http {{ {} }}", here(documented("nginx")));
    let _service = nginx(&folder, &text, service);
    let file = folder.join("pulsegate.yaml");
    let text = format!(
        "{}admin: {{ address: \"{admin}\" }}\n",
        here(documented("yaml"))
    );
    fs::write(&file, text).expect("write a file");
    let _proxy = Pulsegate::start_config(&file, address, admin);
    let _front = haproxy(&folder, &here(documented("haproxy")), front);
    assert_eq!(curl(front, &[]), format!("{CLIENT}\n"));
}

/// A service that tells what it got.
struct Service(TcpListener);

impl Service {
    fn start() -> (Self, SocketAddr) {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = service.local_addr().expect("bound");
        (Self(service), address)
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().expect("a session");
        stream
            .set_read_timeout(Some(ms(60_000)))
            .expect("an option");
        stream
    }

    /// Nobody has connected, now that all that was asked for is over.
    #[track_caller]
    fn expect_nobody(&self) {
        self.0.set_nonblocking(true).expect("an option");
        let nobody = self.0.accept().map(|(_, from)| from);
        assert!(nobody.is_err(), "{nobody:?}");
    }
}

/// A header of version 2 with these TLVs.
fn v2(command: u8, tlvs: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, 0x11]);
    let length = u16::try_from(12 + tlvs.len()).expect("small");
    header.extend(length.to_be_bytes());
    header.extend([192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 0x01, 0xBB]);
    [&header, tlvs].concat()
}

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

fn the_operator_sees_the_client_and_the_balancer() {
    let (service, upstream) = Service::start();
    let out = ["--upstream-proxy-protocol", "v2", "--log-format", "json"];
    let proxy = Pulsegate::start(upstream, &[IN, &out].concat());
    // Byte by byte, and payload behind the last one in the same segment.
    let mut client = connect(proxy.address);
    let header = v2(PROXY, b"\x02\0\x02db");
    let (last, first) = header.split_last().expect("bytes");
    for byte in first {
        client.write_all(&[*byte]).expect("sent");
    }
    client.write_all(&[*last, b'h', b'i']).expect("sent");
    let mut taken = service.accept();
    let mut got = vec![0; header.len()];
    taken.read_exact(&mut got).expect("a header");
    // The same, but for the id that is added.
    assert_eq!(got[16..], header[16..]);
    let mut id = [0; 3];
    taken.read_exact(&mut id).expect("a TLV");
    let mut rest = vec![0; usize::from(id[2]) + 2];
    taken.read_exact(&mut rest).expect("the id and the payload");
    assert_eq!((id[0], &rest[rest.len() - 2..]), (5, &b"hi"[..]));
    let own = client.local_addr().expect("bound").to_string();
    let (_, list) = proxy.get("/connections?peer=192.0.2.7").expect("an answer");
    assert!(list.contains("\"peer\":\"192.0.2.7:4711\""), "{list}");
    assert!(list.contains(&format!("\"proxy\":\"{own}\"")), "{list}");
    assert!(list.contains("\"received_bytes\":2"), "{list}");
    drop((client, taken));
    proxy.expect_active(0);
    let said = proxy.log();
    assert!(said.contains("\"downstream\":\"192.0.2.7:4711\""), "{said}");
    assert!(said.contains(&format!("\"proxy\":\"{own}\"")), "{said}");
    assert!(said.contains("\"downstream_received\":2,"), "{said}");

    // What speaks of nobody keeps the address of the connection.
    for header in [v2(LOCAL, b""), b"PROXY UNKNOWN\r\n".to_vec()] {
        let mut client = connect(proxy.address);
        client.write_all(&header).expect("sent");
        let taken = service.accept();
        let own = client.local_addr().expect("bound");
        let (_, list) = proxy.get("/connections").expect("an answer");
        assert!(list.contains(&format!("\"peer\":\"{own}\"")), "{list}");
        assert!(list.contains("\"proxy\":null"), "{list}");
        drop((client, taken));
        proxy.expect_active(0);
    }
}

fn bad_headers_end_as_such_and_dial_nothing() {
    let (service, upstream) = Service::start();
    let flags = ["--proxy-protocol-timeout", "2s"];
    let proxy = Pulsegate::start(upstream, &[IN, &flags].concat());
    let huge = [&v2(PROXY, b"")[..14], &[0xFF; 100_000]].concat();
    let half = &v2(PROXY, b"")[..20];
    let wrong: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        &[b'P'; 5000],
        &huge,
        half,
        b"PROXY TCP4 192.0.2.7 10.0.0.1 ",
    ];
    let mut clients: Vec<TcpStream> = wrong
        .iter()
        .map(|bytes| {
            let mut client = connect(proxy.address);
            // It may be refused before it is all sent.
            let _ = client.write_all(bytes);
            client
        })
        .collect();
    // The halves say that there is no more; another one goes on, too slowly, and two say nothing.
    for half in &clients[5..] {
        half.shutdown(Shutdown::Write).expect("open");
    }
    let slow = connect(proxy.address);
    let mut bytes = slow.try_clone().expect("a handle");
    let trickle = thread::spawn(move || {
        for byte in b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443" {
            if bytes.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(ms(500));
        }
    });
    clients.extend([slow, connect(proxy.address), connect(proxy.address)]);
    let all = clients.len();
    for (n, mut client) in clients.into_iter().enumerate() {
        assert_eq!(read_to_any_end(&mut client), b"", "client {n}");
    }
    trickle.join().expect("ends");
    proxy.expect_all_closed("proxy_protocol_error", all);
    service.expect_nobody();
    let said = proxy.log();
    let lines = said.matches("without a valid PROXY header").count();
    assert_eq!(lines, 1, "one line, then sums: {said}");
}

fn headers_of_strangers_are_not_read() {
    let (service, upstream) = Service::start();
    let flags = ["--proxy-protocol", "require", "--proxy-protocol-trusted"];
    let proxy = Pulsegate::start(upstream, &[&flags[..], &["192.0.2.0/24,::/0"]].concat());
    for _ in 0..3 {
        // The end may come before connect() has returned.
        let Ok(mut client) = TcpStream::connect(proxy.address) else {
            continue;
        };
        let _ = client.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\nhi");
        assert_eq!(read_to_any_end(&mut client), b"");
    }
    let metrics = proxy.metrics();
    let labels = [("reason", "proxy_protocol_untrusted")];
    let rejected = metrics.value("pulsegate_connections_rejected_total", &labels);
    assert_eq!((rejected, proxy.active()), (3.0, 0.0));
    service.expect_nobody();
    let said = proxy.log();
    assert_eq!(
        said.matches("proxy_protocol_untrusted").count(),
        1,
        "{said}"
    );
}

fn a_checker_that_leaves_dials_nothing() {
    let (service, upstream) = Service::start();
    let proxy = Pulsegate::start(upstream, IN);
    // FIN in the segment of the header, or at least before it is read, as the header waits for its last byte.
    for header in [&b""[..], &v2(LOCAL, b""), b"PROXY UNKNOWN\r\n"] {
        let mut client = connect(proxy.address);
        let options = socket2::SockRef::from(&client);
        options.set_tcp_cork(true).expect("an option");
        client.write_all(header).expect("sent");
        client.shutdown(Shutdown::Write).expect("open");
        assert_eq!(read_to_any_end(&mut client), b"");
    }
    proxy.expect_all_closed("no_bytes", 3);
    service.expect_nobody();
}

/// A header alone is no request, and no sign of a client that sends payload.
fn a_header_is_no_payload() {
    let (service, upstream) = Service::start();
    let flags = [
        "--receive-timeout-downstream",
        "3s",
        "--first-response-timeout",
        "1s",
        "--upstream-proxy-protocol",
        "v1",
        "--detect-within",
        "60s",
    ];
    let proxy = Pulsegate::start(upstream, &[IN, &flags].concat());
    for (payload, reason) in [
        ("", "downstream_silent"),
        ("request", "first_response_timeout"),
    ] {
        let header = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n";
        let all = header.to_owned() + payload;
        let mut client = connect(proxy.address);
        client.write_all(all.as_bytes()).expect("sent");
        let mut taken = service.accept();
        assert_eq!(read_to_any_end(&mut taken), all.as_bytes());
        assert_eq!(read_to_any_end(&mut client), b"");
        proxy.expect_active(0);
        let metrics = proxy.metrics();
        let ends = metrics.excerpt("pulsegate_connections_closed");
        assert_eq!(closed(&metrics, reason), 1.0, "{ends}");
    }
}

/// With one place, the second client waits, known by its header. It leaves with a FIN and no payload,
/// and one that sent something is served.
fn a_header_comes_before_the_queue() {
    let (service, upstream) = Service::start();
    let flags = ["--max-connections", "1", "--on-full", "queue"];
    let proxy = Pulsegate::start(upstream, &[IN, &flags].concat());
    let header = |last: u8| format!("PROXY TCP4 192.0.2.{last} 10.0.0.1 4711 443\r\n");
    let begin = |last: u8, payload: &str| {
        let mut client = connect(proxy.address);
        let bytes = header(last) + payload;
        client.write_all(bytes.as_bytes()).expect("sent");
        client
    };
    let queued = |last: u8| {
        let page = format!("/connections?phase=queued&peer=192.0.2.{last}");
        let (_, list) = proxy.get(&page).expect("an answer");
        list.contains("\"queued\"")
    };
    let first = begin(1, "");
    let taken = service.accept();
    let mut leaves = begin(2, "");
    assert!(eventually(ms(10_000), || queued(2)));
    leaves.shutdown(Shutdown::Write).expect("open");
    assert_eq!(read_to_any_end(&mut leaves), b"");
    let stays = begin(3, "print this");
    assert!(eventually(ms(10_000), || queued(3)));
    stays.shutdown(Shutdown::Write).expect("open");
    drop((first, taken));
    let mut got = String::new();
    let mut taken = service.accept();
    taken.read_to_string(&mut got).expect("all of it");
    assert_eq!(got, "print this");
    drop((taken, stays));
    proxy.expect_active(0);
    let metrics = proxy.metrics();
    assert_eq!(closed(&metrics, "connect_cancelled"), 1.0);
}

/// Access lists and the limits of a source are about the client, not about the load balancer.
fn the_client_of_the_header_is_admitted_or_not() {
    let (service, upstream) = Service::start();
    let flags = [
        "--access-deny",
        "192.0.2.0/24",
        "--max-connections-per-source",
        "1",
    ];
    let proxy = Pulsegate::start(upstream, &[IN, &flags].concat());
    let begin = |client: &str| {
        let mut stream = connect(proxy.address);
        let header = format!("PROXY TCP4 {client} 10.0.0.1 4711 443\r\n");
        stream.write_all(header.as_bytes()).expect("sent");
        stream
    };
    let sessions = ["198.51.100.1", "198.51.100.2"].map(|client| (begin(client), service.accept()));
    for refused in ["192.0.2.7", "198.51.100.1"] {
        assert_eq!(read_to_any_end(&mut begin(refused)), b"", "{refused}");
    }
    service.expect_nobody();
    let metrics = proxy.metrics();
    for reason in ["access_denied", "source_connections"] {
        let labels = [("reason", reason)];
        let refused = metrics.value("pulsegate_connections_rejected_total", &labels);
        assert_eq!(refused, 1.0, "{reason}");
    }
    let log = proxy.log();
    assert!(
        log.contains("client=192.0.2.7 reason=\"access_denied\""),
        "{log}"
    );
    assert!(!log.contains("queued_ms"), "{log}");
    drop(sessions);
    proxy.expect_active(0);
    assert!(!proxy.log().contains("queued_ms"));
}

const HEADER: &str = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n";

fn clients_refused_by_their_header_are_counted_once() {
    let (service, upstream) = Service::start();
    let proxy = Pulsegate::start(
        upstream,
        &[IN, &["--max-connections-per-source", "1"]].concat(),
    );
    let begin = || {
        let mut stream = connect(proxy.address);
        stream.write_all(HEADER.as_bytes()).expect("sent");
        stream
    };
    let holder = begin();
    let taken = service.accept();
    for _ in 0..3 {
        assert_eq!(read_to_any_end(&mut begin()), b"");
    }
    proxy.expect_active(1);
    let metrics = proxy.metrics();
    let all = metrics.excerpt("pulsegate_");
    let count = |name: &str| metrics.value(&format!("pulsegate_{name}_total"), &[]);
    assert_eq!(count("connections_accepted"), 4.0, "{all}");
    assert_eq!(count("connections_rejected"), 3.0, "{all}");
    let labels = [("reason", "source_connections")];
    let refused = metrics.value("pulsegate_connections_rejected_total", &labels);
    assert_eq!(refused, 3.0, "{all}");
    assert_eq!(count("connections_closed"), 0.0, "{all}");
    assert_eq!(count("resets_sent"), 3.0, "{all}");
    drop((holder, taken));
    proxy.expect_active(0);
    let metrics = proxy.metrics();
    let ended = metrics.value("pulsegate_connections_closed_total", &[]);
    assert_eq!(ended, 1.0, "{}", metrics.excerpt("pulsegate_"));
}

/// With `dial: first_byte`, whether there is a header or not: the others wait, and one of them has the place
/// of the first one that leaves.
fn silent_clients_hold_places() {
    for (flags, header, source) in [(&[][..], "", "127.0.0.1"), (IN, HEADER, "192.0.2.7")] {
        let (service, upstream) = Service::start();
        let own = ["--dial", "first_byte", "--max-connections", "2"];
        let proxy = Pulsegate::start(upstream, &[flags, &own, &["--on-full", "queue"]].concat());
        let begin = || {
            let mut client = connect(proxy.address);
            client.write_all(header.as_bytes()).expect("sent");
            client
        };
        let queued = |n: f64| {
            let queued = || proxy.metrics().value("pulsegate_connections_queued", &[]);
            assert!(eventually(ms(30_000), || queued() == n), "{}", queued());
        };
        let mut holders = [begin(), begin()];
        // Their headers have been read.
        let known = || {
            let (_, list) = proxy.get("/connections").expect("an answer");
            list.matches(&format!("\"peer\":\"{source}:")).count()
        };
        assert!(eventually(ms(30_000), || known() == 2));
        let waiting: Vec<_> = (0..20).map(|_| begin()).collect();
        proxy.expect_active(22);
        queued(20.0);
        service.expect_nobody();
        service.0.set_nonblocking(false).expect("an option");
        holders[0].shutdown(Shutdown::Write).expect("open");
        assert_eq!(read_to_any_end(&mut holders[0]), b"");
        queued(19.0);
        assert_eq!(closed(&proxy.metrics(), "no_bytes"), 1.0);
        drop((holders, waiting));
        proxy.expect_active(0);
    }
}

/// At once, as if it had been dialled for.
fn a_silent_client_is_replaced() {
    let (service, upstream) = Service::start();
    let own = ["--max-connections", "2", "--on-full", "replace"];
    let flags = ["--dial", "first_byte", "--queue-timeout", "60s"];
    let proxy = Pulsegate::start(upstream, &[flags, own].concat());
    let mut clients: Vec<_> = (0..20).map(|_| connect(proxy.address)).collect();
    let settled = || {
        let metrics = proxy.metrics();
        closed(&metrics, "replaced") == 18.0
            && metrics.value("pulsegate_connections_active", &[]) == 2.0
            && metrics.value("pulsegate_connections_queued", &[]) == 0.0
    };
    let said = || proxy.metrics().excerpt("pulsegate_connections");
    assert!(eventually(ms(30_000), settled), "{}", said());
    service.expect_nobody();
    service.0.set_nonblocking(false).expect("an option");
    let mut last = connect(proxy.address);
    last.write_all(b"served").expect("sent");
    let mut got = [0; 6];
    service.accept().read_exact(&mut got).expect("its bytes");
    assert_eq!(&got, b"served");
    assert_eq!(closed(&proxy.metrics(), "replaced"), 19.0);
    clients.clear();
}

/// Whether there is a header or not, and whether the byte comes with it or later.
fn a_service_is_dialled_at_the_first_byte() {
    for (flags, header) in [(&[][..], ""), (IN, HEADER)] {
        let (service, upstream) = Service::start();
        let dial = ["--dial", "first_byte", "--connect-timeout", "60s"];
        let proxy = Pulsegate::start(upstream, &[flags, &dial].concat());
        let begin = |payload: &str| {
            let mut client = connect(proxy.address);
            let bytes = header.to_owned() + payload;
            client.write_all(bytes.as_bytes()).expect("sent");
            client
        };
        // Checks: one that leaves by FIN, one by RST.
        let mut checker = begin("");
        checker.shutdown(Shutdown::Write).expect("open");
        assert_eq!(read_to_any_end(&mut checker), b"");
        let checker = begin("");
        proxy.expect_active(1);
        socket2::SockRef::from(&checker)
            .set_linger(Some(ms(0)))
            .expect("an option");
        drop(checker);
        proxy.expect_active(0);
        service.expect_nobody();
        service.0.set_nonblocking(false).expect("an option");
        // At once, and later.
        let mut late = begin("");
        let mut early = begin("early");
        let mut got = [0; 5];
        service.accept().read_exact(&mut got).expect("its bytes");
        assert_eq!(&got, b"early");
        late.write_all(b"later").expect("sent");
        let mut taken = service.accept();
        taken.read_exact(&mut got).expect("its bytes");
        assert_eq!(&got, b"later");
        taken.write_all(b"hello").expect("sent");
        late.read_exact(&mut got).expect("an answer");
        assert_eq!(read_to_any_end(&mut early), b"");
        drop((late, early, taken));
        proxy.expect_active(0);
        let metrics = proxy.metrics();
        let ends = metrics.excerpt("pulsegate_connections_closed");
        assert_eq!(closed(&metrics, "no_bytes"), 1.0, "{ends}");
        assert_eq!(closed(&metrics, "connect_cancelled"), 1.0, "{ends}");
    }
}

fn clients_that_send_nothing_are_ended() {
    for dial in ["accept", "first_byte"] {
        for (flags, header) in [(&[][..], ""), (IN, HEADER)] {
            let (service, upstream) = Service::start();
            let own = ["--dial", dial, "--first-byte-timeout", "1s"];
            let proxy = Pulsegate::start(upstream, &[flags, &own].concat());
            let mut mute = connect(proxy.address);
            mute.write_all(header.as_bytes()).expect("sent");
            // One that has sent something may be silent from then on.
            let mut other = connect(proxy.address);
            other.write_all(header.as_bytes()).expect("sent");
            other.write_all(b"a").expect("sent");
            assert_eq!(read_to_any_end(&mut mute), b"");
            proxy.expect_active(1);
            let metrics = proxy.metrics();
            assert_eq!(closed(&metrics, "first_byte_timeout"), 1.0, "{dial}");
            drop((other, service));
        }
    }
}
