//! The reference model: what is really the case, told from the omniscient side, and the promises
//! of the machine as plain comparisons with it. It knows nothing of how the machine decides.

use pulsegate::liveness::{Close, CloseReason, Condition, Evidence, LEGS, Leg, Policy, Span};

use crate::leg::{Fate, Leg as SimLeg};
use crate::plan::Plan;
use crate::tcp::{Kernel, Ms};

/// A look comes this late at most, where the monitor is on time.
pub const GRID: Ms = 100;

/// A leg that carries data is looked at so often at least.
const SEEN_LATE: Ms = BUSY_LOOK_EVERY + GRID;
/// A session that carries data is looked at this often at least.
const BUSY_LOOK_EVERY: Ms = 1500;
/// Data has been retransmitted often enough to be called undelivered after this.
const UNDELIVERED_SEEN: Ms = 10_000;

#[derive(Clone, Default)]
struct LegTruth {
    /// Since when nothing from the peer can arrive, and what delays of the monitor were known.
    inaudible: Option<(Ms, Ms)>,
    /// Since when questions are answered without interruption.
    reachable: Option<Ms>,
    /// When the disturbance that is still going on, or was not yet slept off, began.
    disturbed: Option<Ms>,
    /// The earliest time an undated sign of life that came alone can be placed at.
    undated_floor: Ms,
    /// Of the last sampled look.
    sampled: Ms,
    undated_seen: Option<Ms>,
    /// When the peer had said FIN and was owed nothing last, and what delays were known.
    complete: Option<(Ms, Ms)>,
}

/// The slowness of the monitor that the promises have to be relaxed by.
#[derive(Clone, Copy, Default)]
pub struct Slack {
    /// All pauses, clock steps and lost samples so far.
    pub total: Ms,
    /// Of these, the part that also works on promises made earlier (clock steps).
    pub steps: Ms,
    /// The monitor is paused until then.
    pub paused_until: Ms,
}

pub struct Truth {
    policy: Policy,
    kernel: Kernel,
    modern: bool,
    /// The monitor misses samples, pauses, and its clock steps.
    rough: bool,
    start: Ms,
    legs: [LegTruth; 2],
    /// When a peer was owed something last.
    owed: (Ms, Ms),
    /// When both legs had seen no FIN last.
    fin_since: Option<(Ms, Ms)>,
    /// When a byte was last received or acknowledged.
    last_byte: (Ms, Ms),
    last_sent_up: Option<(Ms, Ms)>,
    /// When payload last came from each peer, or waited to be read.
    received: [(Ms, Ms); 2],
    stalled: [Option<(Ms, Ms)>; 2],
    /// Since when bytes in flight have not been acknowledged although the window is open.
    undelivered: [Option<(Ms, Ms)>; 2],
}

impl Truth {
    pub fn new(plan: &Plan, start: Ms) -> Self {
        let leg = LegTruth {
            reachable: Some(start),
            sampled: start,
            undated_floor: start,
            ..LegTruth::default()
        };
        Self {
            policy: plan.policy.clone(),
            kernel: plan.kernel,
            modern: plan.kernel.has_rto_max,
            rough: plan.rough > 0,
            start,
            legs: [leg.clone(), leg],
            owed: (start, 0),
            fin_since: None,
            last_byte: (start, 0),
            last_sent_up: None,
            received: [(start, 0); 2],
            stalled: [None; 2],
            undelivered: [None; 2],
        }
    }

    /// After every event: what is true now?
    pub fn observe(&mut self, now: Ms, legs: &[SimLeg; 2], slack: Slack) {
        for leg in LEGS {
            self.observe_leg(now, leg, &legs[leg as usize], slack);
        }
        if legs.iter().any(|l| !l.near.is_silent()) {
            self.owed = (now, slack.total);
        }
        let byte = legs
            .iter()
            .flat_map(|l| [l.near.last_data, l.near.last_taken])
            .flatten()
            .max();
        if byte.is_some_and(|at| at > self.last_byte.0) {
            self.last_byte = (byte.unwrap_or(now), slack.total);
        }
        let fin = legs.iter().any(|l| l.near.fin_received || l.near.has_fin());
        if fin && self.fin_since.is_none() {
            self.fin_since = Some((now, slack.total));
        }
        let up = &legs[Leg::Upstream as usize].near;
        // The order of two events within one tick of the kernel's clock cannot be told.
        let tick = |at: Option<Ms>| at.map(|at| self.kernel.tick(at));
        let waiting = up.is_silent() && !up.fin_received && tick(up.last_sent) > tick(up.last_data);
        self.last_sent_up = match (waiting, self.last_sent_up) {
            (true, Some(since)) => Some(since),
            (true, None) => Some((now, slack.total)),
            (false, _) => None,
        };
    }

