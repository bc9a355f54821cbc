//! Observes the sessions of one worker when their time has come, apart from the relay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Phase, Session, State, Table, Watch, Worker, aborted};
use crate::liveness::{
    Action, Close, CloseHow, CloseReason, Condition, LEGS, Leg, Machine, Span, Time, Timer,
};
use crate::net::options;
use crate::sys;

/// Observations between two turns of the other tasks of the worker: where all end their sessions, these wait
/// for so many ends at most.
const BATCH: usize = 16;
/// An observation that is not urgent is put off to the next multiple of this, so that many share one
/// wake-up.
const GRID: Span = Span::ms(100);
/// What is due so much later than now, or more, is not urgent.
const URGENT: Span = Span::ms(1500);

/// Runs for as long as the worker.
pub async fn monitor(worker: Arc<Worker>) {
    let table = worker.table();
    loop {
        let now = sys::now();
        table.drop_stale(|at, session| session.is_due(at));
        let due = table.take_due(now, BATCH);
        if due.is_empty() {
            sleep(table).await;
            continue;
        }
        for (at, key, session, unwatched) in due {
            let next = if unwatched {
                session.start_watch(now)
            } else {
                session.observe_if_due(at, now)
            };
            if let Some(next) = next {
                table.schedule(next, key);
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn sleep(table: &Table) {
    let Some(at) = table.sleep_until() else {
        return table.earlier.notified().await;
    };
    let pause = Duration::from(at - sys::now());
    tokio::select! {
        () = table.earlier.notified() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

impl Session {
    /// Puts the legs under watch that are up; returns when the next observation is due.
    fn start_watch(&self, now: Time) -> Option<Time> {
        let mut state = self.lock();
        state.watch_pending = false;
        self.watch(&mut state)?;
        // An observation costs as much as the options: most sessions have nothing to tell yet.
        let policy = self.params.policy.of_session(self.id);
        let mut first = state.machine.first_observation(&policy);
        if self.counters.sent() > 0 {
            first = first.min(now + self.params.policy.busy_interval());
        }
        let first_byte = self.first_byte_timer(&state).map(|timer| timer.at);
        let first = first.min(state.due).min(first_byte.unwrap_or(first));
        let first = first.max(now + Span::ms(1));
        let first = state.put_off(now, first);
        self.will_be_observed(now, first);
        Some(first)
    }

    /// `None` if there is none.
    pub(super) fn watch(&self, state: &mut State) -> Option<()> {
        let up = match state.phase {
            Phase::Open | Phase::Securing => Watch::Both,
            _ if state.is_left_alone() => return None,
            Phase::Queued | Phase::Preamble | Phase::Mute | Phase::Connecting => Watch::Downstream,
            Phase::Closing | Phase::Refused => return None,
        };
        for leg in LEGS {
            let fd = state.fds[leg as usize];
            if fd >= 0 && !state.watch.covers(leg) && up.covers(leg) {
                options::watch(fd, leg, &self.params.policy, |set| self.check_option(set));
                state.machine.probes_resumed(leg);
            }
        }
        state.watch = up;
        Some(())
    }

    /// Has the monitor observe at once: a clock has started to run. A session that is not under watch
    /// yet is observed when it is.
    pub(super) fn observe_now(&self, table: &Table, key: u32) {
        let now = sys::now();
        let mut state = self.lock();
        state.due = now;
        if state.phase == Phase::Open && state.watch == Watch::Both {
            table.schedule(now, key);
        }
    }

    fn is_due(&self, at: Time) -> bool {
        self.lock().due == at
    }

    fn observe_if_due(&self, at: Time, now: Time) -> Option<Time> {
        let mut state = self.lock();
        if !state.is_watched() || state.due != at {
            return None;
        }
        let next = self.observe_locked(&mut state, now);
        self.will_be_observed(now, next);
        Some(next)
    }

    fn will_be_observed(&self, now: Time, at: Time) {
        let soon = at < now + self.params.policy.busy_interval() + GRID;
        self.observed_soon.store(soon, Ordering::Relaxed);
    }

    /// Data flows, and the next observation may be far away: brings it forward to when one is due for a
    /// session that carries data.
    pub(super) fn observe_soon(&self, table: &Table, key: u32) {
        let now = sys::now();
        let mut state = self.lock();
        if state.phase != Phase::Open || state.watch != Watch::Both {
            return;
        }
        let known = state.due;
        let due = state.put_off(now, known.min(now + self.params.policy.busy_interval()));
        self.will_be_observed(now, due);
        if due != known {
            table.schedule(due, key);
        }
    }

    /// Observes now, for fresh figures. The next observation stays where it is.
    pub fn refresh(&self, now: Time) {
        let mut state = self.lock();
        if state.is_watched() {
            let due = state.due;
            let next = self.observe_locked(&mut state, now);
            // An earlier time cannot be queued from here; the observation that is due finds out more.
            state.due = due;
            debug_assert!(next > now);
        }
    }

    /// Whether an end does little harm now.
    #[must_use]
    pub fn is_at_rest(&self, now: Time) -> bool {
        self.refresh(now);
        let state = self.lock();
        if state.phase != Phase::Open || state.order.is_some() {
            return false;
        }
        let observation = state.observe(&self.counters);
        let is_at_rest = state.machine.is_at_rest(now, &observation);
        state.at_boundary().map_or(is_at_rest, |between| {
            between && state.machine.is_delivered(&observation)
        })
    }

    /// One observation; returns when the next one is due.
    fn observe_locked(&self, state: &mut State, now: Time) -> Time {
        let policy = &*self.params.policy.of_session(self.id);
        let observation = state.observe(&self.counters);
        self.params.metrics.observed();
        let before = state.machine.clone();
        let verdict = state.machine.observe(now, policy, &observation);
        self.report_conditions(&before, Some(&state.machine));
        for (probes, answered) in self
            .params
            .probes
            .iter()
            .zip(state.machine.probes_answered())
        {
            probes.note(answered);
        }
        for leg in LEGS {
            let fd = state.fds[leg as usize];
            match verdict.actions[leg as usize] {
                Some(Action::StopProbes) => self.check_option(options::leave_alone(fd)),
                Some(Action::ResumeProbes) => self.check_option(options::ask_again(fd, policy)),
                Some(Action::ProbeNow) => {
                    self.params.metrics.probe_sent(leg);
                    self.check_option(options::probe_now(fd));
                }
                Some(Action::ProbeNormally) => self.check_option(options::probe_later(fd, policy)),
                None => {}
            }
            if let Some(gap) = verdict.longest_gap[leg as usize] {
                options::ask_every(fd, gap);
            }
        }
        let first_byte = self.first_byte_timer(state);
        let mute = first_byte
            .filter(|timer| timer.at <= now)
            .map(|timer| Close {
                how: CloseHow::Flush,
                ..aborted(timer.reason)
            });
        let (beat, unresponsive) = self.ask(state, now, &observation);
        if let Some(close) = verdict.close.or(mute).or(unresponsive) {
            self.order_locked(state, close);
        }
        let first_byte = first_byte.filter(|timer| timer.at > now);
        let next = first_byte.map_or(verdict.next, |timer| timer.at.min(verdict.next));
        let next = beat.map_or(next, |beat| beat.max(now + Span::ms(1)).min(next));
        state.put_off(now, next)
    }

    /// The limit of a client that has sent nothing yet, from when it could.
    pub(super) fn first_byte_timer(&self, state: &State) -> Option<Timer> {
        let limit = self.params.first_byte_timeout?;
        let received = self.counters.traffic().received[Leg::Downstream as usize];
        (state.phase == Phase::Open && received == 0).then(|| Timer {
            reason: CloseReason::FirstByteTimeout,
            at: state.machine.waits_since() + limit,
        })
    }

    /// Moves the gauges from what was known to what is known; `None` is a session that ended.
    pub(super) fn report_conditions(&self, before: &Machine, after: Option<&Machine>) {
        let metrics = &self.params.metrics;
        for leg in LEGS {
            let is = after.map_or(Condition::Alive, |m| m.leg(leg).condition);
            metrics.condition_changed(leg, before.leg(leg).condition, is);
        }
        let was = before.is_half_closed();
        let is = after.is_some_and(Machine::is_half_closed);
        if was != is {
            metrics.half_closed_changed(if is { 1 } else { -1 });
        }
    }

    /// A liveness product must not swallow a socket option that did not take.
    pub(super) fn check_option(&self, set: std::io::Result<()>) {
        if let Err(error) = set {
            self.params.metrics.socket_option_failed();
            tracing::debug!(id = self.id, "socket option: {error}");
        }
    }
}

impl Watch {
    fn covers(self, leg: Leg) -> bool {
        match leg {
            Leg::Downstream => self >= Self::Downstream,
            Leg::Upstream => self == Self::Both,
        }
    }
}

impl State {
    /// Whether observations find out about its peers, or about its client, which is all there is yet.
    fn is_watched(&self) -> bool {
        self.phase != Phase::Closing && self.watch != Watch::None
    }

    /// Whether its client said FIN while it waited: the kernel there will have forgotten the
    /// connection, and would answer a question with RST.
    pub(super) fn is_left_alone(&self) -> bool {
        self.abandoned && self.machine.opened().is_none()
    }

    fn put_off(&mut self, now: Time, next: Time) -> Time {
        self.due = if next >= now + URGENT {
            next.next_multiple_of(GRID)
        } else {
            next
        };
        self.due
    }
}
