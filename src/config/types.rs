//! The declaration of the configuration: each key once, with its type, what it accepts, its default,
//! its flag and its documentation.
//!
//! To add a key, add a field to its section. To add a word, add a variant to its enum.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use strum::{Display, EnumString, VariantNames};

use super::bytes::{Bytes, Statuses};
use super::check;
use super::heartbeat::HeartbeatConfig;
use super::kind::{
    bytes, choice, control, count, dial, file, listen, listener_address, memory, name, networks,
    path, rate, seconds, sources, span, statuses, switch, timeout,
};
use super::network::Network;
use super::read::Scope;
use super::section::section;
use super::setting::{Items, list, section_of, template_of};
use super::tls::{AdminTls, Tls, UpstreamTls};
use super::units;
use crate::liveness::{Policy, Span};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

section! {
    /// Everything pulsegate needs to run.
    Config {
        /// Where clients are accepted, and where they are taken.
        listeners: Vec<ListenerConfig> = list(listeners());
        /// Keys of a listener that apply where the listener does not set them.
        defaults: () = template_of::<ListenerConfig>();
        /// The HTTP endpoint for metrics and administration.
        admin: Option<Admin> = section_of().or("off");
        /// Limits of the whole process.
        limits: ProcessLimits = section_of();
        /// How the process ends.
        drain: Drain = section_of();
        /// What is written to standard output.
        log: Log = section_of();
        /// How the process follows its configuration file.
        reload: Reload = section_of();
        /// How bytes are moved.
        relay: Relay = section_of();
        /// Data-plane threads at most; as many run as there is work for. `auto`: by the processors
        /// that the process may use.
        workers: Option<u16> = count(1..=1024).or("auto").default("auto").flag("workers");
    }
    check |at, reader| check::addresses(at, reader, admin.as_ref())
}

/// The items of `listeners`.
pub(super) fn listeners() -> Items<ListenerConfig> {
    let (of, needed, template) = (section_of(), Some("listener"), Some("defaults"));
    Items {
        of,
        needed,
        template,
    }
}

section! {
    /// One address on which clients are accepted, and where they are taken.
    ListenerConfig {
        /// Label of this listener in metrics and logs; unique.
        name: String = name().derived("`default`; of several, `port-` and the port, or the name of the socket").own(),
            else |at| default_name(at, address.as_ref());
        /// Where clients connect: IP:port (port 0: the kernel chooses), unix:/PATH (mode 0660), or fd:NAME, a
        /// socket of systemd.
        address: ListenAddress = listener_address().flag("listen").own();
        /// Length of the accept queue; the kernel cuts it to net.core.somaxconn.
        backlog: u32 = count(1..=65_535).default("4096").flag("backlog");
        /// Who may connect.
        access: Access = section_of();
        /// TLS between clients and this listener.
        tls: Option<Tls> = section_of().or("off").default("off");
        /// Whether a header of the PROXY protocol, version 1 or 2, says who the client is. It is never guessed.
        proxy_protocol: ProxyProtocol = choice().default("off").flag("proxy-protocol");
        /// Who may send that header: the load balancers in front. Connections from elsewhere are reset.
        proxy_protocol_trusted: Vec<Network> = networks().flag("proxy-protocol-trusted");
        /// How long the header may take.
        proxy_protocol_timeout: Duration =
            span(100 * MS..=300 * SECOND).default("3s").flag("proxy-protocol-timeout");
        /// The legacy service.
        upstream: Upstream = section_of();
        /// When a connection counts as dead, stalled or idle.
        liveness: Liveness = section_of();
        /// Admission.
        limits: Limits = section_of();
    }
    check |at, reader| {
        check::proxy_protocol(at, reader, proxy_protocol, proxy_protocol_trusted.as_deref());
        check::one_connection(at, reader, upstream.as_ref(), limits.as_ref());
        check::when_down(at, reader, address.as_ref(), upstream.as_ref());
    }
}