    fn observe_leg(&mut self, now: Ms, leg: Leg, sim: &SimLeg, slack: Slack) {
        let keepalive = slowest_keepalive(&self.policy, sim.rtt);
        // Behind a closed window, or in flight until a third of D, the next question may be far away.
        let rare = sim.near.zero_window() || sim.near.in_flight();
        let to_be_asked = u64::from(rare) * self.detect_within();
        let truth = &mut self.legs[leg as usize];
        if sim.near.is_complete() {
            truth.complete = Some((now, slack.total));
        }
        truth.inaudible = match (sim.is_audible(), truth.inaudible) {
            (true, _) => None,
            (false, Some(since)) => Some(since),
            (false, None) => Some((now, slack.total)),
        };
        truth.reachable = match (sim.is_reachable(), truth.reachable) {
            (false, _) => None,
            (true, Some(since)) => Some(since),
            (true, None) => Some(now),
        };
        match truth.reachable {
            None => {
                truth.disturbed.get_or_insert(now);
            }
            Some(since) if now > since + keepalive + to_be_asked => truth.disturbed = None,
            Some(_) => {}
        }
        let shut = sim.near.shut_since.filter(|_| truth.reachable.is_some());
        let known = self.stalled[leg as usize];
        self.stalled[leg as usize] = match (shut, known) {
            (None, _) => None,
            (Some(since), Some((at, total))) if at >= since => Some((at, total)),
            (Some(_), _) => Some((now, slack.total)),
        };
        let near = &sim.near;
        let received = if near.unread() > 0 {
            Some(now)
        } else {
            near.last_data
        };
        if received.is_some_and(|at| at > self.received[leg as usize].0) {
            self.received[leg as usize] = (received.unwrap_or(now), slack.total);
        }
        let open = near.in_flight() && !near.is_shrunk() && !near.zero_window();
        let since = near.last_taken.max(near.busy_since).unwrap_or(now);
        let known = self.undelivered[leg as usize].filter(|(at, _)| *at >= since);
        self.undelivered[leg as usize] = open.then(|| known.unwrap_or((now, slack.total)));
    }

    /// After a look that had a sample of this leg: what could it tell about undated segments?
    pub fn sampled(&mut self, now: Ms, leg: Leg, sim: &SimLeg) {
        let truth = &mut self.legs[leg as usize];
        let undated = sim.near.last_undated;
        if undated > truth.undated_seen && sim.near.last_dated() < truth.sampled {
            truth.undated_floor = truth.sampled;
        }
        truth.undated_seen = undated;
        truth.sampled = now;
    }

    fn detect_within(&self) -> Ms {
        self.policy.detect_within.as_millis()
    }

    /// Two readings of the kernel's clock, and the time between reading ours and asking it.
    fn rounding(&self) -> Ms {
        2 * self.kernel.jiffy + 4
    }

