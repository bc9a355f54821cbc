//! What every case starts with and what it ends with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Direction, End, Endpoint, Host, LISTENER, Link, MemoryGroup, Net, Options, Proxy, Service, ms,
};
use crate::support::{Metrics, eventually};

/// `detect_within` of most cases.
pub const DETECT: Duration = ms(3000);
/// `probe_interval` of most cases.
pub const PROBE: Duration = ms(1000);
/// Added to every deadline: the machine may be busy.
pub const SLACK: Duration = ms(2500);
/// What happens at once is given this long.
pub const PROMPT: Duration = ms(5000);
/// Bytes that each end sends at the start, where a case does not say otherwise.
pub const HELLO: u64 = 64;

const BUDGET: [&str; 4] = ["--detect-within", "3s", "--probe-interval", "1s"];

/// A proxy in front of a service.
pub struct Case {
    pub net: Arc<Net>,
    pub proxy: Proxy,
    pub service: Service,
    descriptors: usize,
}

impl Case {
    /// A 3 s budget and a service that only does what it is told to.
    pub fn new() -> Self {
        Self::with(&[], Options::default())
    }

    /// The same with further flags and a certain kind of service.
    pub fn with(flags: &[&str], service: Options) -> Self {
        let flags = [&BUDGET, flags].concat();
        Self::with_all_flags(&flags, service)
    }

    /// Nothing but these flags.
    pub fn with_all_flags(flags: &[&str], service: Options) -> Self {
        let net = Arc::new(Net::new());
        let proxy = |net: &Arc<Net>| Proxy::start(net, flags);
        Self::around(net, service, proxy)
    }

    /// Nothing but these flags, and so many descriptors for the process.
    pub fn with_descriptors(limit: u32, flags: &[&str]) -> Self {
        let net = Arc::new(Net::new());
        let proxy = |net: &Arc<Net>| Proxy::start_limited(net, limit, flags);
        Self::around(net, Options::default(), proxy)
    }

    /// Nothing but these flags, in front of another service than the case's own.
    pub fn before(net: Arc<Net>, upstream: SocketAddr, flags: &[&str]) -> Self {
        let proxy = |net: &Arc<Net>| Proxy::start_before(net, upstream, flags);
        Self::around(net, Options::default(), proxy)
    }

    /// Nothing but these flags, in a control group with a memory limit.
    pub fn with_memory(limit: u64, flags: &[&str]) -> Self {
        let net = Arc::new(Net::new());
        let proxy = |net: &Arc<Net>| Proxy::start_in_group(net, limit, flags);
        Self::around(net, Options::default(), proxy)
    }

    /// Nothing but these flags, in a real control group.
    pub fn limited_by(group: &MemoryGroup, flags: &[&str], service: Options) -> Self {
        let net = Arc::new(Net::new());
        let proxy = |net: &Arc<Net>| Proxy::start_limited_by(net, group, flags);
        Self::around(net, service, proxy)
    }

    fn around(net: Arc<Net>, service: Options, proxy: impl FnOnce(&Arc<Net>) -> Proxy) -> Self {
        let service = net.serve(service);
        let proxy = proxy(&net);
        // What the first scrape opens for good belongs to the baseline.
        proxy.metrics();
        let descriptors = settled_descriptors(&proxy);
        Self {
            net,
            proxy,
            service,
            descriptors,
        }
    }

    /// A session of the client that has carried a greeting each way.
    pub fn session(&self) -> (Endpoint, Endpoint) {
        self.session_with(Host::Client, Options::default())
    }

    /// The same from a certain host. A paused client receives no greeting.
    pub fn session_with(&self, from: Host, options: Options) -> (Endpoint, Endpoint) {
        let client = self.net.dial(from, options);
        client.send(HELLO);
        let service = self.service.next();
        assert!(service.wait_received(HELLO, PROMPT), "no greeting");
        if !options.paused {
            service.send(HELLO);
            assert!(client.wait_received(HELLO, PROMPT), "no answer");
        }
        (client, service)
    }

    /// A session of the client in which nothing is in flight any more.
    pub fn session_at_rest(&self) -> (Endpoint, Endpoint) {
        let (client, service) = self.session();
        self.wait_acknowledged(&client);
        let by_the_proxy = || {
            let at_service = self.net.unacknowledged(Host::Service, &service);
            self.net.unacknowledged(Host::Client, &client) + at_service == 0
        };
        assert!(eventually(PROMPT, by_the_proxy));
        (client, service)
    }

    /// Until nothing is in flight to either peer of a client's session: acknowledgements may be put off, and a
    /// TLS server goes on to speak when the handshake is over.
    #[track_caller]
    pub fn wait_acknowledged(&self, client: &Endpoint) {
        let path = format!("/connections?peer={}", client.local);
        let mut shown = String::new();
        let acknowledged = eventually(PROMPT, || {
            shown = self.proxy.get(&path).expect("answered").1;
            let list: Value = serde_json::from_str(&shown).expect("JSON");
            let session = &list["connections"][0];
            let in_flight = |leg: &str| session[leg]["unacked"].as_u64().unwrap_or(0);
            session.is_object() && in_flight("downstream") + in_flight("upstream") == 0
        });
        assert!(acknowledged, "{shown}");
    }

