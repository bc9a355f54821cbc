//! One simulated session: two legs with a relay between them, and the monitor that drives the
//! machine, on a virtual clock that jumps from event to event.

use pulsegate::liveness::{
    Action, Close, CloseReason, Fault, LEGS, Leg, Machine, Observation, Span, Time, Traffic,
};

use crate::leg::{Fate, Leg as SimLeg};
use crate::plan::{Event, HOUR, Plan};
use crate::rng::Rng;
use crate::tcp::{Endpoint, Ms};
use crate::truth::{GRID, Slack, Truth, slowest_keepalive};

/// The relay stops reading from one leg while this much waits for the other.
const NOTSENT_LIMIT: u64 = 64_000;

const LONGEST_STALL: Ms = 600_000;

/// What a run amounted to; equal for equal seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Outcome {
    pub lived: Ms,
    pub looks: u64,
    pub reason: Option<CloseReason>,
    /// Of everything the machine answered.
    pub digest: u64,
}

pub struct Session {
    plan: Plan,
    rng: Rng,
    now: Ms,
    start: Ms,
    legs: [SimLeg; 2],
    traffic: Traffic,
    answers_before: u64,
    machine: Machine,
    truth: Truth,
    /// The monitor's clock is this far ahead of true time.
    offset: Ms,
    look_at: Ms,
    act_at: Ms,
    restore_at: [Option<Ms>; 2],
    /// What is still to happen instead of something by chance, the last first.
    script: Vec<(Ms, usize, Event)>,
    slack: Slack,
    fin_seen: bool,
    outcome: Outcome,
}

