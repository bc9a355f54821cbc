//! What the kernel is able to do, and settings of it that pulsegate replaces.

use super::{Check, Demands, Facts, Row, Status};

/// The kernel's own value of `net.ipv4.tcp_retries2`, which the probes of a closed window are
/// spread for.
const USUAL_RETRIES: u64 = 15;

const KEEPALIVE: &str = "keepalive per connection";
const USER_TIMEOUT: &str = "TCP_USER_TIMEOUT";
const RTO_MAX: &str = "TCP_RTO_MAX_MS";
const WINDOW: &str = "the peer's window in TCP_INFO";
const ON_DEMAND: &str = "a probe on demand (tried on loopback)";

pub(super) const ABILITIES: &[Row] = &[
    ("keepalive", KEEPALIVE, |facts, _| {
        let bad = "a vanished peer on a quiet connection is never found; run on Linux itself";
        let good = "a quiet peer is asked in time";
        ability(
            KEEPALIVE,
            facts.abilities.keepalive,
            (Status::Fail, bad),
            good,
        )
    }),
    ("user_timeout", USER_TIMEOUT, |facts, _| {
        let bad = "the kernel ends connections by its own rules, live ones included";
        let good = "the verdict is pulsegate's";
        ability(
            USER_TIMEOUT,
            facts.abilities.user_timeout,
            (Status::Fail, bad),
            good,
        )
    }),
    ("rto_max", RTO_MAX, |facts, _| {
        let bad = "with data in flight the kernel's questions back off: a peer that comes back \
                   after an outage longer than about half of detect_within may be closed as dead; \
                   Linux 6.15 has it";
        let good = "questions do not back off into silence";
        ability(RTO_MAX, facts.abilities.rto_max, (Status::Warn, bad), good)
    }),
    ("window", WINDOW, |facts, _| {
        let bad = "a peer that takes no data is seen as stalled only while nothing is in flight; \
                   Linux 5.4 has it";
        let good = "a stalled peer is told from one that does not get its data";
        ability(WINDOW, facts.abilities.window, (Status::Warn, bad), good)
    }),
    ("on_demand_probe", ON_DEMAND, |facts, _| {
        let bad = "suspects are asked by the kernel's timer only: verification takes up to \
                   detect_within instead of a round trip";
        let good = "a peer quiet for a second can be asked at any time";
        ability(
            ON_DEMAND,
            facts.abilities.probe_on_demand,
            (Status::Warn, bad),
            good,
        )
    }),
];

fn ability(what: &str, works: Option<bool>, bad: (Status, &str), good: &str) -> Option<Check> {
    Some(if works? {
        Check::ok(format!("{what} works"), good)
    } else {
        Check::new(bad.0, format!("{what} does not work"), bad.1)
    })
}

pub(super) const SETTINGS: &[Row] = &[
    ("congestion_control", "congestion_control", congestion),
    ("tcp_retries2", "tcp_retries2", retries),
    ("tcp_keepalive_time", "tcp_keepalive_*", keepalive_time),
];

fn congestion(facts: &Facts, _: &Demands) -> Option<Check> {
    let algorithm = facts.limits.congestion_control.as_deref()?;
    if !algorithm.starts_with("bbr") {
        return Some(Check::ok(algorithm, "does not bound the promise"));
    }
    let meaning = "paces by measured bandwidth, which makes bulk transfers over loopback and \
                   fast local networks slower; liveness is not concerned";
    let setting = "sysctl -w net.ipv4.tcp_congestion_control=cubic";
    Some(Check::info(algorithm, meaning).set(setting))
}

fn retries(facts: &Facts, _: &Demands) -> Option<Check> {
    let retries2 = facts.limits.retries2?;
    let found = match facts.limits.orphan_retries {
        Some(orphan) => format!("{retries2}, tcp_orphan_retries {orphan}"),
        None => retries2.to_string(),
    };
    if retries2 < USUAL_RETRIES {
        let meaning = format!(
            "the kernel gives up a peer that takes no data after {retries2} unanswered probes of \
             its window, up to a second apart, whatever detect_within is"
        );
        let setting = format!("sysctl -w net.ipv4.tcp_retries2={USUAL_RETRIES}");
        return Some(Check::warn(found, meaning).set(setting));
    }
    let meaning = "bounds the probes of a closed window, which are made to suffice for \
                   detect_within; tcp_orphan_retries bounds what is left of orderly ends";
    Some(Check::info(found, meaning))
}

fn keepalive_time(facts: &Facts, _: &Demands) -> Option<Check> {
    let found = facts.limits.keepalive_time?.to_string();
    let meaning = "not used: pulsegate sets keepalive for each connection";
    Some(Check::info(found, meaning))
}
