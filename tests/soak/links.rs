//! Links that fail at random, and what may be concluded from how they did.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use crate::rng::Rng;
use crate::support::{Direction, Host, Net};

/// Seconds since the start of the run, by the wall clock, which the log of the proxy shows.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: f64,
}

const DAY: f64 = 86_400.0;

impl Clock {
    pub fn start() -> Self {
        Self { start: of_day() }
    }

    pub fn now(self) -> f64 {
        self.at(of_day())
    }

    /// The time of a line of the log: `2026-01-31T12:34:56.789Z`.
    pub fn read(self, timestamp: &str) -> f64 {
        let (_, time) = timestamp.split_once('T').expect("a time");
        let parts = time.trim_end_matches('Z').split(':');
        let seconds = parts.fold(0.0, |sum, part| {
            sum * 60.0 + part.parse::<f64>().expect("a number")
        });
        self.at(seconds)
    }

    fn at(self, of_day: f64) -> f64 {
        let since = (of_day - self.start).rem_euclid(DAY);
        // A hair before the start is not a day after it.
        if since > DAY - 60.0 { 0.0 } else { since }
    }
}

fn of_day() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64() % DAY
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Cut,
    OneWay(Direction),
    Heal,
}

/// A link, its future and its past.
pub struct FaultyLink {
    net: Arc<Net>,
    pub host: Host,
    /// What will be done to it, and when.
    plan: VecDeque<(f64, Change)>,
    /// Seconds between the end of one fault and the next.
    pauses: (u64, u64),
    /// Since when it is whole.
    whole_since: Option<f64>,
    /// Earlier stretches in which it was whole.
    whole: Vec<(f64, f64)>,
    pub faults: u64,
}

/// A link that was whole for this long has answered a question: they are a second apart.
const ANSWERED: f64 = 2.0;

impl FaultyLink {
    pub fn new(net: &Arc<Net>, host: Host, pauses: (u64, u64)) -> Self {
        Self {
            net: Arc::clone(net),
            host,
            plan: VecDeque::new(),
            pauses,
            whole_since: Some(0.0),
            whole: Vec::new(),
            faults: 0,
        }
    }

    pub fn is_whole(&self) -> bool {
        self.whole_since.is_some()
    }

    /// Does what is due.
    pub fn advance(&mut self, clock: Clock, rng: &mut Rng) {
        if self.plan.is_empty() {
            self.plan_fault(clock.now(), rng);
        }
        while let Some(&(at, change)) = self.plan.front() {
            if clock.now() < at {
                return;
            }
            self.plan.pop_front();
            self.change(clock, change);
        }
    }

    /// No further fault, and none now.
    pub fn calm_down(&mut self, clock: Clock) {
        self.plan.clear();
        self.change(clock, Change::Heal);
    }

    fn plan_fault(&mut self, now: f64, rng: &mut Rng) {
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let mut at = now + seconds(rng.range(self.pauses.0 * 1000, self.pauses.1 * 1000));
        let mut plan = |change, rng: &mut Rng, (low, high)| {
            self.plan.push_back((at, change));
            at += seconds(rng.range(low, high));
            self.plan.push_back((at, Change::Heal));
            at += seconds(rng.range(low, high).min(800));
        };
        match rng.weighted(&[5, 2, 2, 2]) {
            0 => plan(Change::Cut, rng, (100, 2000)),
            1 => plan(Change::Cut, rng, (3000, 8000)),
            2 if rng.one_in(2) => plan(Change::OneWay(Direction::ToNear), rng, (500, 7000)),
            2 => plan(Change::OneWay(Direction::ToFar), rng, (500, 7000)),
            _ => {
                for _ in 0..rng.range(3, 8) {
                    plan(Change::Cut, rng, (100, 800));
                }
            }
        }
    }

    fn change(&mut self, clock: Clock, change: Change) {
        let before = clock.now();
        match change {
            Change::Cut => self.net.cut(self.host),
            Change::OneWay(direction) => self.net.cut_one_way(self.host, direction),
            Change::Heal => self.net.heal(self.host),
        }
        match change {
            Change::Heal => {
                self.whole_since.get_or_insert_with(|| clock.now());
            }
            _ => {
                self.faults += 1;
                self.whole
                    .extend(self.whole_since.take().map(|since| (since, before)));
            }
        }
    }

    /// Whether what was sent between the two times certainly arrived.
    pub fn was_whole(&self, from: f64, to: f64) -> bool {
        self.lively()
            .any(|(since, until)| since <= from && to <= until)
    }

    fn lively(&self) -> impl Iterator<Item = (f64, f64)> {
        let current = self.whole_since.map(|since| (since, f64::INFINITY));
        self.whole.iter().copied().chain(current)
    }

    /// Whether the peer at the end of this link may have given no answer for `detect_within`
    /// seconds before `at`, if it was asked each second. Both ends of an outage are blurred, so
    /// this is in doubt a yes.
    pub fn may_be_dead(&self, at: f64, detect_within: f64) -> bool {
        let mut cut = f64::NEG_INFINITY;
        for (from, to) in self.lively().filter(|(from, to)| to - from >= ANSWERED) {
            // The outage between the previous stretch and this one.
            if at >= cut + detect_within - 1.6 && at <= from + ANSWERED {
                return true;
            }
            cut = to;
        }
        at >= cut + detect_within - 1.6
    }
}
