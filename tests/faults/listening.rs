//! What waits in front of pulsegate, as its gauges show it.

use std::net::TcpStream;
use std::sync::Arc;
use std::thread;

use rustix::process::Signal;

use crate::case::{Case, PROMPT};
use crate::support::{Direction, Host, LISTENER, Metrics, Net, Proxy, Test, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    handshakes_in_progress_are_counted,
    clients_that_wait_to_be_accepted_are_counted,
    clients_that_find_the_queue_full_are_counted,
];

const NEWCOMERS: usize = 3;
/// So many that they cannot all be accepted before the scrape is answered.
const CROWD: usize = 300;
const ATTEMPTS: usize = 20;

/// In front of a host where nothing listens: a client costs next to nothing.
fn without_service(flags: &[&str]) -> Case {
    let net = Arc::new(Net::new());
    let upstream = net.socket(Host::Service, 9009);
    Case::before(net, upstream, flags)
}

/// The clients' last word is missing, because they never hear the first one.
fn handshakes_in_progress_are_counted() {
    let case = without_service(&[]);
    let in_progress = || case.proxy.metrics().value("pulsegate_netns_syn_recv", &[]);
    assert_eq!(in_progress(), 0.0);
    case.cut_one_way(Host::Client, Direction::ToFar);
    let (client, entrance) = (case.net.host(Host::Client), case.net.listener(Host::Client));
    thread::scope(|scope| {
        for _ in 0..NEWCOMERS {
            scope.spawn(|| {
                let connect = || TcpStream::connect_timeout(&entrance, PROMPT * 4);
                // Whether it succeeds in the end is the affair of others.
                let _ = client.run(connect).expect("enter");
            });
        }
        let all = eventually(PROMPT * 2, || in_progress() == NEWCOMERS as f64);
        let seen = in_progress();
        case.net.heal(Host::Client);
        assert!(all, "{seen} handshakes");
    });
    // The next SYN-ACK is up to 16 s away.
    assert!(eventually(PROMPT * 5, || in_progress() == 0.0));
}

/// Scrapes what has happened while the process was stopped, at the very moment it goes on.
fn scraped_on_waking(proxy: &Proxy) -> Metrics {
    thread::scope(|scope| {
        let scrape = scope.spawn(|| proxy.metrics());
        thread::sleep(ms(200));
        proxy.signal(Signal::CONT);
        scrape.join().expect("scraped")
    })
}

fn clients_that_wait_to_be_accepted_are_counted() {
    let case = without_service(&["--backlog", "1000", "--workers", "2"]);
    let gauge = |metrics: &Metrics, what: &str| {
        let name = format!("pulsegate_listen_queue_{what}");
        metrics.value(&name, &[("listener", LISTENER)])
    };
    let entrance = case.net.listener(Host::Client);
    let before = case.proxy.metrics();
    assert_eq!(gauge(&before, "length"), 0.0);
    assert_eq!(gauge(&before, "limit"), 2000.0);
    // The workers may still be faster than the scrape.
    let seen = (0..ATTEMPTS).any(|_| {
        case.proxy.stop();
        let crowd = || -> Vec<_> {
            let connect = |_| TcpStream::connect(entrance).expect("room in the queue");
            (0..CROWD).map(connect).collect()
        };
        let crowd = case.net.host(Host::Client).run(crowd).expect("enter");
        let waiting = gauge(&scraped_on_waking(&case.proxy), "length");
        assert!(waiting <= CROWD as f64, "{waiting} of {CROWD}");
        drop(crowd);
        case.expect_nothing_left();
        waiting > 0.0
    });
    assert!(seen, "nobody was ever seen to wait");
    assert_eq!(gauge(&case.proxy.metrics(), "length"), 0.0);
}

/// The kernel drops them without a word to pulsegate; it counts them.
fn clients_that_find_the_queue_full_are_counted() {
    let case = without_service(&["--backlog", "4", "--workers", "1"]);
    let overflows =
        |metrics: &Metrics| metrics.value("pulsegate_netns_listen_overflows_total", &[]);
    assert_eq!(overflows(&case.proxy.metrics()), 0.0);
    case.proxy.stop();
    let entrance = case.net.listener(Host::Client);
    let connect = || TcpStream::connect_timeout(&entrance, ms(500)).ok();
    let connect_all = || (0..7).filter_map(|_| connect()).collect::<Vec<_>>();
    let connected = case.net.host(Host::Client).run(connect_all).expect("enter");
    assert_eq!(connected.len(), 5, "the queue holds one more than it says");
    let metrics = scraped_on_waking(&case.proxy);
    let all = metrics.excerpt("pulsegate_netns");
    assert!(overflows(&metrics) >= 2.0, "{all}");
    let drops = metrics.value("pulsegate_netns_listen_drops_total", &[]);
    assert!(drops >= 2.0, "{all}");
}