/// Whether a header says who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ProxyProtocol {
    /// The client is the peer of the connection.
    Off,
    /// Each connection begins with a header.
    Require,
}

section! {
    /// Who may connect.
    Access {
        /// Who may; an empty list: everyone.
        allow: Vec<Network> = networks().flag("access-allow");
        /// Who may not, even if allow has it.
        deny: Vec<Network> = networks().flag("access-deny");
    }
}

fn default_name(at: &Scope<'_>, address: Option<&ListenAddress>) -> Option<String> {
    match (at.siblings, address?) {
        (1, _) => Some("default".to_owned()),
        (_, ListenAddress::Socket(address)) => Some(format!("port-{}", address.port())),
        (_, ListenAddress::Unix(path)) => Some(path.file_stem()?.to_str()?.to_owned()),
        (_, ListenAddress::Activated(name)) => Some(name.clone()),
    }
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// `IP:port`.
    Socket(SocketAddr),
    /// `unix:/PATH`: a local socket.
    Unix(PathBuf),
    /// `fd:NAME`: the socket of this name that the process was started with (sd_listen_fds(3)).
    Activated(String),
}

impl ListenAddress {
    /// The IP address and port, where it is one.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Unix(_) | Self::Activated(_) => None,
        }
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Activated(name) => write!(f, "fd:{name}"),
        }
    }
}

section! {
    /// The legacy service.
    Upstream {
        /// Where the service is. Every address of a DNS name is tried.
        address: Option<UpstreamAddress> =
            dial().maybe().derived("required, or `endpoints`").flag("upstream").own(),
            else |_| Some(None);
        /// Where the service is, if it is at several places.
        endpoints: Vec<UpstreamEndpoint> = list(endpoints()).own();
        /// Which endpoint, or address of a name, a new session gets. least_connections: the one with the
        /// fewest sessions; round_robin: one after the other; first_available: the first one that accepts,
        /// in the order of the list and of the resolver; source_hash: always the same one for a client's
        /// address. The others are tried where it fails.
        balance: Balance = choice().default("least_connections").flag("balance");
        /// How long the service may take to accept a connection, over all endpoints that are tried.
        connect_timeout: Duration = span(MS..=300 * SECOND).default("5s").flag("connect-timeout");
        /// A connect that was refused is tried again after this pause, within connect_timeout: clients wait
        /// while the service restarts. 0s: not at all.
        connect_retry: Option<Duration> =
            span(10 * MS..=60 * SECOND).or_off().default("0s").flag("connect-retry");
        /// When the service is dialled: once a client is accepted, or once it has sent something. Checks that
        /// only connect then reach no service; the service cannot be the first to speak.
        dial: Dial = choice().default("accept").flag("dial");
        /// How often a DNS name is looked up; the last answer is used while DNS is out.
        resolve_interval: Duration = span(SECOND..=HOUR).default("10s").flag("resolve-interval");
        /// Addresses of this host that the service is dialled from, one after the other: each has its own
        /// ports, some 28,000 to 64,000 for an endpoint. none: the kernel chooses.
        source_address: Option<Vec<IpAddr>> =
            sources().or("none").default("none").flag("source-address");
        /// What becomes of an endpoint at which sessions fail while there are others.
        ejection: Ejection = section_of();
        /// Whether each connection begins with a header of the PROXY protocol, which tells the service who
        /// the client is.
        proxy_protocol: SendProxy = choice().default("off").flag("upstream-proxy-protocol");
        /// TLS between this listener and the service.
        tls: Option<UpstreamTls> = section_of().or("off").default("off");
        /// How each endpoint is checked.
        check: Check = section_of();
        /// What clients meet while checks find every endpoint down. refuse: the kernel refuses them, so that those
        /// with several addresses try the next one.
        when_down: WhenDown = choice().default("reset").flag("when-down");
    }
    check |at, reader| {
        check::endpoints(at, reader, address.as_ref(), endpoints.as_ref());
        check::connect_retry(at, reader, connect_retry.flatten(), connect_timeout);
        check::sources(at, reader, address.as_ref(), endpoints.as_ref(), source_address.as_ref());
        check::server_name(at, reader, address.as_ref(), endpoints.as_ref(), tls.as_ref());
        check::tls_check(at, reader, tls.as_ref(), check.as_ref());
    }
}