    /// What must have been closed by now.
    pub fn check_overdue(&self, now: Ms, legs: &[SimLeg; 2], slack: Slack) {
        for leg in LEGS {
            self.check_vanished(now, leg, &legs[leg as usize], slack);
            if let (Some((since, known)), Some(span)) = (
                self.stalled[leg as usize],
                self.policy.stall_timeout.map(Span::as_millis),
            ) {
                // An unanswered question from before delays it by the answer to the next one.
                let shut = legs[leg as usize].near.shut_since;
                let was_away = shut.is_some_and(|shut| since > shut + GRID);
                let next = 2000 + u64::from(was_away) * self.detect_within();
                self.check_timer(now, "stall", since, known, span + next, slack);
            }
        }
        for leg in LEGS {
            let sim = &legs[leg as usize];
            let heard = sim.near.last_dated();
            if let (Some((since, known)), Some(span)) = (
                self.undelivered[leg as usize],
                self.policy.delivery_timeout.map(Span::as_millis),
            ) && heard >= since + span + UNDELIVERED_SEEN
                && !sim.near.finished()
            {
                let late = heard - since - span;
                self.check_timer(now, "delivery", since, known, span + late + 2000, slack);
            }
        }
        for leg in LEGS {
            let near = &legs[leg as usize].near;
            let (since, known) = self.received[leg as usize];
            if let Some(span) = self.policy.receive_timeout[leg as usize]
                && near.is_open()
                && !near.fin_received
            {
                // Whether one that owes an answer lives has to be known first.
                let was_away = self.legs[leg as usize].disturbed.is_some();
                let next = 2000 + u64::from(was_away) * self.detect_within();
                self.check_timer(now, "receive", since, known, span.as_millis() + next, slack);
            }
        }
        let (at, known) = self.last_byte;
        // What is acknowledged in part counts as of the last acknowledgement, new or not.
        let seen = SEEN_LATE;
        if let Some(span) = self.policy.idle_timeout.map(Span::as_millis) {
            self.check_timer(now, "idle", at, known, span + seen, slack);
        }
        if let (Some((fin, fin_known)), Some(span)) = (
            self.fin_since,
            self.policy.half_close_timeout.map(Span::as_millis),
        ) {
            // All have to be over, and each may have been seen late for its own reasons.
            let all = [(fin, fin_known), (at, known), self.owed];
            let due = |(since, known): &(Ms, Ms)| since + slack.since(*since, *known);
            let (since, known) = all.into_iter().max_by_key(due).unwrap_or(self.owed);
            self.check_timer(now, "half-close", since, known, span + seen, slack);
        }
        if let Some(span) = self.policy.max_duration.map(Span::as_millis) {
            self.check_timer(now, "max duration", self.start, 0, span, slack);
        }
        if let (Some((since, known)), Some(span)) = (
            self.last_sent_up,
            self.policy.first_response_timeout.map(Span::as_millis),
        ) {
            self.check_timer(now, "first response", since, known, span, slack);
        }
    }

    fn check_timer(&self, now: Ms, what: &str, since: Ms, known: Ms, span: Ms, slack: Slack) {
        let deadline = since + span + GRID + self.rounding() + slack.since(since, known);
        assert!(
            now <= deadline,
            "{what} timeout is late: {now} > {deadline}, since {since}"
        );
    }

    /// A peer from which nothing can come any more is closed within D, plus the tolerance.
    fn check_vanished(&self, now: Ms, leg: Leg, sim: &SimLeg, slack: Slack) {
        let Some((since, known)) = self.legs[leg as usize].inaudible else {
            return;
        };
        if sim.near.finished() || sim.near.is_complete() {
            return; // Nobody owes an answer.
        }
        // The clock of one that had nothing to answer for starts at the next look.
        let owed_again = self.legs[leg as usize].complete;
        let (since, known) = owed_again
            .map(|(at, known)| (at + BUSY_LOOK_EVERY + GRID + 20, known))
            .filter(|(at, _)| *at > since)
            .unwrap_or((since, known));
        // Where the kernel backs off into silence, the next question may come that late.
        let d = self.detect_within();
        let near = &sim.near;
        let asked_late = near.questions == 0
            || near.first_question + 2000 > near.last_dated() + d
            || near.last_undated > near.last_sent
            || near.last_sent.is_some_and(|at| now < at + 1500);
        let backs_off = near.zero_window() || (!near.is_silent() && asked_late);
        let asked = if self.modern || !backs_off {
            0
        } else {
            400_000
        };
        // Where a look was late, enough has to be asked after it.
        let asked = asked + if self.rough { 2300 } else { 0 };
        // The last answer has one and a half round trips, up to a second.
        let far = (sim.rtt * 3 / 2).min(1000).saturating_sub(180);
        let deadline =
            since + d + tolerance(d) + sim.rtt / 2 + far + asked + slack.since(since, known);
        assert!(
            now <= deadline,
            "{leg:?} vanished at {since} and is not closed at {now} (deadline {deadline})"
        );
    }

