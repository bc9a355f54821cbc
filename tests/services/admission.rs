//! Who is let in: access lists, sessions and rates of single sources. Every address of 127.0.0.0/8 is a source
//! of its own.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use socket2::{Domain, Socket, Type};

use crate::Case;
use crate::many;
use crate::process::{Folder, free_address};
use crate::pulsegate::{Pulsegate, closed};
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new(
        "the_example_of_the_documentation",
        &[],
        the_example_of_the_documentation,
    ),
    Case::new(
        "a_refused_client_is_not_dialled_for",
        &[],
        a_refused_client_is_not_dialled_for,
    ),
    Case::new(
        "ipv4_clients_of_a_socket_of_ipv6",
        &[],
        ipv4_clients_of_a_socket_of_ipv6,
    ),
    Case::new(
        "a_source_replaces_its_own_session",
        &[],
        a_source_replaces_its_own_session,
    ),
    Case::new(
        "a_live_session_keeps_its_source_waiting",
        &[],
        a_live_session_keeps_its_source_waiting,
    ),
    Case::new(
        "a_source_that_floods_is_limited",
        &[],
        a_source_that_floods_is_limited,
    ),
];

/// The address that ends in `last`.
fn source(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

/// Connects as a client of this address.
fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .bind(&SocketAddr::from((source, 0)).into())
        .expect("bind");
    socket.connect(&to.into()).expect("connect");
    let stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(ms(30_000)))
        .expect("an option");
    stream
}

/// Whether the client is served: its byte comes back. Else it was reset.
#[track_caller]
fn is_served(mut client: &TcpStream) -> bool {
    let sent = client.write_all(b"x");
    let answer = sent.and_then(|()| client.read(&mut [0; 8]));
    match answer {
        Ok(count) => {
            assert_eq!(count, 1, "it was closed in order");
            true
        }
        Err(error) => {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "{error}"
            );
            false
        }
    }
}

fn rejected(proxy: &Pulsegate, reason: &str) -> f64 {
    let metrics = proxy.metrics();
    metrics.value(
        "pulsegate_connections_rejected_total",
        &[("reason", reason)],
    )
}

fn the_example_of_the_documentation() {
    let runtime = many::runtime();
    let page = fs::read_to_string("docs/ADMISSION.md").expect("the page");
    let (_, example) = page.split_once("```yaml\n").expect("an example");
    let (example, _) = example.split_once("```").expect("its end");
    let (address, admin) = (free_address(), free_address());
    let (upstream, folder) = (many::echo(&runtime), Folder::new());
    let text = example
        .replace("127.0.0.1:9000", &address.to_string())
        .replace("127.0.0.1:8080", &upstream.to_string());
    let file = folder.join("pulsegate.yaml");
    fs::write(&file, format!("{text}admin: {{ address: \"{admin}\" }}\n")).expect("write");
    let proxy = Pulsegate::start_config(&file, address, admin);

    assert!(!is_served(&connect_from(source(66), address)));
    assert_eq!(rejected(&proxy, "access_denied"), 1.0);
    // Two sessions of a source; the next one waits for a second, since both are alive.
    let holders = [(); 2].map(|()| connect_from(source(1), address));
    assert!(holders.iter().all(is_served));
    assert!(
        is_served(&connect_from(source(2), address)),
        "another source"
    );
    assert!(!is_served(&connect_from(source(1), address)));
    assert_eq!(closed(&proxy.metrics(), "queue_timeout"), 1.0);
    assert!(holders.iter().all(is_served), "they were asked, no more");
    drop(holders);
    proxy.expect_active(0);
    // The rate acts after ten at once.
    let _flood: Vec<_> = (0..60).map(|_| connect_from(source(3), address)).collect();
    assert!(eventually(ms(10_000), || rejected(&proxy, "source_rate") > 0.0));
}

