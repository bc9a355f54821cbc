//! Where the upstream is: DNS names that hang, change or have dead addresses, and what else can
//! keep a connect from the service.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::case::{Case, HELLO, PROMPT, SLACK};
use crate::support::{
    Dns, End, Endpoint, Host, LISTENER, Net, Options, Proxy, Service, Speech, Test, eventually, ms,
};
use crate::tests;

pub const TESTS: &[Test] = tests![
    a_name_that_hangs_takes_nothing_from_others,
    a_name_that_hangs_does_not_keep_the_process,
    a_name_that_does_not_exist_fails_at_once,
    the_last_answer_is_used_while_dns_is_out,
    a_new_address_is_used_soon,
    sessions_stay_at_the_address_they_dialled,
    an_address_that_swallows_everything_is_passed_over,
    an_address_that_refuses_is_passed_over,
    a_name_that_lies_loses_no_session_that_has_a_choice,
    a_connection_to_itself_is_refused,
    a_way_back_to_the_listener_is_refused,
    source_ports_that_run_out_have_a_word,
    more_source_addresses_are_more_ports,
    a_service_that_is_down_is_logged_once_and_summed_up,
    descriptors_that_run_out_are_counted_and_logged_once,
];

const DESCRIPTORS: u32 = 1024;
/// The first listener has the port of [`Net::listener`].
const PORT: u16 = 8000;

/// A proxy whose listeners have these upstreams, on ports from 8000 on, beside a name server that
/// says that the service is at its address.
struct Named {
    net: Arc<Net>,
    proxy: Proxy,
    service: Service,
    dns: Dns,
}

impl Named {
    fn with(upstreams: &[&str]) -> Self {
        let net = Arc::new(Net::new());
        let service = net.serve(Options::default());
        let dns = Dns::start(&net.proxy, &[v4(net.address(Host::Service))]);
        let mut file = "admin: { address: '127.0.0.1:9900' }\nlisteners:\n".to_owned();
        for (port, upstream) in (PORT..).zip(upstreams) {
            file += &format!(
                "- {{ name: 'l{port}', address: '0.0.0.0:{port}', upstream: {{ {upstream} }} }}\n"
            );
        }
        let proxy = Proxy::start_with_dns(&net, DESCRIPTORS, &file);
        Self {
            net,
            proxy,
            service,
            dns,
        }
    }

    fn entrance(&self, from: Host, port: u16) -> SocketAddr {
        (self.net.proxy_address(from), port).into()
    }

    /// A client of a listener, served by the service at its address.
    #[track_caller]
    fn session(&self, port: u16) -> (Endpoint, Endpoint) {
        let to = self.entrance(Host::Healthy, port);
        let client = Endpoint::connect(
            self.net.host(Host::Healthy),
            to,
            Speech::Plain,
            Options::default(),
        );
        let client = client.expect("connect");
        client.send(HELLO);
        let service = self.service.next();
        assert!(service.wait_received(HELLO, PROMPT), "no greeting");
        (client, service)
    }

    fn count(&self, name: &str, port: u16, labels: &[(&str, &str)]) -> f64 {
        let listener = format!("l{port}");
        let labels = [&[("listener", listener.as_str())], labels].concat();
        self.proxy.metrics().value(name, &labels)
    }

    #[track_caller]
    fn expect_closed(&self, port: u16, reason: &str) {
        let closed = || {
            let labels = [("reason", reason)];
            self.count("pulsegate_connections_closed_total", port, &labels)
        };
        assert!(eventually(PROMPT, || closed() > 0.0), "not {reason}");
    }

    /// The access line of the only session that has ended.
    #[track_caller]
    fn access_line(&self) -> String {
        let line = || {
            let output = self.proxy.output();
            let mut lines = output.lines().filter(|l| l.contains("session ended"));
            lines.next().map(ToOwned::to_owned)
        };
        assert!(eventually(PROMPT, || line().is_some()), "no access line");
        line().expect("just seen")
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address}"),
    }
}

/// Connects, and waits for the end, again and again.
fn insist(to: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if let Ok(mut stream) = TcpStream::connect_timeout(&to, PROMPT) {
            stream.set_read_timeout(Some(PROMPT)).expect("an option");
            let _ = stream.write_all(b"hello");
            let _ = stream.read(&mut [0]);
        }
    }
}

