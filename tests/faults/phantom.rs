//! A service whose accept queue is full: its kernel drops the last word of the handshake, so that
//! the connection is complete for pulsegate and for nobody else. It repeats its SYN-ACK 1, 3, 7,
//! 15 and 31 s after the SYN, and forgets the connection after 63 s.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pulsegate::sys::sockopt::{DEFER_ACCEPT, IntOption, SYNCNT};
use serde_json::Value;

use crate::case::{Case, DETECT, HELLO, PROMPT, SLACK};
use crate::support::{
    Deaf, Direction, End, Endpoint, Host, LISTENER, Legs, Net, Options, Speech, Test, eventually,
    ms,
};
use crate::tests;

pub const TESTS: &[Test] = tests![
    phantom_ends_by_the_clock_of_the_first_response,
    phantom_ends_by_the_clock_of_the_dead,
    phantom_that_its_service_forgets,
    phantom_that_an_operator_asks,
    phantom_becomes_a_session_when_there_is_room,
    phantom_of_a_silent_client_is_kept,
    phantom_of_a_silent_client_that_its_service_forgets,
    slow_to_accept_is_no_phantom,
    no_phantom_has_the_clock_of_the_first_response,
    phantom_of_a_service_beside_the_proxy,
];

/// The first words of the handshake are the request, so that the session is never open: there is no first
/// response to wait for, and no silent client.
pub const OVER_TLS: &[Test] = tests![
    phantom_ends_by_the_clock_of_the_dead,
    phantom_that_its_service_forgets,
    phantom_becomes_a_session_when_there_is_room,
    phantom_that_is_to_speak_tls_ends_by_the_clock_of_the_connect,
];

const PORT: u16 = 9001;
const PATIENT: [&str; 4] = ["--connect-timeout", "30s", "--probe-interval", "1s"];
/// The handshake took up to 2.5 s, which is the round trip that the kernel has seen: its retransmissions
/// are as far apart and more.
const RETRANSMITTED: Duration = ms(15_000);
/// The look that finds it out waits for the next SYN-ACK.
const KNOWN_WITHIN: Duration = ms(20_000);
/// The kernel has planned the third retransmission by then, seven times its first gap of 3 s or more after
/// the request; enough more have to follow, and the SYN-ACK after 31 s is an answer.
const PROVEN_WITHIN: Duration = ms(40_000);

struct Rig {
    case: Case,
    deaf: Deaf,
}

impl Rig {
    /// The service is a host of its own.
    fn new(flags: &[&str], options: &[(IntOption, i32)]) -> Self {
        let net = Arc::new(Net::new());
        let address = net.socket(Host::Service, PORT);
        let deaf = Deaf::start(net.host(Host::Service), address, options);
        Self::before(net, deaf, flags)
    }

    fn before(net: Arc<Net>, deaf: Deaf, flags: &[&str]) -> Self {
        let case = Case::before(net, deaf.address, &[&PATIENT, flags].concat());
        Self { case, deaf }
    }

    /// A client whose session is open on our side only. SYN-ACKs are still to come: 2 s after the
    /// first one that the service's kernel has repeated.
    fn phantom(&mut self) -> Endpoint {
        let net = Arc::clone(&self.case.net);
        for _ in 0..5 {
            net.cut_one_way(Host::Service, Direction::ToNear);
            let since = Instant::now();
            let client = net.dial(Host::Client, Options::default());
            let asked = eventually(PROMPT, || self.deaf.handshakes() == 1);
            assert!(asked, "the proxy does not connect");
            self.deaf.fill();
            net.heal(Host::Service);
            let open = || self.session()["upstream"]["state"] == "ESTAB";
            let open = eventually(ms(15_000), open);
            assert!(open, "{}", self.session());
            if since.elapsed() < ms(2500) {
                assert_eq!(self.deaf.handshakes(), 1, "the queue was not full");
                return client;
            }
            client.reset();
            self.deaf.make_room();
            self.case.expect_nothing_left();
        }
        panic!("the machine is too busy to make a phantom");
    }

    /// What the service accepts.
    fn next_within(&self, within: Duration) -> Option<Endpoint> {
        let speech = self.case.net.legs.of_services();
        self.deaf.next_within(within, speech, Options::default())
    }

    /// The one session, as `/connections` shows it.
    fn session(&self) -> Value {
        let (_, body) = self.case.proxy.get("/connections").expect("answered");
        let list: Value = serde_json::from_str(&body).expect("JSON");
        list["connections"].get(0).cloned().unwrap_or_default()
    }

    fn gauge(&self, name: &str) -> f64 {
        let on = [("listener", LISTENER)];
        self.case.proxy.metrics().value(name, &on)
    }

    fn phantoms(&self) -> f64 {
        self.gauge("pulsegate_phantom_connections")
    }