/// Neither by the list nor by its source's limits; and the log has who it was, once.
fn a_refused_client_is_not_dialled_for() {
    let service = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = service.local_addr().expect("bound");
    let flags = [
        "--access-deny",
        "127.0.0.0/28",
        "--max-connections-per-source",
        "1",
        "--source-prefix-ipv4",
        "28",
    ];
    let proxy = Pulsegate::start(upstream, &flags);
    for last in [1, 7, 15] {
        let mut client = connect_from(source(last), proxy.address);
        assert_eq!(
            client.read(&mut [0]).expect_err("an abort").kind(),
            ErrorKind::ConnectionReset
        );
    }
    assert_eq!(rejected(&proxy, "access_denied"), 3.0);
    let holder = connect_from(source(17), proxy.address);
    let (session, _) = service.accept().expect("the first client that may come");
    // Of the same 16 addresses.
    let mut second = connect_from(source(30), proxy.address);
    assert!(second.read(&mut [0]).is_err());
    assert_eq!(rejected(&proxy, "source_connections"), 1.0);
    service.set_nonblocking(true).expect("an option");
    let dialled = service.accept();
    assert!(dialled.is_err(), "{dialled:?}");
    drop((holder, session));
    proxy.expect_active(0);
    let log = proxy.log();
    assert_eq!(log.matches("reason=\"access_denied\"").count(), 1, "{log}");
    assert!(log.contains("client=127.0.0.1"), "{log}");
    assert_eq!(
        log.matches("reason=\"source_connections\"").count(),
        1,
        "{log}"
    );
}

fn ipv4_clients_of_a_socket_of_ipv6() {
    let runtime = many::runtime();
    let (address, admin) = (free_address(), free_address());
    let (upstream, folder) = (many::echo(&runtime), Folder::new());
    let file = folder.join("pulsegate.yaml");
    let text = format!(
        "listeners:
  - address: \"[::]:{}\"
    upstream: {{ address: \"{upstream}\" }}
    access: {{ allow: [127.0.0.8/29, \"::1\"] }}
admin: {{ address: \"{admin}\" }}
",
        address.port()
    );
    fs::write(&file, text).expect("write");
    let proxy = Pulsegate::start_config(&file, address, admin);
    assert!(is_served(&connect_from(source(9), address)));
    assert!(!is_served(&connect_from(source(7), address)));
    if let Ok(client) = TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())) {
        assert!(is_served(&client));
    }
    assert_eq!(rejected(&proxy, "access_denied"), 1.0);
}

/// The older one of the same source goes, and nobody else, however long quiet.
fn a_source_replaces_its_own_session() {
    let runtime = many::runtime();
    let flags = ["--max-connections-per-source", "1", "--on-full", "replace"];
    let proxy = Pulsegate::start(many::echo(&runtime), &flags);
    let other = connect_from(source(1), proxy.address);
    assert!(is_served(&other));
    let mut last = connect_from(source(2), proxy.address);
    assert!(is_served(&last));
    for replaced in 1..=5 {
        let next = connect_from(source(2), proxy.address);
        assert!(is_served(&next));
        assert!(!is_served(&last), "the older one");
        assert_eq!(closed(&proxy.metrics(), "replaced"), f64::from(replaced));
        last = next;
    }
    assert!(is_served(&other));
    drop((last, other));
    proxy.expect_active(0);
}

/// It is asked, answers, and stays; a newcomer waits until it ends, others do not.
fn a_live_session_keeps_its_source_waiting() {
    let runtime = many::runtime();
    let flags = [
        "--max-connections-per-source",
        "1",
        "--max-connections",
        "3",
        "--on-full",
        "verify",
        "--detect-within",
        "60s",
    ];
    let proxy = Pulsegate::start(many::echo(&runtime), &flags);
    let holder = connect_from(source(1), proxy.address);
    assert!(is_served(&holder));
    let waiting = connect_from(source(1), proxy.address);
    let queued = || proxy.metrics().value("pulsegate_connections_queued", &[]);
    assert!(eventually(ms(10_000), || queued() == 1.0));
    // The one that waits has no place yet: two are left.
    let others = [2, 3].map(|last| connect_from(source(last), proxy.address));
    assert!(others.iter().all(is_served));
    thread::sleep(ms(3000));
    assert!(is_served(&holder), "asked for three seconds");
    assert_eq!(queued(), 1.0);
    drop(holder);
    assert!(is_served(&waiting));
    drop((waiting, others));
    proxy.expect_settled();
}

fn a_source_that_floods_is_limited() {
    let runtime = many::runtime();
    let flags = ["--rate-per-source", "6/m", "--burst-per-source", "5"];
    let proxy = Pulsegate::start(many::echo(&runtime), &flags);
    let flood = || (0..200).filter(|_| is_served(&connect_from(source(1), proxy.address)));
    assert_eq!(flood().count(), 5);
    assert_eq!(rejected(&proxy, "source_rate"), 195.0);
    let others = (2..22).filter(|last| is_served(&connect_from(source(*last), proxy.address)));
    assert_eq!(others.count(), 20, "every source has a rate of its own");
    assert!(flood().count() <= 3, "a connection in 10 s");
}