fn a_name_that_hangs_takes_nothing_from_others() {
    const CLIENTS: usize = 300;
    let case = Named::with(&[
        "address: '10.3.0.2:9000'",
        "address: 'silent.test.:9000', connect_timeout: 500ms",
        "address: 'service.test.:9000'",
    ]);
    let over = AtomicBool::new(false);
    let to = case.entrance(Host::Client, PORT + 1);
    let (mut threads, mut descriptors) = (0, 0);
    thread::scope(|scope| {
        let crowd = || {
            thread::scope(|crowd| {
                for _ in 0..CLIENTS {
                    crowd.spawn(|| insist(to, &over));
                }
            });
        };
        let host = case.net.host(Host::Client);
        scope.spawn(move || host.run(crowd).expect("enter"));
        let failed = || {
            let labels = [("reason", "connect_failed")];
            case.count("pulsegate_connections_closed_total", PORT + 1, &labels)
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let all_failed_twice = eventually(ms(30_000), || failed() >= 2.0 * CLIENTS as f64);
            assert!(all_failed_twice, "{}", failed());
            for _ in 0..10 {
                drop(case.session(PORT));
                drop(case.session(PORT + 2));
                threads = threads.max(case.proxy.threads());
                descriptors = descriptors.max(case.proxy.descriptors());
            }
        }));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(threads <= 24, "{threads} threads");
    assert!(descriptors <= 2 * CLIENTS, "{descriptors} descriptors");
    for port in [PORT, PORT + 2] {
        let rejected = case.count("pulsegate_connections_rejected_total", port, &[]);
        let failed = case.count("pulsegate_upstream_connect_failures_total", port, &[]);
        assert_eq!((rejected, failed), (0.0, 0.0), "port {port}");
    }
    let labels = [("reason", "failed")];
    let failed = case.count(
        "pulsegate_upstream_connect_failures_total",
        PORT + 1,
        &labels,
    );
    assert!(failed >= 2.0 * CLIENTS as f64, "{failed}");
}

/// The resolver waits 10 s for an answer.
fn a_name_that_hangs_does_not_keep_the_process() {
    let mut case = Named::with(&["address: 'silent.test.:9000', connect_timeout: 500ms"]);
    assert!(eventually(PROMPT, || case.dns.asked() > 0));
    let client = case.net.dial(Host::Healthy, Options::default());
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    case.expect_closed(PORT, "connect_failed");
    let line = case.access_line();
    assert!(line.contains("upstream_name=silent.test.:9000"), "{line}");
    case.proxy.signal(Signal::TERM);
    let since = Instant::now();
    let status = case.proxy.wait_exit(PROMPT);
    let took = since.elapsed();
    assert!(status.success() && took < ms(1000) + SLACK, "{took:?}");
    let output = case.proxy.output();
    assert!(output.contains("drained"), "the log is complete:\n{output}");
}

fn a_name_that_does_not_exist_fails_at_once() {
    let case = Named::with(&["address: 'nobody.test.:9000', connect_timeout: 60s"]);
    // It may be reset before it knows that it is connected.
    if let Ok(client) = case.net.try_dial(Host::Healthy, Options::default()) {
        assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    }
    case.expect_closed(PORT, "connect_failed");
}

