//! From checked values to the typed configuration: defaults, and what contradicts what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use super::duration::show;
use super::keys::{self, Default};
use super::settings::{Entry, Settings};
use super::types::{
    Abandoned, Admin, Config, Drain, Limits, ListenerConfig, Liveness, Log, LogFormat, LogLevel,
    MemoryLimit, OnDead, OnEnd, OnFull, ProcessLimits, Relay, Upstream, UpstreamAddress,
};
use super::value::Value;
use crate::liveness::LEGS;

/// Pairs of limits of which the first could never act if it were longer than the second.
const SHADOWED: [(&str, &str); 5] = [
    ("half_close_timeout", "idle_timeout"),
    ("first_response_timeout", "idle_timeout"),
    ("idle_timeout", "max_connection_duration"),
    ("half_close_timeout", "max_connection_duration"),
    ("first_response_timeout", "max_connection_duration"),
];

impl Settings<'_> {
    /// `None` if there is any problem, now or before; all of them are in `problems`.
    pub fn build(&mut self) -> Option<Config> {
        let listeners = self.all_listeners();
        let admin = self.admin();
        self.check_addresses(&listeners, admin.as_ref().and_then(Option::as_ref));
        let log = self.log();
        let memory = self.memory();
        let drain = self.drain();
        let relay = self.switch("relay.low_water");
        let workers = self.optional_count("workers");
        if !self.problems.is_empty() {
            return None;
        }
        Some(Config {
            listeners: listeners.into_iter().collect::<Option<_>>()?,
            admin: admin?,
            limits: ProcessLimits { memory: memory? },
            drain: drain?,
            log: log?,
            relay: Relay { low_water: relay? },
            workers: workers?.and_then(|n| NonZeroUsize::new(usize::try_from(n).ok()?)),
        })
    }

    fn all_listeners(&mut self) -> Vec<Option<ListenerConfig>> {
        if self.listeners == 0 {
            match self.entries.get("listeners") {
                None => self.missing("listeners"),
                Some(Entry { value: None, at }) if !self.problems.iter().any(|p| p.at == *at) => {
                    let message = "is empty; at least one listener is needed".to_owned();
                    self.problem(*at, "listeners", message);
                }
                Some(_) => {}
            }
        }
        (0..self.listeners).map(|i| self.listener(i)).collect()
    }

    /// Every key is read before any is missed, so that all problems are found.
    fn listener(&mut self, i: usize) -> Option<ListenerConfig> {
        let path = |key: &str| format!("listeners[{i}].{key}");
        let address = self.listen(&path("address"));
        let name = match self.given(&path("name")) {
            Some(entry) => match &entry.value {
                Some(Value::Name(name)) => Some(name.clone()),
                _ => None,
            },
            None if self.listeners == 1 => Some("default".to_owned()),
            None => address.map(|address| format!("port-{}", address.port())),
        };
        let backlog = self.optional_count(&path("backlog"));
        let upstream = self.upstream(&path("upstream"));
        let liveness = self.liveness(&path("liveness"));
        let limits = self.limits(&path("limits"));
        self.check_limits(&path("liveness"), liveness.as_ref());
        Some(ListenerConfig {
            name: name?,
            address: address?,
            backlog: backlog??,
            upstream: upstream?,
            liveness: liveness?,
            limits: limits?,
        })
    }

    fn upstream(&mut self, path: &str) -> Option<Upstream> {
        let address = match self.value(&format!("{path}.address")) {
            Some(Value::Dial(address)) => Some(address),
            _ => None,
        };
        let connect_timeout = self.span(&format!("{path}.connect_timeout"));
        let resolve_interval = self.span(&format!("{path}.resolve_interval"));
        Some(Upstream {
            address: address?,
            connect_timeout: connect_timeout?,
            resolve_interval: resolve_interval?,
        })
    }

    fn liveness(&mut self, path: &str) -> Option<Liveness> {
        let detect_within = self.span(&format!("{path}.detect_within"));
        let interval = format!("{path}.probe_interval");
        let probe_interval = match self.given(&interval) {
            Some(_) => self.span(&interval),
            None => detect_within.map(Liveness::default_probe_interval),
        };
        let mut timer = |name: &str| self.span(&format!("{path}.{name}")).map(on);
        let idle = timer("idle_timeout");
        let half_close = timer("half_close_timeout");
        let stall = timer("stall_timeout");
        let delivery = timer("delivery_timeout");
        let first_response = timer("first_response_timeout");
        let max_duration = timer("max_connection_duration");
        let probes = LEGS.map(|leg| self.switch(&format!("{path}.probes.{leg}")));
        let on_dead = self.word(&format!("{path}.on_dead"), OnDead::from_word);
        let on_end = self.word(&format!("{path}.on_end"), OnEnd::from_word);
        Some(Liveness {
            detect_within: detect_within?,
            probe_interval: probe_interval?,
            probes: [probes[0]?, probes[1]?],
            idle_timeout: idle?,
            half_close_timeout: half_close?,
            stall_timeout: stall?,
            delivery_timeout: delivery?,
            first_response_timeout: first_response?,
            max_connection_duration: max_duration?,
            on_dead: on_dead?,
            on_end: on_end?,
        })
    }

    fn limits(&mut self, path: &str) -> Option<Limits> {
        let max_connections = self.optional_count(&format!("{path}.max_connections"));
        let on_full = self.word(&format!("{path}.on_full"), OnFull::from_word);
        let queue_timeout = self.span(&format!("{path}.queue_timeout")).map(on);
        let abandoned = self.word(&format!("{path}.abandoned"), Abandoned::from_word);
        let reconnect_delay = self.span(&format!("{path}.reconnect_delay"));
        Some(Limits {
            max_connections: max_connections?,
            on_full: on_full?,
            queue_timeout: queue_timeout?,
            abandoned: abandoned?,
            reconnect_delay: reconnect_delay?,
        })
    }

    fn admin(&mut self) -> Option<Option<Admin>> {
        if let Some(Entry {
            value: Some(Value::Word(_)),
            ..
        }) = self.entries.get("admin")
        {
            return Some(None);
        }
        let address = self.listen("admin.address")?;
        Some(Some(Admin { address }))
    }

    fn memory(&mut self) -> Option<MemoryLimit> {
        match self.value("limits.memory") {
            Some(Value::Size(bytes)) => Some(MemoryLimit::Bytes(bytes)),
            Some(Value::Word(word)) => MemoryLimit::from_word(word),
            _ => None,
        }
    }

    fn drain(&mut self) -> Option<Drain> {
        let delay = self.span("drain.delay");
        let timeout = self.span("drain.timeout");
        Some(Drain {
            delay: delay?,
            timeout: timeout?,
        })
    }

    fn log(&mut self) -> Option<Log> {
        let level = self.word("log.level", LogLevel::from_word);
        let format = self.word("log.format", LogFormat::from_word);
        let access = self.switch("log.access");
        Some(Log {
            level: level?,
            format: format?,
            access: access?,
        })
    }

    /// What was given for a key, by the listener itself or under `defaults`.
    fn given(&self, path: &str) -> Option<&Entry> {
        self.given_at(path).map(|(_, entry)| entry)
    }

    fn given_at(&self, path: &str) -> Option<(String, &Entry)> {
        if let Some(entry) = self.entries.get(path) {
            return Some((path.to_owned(), entry));
        }
        let (_, rest) = path.strip_prefix("listeners[")?.split_once(']')?;
        let path = format!("defaults{rest}");
        self.entries.get(&path).map(|entry| (path, entry))
    }

    /// What was given, or the default. A key that must be given and was not is a problem.
    fn value(&mut self, path: &str) -> Option<Value> {
        if let Some(entry) = self.given(path) {
            return entry.value.clone();
        }
        let key = keys::find(&super::errors::generic(path));
        debug_assert!(key.is_some(), "{path} is not in the key table");
        match key.map(|key| (key.default, key.kind))? {
            (Default::Value(text), kind) => kind.read_text(text).ok(),
            (Default::Required, _) => {
                self.missing(path);
                None
            }
            (Default::Derived(_) | Default::Keys, _) => None,
        }
    }

    /// Blames the innermost section that is there.
    fn missing(&mut self, path: &str) {
        let mut section = path;
        let at = loop {
            section = keys::parent(section);
            match self.entries.get(section) {
                // The section itself was refused; that has been said.
                Some(entry)
                    if self
                        .problems
                        .iter()
                        .any(|p| p.at.is_some() && p.at == entry.at) =>
                {
                    return;
                }
                Some(entry) => break entry.at,
                None if section.is_empty() => break None,
                None => {}
            }
        };
        let kind = keys::find(&super::errors::generic(path)).map(|key| key.kind);
        let accepted = kind.map(keys::Kind::accepted).unwrap_or_default();
        self.problem(at, path, format!("is missing; accepted: {accepted}"));
    }

    fn span(&mut self, path: &str) -> Option<Duration> {
        match self.value(path) {
            Some(Value::Span(span)) => Some(span),
            _ => None,
        }
    }

    /// The inner `None` is the word that stands for no number.
    fn optional_count(&mut self, path: &str) -> Option<Option<u32>> {
        match self.value(path) {
            Some(Value::Count(n)) => Some(Some(n)),
            Some(Value::Word(_)) => Some(None),
            _ => None,
        }
    }

    fn switch(&mut self, path: &str) -> Option<bool> {
        match self.value(path) {
            Some(Value::Switch(on)) => Some(on),
            _ => None,
        }
    }

    fn word<T>(&mut self, path: &str, from: fn(&str) -> Option<T>) -> Option<T> {
        match self.value(path) {
            Some(Value::Word(word)) => from(word),
            _ => None,
        }
    }

    fn listen(&mut self, path: &str) -> Option<SocketAddr> {
        match self.value(path) {
            Some(Value::Listen(address)) => Some(address),
            _ => None,
        }
    }

    fn check_limits(&mut self, path: &str, liveness: Option<&Liveness>) {
        self.check_probe_interval(path, liveness);
        for (short, long) in SHADOWED {
            let given = |name: &str| {
                let (path, entry) = self.given_at(&format!("{path}.{name}"))?;
                match &entry.value {
                    Some(Value::Span(span)) => on(*span).map(|span| (path, entry.at, span)),
                    _ => None,
                }
            };
            let (Some((first, at, a)), Some((second, _, b))) = (given(short), given(long)) else {
                continue;
            };
            // A default that a listener's own limit cuts short is no mistake.
            if a > b && keys::parent(&first) == keys::parent(&second) {
                let (a, b) = (show(a), show(b));
                let name = self.source.name_of(&second);
                let message =
                    format!("{a} is longer than {name} {b}, which would always come first");
                self.problem(at, &first, message);
            }
        }
    }

    fn check_probe_interval(&mut self, path: &str, liveness: Option<&Liveness>) {
        let Some(liveness) = liveness else { return };
        let (probe, detect) = (liveness.probe_interval, liveness.detect_within);
        if probe < detect {
            return;
        }
        let interval = format!("{path}.probe_interval");
        let within = format!("{path}.detect_within");
        // The listener's own key is to blame before one that it inherits.
        let own = [&interval, &within]
            .into_iter()
            .find(|path| self.entries.contains_key(*path));
        let blamed = own.unwrap_or(&interval);
        let (this, relation, other, that) = if *blamed == interval {
            (probe, "below", &within, detect)
        } else {
            (detect, "above", &interval, probe)
        };
        let (this, that, other) = (show(this), show(that), self.source.name_of(other));
        let message = format!(
            "{this} is not {relation} {other} {that}; a peer must be asked before it is judged"
        );
        let Some((blamed, at)) = self.given_at(blamed).map(|(path, entry)| (path, entry.at)) else {
            return;
        };
        self.problem(at, &blamed, message);
    }

    fn check_addresses(&mut self, listeners: &[Option<ListenerConfig>], admin: Option<&Admin>) {
        for (i, listener) in listeners.iter().enumerate() {
            let Some(listener) = listener else { continue };
            let path = |key: &str| format!("listeners[{i}].{key}");
            for (j, other) in listeners[..i].iter().enumerate() {
                let Some(other) = other else { continue };
                if other.name == listener.name {
                    let message = format!("{:?} is also the name of listeners[{j}]", other.name);
                    self.blame(&path("name"), message);
                }
                if clash(other.address, listener.address) {
                    let message =
                        clash_message(listener.address, &format!("listeners[{j}]"), other.address);
                    self.blame(&path("address"), message);
                }
            }
            if let Some(admin) = admin {
                if clash(listener.address, admin.address) {
                    let other = self.admin_name();
                    let message = clash_message(listener.address, &other, admin.address);
                    self.blame(&path("address"), message);
                }
                if reaches(&listener.upstream.address, admin.address) {
                    let other = self.admin_name();
                    let message = format!("{} is {other}", listener.upstream.address);
                    self.blame(&path("upstream.address"), message);
                }
            }
            if let Some(by_way_of) = way_back(listeners, i) {
                let (to, from) = (&listener.upstream.address, listener.address);
                let message = match by_way_of {
                    j if j == i => format!("{to} is this listener itself ({from}): a loop"),
                    j => format!("{to} leads to listeners[{j}], and back here: a loop"),
                };
                self.blame(&path("upstream.address"), message);
            }
        }
    }

    fn admin_name(&self) -> String {
        let name = match self.source {
            super::errors::Source::Flags => "--admin",
            super::errors::Source::File { .. } => "admin.address",
        };
        match self.entries.get("admin.address") {
            Some(_) => format!("the address of {name}"),
            None => format!("the default of {name}"),
        }
    }

    /// A problem with a key, or with its section if the key was left out.
    fn blame(&mut self, path: &str, message: String) {
        let entry = self
            .given(path)
            .or_else(|| self.entries.get(keys::parent(path)));
        let at = entry.and_then(|entry| entry.at);
        self.problem(at, path, message);
    }
}

