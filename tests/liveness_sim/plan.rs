//! What a seed stands for: the policy, the hosts, the roughness of the monitor, the actions.

use pulsegate::liveness::{Policy, Span};

use crate::rng::Rng;
use crate::tcp::{Kernel, Ms, Sack};

const SECOND: Ms = 1000;
const MINUTE: Ms = 60 * SECOND;
pub const HOUR: Ms = 60 * MINUTE;

/// One in this many seeds is a long quiet life (months) instead of an eventful one.
pub const MARATHON_EVERY: u64 = 40;

/// What the kernel's timers are late by before and after an outage, ms.
const LATENESS: Ms = 100;

/// Something that happens to one leg, or to the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer sends.
    Write(u64),
    /// Both directions, or one, are cut for so long.
    Outage { cut: [bool; 2], span: Ms },
    /// Cut in one or both directions until further notice.
    Cut([bool; 2]),
    /// What carries more towards the peer is lost until further notice.
    Narrow(u64),
    /// The link is up again.
    Restore,
    /// The peer's application stops reading.
    Stall,
    /// It reads again.
    Resume,
    /// The peer says FIN.
    Fin,
    /// The peer aborts.
    Rst,
    /// The peer's process dies.
    Die,
    /// The peer's host is gone for good.
    Vanish,
    /// The peer's host restarts and has forgotten the connection.
    Reboot(Ms),
    /// The proxy says FIN to both.
    Drain,
    /// The monitor does nothing for so long.
    Pause(Ms),
    /// The monitor's clock steps back.
    StepBack(Ms),
    /// Somebody reads the metrics: a look that was not due.
    Scrape,
}

pub struct Plan {
    pub policy: Policy,
    pub length: Ms,
    pub kernel: Kernel,
    pub rtt: [Ms; 2],
    /// The peers' own keepalive.
    pub peer_keepalive: [Option<Ms>; 2],
    pub buffer: u64,
    /// Of a peer's kernel that runs out of it before its window is full, bytes.
    pub memory: Option<u64>,
    /// The kernel's boot lies this long before the session.
    pub boot: Ms,
    /// One look in this many misses a sample (0: none), and the monitor pauses and its clock
    /// steps back.
    pub rough: u64,
    /// How far apart actions are, at most.
    pub max_gap: Ms,
    /// When the first action comes, after the start.
    pub first_action: Ms,
    weights: [u64; 16],
}