section! {
    /// One of the places where the service is.
    UpstreamEndpoint {
        /// An address. A DNS name stands for all its addresses.
        address: UpstreamAddress = dial().own();
    }
}

section! {
    /// What becomes of an endpoint at which sessions fail while there are others.
    Ejection {
        /// So many failures in a row eject it: it is used for new sessions only where no other one connects.
        /// Counted are connects that failed, and sessions that ended because of the service (phantom, dead,
        /// undelivered, stalled, silent, no first response).
        failures: u32 = count(1..=1000).default("5").flag("ejection-failures");
        /// For how long; one more failure then ejects it again. 0s: endpoints are not ejected.
        r#for: Option<Duration> = span(SECOND..=HOUR).or_off().default("30s").flag("ejection-for");
    }
}

fn endpoints() -> Items<UpstreamEndpoint> {
    let (of, needed, template) = (section_of(), None, None);
    Items {
        of,
        needed,
        template,
    }
}

/// Which endpoint a new session gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Balance {
    /// The one with the fewest sessions; of several, one after the other.
    LeastConnections,
    /// One after the other.
    RoundRobin,
    /// The first one that accepts.
    FirstAvailable,
    /// By the client's address (rendezvous hashing).
    SourceHash,
}

section! {
    /// How each endpoint is checked.
    Check {
        /// tcp: it accepts a connection; tls: and completes a handshake; send: then it answers `expect` to
        /// `send`; http: then it answers a GET with one of the codes of `status`.
        kind: CheckKind = choice().default("off").flag("check");
        /// From one check to the next, 10 % more or less.
        interval: Duration = span(100 * MS..=HOUR).default("5s").flag("check-interval");
        /// How long all of a check may take.
        timeout: Duration = span(10 * MS..=300 * SECOND).default("2s").flag("check-timeout");
        /// So many in a row that pass: an endpoint that is down is up.
        rise: u32 = count(1..=100).default("2").flag("check-rise");
        /// So many in a row that fail: an endpoint that is up is down.
        fall: u32 = count(1..=100).default("3").flag("check-fall");
        /// Where it is checked; none: where it is dialled.
        port: Option<u16> = count(1..=65_535).or("none").default("none").flag("check-port");
        /// What is sent (kind: send).
        send: Bytes = bytes().default("").flag("check-send");
        /// What the answer begins with (kind: send); empty: no answer is awaited.
        expect: Bytes = bytes().default("").flag("check-expect");
        /// What is asked for (kind: http).
        path: String = path().default("/").flag("check-path");
        /// What is answered (kind: http).
        status: Statuses = statuses().default("200-299").flag("check-status");
        /// What becomes of the sessions of an endpoint that is down. verify: each is asked on its own
        /// connection, and ends if its peer does not answer; close: they end.
        on_down: OnDown = choice().default("keep").flag("check-on-down");
    }
    check |at, reader| check::upstream_check(at, reader, kind, send.as_ref(), expect.as_ref())
}

/// How an endpoint is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum CheckKind {
    /// It is not.
    Off,
    /// It accepts a connection.
    Tcp,
    /// It completes a TLS handshake.
    Tls,
    /// It answers what is expected.
    Send,
    /// It answers a request with a status.
    Http,
}

/// What clients meet while every endpoint is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum WhenDown {
    /// They are accepted, and reset where they cannot be connected.
    Reset,
    /// The listening socket is closed.
    Refuse,
}

/// What becomes of the sessions of an endpoint that checks have found down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum OnDown {
    /// They go on.
    Keep,
    /// Each is asked on its own connection; those whose peers do not answer end.
    Verify,
    /// They end.
    Close,
}

/// When the service is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Dial {
    /// When the client has its place.
    Accept,
    /// When the client has sent something.
    FirstByte,
}

