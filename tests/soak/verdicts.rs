//! What the proxy said of each session, judged by what was really done to it.

use serde_json::Value;

use crate::links::Clock;
use crate::support::Host;

/// One budget for all: `probe_interval` is the shortest there is.
pub const FLAGS: [&str; 6] = [
    "--detect-within",
    "4s",
    "--probe-interval",
    "1s",
    "--log-format",
    "json",
];
pub const DETECT_WITHIN: f64 = 4.0;
/// A verdict may be late by 5 %, at least 0.3 s; the machine may be busy.
const LATE_MS: u64 = 300 + 2500;

/// What was done to a session's two ends, client first.
#[derive(Clone, Debug)]
pub struct Deeds {
    pub host: Host,
    /// The end has said FIN, or will have.
    pub finished: [bool; 2],
    /// The end was reset, closed or killed.
    pub let_go: [bool; 2],
}

/// The end of a session, from the proxy's log.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub client: String,
    pub reason: String,
    pub at: f64,
    pub duration_ms: u64,
    evidence: Option<String>,
    silent_ms: Option<u64>,
}

impl Verdict {
    /// Reads a line of the log; `None` if it is about something else.
    pub fn read(line: &str, clock: Clock) -> Option<Self> {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        (line["target"] == "access").then(|| Self {
            client: text("downstream").expect("an address"),
            reason: text("reason").expect("a reason"),
            at: clock.read(line["timestamp"].as_str().expect("a time")),
            duration_ms: line["duration_ms"].as_u64().expect("a duration"),
            evidence: text("evidence"),
            silent_ms: line["silent_ms"].as_u64(),
        })
    }

    /// Why this is wrong, if it is. `may_be_dead` says whether a peer on a link may have been out
    /// of reach for long enough.
    pub fn objection(
        &self,
        deeds: &Deeds,
        may_be_dead: impl Fn(Host, f64) -> bool,
    ) -> Option<String> {
        let [client, service] = deeds.let_go;
        let said_fin = |end: usize| deeds.finished[end] || deeds.let_go[end];
        let just = match self.reason.as_str() {
            "finished" => said_fin(0) && said_fin(1),
            "downstream_reset" => client,
            "upstream_reset" => service,
            "downstream_dead" if self.is_by_reset() => client,
            "upstream_dead" if self.is_by_reset() => service,
            "downstream_dead" => may_be_dead(deeds.host, self.at) && self.is_timely(),
            "upstream_dead" => may_be_dead(Host::Service, self.at) && self.is_timely(),
            _ => false,
        };
        (!just).then(|| format!("{self:?}\nis not what was done: {deeds:?}"))
    }

    pub fn is_by_reset(&self) -> bool {
        self.evidence.as_deref() == Some("reset")
    }

    /// Neither sooner nor later than promised after the last sign of life.
    fn is_timely(&self) -> bool {
        let budget = (DETECT_WITHIN * 1000.0) as u64;
        self.silent_ms
            .is_some_and(|silent| (budget..=budget + LATE_MS).contains(&silent))
    }
}