    /// Is this verdict true, and not too early?
    pub fn check_close(&self, now: Ms, close: &Close, legs: &[SimLeg; 2]) {
        for leg in LEGS {
            let sim = &legs[leg as usize];
            if close.reason == CloseReason::dead(leg) && sim.loses.is_none() {
                self.check_dead(now, leg, close, sim);
            }
            if close.reason == CloseReason::stalled(leg) {
                let span = self.policy.stall_timeout.expect("is off").as_millis();
                let sent = if sim.near.is_shrunk() {
                    sim.near.last_new_sent
                } else {
                    sim.near.last_sent
                };
                let sent = sent.unwrap_or(0);
                assert!(sim.near.zero_window(), "stalled with an open window");
                let silent = self.legs[leg as usize]
                    .inaudible
                    .map_or(0, |(at, _)| now - at);
                assert!(
                    !self.modern || silent <= 2400,
                    "a vanished peer is called stalled"
                );
                assert!(now + self.rounding() >= sent + span, "stalled too early");
            }
        }
        for leg in LEGS {
            if close.reason == CloseReason::undelivered(leg) {
                let near = &legs[leg as usize].near;
                let span = self.policy.delivery_timeout.expect("is off").as_millis();
                assert!(near.in_flight(), "nothing is undelivered");
                let since = near.last_taken.max(near.busy_since).unwrap_or(self.start);
                assert!(now + self.rounding() >= since + span, "too early");
                let heard = near.last_dated().max(near.last_undated.unwrap_or(0));
                assert!(heard > since, "a silent peer is called undelivered");
            }
        }
        for leg in LEGS {
            if close.reason == CloseReason::silent(leg) {
                let near = &legs[leg as usize].near;
                let span = self.policy.receive_timeout[leg as usize].expect("is off");
                assert!(!near.fin_received, "it has said that it says no more");
                assert_eq!(near.unread(), 0, "it has sent what nobody reads");
                let since = near.last_data.unwrap_or(self.start);
                assert!(
                    now + self.rounding() >= since + span.as_millis(),
                    "too early"
                );
            }
        }
        let not_before = |since: Ms, span: Option<Ms>| {
            let earliest = since + span.expect("the timeout is off");
            assert!(
                now + self.rounding() >= earliest,
                "{} at {now}, not before {earliest}",
                close.reason
            );
        };
        // What is acknowledged as a whole counts as of when it was sent.
        let far = legs.iter().map(|leg| leg.rtt).max().unwrap_or(0);
        let last_byte = self.last_byte.0.saturating_sub(far);
        match close.reason {
            CloseReason::IdleTimeout => {
                not_before(last_byte, self.policy.idle_timeout.map(Span::as_millis));
            }
            CloseReason::HalfCloseTimeout => {
                let fin = self.fin_since.expect("nobody said FIN").0;
                not_before(
                    fin.max(last_byte),
                    self.policy.half_close_timeout.map(Span::as_millis),
                );
            }
            CloseReason::MaxDuration => {
                not_before(self.start, self.policy.max_duration.map(Span::as_millis));
            }
            CloseReason::FirstResponseTimeout => {
                let up = &legs[Leg::Upstream as usize].near;
                // Within one millisecond the relay may pass a request on after an answer.
                assert!(up.last_sent >= up.last_data, "the service has answered");
                assert!(
                    !up.fin_received,
                    "the service has said that it says no more"
                );
                not_before(
                    up.last_sent.unwrap_or(0),
                    self.policy.first_response_timeout.map(Span::as_millis),
                );
            }
            _ => {}
        }
    }