/// How the service is told who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum SendProxy {
    /// It is not.
    Off,
    /// By a line of the PROXY protocol, version 1.
    V1,
    /// By a header of version 2.
    V2,
}

/// `host:port`; the host is an IP address or a DNS name. Or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpstreamAddress {
    /// A literal address.
    Socket(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// A DNS name.
    Name {
        /// Host name.
        host: String,
        /// TCP port.
        port: u16,
    },
}

section! {
    /// Liveness limits; `None` is off (`0s`).
    Liveness {
        /// A vanished peer, on either leg, is found within this time.
        detect_within: Duration = span(2 * SECOND..=DAY).default("30s").flag("detect-within");
        /// A quiet peer is probed this often; below detect_within.
        probe_interval: Duration = seconds(SECOND..=32_767 * SECOND)
            .derived(
                "a fifth of detect_within in whole seconds, at least `1s` and at most half of nat_timeout",
            )
            .flag("probe-interval"),
            else |_| Some(Self::default_probe_interval(detect_within?, nat_timeout?));
        /// A NAT, firewall or load balancer on the way forgets a connection that is quiet for this
        /// long; probe_interval stays at or below half of it.
        nat_timeout: Option<Duration> =
            span(2 * SECOND..=DAY).or_off().default("0s").flag("nat-timeout");
        /// Whether keepalive probes ask quiet peers.
        probes: Probes = section_of();
        /// Ends a session in which no byte passed for this long.
        idle_timeout: Option<Duration> = timeout().default("1h").flag("idle-timeout");
        /// Ends a session in which one side sent FIN and no byte passed for this long since
        /// everything was delivered.
        half_close_timeout: Option<Duration> =
            timeout().default("60s").flag("half-close-timeout");
        /// Ends a session whose peer is alive and takes no data for this long.
        stall_timeout: Option<Duration> = timeout().default("0s").flag("stall-timeout");
        /// Ends a session whose peer is heard and acknowledges no data for this long, although its
        /// window is open.
        delivery_timeout: Option<Duration> = timeout().default("2m").flag("delivery-timeout");
        /// How long a peer may send no payload although it is alive, for protocols in which it must
        /// send.
        receive_timeout: ReceiveTimeout = section_of();
        /// How the application at an end is asked inside the connection, in its own protocol.
        heartbeat: HeartbeatConfig = section_of();
        /// Ends a session whose service got a request and sent no byte for this long.
        first_response_timeout: Option<Duration> =
            timeout().default("0s").flag("first-response-timeout");
        /// Ends a session this long after both its legs were connected; each in the last tenth of that time, at
        /// a time of its own.
        max_connection_duration: Option<Duration> =
            timeout().default("0s").flag("max-connection-duration");
        /// How the live leg is ended when the other one was found dead: RST, or FIN.
        on_dead: OnDead = choice().default("reset").flag("on-dead");
        /// How both legs are ended when pulsegate itself ends the session (a limit, the drain, an
        /// operator, an incoming connection): RST after delivery of what was received (at most 1 s
        /// without progress and 30 s in all), or FIN.
        on_end: OnEnd = choice().default("reset").flag("on-end");
    }
    check |at, reader| {
        check::probe_interval(at, reader, probe_interval, detect_within);
        check::nat_timeout(at, reader, nat_timeout.flatten(), probe_interval);
        let inner = [
            ("half_close_timeout", half_close_timeout),
            ("first_response_timeout", first_response_timeout),
            ("idle_timeout", idle_timeout),
        ];
        let outer = [inner[2], ("max_connection_duration", max_connection_duration)];
        check::shadowed(at, reader, &inner, &outer);
        check::asked_too_late(at, reader, heartbeat.as_ref(), idle_timeout.flatten());
    }
}

section! {
    /// How long a peer may send no payload although it is alive.
    ReceiveTimeout {
        /// Ends a session whose client is alive and sent no payload for this long.
        downstream: Option<Duration> = timeout().default("0s").flag("receive-timeout-downstream");
        /// Ends a session whose service is alive and sent no payload for this long.
        upstream: Option<Duration> = timeout().default("0s").flag("receive-timeout-upstream");
    }
}