/// `0s` is off.
fn on(span: Duration) -> Option<Duration> {
    (!span.is_zero()).then_some(span)
}

fn clash_message(address: SocketAddr, other: &str, other_address: SocketAddr) -> String {
    if address == other_address {
        return format!("{address} is also {other}");
    }
    let why = if address.is_ipv4() == other_address.is_ipv4() {
        ""
    } else {
        "; an IPv6 socket takes IPv4 clients, too"
    };
    format!("{address} overlaps {other}, {other_address}{why}")
}

/// Whether two addresses cannot both be listened on.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = takes(a, b.ip()) || takes(b, a.ip());
    a.port() == b.port() && a.port() != 0 && overlap
}

/// Whether what listens there gets the connections to an address of this host. `[::]` takes those
/// over IPv4, too.
fn takes(listening: SocketAddr, ip: IpAddr) -> bool {
    let (own, ip) = (listening.ip().to_canonical(), ip.to_canonical());
    own == ip || (own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4()))
}

/// Whether a connection to `to` would certainly arrive at `listening`.
fn reaches(to: &UpstreamAddress, listening: SocketAddr) -> bool {
    match to {
        UpstreamAddress::Socket(to) => {
            let ip = to.ip().to_canonical();
            let here = ip.is_loopback() || ip == listening.ip().to_canonical();
            to.port() == listening.port() && here && takes(listening, ip)
        }
        UpstreamAddress::Name { host, port } => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            let here = name == "localhost" || name.ends_with(".localhost");
            let loopback = [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                Ipv6Addr::LOCALHOST.into(),
            ];
            *port == listening.port() && here && loopback.iter().any(|ip| takes(listening, *ip))
        }
    }
}

/// The listener that the upstream of listener `i` is, if the upstreams lead back to `i` from there.
fn way_back(listeners: &[Option<ListenerConfig>], i: usize) -> Option<usize> {
    let next = |i: usize| {
        let upstream = &listeners[i].as_ref()?.upstream.address;
        let reached = |to: &Option<ListenerConfig>| {
            let to = to.as_ref();
            to.is_some_and(|to| reaches(upstream, to.address))
        };
        if reached(&listeners[i]) {
            return Some(i);
        }
        listeners.iter().position(reached)
    };
    let first = next(i)?;
    let mut at = first;
    for _ in 0..listeners.len() {
        if at == i {
            return Some(first);
        }
        at = next(at)?;
    }
    None
}