    fn check_dead(&self, now: Ms, leg: Leg, close: &Close, sim: &SimLeg) {
        let truth = &self.legs[leg as usize];
        let d = self.detect_within();
        let by_kernel = close.evidence == Some(Evidence::KernelTimeout);
        // Nobody was there to keep it from that, or nobody could: keepalive probes count as well.
        let probed_before = sim.near.zero_window() && sim.near.keepalive_probes > 0;
        if by_kernel && (self.rough || probed_before) {
            return;
        }
        let dated = sim.near.last_dated();
        assert!(
            now + self.rounding() >= dated + d,
            "dead {} after a segment",
            now - dated
        );
        let floor = truth.undated_floor;
        assert!(
            now + self.rounding() >= floor + d,
            "dead {} after an undated segment",
            now - floor
        );
        assert!(close.evidence.is_some(), "no evidence");
        assert!(
            close.silent_for.as_millis() >= d,
            "silent for {:?} only",
            close.silent_for
        );
        if close.evidence == Some(Evidence::Reset) {
            return;
        }
        // On any kernel: no verdict without a question that had its time; of window probes, which
        // may be minutes apart, one that got lost is not enough.
        let window_probe = close.evidence == Some(Evidence::WindowProbe);
        let (questions, needed) = (sim.near.questions, 1 + u32::from(window_probe));
        assert!(questions >= needed, "dead after {questions} questions");
        let pending = now - sim.near.first_question;
        assert!(
            pending >= 90.max(sim.rtt),
            "dead {pending} after the question"
        );
        let asks_often = self.modern || sim.near.is_silent();
        if !asks_often {
            // Retransmissions double their distance from the outage on.
            let least = d.saturating_sub(slowest_keepalive(&self.policy, sim.rtt)) / 2;
            if let (Some(up), Some(down), false) = (truth.reachable, truth.disturbed, window_probe)
            {
                let outage = up - down;
                assert!(outage + 1000 >= least, "an outage of {outage} killed");
            }
            return;
        }
        if let Some(since) = truth.reachable {
            // Nobody was there to have a closed window probed more often towards the end.
            let unattended = u64::from(self.rough && sim.near.zero_window()) * d;
            let answered_by = since + next_answer(sim, self.rough, self.rounding()) + unattended;
            assert!(
                now <= answered_by,
                "a peer that answers since {since} is dead at {now}"
            );
        }
        let disturbed = truth.disturbed.expect("nothing ever disturbed this leg");
        let survives = (disturbed + d).saturating_sub(slowest_keepalive(&self.policy, sim.rtt));
        assert!(now >= survives, "an outage of {} killed", now - disturbed);
    }

    /// Suspicion is not raised against a peer that answers.
    pub fn check_condition(&self, now: Ms, leg: Leg, condition: Condition, sim: &SimLeg) {
        if sim.loses.is_some() {
            return;
        }
        let Some(since) = self.legs[leg as usize].reachable else {
            return;
        };
        // Behind a closed window the next question may be far away.
        let spread = if sim.near.zero_window() || sim.near.in_flight() {
            self.detect_within()
        } else {
            self.policy.probe_interval.as_millis() + slowest_keepalive(&self.policy, sim.rtt)
        };
        let settled = since + 2000 + spread;
        let asks_often = self.modern || sim.near.is_silent();
        // A peer so far away cannot have answered the first probe when the second one goes out.
        let near = sim.rtt < 900;
        if asks_often && near && sim.fate == Fate::Alive && sim.near.is_open() && now > settled {
            assert!(
                condition != Condition::Suspect,
                "{leg:?} answers and is suspected"
            );
        }
    }
}

impl Slack {
    fn since(&self, since: Ms, known: Ms) -> Ms {
        self.total - known + self.steps + self.paused_until.saturating_sub(since)
    }
}

/// 5 %, at least 0.3 s.
fn tolerance(d: Ms) -> Ms {
    (d / 20).max(300)
}

/// The longest time between two answers of a live quiet peer: the kernel's timer is late by up
/// to an eighth, twice (once to find that it is early, once to ask).
pub fn slowest_keepalive(policy: &Policy, rtt: Ms) -> Ms {
    let idle = policy.keepalive_idle().as_millis();
    idle + idle / 8 + 1032 / 4 + 64 + rtt
}

/// How soon after a link came back the next question is answered at the latest.
fn next_answer(sim: &SimLeg, rough: bool, rounding: Ms) -> Ms {
    if sim.near.is_silent() && !rough {
        // Questions are half a second apart, the last one is asked at D and has its time.
        560 + 200 + GRID + rounding + sim.rtt
    } else {
        // The kernel's own pace. So it is too where the monitor lost the samples after it had
        // asked for the last time, and judges late.
        1000.max(sim.rtt + 200) + 64 + GRID + rounding + sim.rtt
    }
}