fn the_last_answer_is_used_while_dns_is_out() {
    let case = Named::with(&["address: 'service.test.:9000', resolve_interval: 1s"]);
    drop(case.session(PORT));
    case.dns.says(None);
    let said = || case.proxy.output().matches("cannot resolve a name").count();
    assert!(eventually(ms(30_000), || said() == 1), "{}", said());
    for _ in 0..3 {
        let (client, service) = case.session(PORT);
        assert!(client.is_open() && service.is_open());
    }
    case.dns.says(Some(&[]));
    case.dns.says(Some(&[v4(case.net.address(Host::Service))]));
    let again = || case.proxy.output().contains("the name is resolved again");
    assert!(eventually(ms(30_000), again));
    assert_eq!(said(), 1);
    let line = case.access_line();
    for part in ["upstream=10.3.0.2:9000", "upstream_name=service.test.:9000"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

fn a_new_address_is_used_soon() {
    let case = Named::with(&["address: 'service.test.:9000', resolve_interval: 1s"]);
    drop(case.session(PORT));
    let elsewhere = case.net.socket(Host::Healthy, 9000);
    let host = case.net.host(Host::Healthy);
    let other = Service::start(host, elsewhere, Speech::Plain, Options::default()).expect("listen");
    case.dns.says(Some(&[v4(elsewhere.ip())]));
    let moved = || {
        let _client = case.net.dial(Host::Client, Options::default());
        other.next_within(ms(500)).is_some()
    };
    assert!(eventually(PROMPT, moved), "the old address is still used");
}

fn sessions_stay_at_the_address_they_dialled() {
    let case = Named::with(&["address: 'service.test.:9000', resolve_interval: 1s"]);
    let (client, service) = case.session(PORT);
    let elsewhere = case.net.socket(Host::Healthy, 9000);
    let host = case.net.host(Host::Healthy);
    let other = Service::start(host, elsewhere, Speech::Plain, Options::default()).expect("listen");
    case.dns.says(Some(&[v4(elsewhere.ip())]));
    let moved = || {
        let _client = case.net.dial(Host::Client, Options::default());
        other.next_within(ms(500)).is_some()
    };
    assert!(eventually(PROMPT, moved), "the old address is still used");
    client.send(HELLO);
    assert!(service.wait_received(2 * HELLO, PROMPT));
    let (_, shown) = case.proxy.get("/connections").expect("an answer");
    let old = case.net.socket(Host::Service, 9000).to_string();
    assert!(shown.contains(&old), "{shown}");
    drop((client, service));
    let lines = || {
        let output = case.proxy.output();
        let ended: Vec<_> = output
            .lines()
            .filter(|l| l.contains("session ended"))
            .collect();
        let at = |address: &str| {
            ended
                .iter()
                .any(|l| l.contains(&format!("upstream={address}")))
        };
        at(&old) && at(&elsewhere.to_string())
    };
    assert!(eventually(PROMPT, lines), "{}", case.proxy.output());
}

/// The first address is that of a host that has vanished.
fn an_address_that_swallows_everything_is_passed_over() {
    let case =
        Named::with(&["address: 'service.test.:9000', connect_timeout: 4s, resolve_interval: 1s"]);
    let [dead, alive] = [Host::Client, Host::Service].map(|host| v4(case.net.address(host)));
    case.net.cut(Host::Client);
    case.dns.says(Some(&[dead, alive]));
    // Until then the service is connected without a delay.
    let slow = || {
        let since = Instant::now();
        drop(case.session(PORT));
        since.elapsed() >= ms(200)
    };
    assert!(eventually(PROMPT, slow), "the dead address is never tried");
    let since = Instant::now();
    let (client, service) = case.session(PORT);
    assert!(since.elapsed() < ms(1000) + SLACK, "{:?}", since.elapsed());
    assert!(client.is_open() && service.is_open());
    let failed = case.count("pulsegate_upstream_connect_failures_total", PORT, &[]);
    assert_eq!(failed, 0.0);
    let (_, shown) = case.proxy.get("/connections").expect("an answer");
    assert!(shown.contains("10.3.0.2:9000"), "{shown}");
    // Without any that accepts, connect_timeout holds.
    case.dns.says(Some(&[dead, Ipv4Addr::new(10, 1, 0, 3)]));
    thread::sleep(ms(2500));
    let client = case.net.dial(Host::Healthy, Options::default());
    let since = Instant::now();
    assert_eq!(client.wait_end(ms(4000) + SLACK).1, End::Reset);
    assert!(since.elapsed() >= ms(3000), "{:?}", since.elapsed());
}

fn an_address_that_refuses_is_passed_over() {
    let case = Named::with(&["address: 'service.test.:9000', resolve_interval: 1s"]);
    let [refuses, alive] = [Host::Healthy, Host::Service].map(|host| v4(case.net.address(host)));
    case.dns.says(Some(&[refuses, alive]));
    thread::sleep(ms(2500));
    for _ in 0..5 {
        drop(case.session(PORT));
    }
    let failed = case.count("pulsegate_upstream_connect_failures_total", PORT, &[]);
    assert_eq!(failed, 0.0);
}

/// The kernel chooses local ports out of so many from now on.
fn narrow_ports(net: &Net, first: u16, last: u16) {
    let file = "/proc/sys/net/ipv4/ip_local_port_range";
    let write = || fs::write(file, format!("{first} {last}"));
    net.proxy.run(write).expect("enter").expect("a setting");
}

/// One address, 200 where nobody listens, none, no answer, and back again; beside an endpoint that serves.
fn a_name_that_lies_loses_no_session_that_has_a_choice() {
    let upstream = "endpoints: [{ address: 'service.test.:9000' }, { address: '10.3.0.2:9000' }], \
                    resolve_interval: 1s, balance: first_available";
    let case = Named::with(&[upstream]);
    let real = [v4(case.net.address(Host::Service))];
    let lies: Vec<_> = (1..=200).map(|n| Ipv4Addr::new(127, 0, 1, n)).collect();
    let answers: [Option<&[Ipv4Addr]>; 7] = [
        Some(&lies),
        Some(&[]),
        Some(&real),
        None,
        Some(&lies),
        Some(&real),
        Some(&lies),
    ];
    for answer in answers {
        let asked = case.dns.asked();
        case.dns.says(answer);
        // Both families are asked for at once, so those that come after these come behind an answer.
        let questions = if answer.is_some() { 4 } else { 2 };
        let is_known = || case.dns.asked() >= asked + questions;
        assert!(eventually(3 * PROMPT, is_known), "{answer:?}");
        drop(case.session(PORT));
    }
    let known = || {
        let metrics = case.proxy.metrics();
        let connects = [("outcome", "connected")];
        metrics.value("pulsegate_endpoint_connects_total", &connects)
    };
    assert_eq!(known(), 7.0);
    let failures = case.count("pulsegate_upstream_connect_failures_total", PORT, &[]);
    assert_eq!(failures, 0.0);
}

/// TCP connects a socket to itself where both ends have the same address.
fn a_connection_to_itself_is_refused() {
    const NOBODY: u16 = 45_000;
    let net = Arc::new(Net::new());
    let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, NOBODY));
    let case = Case::before(net, upstream, &["--detect-within", "5s"]);
    narrow_ports(&case.net, NOBODY, NOBODY + 3);
    for n in 1..=40 {
        // It may be reset before it knows that it is connected.
        let Ok(client) = case.net.try_dial(Host::Healthy, Options::default()) else {
            continue;
        };
        client.send(HELLO);
        let (_, end) = client.wait_end(PROMPT);
        assert_eq!((end, client.received()), (End::Reset, 0), "client {n}");
    }
    case.expect_closed_times("connect_refused", 40);
    let output = case.proxy.output();
    assert_eq!(output.matches("cannot connect").count(), 1, "{output}");
}

