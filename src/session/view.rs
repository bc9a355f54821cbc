//! A session as the operator sees it.

use super::{Phase, Session, State};
use crate::liveness::{CloseReason, LEGS, Leg, Millis, Timer, Traffic};
use crate::sys;
use crate::view::{ConnectionView, LegView, TimerView};

impl Session {
    /// What `/connections` shows of it.
    #[must_use]
    pub fn view(&self, now: Millis) -> ConnectionView {
        self.refresh(now);
        let state = self.lock();
        let [downstream, upstream] = LEGS.map(|leg| self.leg_view(&state, leg, now));
        let open = state.phase == Phase::Open;
        ConnectionView {
            id: self.id,
            listener: self.service.name.to_string(),
            phase: if open && state.machine.is_half_closed() {
                "half_closed"
            } else {
                state.phase.as_str()
            },
            age_ms: now - self.started,
            idle_ms: now.saturating_sub(state.machine.last_activity()),
            downstream,
            upstream: (state.fds[Leg::Upstream as usize] >= 0).then_some(upstream),
            timer: self.next_timer(&state).map(|t| timer_view(t, now)),
            verdict: state.order.map(|close| close.reason.as_str()),
        }
    }

    fn next_timer(&self, state: &State) -> Option<Timer> {
        let (reason, span) = match state.phase {
            Phase::Queued => (CloseReason::QueueTimeout, self.service.queue_timeout?),
            Phase::Connecting => (
                CloseReason::ConnectTimeout,
                self.service.upstream.connect_timeout,
            ),
            Phase::Open => return state.machine.next_timer(&self.service.policy),
            Phase::Closing => return None,
        };
        let at = state.due + Millis::try_from(span.as_millis()).ok()?;
        Some(Timer { reason, at })
    }

    fn leg_view(&self, state: &State, leg: Leg, now: Millis) -> LegView {
        let fd = state.fds[leg as usize];
        let info = sys::tcp_info(fd).unwrap_or_default();
        let Traffic { received, sent } = self.counters.traffic();
        let known = state.machine.leg(leg);
        LegView {
            local: sys::sockopt::local_address(fd),
            peer: match leg {
                Leg::Downstream => Some(self.client()),
                Leg::Upstream => sys::sockopt::peer_address(fd),
            },
            state: sys::state_name(info.state),
            condition: known.condition.as_str(),
            last_life_ms: now.saturating_sub(known.last_life),
            received_bytes: received[leg as usize],
            sent_bytes: sent[leg as usize],
            unacked: info.unacked,
            notsent_bytes: info.notsent_bytes,
            retransmits: u32::from(info.retransmits),
            probes: u32::from(info.probes),
            rtt_us: info.rtt_us,
            timer: (state.phase == Phase::Open)
                .then(|| state.machine.leg_timer(&self.service.policy, leg))
                .flatten()
                .map(|t| timer_view(t, now)),
        }
    }
}

fn timer_view(timer: Timer, now: Millis) -> TimerView {
    TimerView {
        reason: timer.reason.as_str(),
        in_ms: timer.at.saturating_sub(now),
    }
}
