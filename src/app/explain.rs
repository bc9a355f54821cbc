//! What follows from a configuration: derived values, and the worst case of each fault.

use std::time::Duration;

use super::TlsFiles;
use crate::config::{Config, ListenAddress, ListenerConfig, Liveness, UpstreamAddress, show};
use crate::liveness::{CloseReason, Evidence, LEGS, Leg, Span};
use crate::metrics::wall_clock;
use crate::tls::Chain;

/// What `check` prints.
#[must_use]
pub fn summary(source: &str, config: &Config) -> String {
    let listeners = config.listeners.len();
    let plural = if listeners == 1 { "" } else { "s" };
    let mut out = format!("ok: {source}: {listeners} listener{plural}\n");
    for listener in &config.listeners {
        out += &heading(listener);
        out += &legs(listener);
    }
    out + &process(config)
}

/// What `check` prints of the files that a configuration names.
#[must_use]
pub fn files(files: &TlsFiles) -> String {
    let line = |chain: &Chain| {
        let validity = chain.ends_first.validity(wall_clock());
        let mark = match validity.needs_renewal() {
            true => "warning: ",
            false => "",
        };
        let (file, whose) = (chain.file.display(), chain.whose_end());
        format!(
            "{mark}certificate {file}: {}; it{whose} {validity}\n",
            chain.first
        )
    };
    let chains = files.chains.iter().map(line);
    let concerns = files.concerns.iter();
    chains
        .chain(concerns.map(|concern| format!("warning: {concern}\n")))
        .collect()
}

/// What `explain` prints.
#[must_use]
pub fn explain(config: &Config) -> String {
    let mut out = String::new();
    for listener in &config.listeners {
        out += &heading(listener);
        out += &legs(listener);
        out.push('\n');
        out += &table(&rows(listener));
        out.push('\n');
        if !judged(listener).is_empty() {
            out += &notes(&listener.liveness);
            out.push('\n');
        }
    }
    out + &process(config) + &takeover(config)
}

fn takeover(config: &Config) -> String {
    let limited = |l: &&ListenerConfig| l.limits.max_connections.is_some();
    let limited: Vec<_> = config.listeners.iter().filter(limited).collect();
    let names: Vec<&str> = limited.iter().map(|l| l.name.as_str()).collect();
    let waiting = if names.is_empty() {
        String::new()
    } else {
        let names = names.join(", ");
        format!("; on {names} once this one has no session there (max_connections)")
    };
    format!("run --takeover: the next instance takes new clients at once{waiting}\n")
}

fn heading(listener: &ListenerConfig) -> String {
    let ListenerConfig {
        name,
        address,
        tls,
        upstream,
        limits,
        ..
    } = listener;
    let is_tls = [tls.is_some(), upstream.tls.is_some()];
    let [down, up] = is_tls.map(|tls| if tls { " (TLS)" } else { "" });
    let limits = match limits.max_connections {
        Some(1) => format!("at most 1 session, then {}", limits.on_full),
        Some(n) => format!("at most {n} sessions, then {}", limits.on_full),
        None => "no limit of sessions".to_owned(),
    };
    format!("{name}: {address}{down} -> {upstream}{up}, {limits}\n")
}

fn process(config: &Config) -> String {
    let admin = config
        .admin
        .as_ref()
        .map_or_else(|| "off".to_owned(), |a| a.address.to_string());
    let workers = config
        .workers
        .map_or_else(|| "auto".to_owned(), |n| n.to_string());
    let memory = config.limits.memory;
    let (delay, timeout) = (show(config.drain.delay), show(config.drain.timeout));
    let ends = show(config.drain.delay + config.drain.timeout);
    format!(
        "admin {admin}; workers {workers}; memory limit {memory}; drain: {delay} delay, then {timeout} for the sessions: \
         the process ends within about {ends} of SIGTERM\n"
    )
}