impl Session {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(seed, &mut rng);
        Self::with(plan, rng)
    }

    /// Two live peers that never say a word, and a monitor that is on time.
    pub fn idle(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(seed, &mut rng);
        plan.make_idle();
        Self::with(plan, rng)
    }

    /// Both peers live, and data is written to a quiet one while it is away for nearly as long as
    /// is promised to be survived.
    pub fn late_writes(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(seed, &mut rng);
        let script = plan.late_writes(&mut rng);
        Self::scripted(plan, rng, script.to_vec())
    }

    /// Both peers live, and one that takes no data is away for nearly as long as is promised to be
    /// survived.
    pub fn shut_window(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(seed, &mut rng);
        let script = plan.shut_window(&mut rng);
        Self::scripted(plan, rng, script.to_vec())
    }

    /// The same, of one that has shrunk its window while data was on the way to it.
    pub fn shrunk_window(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(seed, &mut rng);
        let script = plan.shrunk_window(&mut rng);
        Self::scripted(plan, rng, script.to_vec())
    }

    /// Both peers live, and one is away again and again while data is written to it.
    pub fn flapping(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(seed, &mut rng);
        let script = plan.flapping(&mut rng);
        Self::scripted(plan, rng, script)
    }

    fn scripted(plan: Plan, rng: Rng, script: Vec<(Ms, usize, Event)>) -> Self {
        let mut session = Self::with(plan, rng);
        session.script = script;
        session.script.reverse();
        session.act_at = session.scripted_at();
        session
    }

    fn scripted_at(&self) -> Ms {
        self.script
            .last()
            .map_or(Ms::MAX, |(at, ..)| self.start + at)
    }

    fn with(plan: Plan, mut rng: Rng) -> Self {
        let start = plan.boot;
        let idle = plan.policy.keepalive_idle().as_millis();
        let leg = |index: usize| {
            let rtt = plan.rtt[index];
            let buffers = [200_000, plan.buffer];
            let mut near = Endpoint::new(start, rtt, plan.kernel, buffers, Some(idle));
            near.interval = plan
                .policy
                .keepalive_interval(plan.kernel.jiffy * 1000)
                .as_millis();
            let keepalive = plan.peer_keepalive[index];
            let buffers = [buffers[1], buffers[0]];
            let mut far = Endpoint::new(start, rtt, plan.kernel, buffers, keepalive);
            far.memory = plan.memory;
            SimLeg::new(near, far, rtt)
        };
        let legs = [leg(0), leg(1)];
        let offset = rng.range(1_000_000, 1_000_000_000);
        let machine = Machine::new(Time::ms(start + offset));
        let look_at = machine.first_observation(&plan.policy).as_millis() - offset;
        Self {
            truth: Truth::new(&plan, start),
            now: start,
            start,
            legs,
            traffic: Traffic::default(),
            answers_before: 0,
            machine,
            offset,
            look_at,
            act_at: start.saturating_add(plan.first_action),
            restore_at: [None; 2],
            script: Vec::new(),
            slack: Slack::default(),
            fin_seen: false,
            outcome: Outcome::default(),
            plan,
            rng,
        }
    }

    /// Time since the session began, for the report of a failure.
    pub fn age(&self) -> Ms {
        self.now - self.start
    }

    pub fn describe(&self) -> String {
        let plan = &self.plan;
        format!(
            "{:?}\n{:?} rtt {:?} peers' keepalive {:?} rough {}\nnow {} machine {:?}\nlegs {:#?}",
            plan.policy,
            plan.kernel,
            plan.rtt,
            plan.peer_keepalive,
            plan.rough,
            self.now,
            self.machine,
            self.legs
                .each_ref()
                .map(|l| (&l.near, l.fate, l.up, l.reads)),
        )
    }

    /// One event. `None` while the session goes on.
    pub fn step(&mut self) -> Option<Outcome> {
        let wire = self.legs.iter().filter_map(SimLeg::next_event).min();
        let restore = self.restore_at.iter().flatten().min().copied();
        let next = [Some(self.look_at), Some(self.act_at), restore, wire];
        self.now = next
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.now)
            .max(self.now);
        for leg in &mut self.legs {
            leg.run_until(self.now);
        }
        let close = self.react().or_else(|| self.happen());
        self.relay();
        self.truth.observe(self.now, &self.legs, self.slack);
        if close.is_none() {
            self.truth.check_overdue(self.now, &self.legs, self.slack);
        }
        let finished = self.legs.iter().all(|l| l.near.finished());
        let over = self.age() >= self.plan.length;
        (close.is_some() || finished || over).then(|| self.finish(close))
    }

    fn finish(&mut self, close: Option<Close>) -> Outcome {
        self.outcome.lived = self.age();
        self.outcome.reason = close.map(|c| c.reason);
        self.outcome
    }

    /// A socket error is noticed at once.
    fn react(&mut self) -> Option<Close> {
        let failed = |near: &Endpoint| near.reset || near.timed_out;
        let leg = LEGS
            .into_iter()
            .find(|l| failed(&self.legs[*l as usize].near))?;
        let sim = &self.legs[leg as usize];
        let after = sim.near.sample(self.now, sim.rtt);
        let clock = Time::ms(self.now + self.offset);
        if sim.near.timed_out {
            let close = self
                .machine
                .fault(clock, leg, Fault::TimedOut, Some(&after));
            self.truth.check_close(self.now, &close, &self.legs);
            return Some(close);
        }
        let close = self.machine.fault(clock, leg, Fault::Reset, Some(&after));
        let expected = [CloseReason::reset(leg), CloseReason::dead(leg)];
        // A service that says something of its own and never got a byte of ours looks like one.
        let phantom = close.reason == CloseReason::UpstreamPhantom && sim.near.last_taken.is_none();
        assert!(phantom || expected.contains(&close.reason));
        assert!(sim.fate != Fate::Alive, "reset out of nothing");
        Some(close)
    }

    fn happen(&mut self) -> Option<Close> {
        for index in 0..2 {
            if self.restore_at[index].is_some_and(|at| at <= self.now) {
                self.restore_at[index] = None;
                self.legs[index].up = [true; 2];
            }
        }
        if self.act_at <= self.now
            && let Some((_, index, action)) = self.script.pop()
        {
            self.act(action, index);
            self.act_at = self.scripted_at();
        } else if self.act_at <= self.now {
            let action = self.plan.action(&mut self.rng);
            let index = self.rng.index(2);
            self.act(action, index);
            let gap = self.plan.gap(&mut self.rng);
            // A stalled peer is probed every second: hours of that would say nothing new.
            let stalled = self.legs.iter().any(|l| !l.reads);
            self.act_at = self.now + if stalled { gap.min(LONGEST_STALL) } else { gap };
        }
        self.relay();
        self.truth.observe(self.now, &self.legs, self.slack);
        if self.look_at <= self.now {
            return self.look();
        }
        None
    }

    fn act(&mut self, action: Event, index: usize) {
        let now = self.now;
        let leg = &mut self.legs[index];
        match action {
            Event::Write(bytes) => leg.peer_writes(now, bytes),
            Event::Outage { cut, span } => {
                leg.up = cut.map(|c| !c);
                self.restore_at[index] = Some(now + span);
            }
            Event::Cut(cut) => {
                leg.up = cut.map(|c| !c);
                self.restore_at[index] = None;
            }
            Event::Narrow(widest) => leg.widest = widest,
            Event::Restore => {
                leg.up = [true; 2];
                leg.widest = u64::MAX;
            }
            Event::Stall => leg.set_reads(now, false),
            Event::Resume => leg.set_reads(now, true),
            Event::Fin => leg.peer_finishes(now),
            Event::Rst => leg.peer_resets(now),
            Event::Die => leg.peer_dies(now),
            Event::Vanish => leg.fate = Fate::Gone,
            Event::Reboot(span) => leg.fate = Fate::Forgot(now + span),
            Event::Drain => self.drain(),
            Event::Pause(span) => {
                self.slack.total += span;
                self.slack.paused_until = self.slack.paused_until.max(now + span);
                self.look_at = self.look_at.max(now + span);
            }
            Event::StepBack(span) => {
                let span = span.min(self.offset - 1);
                self.offset -= span;
                self.look_at += span;
                self.slack.total += span;
                self.slack.steps += span;
            }
            Event::Scrape => self.look_at = self.look_at.min(now.max(self.slack.paused_until)),
        }
    }

    fn drain(&mut self) {
        for leg in &mut self.legs {
            leg.near.shutdown(self.now);
            leg.flush(self.now);
        }
    }

    /// Passes on what has come: bytes while the other leg takes them, then the FIN.
    fn relay(&mut self) {
        for leg in LEGS {
            let (from, to) = (leg as usize, leg.other() as usize);
            let waiting = self.legs[to].near.unsent();
            if waiting < NOTSENT_LIMIT && self.legs[from].near.unread() > 0 {
                let bytes = self.legs[from].near.read_all();
                self.legs[to].near.write(self.now, bytes);
                self.look_soon();
                self.traffic.received[from] += bytes;
                if !self.legs[to].near.has_fin() {
                    self.traffic.sent[to] += bytes;
                    if leg == Leg::Downstream {
                        self.answers_before = self.traffic.received[to];
                    }
                }
            }
            let source = &self.legs[from].near;
            if source.fin_received && source.unread() == 0 {
                self.legs[to].near.shutdown(self.now);
            }
        }
        for leg in &mut self.legs {
            leg.flush(self.now);
        }
        let fin = self
            .legs
            .iter()
            .any(|l| l.near.fin_received || l.near.has_fin());
        if fin && !self.fin_seen {
            // The driver looks when a FIN passes, so that the half-close clock starts then.
            self.fin_seen = true;
            let soon = self.now + self.rng.range(0, 5);
            self.look_at = self.look_at.min(soon.max(self.slack.paused_until));
        }
    }

    /// The driver looks soon after data begins to flow, so that a window that closes is seen. (The
    /// real one does so from some kilobytes on.)
    fn look_soon(&mut self) {
        let soon =
            self.now + self.plan.policy.busy_interval().as_millis() + self.rng.range(0, GRID);
        self.look_at = self.look_at.min(soon.max(self.slack.paused_until));
    }

    fn look(&mut self) -> Option<Close> {
        let lag = self.rng.range(0, 2);
        let mut look = Observation {
            legs: [None; 2],
            traffic: self.traffic,
            answers_before: self.answers_before,
        };
        for leg in LEGS {
            let sim = &mut self.legs[leg as usize];
            if self.plan.rough > 0 && self.rng.one_in(self.plan.rough) {
                // A leg that could not be asked is asked again within a second.
                self.slack.total += 1000 + GRID;
                continue;
            }
            look.legs[leg as usize] = Some(sim.near.sample(self.now, sim.rtt));
            self.truth.sampled(self.now, leg, sim);
        }
        // The monitor reads its clock once for a batch of looks, just before it asks the kernel.
        let clock = Time::ms(self.now + self.offset - lag);
        let verdict = self.machine.observe(clock, &self.plan.policy, &look);
        self.outcome.looks += 1;
        self.note(verdict.next.as_millis() - self.offset);
        assert!(verdict.next > clock, "the next look is not later");
        for leg in LEGS {
            self.ask(leg, verdict.actions[leg as usize]);
            // An older kernel does not know the option.
            if let Some(gap) = verdict.longest_gap[leg as usize].filter(|_| self.modern()) {
                self.legs[leg as usize].near.kernel.rto_max = gap.as_millis();
            }
            if look.legs[leg as usize].is_some() {
                let condition = self.machine.leg(leg).condition;
                let sim = &self.legs[leg as usize];
                self.truth.check_condition(self.now, leg, condition, sim);
            }
        }
        if let Some(close) = verdict.close {
            self.truth.check_close(self.now, &close, &self.legs);
            return Some(close);
        }
        let due = verdict.next.as_millis() - self.offset;
        // The monitor serves near deadlines exactly and quiet ones on a grid.
        let late = if due < self.now + 1500 { 5 } else { GRID };
        let due = due + self.rng.range(0, late);
        self.look_at = due.max(self.now + 1).max(self.slack.paused_until);
        None
    }

    fn ask(&mut self, leg: Leg, action: Option<Action>) {
        let normal = self.plan.policy.keepalive_idle().as_millis();
        let near = &mut self.legs[leg as usize].near;
        match action {
            Some(Action::ProbeNow) => near.set_idle(self.now, 1000),
            Some(Action::ProbeNormally) => near.set_idle(self.now, normal),
            Some(Action::StopProbes) => near.keepalive_at = None,
            Some(Action::ResumeProbes) => near.set_idle(self.now, normal),
            None => {}
        }
    }

    fn modern(&self) -> bool {
        self.plan.kernel.has_rto_max
    }

    fn note(&mut self, answer: u64) {
        self.outcome.digest = (self.outcome.digest ^ answer).wrapping_mul(0x100_0000_01B3);
    }

    /// Two live peers over paths that lose one segment in so many each way, with a budget of D.
    pub fn lossy(seed: u64, d: Ms, loses: u64) -> Self {
        let mut session = Self::idle(seed);
        let mut plan = session.plan;
        plan.policy.detect_within = Span::ms(d);
        plan.policy.probe_interval = Span::ms((d / 5).max(1000));
        plan.kernel.has_rto_max = true;
        plan.peer_keepalive = [None; 2];
        plan.rtt = plan.rtt.map(|rtt| rtt.min(60));
        session = Self::with(plan, session.rng);
        for (index, leg) in session.legs.iter_mut().enumerate() {
            leg.loses = Some((loses, Rng::new(2 * seed + index as u64)));
        }
        session
    }

    /// How often the peers were asked anew since they answered.
    pub fn rows(&self) -> u64 {
        self.legs.iter().map(|leg| leg.near.rows).sum()
    }

    pub fn looks(&self) -> u64 {
        self.outcome.looks
    }

    /// How often an idle session of live peers is looked at in an hour, at most.
    pub fn most_looks_per_hour(&self) -> u64 {
        let policy = &self.plan.policy;
        let slowest = self.plan.rtt.map(|rtt| slowest_keepalive(policy, rtt));
        let detect_within = policy.detect_within.as_millis();
        let final_phase = policy.final_phase().as_millis();
        let pause = (detect_within - final_phase).saturating_sub(slowest[0].max(slowest[1]));
        // Where the kernel asks too late to be answered before the final phase, that phase with
        // its questions is passed once for each D.
        let in_final_phase = final_phase / 100 + 4;
        let looks = HOUR / pause.max(detect_within / in_final_phase) + 1;
        // A look that meets a probe on its way is followed by another; lockstep can make that
        // every one.
        2 * looks
    }
}