/// The file does not show that an address, or a name, is that of the proxy itself.
fn a_way_back_to_the_listener_is_refused() {
    let case = Named::with(&[
        "address: '10.2.0.1:8000'",
        "address: 'service.test.:8001', resolve_interval: 1s",
    ]);
    case.dns.says(Some(&[Ipv4Addr::LOCALHOST]));
    thread::sleep(ms(2500));
    for port in [PORT, PORT + 1] {
        let to = case.entrance(Host::Healthy, port);
        let host = case.net.host(Host::Healthy);
        let client = Endpoint::connect(host, to, Speech::Plain, Options::default());
        // It may be reset before it knows that it is connected.
        if let Ok(client) = client {
            assert_eq!(client.wait_end(PROMPT).1, End::Reset, "port {port}");
        }
        case.expect_closed(port, "connect_refused");
        let accepted = case.count("pulsegate_connections_accepted_total", port, &[]);
        assert!(accepted <= 2.0, "{accepted} connections of one client");
    }
    let output = case.proxy.output();
    assert!(output.contains("a loop"), "{output}");
}

fn source_ports_that_run_out_have_a_word() {
    const PORTS: u16 = 10;
    let case = Case::with_all_flags(&["--detect-within", "60s"], Options::default());
    narrow_ports(&case.net, 45_000, 45_000 + PORTS - 1);
    let held: Vec<_> = (0..PORTS).map(|_| case.session()).collect();
    if let Ok(client) = case.net.try_dial(Host::Healthy, Options::default()) {
        assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    }
    case.expect_counted("local_error", 1);
    let labels = [("listener", LISTENER), ("reason", "source_ports")];
    let metrics = case.proxy.metrics();
    let failed = metrics.value("pulsegate_upstream_connect_failures_total", &labels);
    assert_eq!(failed, 1.0);
    let said = || case.proxy.output().contains("ip_local_port_range");
    assert!(eventually(PROMPT, said), "{}", case.proxy.output());
    assert!(held.iter().all(|(client, _)| client.is_open()));
}