    /// It is called a phantom and nothing else, wherever an operator looks.
    #[track_caller]
    fn expect_known(&self) {
        let known = eventually(KNOWN_WITHIN, || self.phantoms() == 1.0);
        let session = self.session();
        assert!(known, "{session}");
        assert_eq!(session["upstream"]["condition"], "phantom", "{session}");
        let timer = &session["upstream"]["timer"]["reason"];
        assert_eq!(timer, "upstream_phantom", "{session}");
        let suspects = self.gauge("pulsegate_half_open_connections");
        assert_eq!(suspects, 0.0, "the service lives");
    }

    /// The session ended as what it was, its client knows, nothing is left of it, and the service
    /// is not given a connection whose client has gone.
    #[track_caller]
    fn expect_ended(&mut self, client: &Endpoint, within: Duration) -> Instant {
        let (at, end) = client.wait_end(within);
        assert_eq!(end, End::Reset);
        self.case.expect_closed("upstream_phantom");
        let mut output = String::new();
        let logged = eventually(PROMPT, || {
            output = self.case.proxy.output();
            output.contains("session ended")
        });
        assert!(logged, "no line for the session");
        let line = output.lines().find(|l| l.contains("session ended"));
        let line = line.unwrap_or_default();
        assert!(line.contains("reason=\"upstream_phantom\""), "{line}");
        assert!(line.contains("initiator=\"upstream\""), "{line}");
        assert!(!line.contains("evidence="), "{line}");
        assert_eq!(self.phantoms(), 0.0);
        assert_eq!(self.gauge("pulsegate_half_open_detected_total"), 0.0);
        let forgotten = eventually(PROMPT, || self.deaf.handshakes() == 0);
        assert!(forgotten, "the service's kernel was not told");
        self.deaf.make_room();
        let next = self.next_within(ms(500));
        assert!(next.is_none(), "{next:?}");
        at
    }
}

fn phantom_ends_by_the_clock_of_the_first_response() {
    let flags = ["--detect-within", "30s", "--first-response-timeout", "20s"];
    let mut rig = Rig::new(&flags, &[]);
    let client = rig.phantom();
    let since = Instant::now();
    client.send(HELLO);
    rig.expect_known();
    let at = rig.expect_ended(&client, KNOWN_WITHIN);
    let after = at.duration_since(since);
    assert!(after >= ms(19_900), "ended after only {after:?}");
    assert!(after <= ms(20_300) + SLACK, "ended only after {after:?}");
}

fn phantom_ends_by_the_clock_of_the_dead() {
    const WITHIN: Duration = ms(5000);
    let mut rig = Rig::new(&["--detect-within", "5s"], &[]);
    let client = rig.phantom();
    let since = Instant::now();
    client.send(HELLO);
    rig.expect_known();
    let at = rig.expect_ended(&client, KNOWN_WITHIN);
    let after = at.duration_since(since);
    assert!(after >= WITHIN, "ended after only {after:?}");
    // The last SYN-ACK in time comes 7 s after the SYN, and the request at least 1 s after it. Of the handshake
    // of TLS the first question after that SYN-ACK comes after the time, and is given a second.
    let latest = match rig.case.net.legs {
        Legs::Plain => ms(6000) + WITHIN + ms(300) + SLACK,
        _ => ms(13_500) + SLACK,
    };
    assert!(after <= latest, "ended only after {after:?}");
}

fn phantom_that_is_to_speak_tls_ends_by_the_clock_of_the_connect() {
    /// See [`PATIENT`].
    const WITHIN: Duration = ms(30_000);
    let mut rig = Rig::new(&["--detect-within", "60s"], &[]);
    let before = Instant::now();
    let client = rig.phantom();
    let since = Instant::now();
    rig.expect_known();
    let at = rig.expect_ended(&client, KNOWN_WITHIN);
    let after = at.duration_since(before);
    assert!(after >= WITHIN, "ended after only {after:?}");
    let after = at.duration_since(since);
    assert!(after <= WITHIN + SLACK, "ended only after {after:?}");
}

/// The service's kernel gives the handshake up before the verdict, and says RST.
fn phantom_that_its_service_forgets() {
    let mut rig = Rig::new(&["--detect-within", "30s"], &[(SYNCNT, 3)]);
    let client = rig.phantom();
    client.send(HELLO);
    rig.expect_known();
    rig.expect_ended(&client, KNOWN_WITHIN);
}

/// Asked in a hurry it is silent, as the vanished are; it is still what it is.
fn phantom_that_an_operator_asks() {
    // Its own clock ends it later than that.
    let mut rig = Rig::new(&["--detect-within", "60s"], &[]);
    let client = rig.phantom();
    client.send(HELLO);
    rig.expect_known();
    let id = rig.session()["id"].to_string();
    let ended = eventually(PROVEN_WITHIN, || {
        rig.case.proxy.command(&["verify", "--quick", &id]);
        rig.session().is_null()
    });
    assert!(ended, "{}", rig.session());
    rig.expect_ended(&client, PROMPT);
}

