//! A service at several places: which of them a session gets, and what becomes of it when some fail.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::Case;
use crate::process::{Folder, free_address, read_to_any_end};
use crate::pulsegate::{Pulsegate, closed, connect};
use crate::redis::{Client, Redis};
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new(
        "upstreams_of_the_manual_share_sessions_and_fail_over",
        &["redis-server"],
        upstreams_of_the_manual_share_sessions_and_fail_over,
    ),
    Case::new(
        "upstreams_where_sessions_fail_are_ejected_for_a_while",
        &[],
        upstreams_where_sessions_fail_are_ejected_for_a_while,
    ),
    Case::new(
        "upstreams_that_are_unix_sockets_end_only_by_themselves",
        &["redis-server"],
        upstreams_that_are_unix_sockets_end_only_by_themselves,
    ),
    Case::new(
        "upstreams_that_are_unix_sockets_have_the_clocks_of_payload",
        &["redis-server"],
        upstreams_that_are_unix_sockets_have_the_clocks_of_payload,
    ),
    Case::new(
        "upstreams_that_are_unix_sockets_are_waited_for",
        &[],
        upstreams_that_are_unix_sockets_are_waited_for,
    ),
    Case::new(
        "upstreams_get_what_was_read_before_another_refused",
        &[],
        upstreams_get_what_was_read_before_another_refused,
    ),
    Case::new(
        "upstreams_a_client_keeps_its_endpoint",
        &[],
        upstreams_a_client_keeps_its_endpoint,
    ),
    Case::new(
        "upstreams_that_flap_lose_no_session",
        &[],
        upstreams_that_flap_lose_no_session,
    ),
];

const PROMPT: Duration = Duration::from_secs(30);

/// pulsegate from a file in a folder of its own. `{upstream}` is what the listener has as its upstream.
struct Rig {
    proxy: Pulsegate,
    _folder: Folder,
}

impl Rig {
    fn with(upstream: &str) -> Self {
        let address = "0.0.0.0:6379";
        let listener = format!("{{ name: db, address: '{address}', upstream: {{ {upstream} }} }}");
        Self::of(&format!("listeners: [{listener}]\n"), address)
    }

    /// From the text of a file whose listener has this address, which is replaced by a free one.
    fn of(text: &str, its_address: &str) -> Self {
        let (folder, address, admin) = (Folder::new(), free_address(), free_address());
        let text = text.replace(its_address, &address.to_string());
        let file = folder.join("pulsegate.yaml");
        fs::write(&file, format!("{text}\nadmin: {{ address: '{admin}' }}\n")).expect("written");
        Self {
            proxy: Pulsegate::start_config(&file, address, admin),
            _folder: folder,
        }
    }
}

fn endpoints(addresses: &[SocketAddr], balance: &str) -> String {
    let item = |address: &SocketAddr| format!("{{ address: '{address}' }}");
    let items: Vec<_> = addresses.iter().map(item).collect();
    format!("endpoints: [{}], balance: {balance}", items.join(", "))
}