section! {
    /// Whether keepalive probes ask quiet peers.
    Probes {
        /// Probe quiet clients. false: they, or the path, never answer a keepalive probe.
        downstream: bool = switch().default("true").flag("probes-downstream");
        /// Probe a quiet service. false: it, or the path, never answers a keepalive probe.
        upstream: bool = switch().default("true").flag("probes-upstream");
    }
}

/// What both legs see when a limit, an operator or the drain ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum OnEnd {
    /// RST, after what was received was delivered: a cut stream is never taken for a whole one.
    Reset,
    /// FIN, and RST after a second.
    Close,
}

/// What the live leg sees when the other one was found dead or was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum OnDead {
    /// RST: the application sees an abort and never takes a cut stream for a whole one.
    Reset,
    /// FIN: for applications that treat ECONNRESET badly.
    Close,
}

section! {
    /// Admission limits.
    Limits {
        /// Sessions at once on this listener.
        max_connections: Option<u32> =
            count(1..=u32::MAX).or("none").default("none").flag("max-connections");
        /// What an incoming connection meets when max_connections is reached.
        on_full: OnFull = choice().default("reject").flag("on-full");
        /// How long an incoming connection may wait for a place (on_full: queue, verify, replace);
        /// 0s: for ever.
        queue_timeout: Option<Duration> = timeout().default("30s").flag("queue-timeout");
        /// Ends a client that sends nothing for this long, counted from when it has its place.
        first_byte_timeout: Option<Duration> = timeout().default("0s").flag("first-byte-timeout");
        /// Whether a client is still served that sent data and FIN while it waited for a place.
        abandoned: Abandoned = choice().default("serve").flag("abandoned");
        /// Pause between the end of a session and the next one in its place.
        reconnect_delay: Duration =
            span(Duration::ZERO..=300 * SECOND).default("0s").flag("reconnect-delay");
        /// Sessions at once of one source; on_full says what the next one meets.
        max_connections_per_source: Option<u32> = count(1..=u32::MAX)
            .or("none")
            .default("none")
            .flag("max-connections-per-source");
        /// How often one source may connect; more are reset.
        rate_per_source: Option<Rate> =
            rate(1..=1_000_000).or("none").default("none").flag("rate-per-source");
        /// How many connections of one source may come at once before rate_per_source acts.
        burst_per_source: u32 =
            count(1..=1_000_000).default("20").flag("burst-per-source");
        /// IPv4 clients with the same first bits, so many, are one source.
        source_prefix_ipv4: u8 = count(1..=32).default("32").flag("source-prefix-ipv4");
        /// IPv6 clients with the same first bits, so many, are one source.
        source_prefix_ipv6: u8 = count(1..=128).default("64").flag("source-prefix-ipv6");
    }
    check |at, reader| {
        let all = max_connections.flatten();
        check::source_limit(at, reader, max_connections_per_source.flatten(), all);
        check::needs_limit(at, reader, on_full);
    }
}

/// So many connections in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub connections: u32,
    /// In which time.
    pub per: Duration,
}

/// What becomes of a client that sends something and says FIN while it waits for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Abandoned {
    /// What it sent is delivered when its turn comes.
    Serve,
    /// It leaves the queue, and what it sent is thrown away.
    Drop,
}

/// What an incoming connection meets when the listener is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum OnFull {
    /// It is reset.
    Reject,
    /// It waits for a place.
    Queue,
    /// The sessions are verified at once. A dead one makes room; else the connection waits.
    Verify,
    /// The longest quiet session makes room.
    Replace,
    /// As `verify`; then half-closed, mute and long quiet sessions make room, in this order.
    /// It is reset when all are active.
    Shed,
}

