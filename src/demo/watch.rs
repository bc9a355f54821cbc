//! Watches one session through what the admin endpoint serves, and tells what changes.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::admin::Control;
use crate::app::App;
use crate::liveness::Span;
use crate::sys;

use super::narrator::{Narrator, seconds};

const EVERY: Duration = Duration::from_millis(50);

/// How a watched session ended.
#[derive(Debug)]
pub struct Closed {
    /// The close reason.
    pub reason: String,
    /// What proved a peer dead, and how long it had been silent.
    pub proof: Option<(String, Span)>,
}

/// Follows the session of a client, telling each new condition of its leg, until it is closed.
pub fn follow(
    app: &App,
    narrator: &Narrator,
    client: SocketAddr,
    at_most: Duration,
) -> io::Result<Closed> {
    let before = app.metrics();
    let deadline = sys::now() + at_most.into();
    let mut told = "alive";
    while sys::now() < deadline {
        let mut sessions = Control::sessions(app).into_iter().filter_map(|s| s.view());
        let Some(session) = sessions.find(|s| s.downstream.peer == Some(client)) else {
            return Ok(closed(&before, &app.metrics()));
        };
        let leg = &session.downstream;
        if leg.condition != told {
            told = leg.condition;
            let silence = seconds(Span::ms(leg.last_life_ms));
            let detail = match told {
                "quiet" => format!("nothing heard for {silence}; no judgement yet"),
                "suspect" => format!(
                    "nothing heard for {silence}, questions unanswered;\n\
                     pulsegate_half_open_connections counts it"
                ),
                "stalled" => {
                    "it takes no data, but its kernel\nanswers; slow is not dead".to_owned()
                }
                _ => "it was heard again".to_owned(),
            };
            narrator.say("pulsegate", &format!("the client is {told}: {detail}"));
        }
        thread::sleep(EVERY);
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "the session did not end",
    ))
}

/// What the metrics counted between two scrapes.
fn closed(before: &str, after: &str) -> Closed {
    let grown = |family, label| grown(before, after, family, label);
    let reason = grown("pulsegate_connections_closed_total", "reason");
    let evidence = grown("pulsegate_half_open_detected_total", "evidence");
    let delay = "pulsegate_half_open_detection_delay_seconds_sum";
    let silent = after
        .lines()
        .filter(|line| line.starts_with(delay))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>();
    Closed {
        reason: reason.unwrap_or_default(),
        proof: evidence.map(|e| (e, Duration::from_secs_f64(silent.max(0.0)).into())),
    }
}

/// The label of the series of a family that has grown.
fn grown(before: &str, after: &str, family: &str, label: &str) -> Option<String> {
    let line = after
        .lines()
        .filter(|line| line.starts_with(family) && !line.ends_with(" 0"))
        .find(|line| !before.lines().any(|old| old == *line))?;
    let value = line.split(&format!("{label}=\"")).nth(1)?;
    Some(value.split('"').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_that_has_grown_names_the_reason() {
        let before = "a_total{leg=\"x\",reason=\"one\"} 1\na_total{leg=\"x\",reason=\"two\"} 0\n";
        let after = "a_total{leg=\"x\",reason=\"one\"} 1\na_total{leg=\"x\",reason=\"two\"} 1\n";
        let found = grown(before, after, "a_total", "reason");
        assert_eq!(found.as_deref(), Some("two"));
        assert_eq!(grown(before, before, "a_total", "reason"), None);
    }
}