/// What holds on each leg.
fn legs(listener: &ListenerConfig) -> String {
    let mut out = String::new();
    for (leg, ends) in LEGS.into_iter().zip(local_ends(listener)) {
        if ends.contains(&true) {
            let leg = format!("{} leg", <&str>::from(leg));
            out += &format!(
                "  {leg:20} a unix socket is never judged: detect_within, stall_timeout and delivery_timeout do \
                 not act on it\n"
            );
        }
    }
    match judged(listener) {
        "" => out,
        _ => out + &derived(&listener.liveness),
    }
}

/// By leg, whether each address at its end is a Unix socket.
fn local_ends(listener: &ListenerConfig) -> [Vec<bool>; 2] {
    let service = listener.upstream.addresses();
    [
        vec![matches!(listener.address, ListenAddress::Unix(_))],
        service
            .map(|address| matches!(address, UpstreamAddress::Unix(_)))
            .collect(),
    ]
}

/// The legs that are judged, in the words of the table; empty: none.
fn judged(listener: &ListenerConfig) -> &'static str {
    match local_ends(listener).map(|ends| ends.contains(&false)) {
        [true, true] => "either",
        [true, false] => "downstream",
        [false, true] => "upstream",
        [false, false] => "",
    }
}

fn derived(liveness: &Liveness) -> String {
    let policy = liveness.policy();
    let detect = policy.detect_within;
    let survives = match policy.survives() {
        Span::ZERO => "no outage for certain".to_owned(),
        span => format!("every outage shorter than {}", human(span)),
    };
    let nat_timeout = match liveness.nat_timeout {
        Some(nat) => format!("  nat_timeout          {}\n", kept(liveness, nat)),
        None => String::new(),
    };
    format!(
        "  detect_within        {}\n  \
           probe_interval       {}\n  \
           kernel keepalive     idle {}, then every 1s to 3s\n  \
           suspect after        {} of silence\n  \
           last questions from  {} of silence\n  \
           dead after           {} of silence\n  \
           survives             {survives}\n{nat_timeout}",
        show(liveness.detect_within),
        show(liveness.probe_interval),
        show(liveness.keepalive_idle()),
        human(policy.suspect_after()),
        human(detect - policy.final_phase()),
        human(dead_after(liveness)),
    )
}

/// Which legs a NAT that forgets after `nat` does not forget.
fn kept(liveness: &Liveness, nat: Duration) -> String {
    let (nat, interval) = (show(nat), show(liveness.probe_interval));
    let legs = match (liveness.probes.downstream, liveness.probes.upstream) {
        (true, true) => "both legs",
        (true, false) => {
            "the downstream leg; nothing keeps a quiet upstream leg (probes.upstream: false)"
        }
        (false, true) => {
            "the upstream leg; nothing keeps a quiet downstream leg (probes.downstream: false)"
        }
        (false, false) => {
            return format!("{nat}; nothing keeps a quiet connection (probes: false on both legs)");
        }
    };
    format!("{nat}; a probe every {interval} of silence keeps {legs}")
}

/// A fault: on which leg, what proves it or which limit ends it, how the session is recorded,
/// and after what time at the latest.
type Row = [String; 5];