fn more_source_addresses_are_more_ports() {
    const PORTS: u16 = 10;
    let net = Arc::new(Net::new());
    let first = net.proxy_address(Host::Service);
    let second = net.add_proxy_address(Host::Service);
    let both = format!("{first},{second}");
    let flags = ["--detect-within", "60s", "--source-address", &both];
    let case = Case::before(net.clone(), net.service(), &flags);
    narrow_ports(&net, 45_000, 45_000 + PORTS - 1);
    let held: Vec<_> = (0..2 * PORTS).map(|_| case.session()).collect();
    let from = |source| {
        held.iter()
            .filter(|(_, service)| service.peer.ip() == source)
            .count()
    };
    assert_eq!([from(first), from(second)], [usize::from(PORTS); 2]);
    if let Ok(client) = net.try_dial(Host::Healthy, Options::default()) {
        assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    }
    case.expect_counted("local_error", 1);
    assert!(held.iter().all(|(client, _)| client.is_open()));
}

fn a_service_that_is_down_is_logged_once_and_summed_up() {
    const CLIENTS: u32 = 50;
    let net = Arc::new(Net::new());
    let upstream = net.socket(Host::Service, 9009);
    let case = Case::before(net, upstream, &["--detect-within", "5s"]);
    for _ in 0..CLIENTS {
        let client = case.net.try_dial(Host::Healthy, Options::default());
        // It may be reset before it knows that it is connected.
        let _ = client.map(|client| client.wait_end(PROMPT));
    }
    case.expect_closed_times("connect_refused", CLIENTS);
    let lines = |part: &str| case.proxy.output().matches(part).count();
    assert!(eventually(PROMPT, || lines("session ended") == CLIENTS as usize));
    assert_eq!(lines("cannot connect"), 1);
    let summed_up = || lines("49 more in the last 10 s") == 1;
    assert!(
        eventually(ms(12_000) + SLACK, summed_up),
        "{}",
        case.proxy.output()
    );
}

/// Asked on a connection that was there before: another one would need a descriptor.
fn descriptors_that_run_out_are_counted_and_logged_once() {
    let case = Case::with_all_flags(&["--detect-within", "60s"], Options::default());
    let (client, service) = case.session();
    let connect = || TcpStream::connect("127.0.0.1:9900");
    let mut admin = case
        .net
        .proxy
        .run(connect)
        .expect("enter")
        .expect("connect");
    admin.set_read_timeout(Some(PROMPT)).expect("an option");
    let mut metrics = || {
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        admin.write_all(request).expect("asked");
        let (mut answer, mut chunk) = (Vec::new(), [0; 65_536]);
        loop {
            let n = admin.read(&mut chunk).expect("an answer");
            answer.extend_from_slice(&chunk[..n]);
            let text = String::from_utf8_lossy(&answer);
            let gauge = text.split("\nprocess_open_fds ").nth(1);
            if let Some((number, _)) = gauge.and_then(|rest| rest.split_once('\n')) {
                let number: f64 = number.parse().expect("a number");
                let length = text.split("content-length: ").nth(1).expect("a length");
                let length: usize = length
                    .lines()
                    .next()
                    .and_then(|l| l.parse().ok())
                    .expect("one");
                let head = text.find("\r\n\r\n").expect("a head") + 4;
                if answer.len() >= head + length {
                    return number;
                }
            }
        }
    };
    let before = metrics();
    assert!(before >= 10.0, "{before}");
    let pid = i32::try_from(case.proxy.pid()).ok().and_then(Pid::from_raw);
    let limit = |descriptors| {
        let limit = Rlimit {
            current: Some(descriptors),
            maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
        };
        rustix::process::prlimit(pid, Resource::Nofile, limit).expect("a limit");
    };
    // Those that it has it keeps.
    limit(1);
    let waiting: Vec<_> = (0..3)
        .map(|_| case.net.dial(Host::Healthy, Options::default()))
        .collect();
    let said = || case.proxy.output().matches("cannot accept").count();
    assert!(eventually(PROMPT, || said() > 0), "{}", case.proxy.output());
    thread::sleep(ms(1500));
    assert_eq!(said(), 1, "{}", case.proxy.output());
    assert!(case.proxy.output().contains("LimitNOFILE"));
    let now = metrics();
    assert!((now - before).abs() <= 2.0, "{now}, {before} before");
    limit(u64::from(DESCRIPTORS));
    for _ in &waiting {
        assert!(case.service.next_within(PROMPT).is_some(), "served at last");
    }
    assert!(client.is_open() && service.is_open());
}