impl Plan {
    pub fn new(seed: u64, rng: &mut Rng) -> Self {
        let marathon = seed.is_multiple_of(MARATHON_EVERY);
        let mut policy = policy(rng, marathon);
        if !marathon {
            // Of their own dice, so that a seed means the same run as without them.
            let mut dice = Rng::new(!seed);
            let mut timeout = || {
                dice.one_in(2)
                    .then(|| Span::ms(dice.spread(MINUTE, 4 * HOUR)))
            };
            policy.receive_timeout = [timeout(), timeout()];
        }
        let rough = [0, 0, 0, 30, 4][rng.index(5)];
        let mut weights = [30, 8, 2, 6, 5, 6, 1, 1, 1, 2, 1, 1, 0, 0, 4, 2];
        if rough > 0 {
            weights[12] = 3;
            weights[13] = 2;
        }
        for favourite in 0..2 {
            // A different mood for each seed, so that rare sequences are common somewhere.
            let index = rng.index(12);
            weights[index] *= 1 + 5 * favourite;
        }
        if marathon {
            weights = [40, 20, 0, 4, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
        }
        let quiet_fraction = [MINUTE, 10 * MINUTE, HOUR][rng.index(3)];
        let farthest = if seed % 8 == 5 { 1200 } else { 120 };
        let keepalive = |rng: &mut Rng| rng.one_in(3).then(|| rng.range(1, 75) * SECOND);
        Self {
            policy,
            first_action: rng.spread(1, quiet_fraction),
            length: if marathon {
                rng.range(2000, 4000) * HOUR
            } else {
                rng.range(1, 8) * HOUR
            },
            kernel: kernel(rng),
            rtt: [rng.spread(1, 120), rng.spread(1, farthest)],
            peer_keepalive: [keepalive(rng), keepalive(rng)],
            buffer: rng.spread(4_000, 200_000),
            memory: rng.one_in(4).then(|| rng.spread(100, 4_000)),
            boot: rng.range(0, 30 * 24 * HOUR),
            rough,
            max_gap: if marathon { 100 * HOUR } else { quiet_fraction },
            weights,
        }
    }

    /// Nothing happens but keepalive, and no timeout is on.
    pub fn make_idle(&mut self) {
        let Policy {
            detect_within,
            probe_interval,
            ..
        } = self.policy;
        self.policy = Policy {
            detect_within,
            probe_interval,
            idle_timeout: None,
            half_close_timeout: None,
            stall_timeout: None,
            probes: [true; 2],
            delivery_timeout: None,
            receive_timeout: [None; 2],
            first_response_timeout: None,
            max_duration: None,
        };
        self.rough = 0;
        self.length = Ms::MAX;
        self.first_action = Ms::MAX;
    }

    /// Both peers live, the monitor is on time, and data goes to the first leg while it is away for
    /// nearly as long as is promised to be survived: the actions, each with its leg.
    pub fn late_writes(&mut self, rng: &mut Rng) -> [(Ms, usize, Event); 3] {
        self.late_writes_within(rng, 12_000)
    }

    fn late_writes_within(&mut self, rng: &mut Rng, most: Ms) -> [(Ms, usize, Event); 3] {
        self.make_idle();
        let d = rng.range(2000, most);
        self.policy.detect_within = Span::ms(d);
        self.policy.probe_interval = Span::ms(rng.range(SECOND, (d - 500).min(3 * SECOND)));
        self.kernel.has_rto_max = true;
        self.rtt = [rng.spread(1, 40), rng.spread(1, 40)];
        let span = self.policy.survives().as_millis().saturating_sub(LATENESS);
        let begin = rng.range(d, 3 * d);
        let span = rng.range(span / 2, span.max(2));
        let write = match rng.index(3) {
            0 => Event::Fin,
            // Both fit into the smallest buffer.
            _ => Event::Write(rng.spread(1, 1900)),
        };
        let mut writes = [rng.range(0, span), rng.range(0, span)];
        writes.sort_unstable();
        let cut = [true; 2];
        [
            (begin, 0, Event::Outage { cut, span }),
            (begin + writes[0], 1, write),
            (begin + writes[1], 1, write),
        ]
    }

    /// A live peer that takes no data is away for nearly as long as is promised to be survived.
    pub fn shut_window(&mut self, rng: &mut Rng) -> [(Ms, usize, Event); 3] {
        let [(begin, _, outage), ..] = self.late_writes_within(rng, 60_000);
        let d = self.policy.detect_within.as_millis();
        self.memory = None;
        [
            (rng.range(0, begin), 0, Event::Stall),
            (begin, 1, Event::Write(2 * self.buffer + 1000)),
            (begin + rng.range(20, 3 * d), 0, outage),
        ]
    }

    /// The same, of a peer that has shrunk its window while data was on the way to it.
    pub fn shrunk_window(&mut self, rng: &mut Rng) -> [(Ms, usize, Event); 4] {
        let [stall, (begin, to, _), (at, from, outage)] = self.shut_window(rng);
        let memory = rng.range(100, 4000);
        self.memory = Some(memory);
        [
            stall,
            (begin, to, Event::Write(memory)),
            (begin + 300, to, Event::Write(rng.range(1, 3000))),
            (
                at + 300 + self.policy.busy_interval().as_millis(),
                from,
                outage,
            ),
        ]
    }

    /// One outage after the other, and data for the peer all the while, so that parts of it arrive.
    pub fn flapping(&mut self, rng: &mut Rng) -> Vec<(Ms, usize, Event)> {
        self.late_writes(rng);
        let d = self.policy.detect_within.as_millis();
        let outage = |span| Event::Outage {
            cut: [true; 2],
            span,
        };
        let begin = rng.range(d, 3 * d);
        let write = |at, rng: &mut Rng| (at, 1, Event::Write(rng.spread(1, 300)));
        if rng.one_in(2) {
            // The first repetition arrives, and what follows it does not.
            if !rng.one_in(4) {
                self.kernel.sack = [Sack::Off, Sack::WithoutLossProbe][rng.index(2)];
            }
            let [first, last] = [begin + rng.range(0, 60), begin + 200 + rng.range(0, 80)];
            return vec![
                (begin, 0, outage(rng.range(100, 190))),
                write(first, rng),
                write(first + rng.range(0, 10), rng),
                write(last, rng),
                (last + rng.range(0, 80), 0, outage(rng.range(d / 2, d))),
            ];
        }
        let mut script = Vec::new();
        let mut at = begin;
        for _ in 0..rng.range(2, 8) {
            let span = rng.spread(10, d);
            script.push((at, 0, outage(span)));
            at += span + rng.spread(1, 1000);
        }
        for _ in 0..rng.range(2, 12) {
            script.push(write(rng.range(begin, at), rng));
        }
        script.sort_by_key(|(at, ..)| *at);
        script
    }

    /// The time to the next action: anything from at once to `max_gap`, short ones as likely.
    pub fn gap(&self, rng: &mut Rng) -> Ms {
        if self.max_gap > HOUR {
            return rng.spread(10, self.max_gap);
        }
        rng.spread(1, self.max_gap)
    }

    pub fn action(&self, rng: &mut Rng) -> Event {
        let d = self.policy.detect_within.as_millis();
        let directions = [[true, true], [true, true], [true, false], [false, true]];
        let cut = directions[rng.index(4)];
        match rng.weighted(&self.weights) {
            0 => Event::Write(rng.spread(1, 150_000)),
            1 => Event::Outage {
                cut,
                span: rng.range(1, self.survivable().max(2)),
            },
            2 => Event::Cut(cut),
            3 => Event::Restore,
            4 => Event::Stall,
            5 => Event::Resume,
            6 => Event::Fin,
            7 => Event::Rst,
            8 => Event::Die,
            9 => Event::Vanish,
            10 => Event::Reboot(rng.range(10, 2 * d)),
            11 => Event::Drain,
            12 => Event::Pause(rng.range(100, 2 * d)),
            13 => Event::StepBack(rng.range(1, 20 * SECOND)),
            14 => Event::Scrape,
            _ => Event::Narrow(rng.range(1, 2000)),
        }
    }

    /// Outages up to about this long must kill nothing; a little more is drawn, for the edge.
    fn survivable(&self) -> Ms {
        self.policy.survives().as_millis() + 200
    }
}

fn kernel(rng: &mut Rng) -> Kernel {
    let common = Sack::WithLossProbe;
    Kernel {
        jiffy: [1, 4, 10][rng.index(3)],
        has_rto_max: !rng.one_in(4),
        rto_max: 120 * SECOND,
        sack: [Sack::Off, Sack::WithoutLossProbe, common, common][rng.index(4)],
    }
}

fn policy(rng: &mut Rng, marathon: bool) -> Policy {
    let timeout = |rng: &mut Rng, low, high| rng.one_in(2).then(|| Span::ms(rng.spread(low, high)));
    if marathon {
        return Policy {
            detect_within: Span::ms(rng.range(45, 60) * SECOND),
            probe_interval: Span::ms(rng.range(5, 12) * SECOND),
            idle_timeout: None,
            half_close_timeout: None,
            stall_timeout: None,
            probes: [true; 2],
            delivery_timeout: None,
            receive_timeout: [None; 2],
            first_response_timeout: None,
            max_duration: None,
        };
    }
    let detect_within = match rng.index(4) {
        0 => rng.range(2, 60) * SECOND,
        1 => rng.range(2000, 5000),
        2 => rng.range(2000, 60_000),
        _ => 30 * SECOND,
    };
    let probe_interval = match rng.index(4) {
        0 => (detect_within / 5).max(SECOND),
        1 => rng.range(SECOND, detect_within - 1),
        2 => rng.range(SECOND, (detect_within / 2).max(SECOND)),
        _ => SECOND,
    };
    Policy {
        detect_within: Span::ms(detect_within),
        probe_interval: Span::ms(probe_interval),
        idle_timeout: timeout(rng, SECOND, 2 * HOUR),
        half_close_timeout: timeout(rng, SECOND, 10 * MINUTE),
        probes: [true; 2],
        stall_timeout: timeout(rng, SECOND, 10 * MINUTE),
        first_response_timeout: timeout(rng, SECOND, 10 * MINUTE),
        delivery_timeout: timeout(rng, 5 * SECOND, 10 * MINUTE),
        receive_timeout: [None; 2],
        max_duration: rng
            .one_in(4)
            .then(|| Span::ms(rng.spread(MINUTE, 4 * HOUR))),
    }
}