fn rows(listener: &ListenerConfig) -> Vec<Row> {
    let liveness = &listener.liveness;
    let (idle, half_close) = (idle(liveness), half_close(liveness));
    let first = CloseReason::FirstResponseTimeout.into();
    let first = (first, liveness.first_response_timeout);
    let stall = ("*_stalled", liveness.stall_timeout);
    let delivery = ("*_undelivered", liveness.delivery_timeout);
    let connect = Some(listener.upstream.connect_timeout);
    let connect = (CloseReason::ConnectTimeout.into(), connect);
    let duration = liveness.max_connection_duration;
    let duration = (CloseReason::MaxDuration.into(), duration);
    let judged = judged(listener);
    let service = match judged {
        "either" | "upstream" => "upstream",
        _ => "",
    };
    let mut rows = vanished(judged, liveness);
    rows.extend([
        row(judged, "sent RST", "-", "*_reset", "at once"),
        row(
            judged,
            "forgot the connection (restart)",
            Evidence::Reset.into(),
            DEAD,
            &format!("{} and a round trip", show(liveness.probe_interval)),
        ),
        ended(judged, "alive, takes no data", "-", &[stall, idle]),
        ended(judged, "heard, data does not arrive", "-", &[delivery]),
        ended("upstream", "no answer to a request", "-", &[first, idle]),
        // first_response_timeout begins only when it is known what the peer is.
        row(
            service,
            "got a request, never accepted",
            "-",
            CloseReason::UpstreamPhantom.into(),
            &format!("{} from its last SYN-ACK", human(dead_after(liveness))),
        ),
        ended(
            "either",
            "said FIN, gone or silent",
            "-",
            &[half_close, idle],
        ),
        ended("both", "silent, both alive", "-", &[idle]),
        ended("both", "session too old", "-", &[duration]),
        ended("upstream", "no answer to connect", "-", &[connect]),
    ]);
    rows.extend(handshakes(listener));
    rows.extend(mute(listener));
    rows.retain(|[leg, ..]| !leg.is_empty());
    rows
}

/// Peers that do not come to an end with TLS, where it is spoken.
fn handshakes(listener: &ListenerConfig) -> Vec<Row> {
    let down = listener.tls.as_ref().map(|tls| tls.handshake_timeout);
    let up = listener.upstream.tls.as_ref();
    let up = up.map(|_| listener.upstream.connect_timeout);
    let row = |(leg, limit): (Leg, Option<Duration>)| {
        let limit = (CloseReason::tls_failed(leg).into(), Some(limit?));
        Some(ended(
            leg.into(),
            "handshake of TLS not over",
            "-",
            &[limit],
        ))
    };
    LEGS.into_iter().zip([down, up]).filter_map(row).collect()
}

/// Peers that live and send nothing, where there is a limit to that.
fn mute(listener: &ListenerConfig) -> Vec<Row> {
    let mut rows = Vec::new();
    let receive = &listener.liveness.receive_timeout;
    for (leg, span) in LEGS.into_iter().zip([receive.downstream, receive.upstream]) {
        if span.is_some() {
            let silent = (CloseReason::silent(leg).into(), span);
            rows.push(ended(leg.into(), "alive, sends no payload", "-", &[silent]));
        }
    }
    let heartbeat = &listener.liveness.heartbeat;
    for leg in LEGS {
        if heartbeat.protocol(leg).is_some() {
            let span = heartbeat.after + heartbeat.timeout * heartbeat.failures;
            let hangs = (CloseReason::unresponsive(leg).into(), Some(span));
            let evidence = Evidence::Heartbeat.into();
            rows.push(ended(
                leg.into(),
                "kernel answers, application hangs",
                evidence,
                &[hangs],
            ));
        }
    }
    let first_byte = listener.limits.first_byte_timeout;
    if first_byte.is_some() {
        let first_byte = (CloseReason::FirstByteTimeout.into(), first_byte);
        rows.push(ended("downstream", "sent nothing yet", "-", &[first_byte]));
    }
    rows
}

/// The head of the table, and a vanished peer. Limits that count from the last byte come first only
/// where no byte moves: data in flight keeps them waiting.
fn vanished(judged: &str, liveness: &Liveness) -> Vec<Row> {
    let (idle, half_close) = (idle(liveness), half_close(liveness));
    let found = (DEAD, Some(dead_after(liveness).into()));
    let ended =
        |fault, evidence: Evidence, limits: &[Limit]| ended(judged, fault, evidence.into(), limits);
    vec![
        row(
            "LEG",
            "FAULT",
            "EVIDENCE",
            "CLOSED AS",
            "AT THE LATEST AFTER",
        ),
        ended("vanished, idle", Evidence::Keepalive, &[found, idle]),
        ended("vanished, data in flight", Evidence::Retransmit, &[found]),
        ended("vanished, window closed", Evidence::WindowProbe, &[found]),
        ended(
            "vanished, the other said FIN",
            Evidence::Keepalive,
            &[found, half_close, idle],
        ),
    ]
}

