//! The laboratory itself: a cut must look like a host that vanished, and like nothing else.

use std::fs;
use std::net::SocketAddr;
use std::thread;

use crate::case::PROMPT;
use crate::support::{
    Direction, Endpoint, Host, Net, Options, Service, Speech, Test, eventually, ms,
};
use crate::tests;

pub const TESTS: &[Test] = tests![
    a_cut_is_silent_and_heals_without_loss,
    a_one_way_cut_lets_the_other_direction_pass,
];

const PORT: u16 = 7000;

/// A connection from the client's host straight to a listener in the proxy's namespace.
fn direct(net: &Net) -> (Endpoint, Endpoint) {
    let address = SocketAddr::from((net.proxy_address(Host::Client), PORT));
    let service =
        Service::start(&net.proxy, address, Speech::Plain, Options::default()).expect("listen");
    let client = Endpoint::connect(
        net.host(Host::Client),
        address,
        Speech::Plain,
        Options::default(),
    );
    let (client, service) = (client.expect("connect"), service.next());
    client.send(100);
    assert!(service.wait_received(100, PROMPT));
    (client, service)
}

/// Frames received by the client's end of its link.
fn frames_received(net: &Net) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/dev");
    let table = net
        .host(Host::Client)
        .run(read)
        .expect("enter")
        .expect("read");
    let line = table.lines().find_map(|l| l.trim().strip_prefix("eth0:"));
    let frames = line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok());
    frames.expect("a count of frames")
}

/// No error, no ARP, no unreachable: the sender's kernel believes that it transmits.
fn a_cut_is_silent_and_heals_without_loss() {
    let net = Net::new();
    let (client, service) = direct(&net);
    net.cut(Host::Client);
    let before = frames_received(&net);
    service.send(5000);
    client.send(5000);
    thread::sleep(ms(2500));
    assert!(
        client.is_open() && service.is_open(),
        "a cut must not be noticed"
    );
    assert_eq!((client.received(), service.received()), (0, 100));
    assert!(
        frames_received(&net) > before,
        "frames leave the sender and are not taken"
    );
    let arp = || fs::read_to_string("/proc/thread-self/net/arp");
    let table = net.proxy.run(arp).expect("enter").expect("read");
    // 0x6: permanent. Nobody has asked for another address.
    assert_eq!(table.matches(" 0x6 ").count(), 3, "{table}");
    net.heal(Host::Client);
    assert!(client.wait_received(5000, ms(15_000)));
    assert!(service.wait_received(5100, ms(15_000)));
    assert_eq!((client.corrupt_at(), service.corrupt_at()), (None, None));
}

fn a_one_way_cut_lets_the_other_direction_pass() {
    let net = Net::new();
    let (client, service) = direct(&net);
    net.cut_one_way(Host::Client, Direction::ToNear);
    service.send(1000);
    assert!(
        client.wait_received(1000, PROMPT),
        "towards the client nothing is cut"
    );
    // What the client acknowledges does not arrive.
    thread::sleep(ms(500));
    client.send(1000);
    thread::sleep(ms(500));
    assert_eq!(service.received(), 100);
    net.heal(Host::Client);
    assert!(eventually(ms(15_000), || service.received() == 1100));
}
