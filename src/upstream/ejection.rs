//! What real sessions met at an endpoint, and what follows from it.
//!
//! Two things are counted in a row at each endpoint. A connect proves that it can be connected, and no
//! more: a kernel completes connects that its application never accepts. So a session that failed on a
//! connection is made good only by one in which the service has answered.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::Ejection;
use crate::liveness::{Span, Time};
use crate::sys;
use crate::telemetry::Repeated;

use super::endpoint::Endpoint;

/// What fails, or goes well, in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// Connects.
    Connects,
    /// Sessions that were connected.
    Sessions,
}

/// The state of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// By [`Row`], failures since it last went well.
    failures: [AtomicU32; 2],
    /// Until when it is ejected ([`Time`], ms); 0 if it is not. Past: it is dialled as before, and one more
    /// failure ejects it again.
    until: AtomicU64,
    /// When it was last ejected, or served again ([`Time`], ms).
    turned: AtomicU64,
    /// How often it was.
    ejections: AtomicU64,
}

/// What became of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Ejected,
    Returned,
}

impl Record {
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    pub fn failures(&self) -> u32 {
        let failures = self.failures.each_ref().map(|n| n.load(Ordering::Relaxed));
        failures[0].max(failures[1])
    }

    /// How long it is ejected for yet.
    pub fn ejected_for(&self) -> Option<Span> {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return None;
        }
        let left = Time::ms(until) - sys::now();
        (left > Span::ZERO).then_some(left)
    }

    /// When it was last ejected, served again, or began to be used again.
    pub fn turned(&self) -> Time {
        let relaxed = Ordering::Relaxed;
        let (turned, until) = (self.turned.load(relaxed), self.until.load(relaxed));
        let is_over = until > 0 && Time::ms(until) <= sys::now();
        Time::ms(if is_over { until } else { turned })
    }

    fn went_well(&self, row: Row, most: u32) -> Change {
        let relaxed = Ordering::Relaxed;
        // Nearly always there is nothing to write to.
        if self.failures[row as usize].load(relaxed) > 0 {
            self.failures[row as usize].store(0, relaxed);
        }
        let is_over = self.until.load(relaxed) > 0 && self.failures() < most;
        if !is_over {
            return Change::None;
        }
        let until = self.until.swap(0, relaxed);
        if until == 0 {
            return Change::None;
        }
        // It has been used since it was ejected no longer, if that was before.
        let now = sys::now().as_millis();
        self.turned.store(now.min(until), relaxed);
        Change::Returned
    }

    fn failed(&self, row: Row, most: u32, span: Span, now: Time) -> Change {
        let relaxed = Ordering::Relaxed;
        let failures = self.failures[row as usize].fetch_add(1, relaxed);
        let until = self.until.load(relaxed);
        if failures + 1 < most || Time::ms(until) > now {
            return Change::None;
        }
        let next = (now + span).as_millis();
        // Of many that fail together one ejects it.
        match self.until.compare_exchange(until, next, relaxed, relaxed) {
            Ok(_) => {
                self.ejections.fetch_add(1, relaxed);
                self.turned.store(now.as_millis(), relaxed);
                Change::Ejected
            }
            Err(_) => Change::None,
        }
    }
}

/// Ejects the endpoints of one cluster, and tells of it.
#[derive(Debug)]
pub(super) struct Ejector {
    pub listener: Arc<str>,
    ejection: Ejection,
    /// How many endpoints there are: the only one stays.
    pub endpoints: AtomicUsize,
    ejected: Repeated,
    returned: Repeated,
}

impl Ejector {
    pub fn new(listener: Arc<str>, ejection: Ejection) -> Arc<Self> {
        Arc::new(Self {
            listener,
            ejection,
            endpoints: AtomicUsize::new(0),
            ejected: Repeated::new(),
            returned: Repeated::new(),
        })
    }

    /// A connect, or a session in which the service answered.
    pub fn went_well(self: &Arc<Self>, endpoint: &Endpoint, row: Row) {
        if endpoint.record.went_well(row, self.ejection.failures) != Change::Returned
            || !self.returned.begin()
        {
            return;
        }
        let (listener, endpoint) = (&*self.listener, endpoint.address());
        tracing::info!(listener, %endpoint, "the endpoint serves again");
        let ejector = self.clone();
        tokio::spawn(async move {
            let listener = &*ejector.listener;
            let write = |more| {
                tracing::info!(
                    listener,
                    "endpoints serve again: {more} more in the last 10 s"
                );
            };
            ejector.returned.sum_up(write).await;
        });
    }

