//! What the monitor does about heartbeats: when a peer is to be asked, and what its silence means.

use std::sync::Arc;

use super::heartbeat::Cell;
use super::{Session, State, aborted};
use crate::liveness::{
    Beat, Close, CloseHow, CloseReason, Evidence, LEGS, Leg, Moment, Observation, Other, Peer,
    Pulse, Span, Then, Time, Timer, Traffic,
};
use crate::view::HeartbeatView;

/// Of one leg whose peer is asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub cell: Arc<Cell>,
    pulse: Pulse,
}

impl Asked {
    /// Whether the last bytes on the leg may be those of a heartbeat.
    pub(super) fn is_alone(&self, leg: Leg, traffic: &Traffic) -> bool {
        self.pulse.is_alone(moved(leg, traffic))
    }
}

fn moved(leg: Leg, traffic: &Traffic) -> [u64; 2] {
    [traffic.received[leg as usize], traffic.sent[leg as usize]]
}

impl State {
    /// The peer of a leg is asked from now on.
    pub(super) fn begin_heartbeat(&mut self, leg: Leg, cell: Arc<Cell>) {
        let facts = self.facts_mut();
        let pulse = Pulse::default();
        facts.asked[leg as usize] = Some(Asked { cell, pulse });
    }

    /// The heartbeat of a leg, if its peer is asked.
    pub(super) fn asked(&self, leg: Leg) -> Option<&Asked> {
        self.facts.as_ref()?.asked[leg as usize].as_ref()
    }

    /// Whether both ends of a conversation that is followed are between two messages; `None` where none is.
    pub(super) fn at_boundary(&self) -> Option<bool> {
        let known = LEGS
            .into_iter()
            .filter_map(|leg| self.asked(leg)?.cell.boundary());
        known.reduce(|a, b| a && b)
    }

    fn moment(
        &self,
        now: Time,
        detect_within: Span,
        leg: Leg,
        look: &Observation,
    ) -> Option<Moment> {
        let cell = &self.asked(leg)?.cell;
        let sample = look.legs[leg as usize]?;
        // What came and was not read may be the answer.
        let unread = || sample.bytes_received > look.traffic.received[leg as usize];
        let is_under_way = sample.unacked > 0 || sample.notsent > 0;
        let lacks = is_under_way && !cell.has_question(sample.bytes_acked);
        let at_work = lacks || cell.owes() || unread();
        let heard = self.machine.leg(leg.other()).last_heard;
        Some(Moment {
            moved: moved(leg, &look.traffic),
            activity: self.machine.last_activity(),
            received: self.machine.last_received(leg),
            waits_since: cell.waits_since(),
            answers: cell.answers(),
            peer: if at_work { Peer::Busy } else { Peer::Free },
            other: if now < heard + detect_within {
                Other::Alive
            } else {
                Other::Unknown
            },
        })
    }
}

impl Session {
    /// Has peers asked whose time has come. Returns when to look again, and whether a peer has to be given up.
    pub(super) fn ask(
        &self,
        state: &mut State,
        now: Time,
        look: &Observation,
    ) -> (Option<Time>, Option<Close>) {
        let (mut next, mut close) = (None::<Time>, None);
        if state.facts.is_none()
            || state.machine.opened().is_none()
            || state.machine.is_half_closed()
        {
            return (None, None);
        }
        let (asking, policy) = (self.params.asking, &self.params.policy);
        for leg in LEGS {
            let Some(moment) = state.moment(now, policy.detect_within, leg, look) else {
                continue;
            };
            let asked = state.facts_mut().asked[leg as usize].as_mut();
            let Some(Asked { cell, pulse }) = asked else {
                continue;
            };
            let beat = pulse.observe(now, &asking, &moment);
            if matches!(beat, Beat::Missed(_)) {
                self.params.metrics.heartbeat_missed(leg);
            }
            let at = match beat {
                Beat::Wait(at) => at,
                Beat::Missed(Then::Wait(at)) => {
                    cell.give_up();
                    if let Some(waker) = &state.waker {
                        waker.wake_by_ref();
                    }
                    at
                }
                Beat::Ask | Beat::Missed(Then::Ask) => {
                    cell.want();
                    if let Some(waker) = &state.waker {
                        waker.wake_by_ref();
                    }
                    // What is in flight then is looked at as often as other data.
                    now + asking.timeout.min(policy.busy_interval())
                }
                Beat::Missed(Then::End) => {
                    let answered = cell.answered_at().unwrap_or_default();
                    close = Some(unresponsive(leg, now - moment.received.max(answered)));
                    now + asking.timeout
                }
            };
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        (next, close)
    }

    /// What ends the session because of heartbeats.
    pub(super) fn heartbeat_timer(&self, state: &State, now: Time) -> Option<Timer> {
        state.facts.as_ref()?;
        let look = state.observe(&self.counters);
        let timer = |leg| {
            let moment = state.moment(now, self.params.policy.detect_within, leg, &look)?;
            let at = state
                .asked(leg)?
                .pulse
                .ends_at(&self.params.asking, &moment)?;
            let reason = CloseReason::unresponsive(leg);
            Some(Timer { reason, at })
        };
        LEGS.into_iter()
            .filter_map(timer)
            .min_by_key(|timer| timer.at)
    }

    /// The heartbeat of a leg as shown to the operator.
    pub(super) fn heartbeat_view(
        &self,
        state: &State,
        leg: Leg,
        now: Time,
    ) -> Option<HeartbeatView> {
        let cell = &state.asked(leg)?.cell;
        let protocol = self.params.heartbeats[leg as usize].as_ref()?;
        Some(HeartbeatView {
            profile: protocol.into(),
            state: cell.word(),
            answers: cell.answers(),
            last_answer_ms: cell.answered_at().map(|at| (now - at).as_millis()),
        })
    }
}

fn unresponsive(leg: Leg, silent_for: Span) -> Close {
    Close {
        how: CloseHow::AbortAfterFlush(leg),
        evidence: Some(Evidence::Heartbeat),
        silent_for,
        ..aborted(CloseReason::unresponsive(leg))
    }
}
