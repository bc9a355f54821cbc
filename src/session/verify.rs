//! Verification on demand, and the place of a session in the shedding order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Phase, Session};
use crate::liveness::{
    AGE_JITTER, Answer, Candidate, Close, CloseHow, Condition, Inquiry, LEGS, Leg, LegSample,
    Method, RECENT, Span, Step, TcpState, Time,
};
use crate::net::{options, sample};
use crate::sys;
use crate::upstream::Endpoint;
use crate::view::{AnswerWord, OnSilent, VerifiedLeg, VerifiedSession};

/// Of many sessions, those whose turn has not come after this are not asked.
const TURN_WITHIN: Duration = Duration::from_secs(7);

/// What came of asking one peer.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The answer.
    pub answer: Answer,
    /// How long it took.
    took: Span,
    /// When it was known.
    at: Time,
}

/// Asks the peers of these sessions, as many at a time as `at_once` allows, and returns the
/// sessions whose turn came.
pub async fn verify_all(
    sessions: Vec<Arc<Session>>,
    on_silent: OnSilent,
    at_once: Arc<Semaphore>,
) -> Vec<VerifiedSession> {
    let mut asking = JoinSet::new();
    for session in sessions {
        let at_once = at_once.clone();
        asking.spawn(async move {
            let turn = tokio::time::timeout(TURN_WITHIN, at_once.acquire_owned());
            let _turn = turn.await.ok()?.ok()?;
            Some(session.verified(on_silent).await)
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

impl Session {
    /// Asks both peers now. `None` for a leg that is not connected. Injects no byte.
    pub async fn verify(&self, method: Method) -> [Option<Asked>; 2] {
        let (downstream, upstream) = tokio::join!(
            self.inquire(Leg::Downstream, method),
            self.inquire(Leg::Upstream, method)
        );
        [downstream, upstream]
    }

    /// Ends the session if one of its peers was proven gone and has not been heard since; true
    /// if so.
    pub fn end_if_silent(&self, asked: &[Option<Asked>; 2], how: Option<CloseHow>) -> bool {
        let now = sys::now();
        let found = LEGS.into_iter().find_map(|leg| match asked[leg as usize]? {
            Asked {
                answer:
                    Answer::Silent {
                        silent_for,
                        evidence,
                    },
                at,
                ..
            } => {
                // The other leg may have taken its time, and this peer have come back.
                let silent_for = silent_for + (now - at);
                let age = self.sample(leg)?.last_heard_age();
                let reason = self.lock().machine.dead(leg);
                (age + AGE_JITTER >= silent_for).then_some(Close {
                    reason,
                    how: how.unwrap_or(CloseHow::AbortAfterFlush(leg)),
                    evidence: reason.dead_leg().map(|_| evidence),
                    silent_for,
                })
            }
            _ => None,
        });
        // One that was ending already is not ended by this.
        found.is_some_and(|close| self.order_locked(&mut self.lock(), close))
    }

    /// Whether it is connected to this endpoint.
    #[must_use]
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        let state = self.lock();
        let at = state.endpoint.as_deref();
        state.phase == Phase::Open && at.is_some_and(|at| std::ptr::eq(at, endpoint))
    }

    /// Whether the client of a session that waited is still there: it was heard within a second, or
    /// answers when it is asked now. One that said FIN is not asked.
    pub async fn client_answers(&self) -> bool {
        let probes = self.params.policy.probes[Leg::Downstream as usize];
        if self.client_said_fin() || !probes {
            return true;
        }
        let asked = self.lock().machine.leg(Leg::Downstream).condition == Condition::Suspect;
        if asked {
            return false;
        }
        let asked = self.inquire(Leg::Downstream, Method::CHECK).await;
        asked.is_none_or(|asked| matches!(asked.answer, Answer::Alive { .. }))
    }

    /// Whether the client has said FIN, or its connection is over.
    pub(super) fn client_said_fin(&self) -> bool {
        let sample = self.sample(Leg::Downstream);
        sample.is_none_or(|s| s.state != TcpState::Established)
    }

    /// Waits until a client that did not answer is heard; whoever ends the session ends this.
    pub async fn until_client_is_heard(&self) {
        while let Some(sample) = self.sample(Leg::Downstream) {
            if sample.last_heard_age() < RECENT {
                return;
            }
            tokio::time::sleep((RECENT / 4).into()).await;
        }
        std::future::pending::<()>().await;
    }

    /// Waits until the client answers.
    pub async fn until_client_answers(&self) {
        while !self.client_answers().await {
            self.until_client_is_heard().await;
        }
    }

    async fn verified(&self, on_silent: OnSilent) -> VerifiedSession {
        let asked = self.verify(Method::CHECK).await;
        let ended = on_silent == OnSilent::End && self.end_if_silent(&asked, None);
        let over = |leg: &Option<Asked>| leg.is_some_and(|a| a.answer == Answer::Over);
        let closing = {
            let state = self.lock();
            state.phase == Phase::Closing || state.order.is_some()
        };
        let [downstream, upstream] = asked;
        VerifiedSession {
            id: self.id,
            listener: self.params.name.to_string(),
            downstream: downstream.map_or_else(VerifiedLeg::over, VerifiedLeg::from),
            upstream: upstream.map(VerifiedLeg::from),
            closed: ended || closing || downstream.is_none() || asked.iter().any(over),
        }
    }

    async fn inquire(&self, leg: Leg, method: Method) -> Option<Asked> {
        let began = sys::now();
        let sample = self.sample(leg)?;
        let mut inquiry = Inquiry::new(began, method, &sample);
        let mut asking = Asking {
            session: self,
            leg,
            began: false,
        };
        let answer = loop {
            let Some(sample) = self.sample(leg) else {
                break Answer::Over;
            };
            self.hasten(leg, &sample);
            let pause = match inquiry.observe(sys::now(), &sample) {
                Step::Done(answer) => break answer,
                Step::Wait(pause) => pause,
                Step::Ask(_) if !self.params.policy.probes[leg as usize] => {
                    break Answer::Unknown(sample.last_heard_age());
                }
                Step::Ask(pause) => {
                    asking.ask();
                    pause
                }
            };
            tokio::time::sleep(pause.into()).await;
        };
        let at = sys::now();
        Some(Asked {
            answer,
            took: at - began,
            at,
        })
    }

    fn sample(&self, leg: Leg) -> Option<LegSample> {
        let state = self.lock();
        let fd = state.fds[leg as usize];
        if fd < 0 { None } else { sample::sample(fd) }
    }

    /// Has the kernel ask more often what is in flight on a silent leg; the next observation after an answer
    /// takes that back.
    fn hasten(&self, leg: Leg, sample: &LegSample) {
        if sample.unacked == 0 {
            return;
        }
        let mut state = self.lock();
        let fd = state.fds[leg as usize];
        if fd >= 0
            && state.phase == Phase::Open
            && let Some(gap) = state.machine.hasten(leg, sample)
        {
            options::ask_every(fd, gap);
        }
    }

    /// Acts on a leg's descriptor while it cannot be closed.
    fn with_fd(&self, leg: Leg, act: impl FnOnce(i32) -> std::io::Result<()>) {
        let state = self.lock();
        let fd = state.fds[leg as usize];
        if fd >= 0 {
            self.check_option(act(fd));
        }
    }

    /// What its place in the shedding order is made of; `None` if it is not one that could make
    /// room.
    #[must_use]
    pub fn candidate(&self, now: Time) -> Option<Candidate> {
        self.refresh(now);
        self.known_candidate(now)
    }

    /// When it was last observed.
    #[must_use]
    pub fn last_observed(&self) -> Time {
        self.lock().machine.last_observed()
    }

    /// The same by what the last observation found out, at the cost of no system call. It was active no
    /// earlier than that says.
    #[must_use]
    pub fn known_candidate(&self, now: Time) -> Option<Candidate> {
        let state = self.lock();
        if !matches!(state.phase, Phase::Mute | Phase::Open) || state.order.is_some() {
            return None;
        }
        let suspect = |leg| {
            let condition = state.machine.leg(leg).condition;
            matches!(condition, Condition::Suspect | Condition::Phantom)
        };
        Some(Candidate {
            suspect: LEGS.into_iter().any(suspect),
            half_closed: state.machine.is_half_closed(),
            sheds: self.params.sheds,
            client_spoke: self.counters.traffic().received[Leg::Downstream as usize] > 0,
            age: now - state.machine.started(),
            idle: now - state.machine.last_activity(),
        })
    }
}

/// The questions of one inquiry. However it ends, also when whoever wanted to know has gone, the
/// leg returns to its normal probe interval.
struct Asking<'a> {
    session: &'a Session,
    leg: Leg,
    began: bool,
}

impl Asking<'_> {
    fn ask(&mut self) {
        let (session, leg) = (self.session, self.leg);
        if !std::mem::replace(&mut self.began, true) {
            // A session of the first moment is not under watch yet.
            let _looks_come_later = session.watch(&mut session.lock());
        }
        session.params.metrics.probe_sent(leg);
        session.with_fd(leg, options::probe_now);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.began {
            let policy = &self.session.params.policy;
            self.session
                .with_fd(self.leg, |fd| options::probe_later(fd, policy));
        }
    }
}

impl VerifiedLeg {
    fn over() -> Self {
        Self {
            answer: AnswerWord::Over,
            silent_ms: None,
            evidence: None,
            took_ms: 0,
        }
    }
}

impl From<Asked> for VerifiedLeg {
    fn from(asked: Asked) -> Self {
        let (answer, silent_ms, evidence) = match asked.answer {
            Answer::Alive {
                silent_for,
                answered,
            } => {
                let how = if answered { "answered" } else { "recent" };
                (AnswerWord::Alive, Some(silent_for), Some(how))
            }
            Answer::Silent {
                silent_for,
                evidence,
            } => (AnswerWord::Silent, Some(silent_for), Some(evidence.into())),
            Answer::Unknown(silent_for) => (AnswerWord::Unknown, Some(silent_for), None),
            Answer::Complete | Answer::Over => (AnswerWord::Over, None, None),
        };
        Self {
            answer,
            silent_ms: silent_ms.map(Span::as_millis),
            evidence: evidence.map(str::to_owned),
            took_ms: asked.took.as_millis(),
        }
    }
}