    /// A connect or a session failed, by no fault of this host or of the client.
    pub fn failed(self: &Arc<Self>, endpoint: &Endpoint, row: Row, why: &dyn Display) {
        let (most, span) = match self.ejection.r#for {
            Some(span) if self.endpoints.load(Ordering::Relaxed) > 1 => {
                (self.ejection.failures, span)
            }
            _ => (u32::MAX, Duration::ZERO),
        };
        let change = endpoint.record.failed(row, most, span.into(), sys::now());
        if change != Change::Ejected || !self.ejected.begin() {
            return;
        }
        tracing::warn!(
            listener = &*self.listener,
            endpoint = %endpoint.address(),
            failures = endpoint.record.failures(),
            for_ms = span.as_millis() as u64,
            "the endpoint is ejected, and used for new sessions only where no other connects: {why}"
        );
        let ejector = self.clone();
        tokio::spawn(async move {
            let listener = &*ejector.listener;
            let write = |more| {
                tracing::warn!(
                    listener,
                    "endpoints are ejected: {more} more in the last 10 s"
                );
            };
            ejector.ejected.sum_up(write).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 3;
    const SPAN: Span = Span::ms(1000);

    fn at(ms: u64) -> Time {
        Time::ms(1_000_000 + ms)
    }

    #[test]
    fn failures_in_a_row_eject() {
        let record = Record::default();
        let fails = |ms| record.failed(Row::Connects, MOST, SPAN, at(ms));
        assert_eq!([fails(0), fails(1)], [Change::None; 2]);
        assert_eq!(record.went_well(Row::Connects, MOST), Change::None);
        assert_eq!([fails(2), fails(3)], [Change::None; 2]);
        assert_eq!(fails(4), Change::Ejected);
        assert_eq!((record.failures(), record.ejections()), (3, 1));
        assert_eq!(fails(5), Change::None, "it is ejected already");
    }

    #[test]
    fn one_failure_ejects_again_and_one_success_returns() {
        let record = Record::default();
        let fails = |ms| record.failed(Row::Connects, MOST, SPAN, at(ms));
        let _ejected = [fails(0), fails(1), fails(2)];
        assert_eq!(fails(1001), Change::None);
        assert_eq!(fails(1002), Change::Ejected);
        assert_eq!(record.ejections(), 2);
        assert_eq!(record.went_well(Row::Connects, MOST), Change::Returned);
        assert_eq!(record.went_well(Row::Connects, MOST), Change::None);
        assert_eq!([fails(1003), fails(1004)], [Change::None; 2]);
    }

    #[test]
    fn since_when_it_is_ejected_or_used_is_known() {
        let record = Record::default();
        assert_eq!(record.turned(), Time::ms(0));
        let now = sys::now();
        for _ in 0..MOST {
            let _ejected = record.failed(Row::Connects, MOST, SPAN * 60, now);
        }
        assert_eq!(record.turned(), now);
        assert_eq!(record.went_well(Row::Connects, MOST), Change::Returned);
        let returned = record.turned();
        assert!(returned >= now && returned <= sys::now());
        // It is used again when its time is over, whether or not somebody comes.
        let past = now - SPAN * 2;
        for _ in 0..MOST {
            let _ejected = record.failed(Row::Connects, MOST, SPAN, past);
        }
        assert_eq!(record.turned(), past + SPAN);
    }

    /// Its kernel completes connects, its application serves nobody.
    #[test]
    fn a_connect_makes_no_session_good() {
        let record = Record::default();
        for ms in 0..2 {
            record.went_well(Row::Connects, MOST);
            assert_eq!(
                record.failed(Row::Sessions, MOST, SPAN, at(ms)),
                Change::None
            );
        }
        record.went_well(Row::Connects, MOST);
        assert_eq!(
            record.failed(Row::Sessions, MOST, SPAN, at(2)),
            Change::Ejected
        );
        assert_eq!(record.went_well(Row::Connects, MOST), Change::None);
        assert_eq!(record.went_well(Row::Sessions, MOST), Change::Returned);
    }

    #[test]
    fn an_ejection_ends_by_itself() {
        let record = Record::default();
        assert_eq!(record.ejected_for(), None);
        let past = sys::now() - SPAN;
        for _ in 0..MOST {
            let _ejected = record.failed(Row::Connects, MOST, SPAN, past);
        }
        assert_eq!(record.ejected_for(), None);
        record.failed(Row::Connects, MOST, SPAN * 60, sys::now());
        assert!(record.ejected_for().is_some_and(|left| left <= SPAN * 60));
    }
}