fn idle(liveness: &Liveness) -> Limit {
    (CloseReason::IdleTimeout.into(), liveness.idle_timeout)
}

fn half_close(liveness: &Liveness) -> Limit {
    let reason = CloseReason::HalfCloseTimeout.into();
    (reason, liveness.half_close_timeout)
}

fn dead_after(liveness: &Liveness) -> Span {
    let policy = liveness.policy();
    policy.detect_within + policy.grace()
}

/// The reason with which a vanished peer is closed.
const DEAD: &str = "*_dead";

/// The reason a limit closes with, and the limit if it is on.
type Limit = (&'static str, Option<Duration>);

/// A fault with the limit that ends it first, of equal ones the first. `evidence` is what proves
/// the peer dead.
fn ended(leg: &str, fault: &str, evidence: &str, limits: &[Limit]) -> Row {
    let on = limits
        .iter()
        .filter_map(|(reason, span)| Some((*reason, (*span)?)));
    match on.min_by_key(|(_, span)| *span) {
        Some((DEAD, span)) => row(leg, fault, evidence, DEAD, &human(span.into())),
        Some((reason, span)) => row(leg, fault, "-", reason, &human(span.into())),
        None => row(leg, fault, "-", "-", "never (off)"),
    }
}

fn row(leg: &str, fault: &str, evidence: &str, reason: &str, after: &str) -> Row {
    [leg, fault, evidence, reason, after].map(str::to_owned)
}

fn table(rows: &[Row]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [a, b, c, d] = [0, 1, 2, 3].map(width);
    let line = |[leg, fault, evidence, reason, after]: &Row| {
        format!("  {leg:a$}  {fault:b$}  {evidence:c$}  {reason:d$}  {after}\n")
    };
    rows.iter().map(line).collect()
}

fn notes(liveness: &Liveness) -> String {
    let policy = liveness.policy();
    let interval = show(liveness.probe_interval);
    let dead = human(dead_after(liveness));
    let soonest = human(dead_after(liveness) - policy.probe_interval);
    let half = human(policy.detect_within / 2);
    format!(
        "  * is the leg at fault: downstream or upstream. A vanished peer is closed {dead} after its\n  \
         last sign of life. On a quiet connection that lies up to {interval} before it vanished, so\n  \
         that it is closed between {soonest} and {dead} after vanishing.\n  \
         A timeout counts from the last byte; where bytes still move the other way, idle_timeout\n  \
         waits for them.\n  \
         Answers come from the next TCP endpoint. A load balancer, tunnel or mesh that ends TCP and\n  \
         answers keepalives by itself hides a peer that vanished behind it: put pulsegate between\n  \
         it and the peer, or let first_response_timeout and stall_timeout judge the application.\n  \
         A NAT or firewall forgets quiet connections: keep probe_interval ({interval}) below its time.\n  \
         Linux before 6.15 has no TCP_RTO_MAX_MS: with data in flight or a closed window the\n  \
         kernel's questions back off. A vanished peer is found in the same time, but behind a closed\n  \
         window up to minutes later; and after an outage longer than about {half} the next question\n  \
         may come too late for a peer that is back, and it is closed as dead.\n"
    )
}

/// As [`show`], with fractions of a second where that is shorter.
fn human(span: Span) -> String {
    let ms = span.as_millis();
    if ms < 1000 || ms.is_multiple_of(1000) {
        return show(Duration::from_millis(ms));
    }
    let fraction = format!("{:03}", ms % 1000);
    format!("{}.{}s", ms / 1000, fraction.trim_end_matches('0'))
}