/// The first example in a document.
fn example(document: &str) -> String {
    let path = format!("{}/{document}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).expect("a document");
    let (_, example) = text.split_once("```yaml\n").expect("an example");
    example.split_once("```").expect("its end").0.to_owned()
}

/// The port of the Redis that a client talks to.
fn port_of(client: &mut Client) -> String {
    client.send(&["CONFIG", "GET", "port"]);
    client.array().remove(1)
}

fn upstreams_of_the_manual_share_sessions_and_fail_over() {
    let (first, second) = (Redis::start(), Redis::start());
    let text = example("docs/UPSTREAMS.md")
        .replace("10.0.0.21:6379", &first.address.to_string())
        .replace("10.0.0.22:6379", &second.address.to_string());
    let rig = Rig::of(&text, "0.0.0.0:6379");
    let mut clients: Vec<_> = (0..6).map(|_| Client::connect(rig.proxy.address)).collect();
    let ports: Vec<_> = clients.iter_mut().map(port_of).collect();
    let at_first = first.address.port().to_string();
    let (of_first, of_second): (Vec<_>, Vec<_>) = ports.iter().partition(|p| **p == at_first);
    assert_eq!((of_first.len(), of_second.len()), (3, 3), "{ports:?}");

    let address = first.address;
    drop(first);
    // Fewer than eject it.
    for _ in 0..4 {
        let mut client = Client::connect(rig.proxy.address);
        assert_eq!(port_of(&mut client), second.address.port().to_string());
    }
    let back = Redis::start_at(address);
    let mut client = Client::connect(rig.proxy.address);
    assert_eq!(
        port_of(&mut client),
        back.address.port().to_string(),
        "the fewest sessions"
    );
    drop((client, clients));
    rig.proxy.expect_active(0);
}

/// The figures of an endpoint.
fn figure(rig: &Rig, metric: &str, endpoint: SocketAddr) -> f64 {
    let name = format!("pulsegate_endpoint_{metric}");
    let endpoint = endpoint.to_string();
    rig.proxy.metrics().value(&name, &[("endpoint", &endpoint)])
}

fn upstreams_where_sessions_fail_are_ejected_for_a_while() {
    let (dead, alive) = (free_address(), Greeter::start(free_address()));
    let upstream = endpoints(&[dead, alive.address], "first_available");
    let rig = Rig::with(&format!("{upstream}, ejection: {{ failures: 3, for: 1s }}"));
    let session = || greeting(&connect(rig.proxy.address));
    for _ in 0..3 {
        assert_eq!(session(), alive.address.port());
    }
    let listed = || {
        let (status, body) = rig.proxy.get("/upstreams").expect("an answer");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")[0].clone()
    };
    assert_eq!(listed()["endpoint"], dead.to_string());
    assert_eq!(listed()["consecutive_failures"], 3);
    assert_eq!(figure(&rig, "ejections_total", dead), 1.0);
    // While it is ejected nobody tries it.
    assert_eq!(session(), alive.address.port());
    let tried = || figure(&rig, "connects_total", dead);
    assert!(
        eventually(PROMPT, || listed()["state"] == "up"),
        "{}",
        listed()
    );
    let before = tried();
    assert_eq!(session(), alive.address.port());
    assert_eq!(tried(), before + 1.0, "it is tried again");
    assert_eq!(
        figure(&rig, "ejections_total", dead),
        2.0,
        "one failure is enough"
    );

    let back = Greeter::start(dead);
    assert!(eventually(PROMPT, || session() == back.address.port()));
    let is_good = || listed()["consecutive_failures"] == 0 && figure(&rig, "up", dead) == 1.0;
    assert!(eventually(PROMPT, is_good), "{}", listed());
    let active = |endpoint| figure(&rig, "active_connections", endpoint);
    let held = connect(rig.proxy.address);
    assert_eq!(greeting(&held), dead.port());
    assert!(eventually(PROMPT, || active(dead) == 1.0));
    drop((held, alive));
    drop(back);
    // With every endpoint ejected each is tried.
    rig.proxy.expect_active(0);
    for _ in 0..5 {
        // It may be reset before its connect returns.
        if let Ok(mut refused) = TcpStream::connect(rig.proxy.address) {
            read_to_any_end(&mut refused);
        }
    }
    let back = Greeter::start(dead);
    assert_eq!(session(), back.address.port());
}

/// What a client has sent while it waited for a place is read as it is dialled for.
fn upstreams_get_what_was_read_before_another_refused() {
    let (refuses, listener) = (
        free_address(),
        TcpListener::bind("127.0.0.1:0").expect("bound"),
    );
    let serves = listener.local_addr().expect("bound");
    let upstream = endpoints(&[refuses, serves], "first_available");
    let one_place = "limits: { max_connections: 1, on_full: queue";
    let rig = Rig::with(&format!("{upstream} }}, {one_place}"));
    let first = connect(rig.proxy.address);
    let (held, _) = listener.accept().expect("a session");
    let mut second = connect(rig.proxy.address);
    second.write_all(b"hello").expect("sent");
    let waits = || {
        rig.proxy
            .metrics()
            .value("pulsegate_connections_queued", &[])
            == 1.0
    };
    assert!(eventually(PROMPT, waits));
    drop((first, held));
    let (mut service, _) = listener.accept().expect("the next session");
    let mut got = [0; 5];
    service.read_exact(&mut got).expect("what was sent");
    assert_eq!(&got, b"hello");
}

/// Nobody is asked, and nobody judged: the kernel tells of a process that closes or dies.
fn upstreams_that_are_unix_sockets_end_only_by_themselves() {
    let redis = Redis::start();
    let flags = ["--detect-within", "2s", "--probe-interval", "1s"];
    let proxy = Pulsegate::start(redis.unix(), &flags);
    let mut client = Client::connect(proxy.address);
    let ping = |client: &mut Client| {
        client.send(&["PING"]);
        assert_eq!(client.line(), "+PONG");
    };
    ping(&mut client);
    thread::sleep(ms(6000));
    ping(&mut client);
    let (_, listed) = proxy
        .get("/connections?format=text&wide=true")
        .expect("an answer");
    assert!(listed.contains("UNIX  "), "{listed}");
    assert!(!listed.contains("upstream_dead"), "{listed}");
    let (_, verified) = proxy.post("/verify").expect("an answer");
    assert!(verified.contains("\"alive\":1"), "{verified}");
    let (_, upstreams) = proxy.get("/upstreams").expect("an answer");
    assert!(upstreams.contains(&redis.unix()), "{upstreams}");
    drop(redis);
    // Redis says FIN, which ends a session once the client has answered it.
    let left = read_to_any_end(&mut client.reader);
    assert_eq!(left, b"");
    drop(client);
    let metrics = proxy.expect_settled();
    let ended = closed(&metrics, "finished") + closed(&metrics, "upstream_reset");
    assert_eq!(ended, 1.0, "{}", metrics.excerpt("pulsegate_connections"));
    let errors = metrics.value("pulsegate_socket_option_errors_total", &[]);
    assert_eq!(errors, 0.0);
}

fn upstreams_that_are_unix_sockets_have_the_clocks_of_payload() {
    let redis = Redis::start();
    let flags = ["--detect-within", "5s", "--idle-timeout", "1500ms"];
    let proxy = Pulsegate::start(redis.unix(), &flags);
    let mut quiet = Client::connect(proxy.address);
    let mut busy = Client::connect(proxy.address);
    for _ in 0..8 {
        busy.send(&["PING"]);
        assert_eq!(busy.line(), "+PONG");
        thread::sleep(ms(500));
    }
    assert_eq!(read_to_any_end(&mut quiet.reader), b"");
    assert_eq!(closed(&proxy.metrics(), "idle_timeout"), 1.0);
    proxy.expect_active(1);
    drop(proxy);

    let flags = ["--detect-within", "5s", "--first-response-timeout", "1s"];
    let proxy = Pulsegate::start(redis.unix(), &flags);
    let mut waits = Client::connect(proxy.address);
    waits.send(&["BLPOP", "queue", "0"]);
    assert_eq!(read_to_any_end(&mut waits.reader), b"");
    assert_eq!(closed(&proxy.metrics(), "first_response_timeout"), 1.0);
}

fn upstreams_that_are_unix_sockets_are_waited_for() {
    let folder = Folder::new();
    let path = folder.join("service.sock");
    let upstream = format!("unix:{}", path.display());
    let proxy = Pulsegate::start(&upstream, &["--connect-retry", "20ms"]);
    let mut early = connect(proxy.address);
    early.write_all(b"hello").expect("sent");
    let is_tried = || {
        let text = "\"failures\":0,";
        proxy
            .get("/upstreams")
            .is_ok_and(|(_, body)| !body.contains(text))
    };
    assert!(eventually(PROMPT, is_tried));
    let listener = UnixListener::bind(&path).expect("bound");
    let (mut service, _) = listener.accept().expect("a connection");
    let mut got = [0; 5];
    service.read_exact(&mut got).expect("what was sent");
    assert_eq!(&got, b"hello");
    // A half-close is passed on both ways.
    early.shutdown(Shutdown::Write).expect("said");
    assert_eq!(service.read(&mut got).expect("FIN"), 0);
    service.write_all(b"bye").expect("sent");
    drop(service);
    assert_eq!(read_to_any_end(&mut early), b"bye");
    drop(early);
    proxy.expect_all_closed("finished", 1);
}

/// Says which one it is, to everyone, and reads until the end.
struct Greeter {
    address: SocketAddr,
    over: std::sync::Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    fn start(address: SocketAddr) -> Self {
        // The connections of the one before may be in TIME_WAIT.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&address.into()).expect("bound");
        socket.listen(64).expect("listening");
        let listener = TcpListener::from(socket);
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let mut client = client.expect("accepted");
                thread::spawn(move || {
                    let _left = client.write_all(&address.port().to_be_bytes());
                    let _ended = client.read_to_end(&mut Vec::new());
                });
            }
        });
        Self {
            address,
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// The port of the greeter that a client is connected to.
fn greeting(mut client: &TcpStream) -> u16 {
    let mut port = [0; 2];
    client.read_exact(&mut port).expect("a greeting");
    u16::from_be_bytes(port)
}

fn upstreams_a_client_keeps_its_endpoint() {
    let greeters: Vec<_> = (0..3).map(|_| Greeter::start(free_address())).collect();
    let addresses: Vec<_> = greeters.iter().map(|greeter| greeter.address).collect();
    let rig = Rig::with(&endpoints(&addresses, "source_hash"));
    let from = |host: u8| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 1, host), 0));
        socket.bind(&source.into()).expect("bound");
        socket
            .connect(&rig.proxy.address.into())
            .expect("connected");
        let client = TcpStream::from(socket);
        client
            .set_read_timeout(Some(ms(30_000)))
            .expect("an option");
        greeting(&client)
    };
    let mut used = BTreeSet::new();
    for host in 1..=20 {
        let endpoint = from(host);
        assert_eq!((from(host), from(host)), (endpoint, endpoint));
        used.insert(endpoint);
    }
    assert_eq!(used.len(), greeters.len(), "all have clients");
}

