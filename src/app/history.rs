//! The last reloads, for the operator.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::metrics::{ReloadOutcome, wall_clock};
use crate::view::{AskedBy, Reload, ReloadReport};

/// So many are kept.
const KEPT: usize = 20;
/// Of each list so many lines: a configuration may have thousands of listeners.
const LINES: usize = 100;

/// A ring of them; the newest is the first.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Reload>>);

impl History {
    /// Keeps one that is over just now; the errors say why nothing has changed.
    pub fn add(&self, asked_by: AskedBy, outcome: Result<&ReloadReport, &[String]>) {
        let (word, report, errors) = match outcome {
            Ok(report) => (ReloadOutcome::Success, report.clone(), Vec::new()),
            Err(lines) => (
                ReloadOutcome::Failure,
                ReloadReport::default(),
                lines.to_vec(),
            ),
        };
        let reload = Reload {
            at: wall_clock(),
            asked_by,
            outcome: word.into(),
            report: ReloadReport {
                applied: shortened(report.applied),
                new_sessions_only: shortened(report.new_sessions_only),
                needs_restart: shortened(report.needs_restart),
            },
            errors: shortened(errors),
        };
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.truncate(KEPT - 1);
        ring.push_front(reload);
    }

    /// The newest is the first.
    pub fn list(&self) -> Vec<Reload> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().cloned().collect()
    }
}

fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if more > 0 {
        lines.push(format!("{more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_and_long_lists_are_cut() {
        let history = History::default();
        assert!(history.list().is_empty());
        for n in 0..KEPT + 5 {
            let errors: Vec<_> = (0..n * 10).map(|i| format!("error {i}")).collect();
            history.add(AskedBy::Watch, Err(&errors));
        }
        let report = ReloadReport {
            applied: vec!["log.level".to_owned()],
            ..ReloadReport::default()
        };
        history.add(AskedBy::Sighup, Ok(&report));
        let list = history.list();
        assert_eq!(list.len(), KEPT);
        assert_eq!((list[0].outcome, &list[0].report), ("success", &report));
        assert_eq!(
            (list[1].outcome, list[1].errors.len()),
            ("failure", LINES + 1)
        );
        assert_eq!(list[1].errors.last().map(String::as_str), Some("140 more"));
    }
}