    /// The peer on a leg, gone at `since`, must be found within the budget: in time, not too
    /// early, counted, and with nothing left. The healthy end must see an abort. Returns how much
    /// longer the peer was silent, by the histogram, than it was gone.
    #[track_caller]
    pub fn expect_found(
        &self,
        since: Instant,
        leg: &str,
        evidence: &str,
        healthy: &Endpoint,
    ) -> Duration {
        let (at, end) = healthy.wait_end(latest(DETECT));
        assert_eq!(end, End::Reset, "what the healthy end saw");
        let after = at.duration_since(since);
        assert!(after >= earliest(DETECT), "found after only {after:?}");
        assert!(after <= latest(DETECT), "found only after {after:?}");
        self.expect_counted_dead(leg, evidence);
        let on = [("listener", LISTENER), ("leg", leg)];
        let name = "pulsegate_half_open_detection_delay_seconds_sum";
        let silent = Duration::from_secs_f64(self.proxy.metrics().value(name, &on));
        assert!(silent >= DETECT, "a verdict after {silent:?} of silence");
        let before = silent.saturating_sub(after);
        assert!(before <= PROBE + ms(500), "{silent:?}, gone for {after:?}");
        before
    }

    /// One session was closed because the peer on a leg was dead, and every figure says so.
    #[track_caller]
    pub fn expect_counted_dead(&self, leg: &str, evidence: &str) {
        self.expect_closed(&format!("{leg}_dead"));
        let metrics = self.proxy.metrics();
        let on = [("listener", LISTENER), ("leg", leg)];
        let detected = [on[0], on[1], ("evidence", evidence)];
        let all = metrics.excerpt("pulsegate_half_open");
        let value = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels);
        assert_eq!(
            value("pulsegate_half_open_detected_total", &on),
            1.0,
            "{all}"
        );
        assert_eq!(
            value("pulsegate_half_open_detected_total", &detected),
            1.0,
            "{all}"
        );
        assert_eq!(value("pulsegate_half_open_connections", &[]), 0.0, "{all}");
        let delay = "pulsegate_half_open_detection_delay_seconds";
        assert_eq!(value(&format!("{delay}_count"), &on), 1.0, "{all}");
        assert!(value(&format!("{delay}_sum"), &on) > 0.0, "{all}");
        assert_eq!(
            value("pulsegate_half_open_found_late_total", &[]),
            0.0,
            "{all}"
        );
    }

    /// Exactly one session has ended, for this reason, and nothing of it is left.
    #[track_caller]
    pub fn expect_closed(&self, reason: &str) {
        self.expect_closed_times(reason, 1);
    }

    /// So many sessions have ended, all for this reason, and nothing of them is left.
    #[track_caller]
    pub fn expect_closed_times(&self, reason: &str, times: u32) {
        let times = f64::from(times);
        let done = eventually(PROMPT, || self.proxy.closed(reason) >= times);
        let metrics = self.proxy.metrics();
        let all = metrics.excerpt("pulsegate_connections");
        assert!(done, "not closed as {reason}:\n{all}");
        assert_eq!(closed_at_all(&metrics), times, "{all}");
        self.expect_nothing_left();
    }

    /// So many sessions have ended for this reason, whatever became of others. The peers hear of an
    /// end a moment before it is counted.
    #[track_caller]
    pub fn expect_counted(&self, reason: &str, times: usize) {
        let counted = || self.proxy.closed(reason) == times as f64;
        let all = || self.proxy.metrics().excerpt("pulsegate_");
        assert!(eventually(PROMPT, counted), "{reason}:\n{}", all());
    }

    /// No session, no descriptor.
    #[track_caller]
    pub fn expect_nothing_left(&self) {
        let active = || {
            self.proxy
                .metrics()
                .value("pulsegate_connections_active", &[])
        };
        assert!(
            eventually(PROMPT, || active() == 0.0),
            "{} active",
            active()
        );
        let freed = eventually(PROMPT, || self.proxy.descriptors() <= self.descriptors);
        let now = self.proxy.descriptors();
        assert!(
            freed,
            "{now} descriptors, {} at the start",
            self.descriptors
        );
    }

    /// The session lives and nobody was called dead; both ends agree on every byte.
    #[track_caller]
    pub fn expect_intact(&self, client: &Endpoint, service: &Endpoint) {
        let complete =
            || client.received() == service.sent() && service.received() == client.sent();
        let came = eventually(ms(15_000), complete);
        let ends = format!("client {client:?}\nservice {service:?}");
        assert!(came, "bytes are missing\n{ends}");
        assert_eq!((client.corrupt_at(), service.corrupt_at()), (None, None));
        assert!(
            client.is_open() && service.is_open(),
            "an end was closed\n{ends}"
        );
        let metrics = self.proxy.metrics();
        let all = metrics.excerpt("pulsegate_");
        assert_eq!(closed_at_all(&metrics), 0.0, "{all}");
        let detected = metrics.value("pulsegate_half_open_detected_total", &[]);
        assert_eq!(detected, 0.0, "{all}");
    }

    /// Cuts a link and says when.
    pub fn cut(&self, link: Link) -> Instant {
        let at = Instant::now();
        self.net.cut(link);
        at
    }

    /// Cuts one direction of a link and says when.
    pub fn cut_one_way(&self, link: Link, direction: Direction) -> Instant {
        let at = Instant::now();
        self.net.cut_one_way(link, direction);
        at
    }
}

/// A peer that vanished is never found before: its last sign of life may be one probe interval
/// old, and the kernel's timers are late by up to an eighth.
fn earliest(detect_within: Duration) -> Duration {
    detect_within - PROBE - ms(300)
}

/// And never found later.
fn latest(detect_within: Duration) -> Duration {
    detect_within + (detect_within / 20).max(ms(300)) + SLACK
}

fn closed_at_all(metrics: &Metrics) -> f64 {
    metrics.value("pulsegate_connections_closed_total", &[])
}

/// The number of descriptors once the connection of the last scrape is gone.
fn settled_descriptors(proxy: &Proxy) -> usize {
    let mut last = proxy.descriptors();
    eventually(ms(1000), || {
        let now = proxy.descriptors();
        std::mem::replace(&mut last, now) == now
    });
    last
}
