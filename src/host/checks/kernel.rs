//! What the kernel is able to do, and settings of it that pulsegate replaces.

use super::{Check, Limits, Status, of};
use crate::host::Abilities;

/// The kernel's own value of `net.ipv4.tcp_retries2`, which the probes of a closed window are spread for.
const USUAL_RETRIES: u64 = 15;

pub(super) fn abilities(abilities: &Abilities) -> Vec<Check> {
    let judge = |name, what, ability, bad: (Status, &str), good: &str| {
        of(name, what, ability, |present| {
            if present {
                Check::new(name, Status::Ok, format!("{what} works"), good)
            } else {
                Check::new(name, bad.0, format!("{what} does not work"), bad.1)
            }
        })
    };
    vec![
        judge(
            "keepalive",
            "keepalive per connection",
            abilities.keepalive,
            (
                Status::Fail,
                "a vanished peer on a quiet connection is never found; run on Linux itself",
            ),
            "a quiet peer is asked in time",
        ),
        judge(
            "user_timeout",
            "TCP_USER_TIMEOUT",
            abilities.user_timeout,
            (
                Status::Fail,
                "the kernel ends connections by its own rules, live ones included",
            ),
            "the verdict is pulsegate's",
        ),
        judge(
            "rto_max",
            "TCP_RTO_MAX_MS",
            abilities.rto_max,
            (
                Status::Warn,
                "with data in flight the kernel's questions back off: a peer that comes back \
                 after an outage longer than about half of detect_within may be closed as dead; \
                 Linux 6.15 has it",
            ),
            "questions do not back off into silence",
        ),
        judge(
            "window",
            "the peer's window in TCP_INFO",
            abilities.window,
            (
                Status::Warn,
                "a peer that takes no data is seen as stalled only while nothing is in flight; \
                 Linux 5.4 has it",
            ),
            "a stalled peer is told from one that does not get its data",
        ),
        judge(
            "on_demand_probe",
            "a probe on demand (tried on loopback)",
            abilities.probe_on_demand,
            (
                Status::Warn,
                "suspects are asked by the kernel's timer only: verification takes up to \
                 detect_within instead of a round trip",
            ),
            "a peer quiet for a second can be asked at any time",
        ),
    ]
}

pub(super) fn settings(limits: &Limits) -> Vec<Check> {
    vec![
        congestion(limits),
        retries(limits),
        of(
            "tcp_keepalive_time",
            "tcp_keepalive_*",
            limits.keepalive_time,
            |seconds| {
                let meaning = "not used: pulsegate sets keepalive for each connection";
                Check::new(
                    "tcp_keepalive_time",
                    Status::Info,
                    seconds.to_string(),
                    meaning,
                )
            },
        ),
    ]
}

fn congestion(limits: &Limits) -> Check {
    let name = "congestion_control";
    of(
        name,
        name,
        limits.congestion_control.as_ref(),
        |algorithm| {
            if !algorithm.starts_with("bbr") {
                let meaning = "does not bound the promise";
                return Check::new(name, Status::Ok, algorithm.clone(), meaning);
            }
            let meaning = "paces by measured bandwidth, which makes bulk transfers over loopback and \
                       fast local networks slower; liveness is not concerned";
            Check::new(name, Status::Info, algorithm.clone(), meaning)
                .set("sysctl -w net.ipv4.tcp_congestion_control=cubic".to_owned())
        },
    )
}

fn retries(limits: &Limits) -> Check {
    let name = "tcp_retries2";
    of(name, name, limits.retries2, |retries2| {
        let found = match limits.orphan_retries {
            Some(orphan) => format!("{retries2}, tcp_orphan_retries {orphan}"),
            None => retries2.to_string(),
        };
        if retries2 < USUAL_RETRIES {
            let meaning = format!(
                "the kernel gives up a peer that takes no data after {retries2} unanswered probes of its \
                 window, up to a second apart, whatever detect_within is"
            );
            return Check::new(name, Status::Warn, found, &meaning)
                .set(format!("sysctl -w net.ipv4.tcp_retries2={USUAL_RETRIES}"));
        }
        let meaning = "bounds the probes of a closed window, which are made to suffice for \
                       detect_within; tcp_orphan_retries bounds what is left of orderly ends";
        Check::new(name, Status::Info, found, meaning)
    })
}