/// One of two goes and comes, never while a client connects: what its kernel had accepted then would be
/// lost with it.
fn upstreams_that_flap_lose_no_session() {
    const FOR: Duration = Duration::from_secs(4);
    let steady = Greeter::start(free_address());
    let flaps = free_address();
    let rig = Rig::with(&endpoints(&[flaps, steady.address], "round_robin"));
    let (turn, over) = (RwLock::new(()), AtomicBool::new(false));
    let sessions = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut ports = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let _nobody_goes = turn.read().expect("not poisoned");
                        ports.push(greeting(&connect(rig.proxy.address)));
                    }
                    ports
                })
            })
            .collect();
        let mut greeter = None;
        for _ in 0..FOR.as_millis() / 200 {
            {
                let _nobody_connects = turn.write().expect("not poisoned");
                greeter = match greeter.take() {
                    Some(_) => None,
                    None => Some(Greeter::start(flaps)),
                };
            }
            thread::sleep(ms(200));
        }
        over.store(true, Ordering::Relaxed);
        let ports = clients
            .into_iter()
            .flat_map(|c| c.join().expect("every session is served"));
        ports.collect::<Vec<_>>()
    });
    let at = |port: u16| sessions.iter().filter(|p| **p == port).count();
    assert!(
        at(flaps.port()) > 0 && at(steady.address.port()) > 0,
        "both are used"
    );
    rig.proxy.expect_active(0);
    let metrics = rig.proxy.metrics();
    let failures = metrics.value("pulsegate_upstream_connect_failures_total", &[]);
    assert_eq!(failures, 0.0, "each had another choice");
    assert_eq!(closed(&metrics, "connect_refused"), 0.0);
}