/// Nothing that was sent meanwhile is lost, and nothing of the clocks is left.
fn phantom_becomes_a_session_when_there_is_room() {
    const SENT: u64 = 300_000;
    let flags = ["--detect-within", "20s", "--first-response-timeout", "40s"];
    let mut rig = Rig::new(&flags, &[]);
    let client = rig.phantom();
    client.send(SENT);
    rig.expect_known();
    rig.deaf.make_room();
    let service = rig.next_within(RETRANSMITTED);
    let service = service.expect("a retransmission completes it");
    assert!(service.wait_received(SENT, RETRANSMITTED), "{service:?}");
    service.send(SENT);
    rig.case.expect_intact(&client, &service);
    assert_eq!(rig.phantoms(), 0.0);
    let condition = &rig.session()["upstream"]["condition"];
    assert_eq!(condition, "alive");
}

/// A handshake in progress answers probes: there is nothing to be seen, and nothing is lost.
fn phantom_of_a_silent_client_is_kept() {
    let flags = ["--detect-within", "3s", "--first-response-timeout", "1s"];
    let mut rig = Rig::new(&flags, &[]);
    let client = rig.phantom();
    let accused = || {
        let metrics = rig.case.proxy.metrics();
        let suspects = metrics.value("pulsegate_half_open_connections", &[]);
        suspects + metrics.value("pulsegate_phantom_connections", &[]) > 0.0 || !client.is_open()
    };
    assert!(!eventually(DETECT * 2, accused), "{}", rig.session());
    rig.deaf.make_room();
    let echo = Options {
        echo: true,
        ..Options::default()
    };
    client.send(HELLO);
    let service = rig
        .deaf
        .next_within(PROMPT, Speech::Plain, echo)
        .expect("accepted");
    assert!(client.wait_received(HELLO, PROMPT), "{client:?}");
    rig.case.expect_intact(&client, &service);
}

/// The next probe is answered by RST, as after a restart of the service.
fn phantom_of_a_silent_client_that_its_service_forgets() {
    let mut rig = Rig::new(&["--detect-within", "30s"], &[(SYNCNT, 2)]);
    let client = rig.phantom();
    let (_, end) = client.wait_end(KNOWN_WITHIN);
    assert_eq!(end, End::Reset);
    rig.case.expect_counted_dead("upstream", "reset");
}

/// A connection that waits in the queue: its request is acknowledged.
fn waits_in_the_queue(rig: &Rig) -> Endpoint {
    let client = rig.case.net.dial(Host::Client, Options::default());
    client.send(HELLO);
    let acknowledged = || {
        let upstream = &rig.session()["upstream"];
        upstream["sent_bytes"] == HELLO && upstream["unacked"] == 0
    };
    assert!(eventually(PROMPT, acknowledged), "{}", rig.session());
    client
}

fn slow_to_accept_is_no_phantom() {
    let rig = Rig::new(&["--detect-within", "3s"], &[]);
    let client = waits_in_the_queue(&rig);
    let accused = || {
        let metrics = rig.case.proxy.metrics();
        let suspects = metrics.value("pulsegate_half_open_connections", &[]);
        suspects + metrics.value("pulsegate_phantom_connections", &[]) > 0.0 || !client.is_open()
    };
    assert!(!eventually(DETECT * 2, accused), "{}", rig.session());
    let service = rig.next_within(PROMPT);
    let service = service.expect("it waits");
    assert!(service.wait_received(HELLO, PROMPT), "{service:?}");
    service.send(HELLO);
    rig.case.expect_intact(&client, &service);
}

fn no_phantom_has_the_clock_of_the_first_response() {
    let flags = ["--detect-within", "3s", "--first-response-timeout", "4s"];
    let rig = Rig::new(&flags, &[]);
    let since = Instant::now();
    let client = waits_in_the_queue(&rig);
    let (at, end) = client.wait_end(ms(4000) + PROMPT);
    assert_eq!(end, End::Reset);
    let after = at.duration_since(since);
    assert!(after >= ms(3900), "ended after only {after:?}");
    rig.case.expect_closed("first_response_timeout");
}

/// In the proxy's own network namespace there is no link to cut. A service that wants data before
/// it takes a handshake for complete leaves the same gap between SYN and the last word.
fn phantom_of_a_service_beside_the_proxy() {
    let net = Arc::new(Net::new());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    // Repeated after 3 s, and from then on.
    let deaf = Deaf::start(&net.proxy, address, &[(DEFER_ACCEPT, 3)]);
    let flags = ["--detect-within", "30s", "--first-response-timeout", "10s"];
    let mut rig = Rig::before(net, deaf, &flags);
    let queue = |rig: &Rig| {
        let length = rig.gauge("pulsegate_upstream_listen_queue_length");
        (length, rig.gauge("pulsegate_upstream_listen_queue_limit"))
    };
    assert_eq!(queue(&rig), (0.0, 3.0));
    let client = rig.case.net.dial(Host::Client, Options::default());
    let asked = eventually(PROMPT, || rig.deaf.handshakes() == 1);
    assert!(asked, "the proxy does not connect");
    rig.deaf.fill();
    assert_eq!(queue(&rig), (4.0, 3.0), "above its limit");
    assert_eq!(rig.deaf.handshakes(), 1, "the queue was not full in time");
    client.send(HELLO);
    rig.expect_known();
    rig.expect_ended(&client, KNOWN_WITHIN);
}