section! {
    /// The HTTP endpoint for metrics and administration.
    Admin {
        /// Where it listens. Requests that change something are accepted on a loopback address,
        /// and with a token.
        address: SocketAddr = listen().default("127.0.0.1:9900").flag("admin");
        /// A second address, for people and scripts on this host: everything is accepted there. A
        /// unix socket is for the user of the process only.
        control: Option<ControlAddress> = control().or("none").default("none").flag("admin-control");
        /// A file with a token. Who sends it as `Authorization: Bearer` may change something at any
        /// address. It is read for each such request.
        token_file: Option<PathBuf> = file().or("none").default("none").flag("admin-token-file");
        /// Whether `/readyz` also needs an endpoint that is up, of each listener (`upstream.check`).
        ready: Ready = choice().default("serving").flag("admin-ready");
        /// HTTPS in place of HTTP at `address`. `control` stays plain: it does not leave this host.
        tls: Option<AdminTls> = section_of().or("off").default("off");
    }
    check |at, reader| {
        let control = control.as_ref().and_then(Option::as_ref);
        check::control_address(at, reader, address, control);
    }
}

/// Where whoever comes may change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What `/readyz` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Ready {
    /// Whether clients are taken.
    Serving,
    /// Whether, besides, each listener has an endpoint that checks have not found down.
    Upstream,
}

section! {
    /// Limits of the whole process.
    ProcessLimits {
        /// Sessions are shed from 95 % of it on. `auto`: the limit of the control group; a size:
        /// for this process alone.
        memory: MemoryLimit = memory(16 << 20..=1 << 40).default("auto").flag("memory-limit");
    }
}

/// How much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// As much as the control group allows; no limit where it has none.
    Auto,
    /// No limit.
    Off,
    /// So many bytes for the process alone.
    Bytes(u64),
}

impl std::fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Bytes(bytes) => f.write_str(&units::show_size(*bytes)),
        }
    }
}

section! {
    /// How the process ends.
    Drain {
        /// Time between SIGTERM, when readiness ends, and the end of accepting.
        delay: Duration = span(Duration::ZERO..=HOUR).default("0s").flag("drain-delay");
        /// How long sessions may then take to finish. In the second half of it those at rest are ended one
        /// after the other.
        timeout: Duration = span(Duration::ZERO..=DAY).default("25s").flag("drain-timeout");
    }
}

section! {
    /// What is written to standard output.
    Log {
        /// The least severe level that is written.
        level: LogLevel = choice().default("info").flag("log-level");
        /// Lines for people, or one JSON object a line.
        format: LogFormat = choice().default("text").flag("log-format");
        /// A line for each session when it ends (`end`), also when it starts (`both`), or none (`off`).
        access: LogAccess = choice().default("end").flag("access-log");
    }
}

/// The least severe level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What is wrong and survivable.
    Warn,
    /// What changed.
    Info,
    /// What was decided, and why.
    Debug,
}

/// The lines of each session. For a flag `true` is `end`, and `false` is `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum LogAccess {
    /// One when it has ended.
    #[strum(to_string = "end", serialize = "true")]
    End,
    /// One more when it starts.
    Both,
    /// None.
    #[strum(to_string = "off", serialize = "false")]
    Off,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

section! {
    /// How the process follows its configuration file.
    Reload {
        /// Looks at the configuration file every 2 s, and takes up what has changed. SIGHUP and
        /// `POST /reload` do so at any time.
        watch: bool = switch().default("true");
    }
}

section! {
    /// How bytes are moved.
    Relay {
        /// Wait for more bytes at once in bulk streams: less CPU, up to some milliseconds of delay.
        low_water: bool = switch().default("true").flag("low-water");
    }
}

impl ListenerConfig {
    /// Lowers each limit to the one that always acts before it.
    pub(super) fn level(&mut self) {
        fn lower<T: Ord + Copy>(limit: &mut Option<T>, to: Option<T>) {
            *limit = limit.map(|limit| to.map_or(limit, |to| limit.min(to)));
        }
        let liveness = &mut self.liveness;
        lower(&mut liveness.idle_timeout, liveness.max_connection_duration);
        for limit in [
            &mut liveness.half_close_timeout,
            &mut liveness.first_response_timeout,
        ] {
            lower(limit, liveness.idle_timeout);
            lower(limit, liveness.max_connection_duration);
        }
        let limits = &mut self.limits;
        lower(
            &mut limits.max_connections_per_source,
            limits.max_connections,
        );
    }
}

#[cfg(test)]
impl Default for Liveness {
    fn default() -> Self {
        let flags = [("listen", "127.0.0.1:1"), ("upstream", "127.0.0.1:2")];
        let config = super::from_flags(&flags.map(|(flag, text)| (flag, text.to_owned())));
        config.unwrap().listeners.remove(0).liveness
    }
}

impl Liveness {
    /// The probe interval that follows from a budget: a fifth of it in whole seconds (the kernel's
    /// keepalive timer has no finer unit), at most half of the time after which a NAT forgets, at
    /// least 1 s.
    #[must_use]
    pub fn default_probe_interval(
        detect_within: Duration,
        nat_timeout: Option<Duration>,
    ) -> Duration {
        let fifth = detect_within.as_secs() / 5;
        let half = nat_timeout.map_or(fifth, |nat| nat.as_secs() / 2);
        Duration::from_secs(fifth.min(half).max(1))
    }

    /// How long a leg is quiet before the kernel asks it (`TCP_KEEPIDLE`).
    #[must_use]
    pub fn keepalive_idle(&self) -> Duration {
        self.policy().keepalive_idle().into()
    }

    /// The same limits for the pure machine.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            detect_within: self.detect_within.into(),
            probe_interval: self.probe_interval.into(),
            probes: [self.probes.downstream, self.probes.upstream],
            idle_timeout: self.idle_timeout.map(Span::from),
            half_close_timeout: self.half_close_timeout.map(Span::from),
            stall_timeout: self.stall_timeout.map(Span::from),
            delivery_timeout: self.delivery_timeout.map(Span::from),
            receive_timeout: [
                self.receive_timeout.downstream.map(Span::from),
                self.receive_timeout.upstream.map(Span::from),
            ],
            first_response_timeout: self.first_response_timeout.map(Span::from),
            max_duration: self.max_connection_duration.map(Span::from),
        }
    }
}

#[cfg(test)]
impl Upstream {
    /// With defaults.
    pub fn of(address: UpstreamAddress) -> Self {
        let flags = [
            ("listen", "127.0.0.1:1".to_owned()),
            ("upstream", "127.0.0.1:2".to_owned()),
        ];
        let config = super::from_flags(&flags);
        Self {
            address: Some(address),
            ..config.unwrap().listeners.remove(0).upstream
        }
    }
}

impl Upstream {
    /// Where the service is: at least one place.
    pub fn addresses(&self) -> impl Iterator<Item = &UpstreamAddress> {
        let several = self.endpoints.iter().map(|endpoint| &endpoint.address);
        self.address.iter().chain(several)
    }
}

/// The first few addresses.
impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 4;
        let shown: Vec<_> = self
            .addresses()
            .take(SHOWN)
            .map(ToString::to_string)
            .collect();
        f.write_str(&shown.join(", "))?;
        match self.addresses().count().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl Access {
    /// Whether a client may connect.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        let has = |list: &[Network]| list.iter().any(|network| network.contains(client));
        !has(&self.deny) && (self.allow.is_empty() || has(&self.allow))
    }
}

impl Limits {
    /// The source that a client belongs to.
    #[must_use]
    pub fn source_of(&self, client: IpAddr) -> Network {
        Network::around(client, [self.source_prefix_ipv4, self.source_prefix_ipv6])
    }
}

impl UpstreamAddress {
    /// The literal address, if it is one.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Unix(_) | Self::Name { .. } => None,
        }
    }

    /// The DNS name, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Socket(_) | Self::Unix(_) => None,
            Self::Name { host, .. } => Some(host),
        }
    }
}

impl std::fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
