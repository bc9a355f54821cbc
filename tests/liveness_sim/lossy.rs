//! Live peers on a lossy path: how often is one taken for dead? The requirement is fewer than one
//! row of questions in 10,000 at 10 % loss each way.

use pulsegate::liveness::{Answer, Inquiry, Method, Step, Time};

use crate::leg::Leg;
use crate::rng::Rng;
use crate::session::Session;
use crate::tcp::{Endpoint, Kernel, Ms, Sack};

/// One segment in so many is lost, each way.
const LOSES: u64 = 10;
const ROWS: u64 = 200_000;
const HOUR: Ms = 3_600_000;

/// False verdicts in so many rows of questions.
fn false_verdicts(d: Ms) -> (u64, u64) {
    let (mut rows, mut verdicts) = (0, 0);
    for seed in 0.. {
        let mut session = Session::lossy(seed, d, LOSES);
        while session.age() < HOUR && session.step().is_none() {}
        verdicts += u64::from(session.age() < HOUR);
        rows += session.rows();
        if rows >= ROWS {
            break;
        }
    }
    (verdicts, rows)
}

#[test]
fn a_live_peer_on_a_lossy_path_is_not_dead_after_d() {
    // There is no time for enough questions: what is said of the risk.
    let (verdicts, rows) = false_verdicts(2000);
    println!("D = 2000 ms: {verdicts} false verdicts in {rows} rows of questions");
    assert!(250 * verdicts < rows, "{verdicts} of {rows}");
    for d in [3000, 3100, 3500, 4000, 5000, 6000, 8000, 10_000, 30_000] {
        let (verdicts, rows) = false_verdicts(d);
        println!("D = {d} ms: {verdicts} false verdicts in {rows} rows of questions");
        assert!(10_000 * verdicts < rows, "{d}: {verdicts} of {rows}");
    }
}

/// One peer on a lossy path, watched by the kernel only until somebody asks.
struct Asked {
    leg: Leg,
    idle: Ms,
    now: Ms,
}

impl Asked {
    fn new(seed: u64, rng: &mut Rng) -> Self {
        let kernel = Kernel {
            jiffy: [1, 4, 10][rng.index(3)],
            has_rto_max: true,
            rto_max: 120_000,
            sack: Sack::WithLossProbe,
        };
        let (start, rtt, idle) = (1_000_000, rng.spread(1, 30), rng.range(1, 6) * 1000);
        let end = |idle| Endpoint::new(start, rtt, kernel, [200_000; 2], idle);
        let mut leg = Leg::new(end(Some(idle)), end(None), rtt);
        leg.loses = Some((LOSES, Rng::new(seed)));
        Self {
            leg,
            idle,
            now: start,
        }
    }

    fn pass(&mut self, span: Ms) {
        self.now += span;
        self.leg.run_until(self.now);
    }

    fn inquire(&mut self, method: Method) -> Answer {
        let mut inquiry = Inquiry::new(Time::ms(self.now), method, &self.sample());
        loop {
            let pause = match inquiry.observe(Time::ms(self.now), &self.sample()) {
                Step::Done(answer) => break answer,
                Step::Wait(pause) => pause,
                Step::Ask(pause) => {
                    self.leg.near.set_idle(self.now, 1000);
                    pause
                }
            };
            self.pass(pause.as_millis());
        }
    }

    fn sample(&self) -> pulsegate::liveness::LegSample {
        self.leg.near.sample(self.now, self.leg.rtt)
    }
}

#[test]
fn a_live_peer_on_a_lossy_path_answers_an_inquiry() {
    const INQUIRIES: u64 = 200_000;
    for (name, method) in [("check", Method::CHECK), ("takeover", Method::TAKEOVER)] {
        let (mut silent, mut unknown) = (0, 0);
        let mut rng = Rng::new(7);
        let mut asked = Asked::new(0, &mut rng);
        for number in 1..=INQUIRIES {
            if number % 100 == 0 {
                asked = Asked::new(number, &mut rng);
            }
            asked.pass(rng.spread(1, 10_000));
            match asked.inquire(method) {
                Answer::Silent { .. } => {
                    silent += 1;
                    asked = Asked::new(INQUIRIES + number, &mut rng);
                }
                Answer::Unknown(_) => unknown += 1,
                _ => {}
            }
            let (now, idle) = (asked.now, asked.idle);
            asked.leg.near.set_idle(now, idle);
        }
        println!("{name}: {silent} of {INQUIRIES} inquiries wrong, {unknown} without a judgement");
        assert!(10_000 * silent < INQUIRIES, "{name}: {silent}");
        assert!(unknown < INQUIRIES / 1000, "{name}: {unknown}");
    }
}

/// And a peer that is gone is proven so in this time.
#[test]
fn a_vanished_peer_is_proven_gone_in_time() {
    for (method, before, most) in [
        // Heard this moment, heard a second ago, and after one, three and six questions of the kernel.
        (Method::TAKEOVER, 0, 3250),
        (Method::CHECK, 1010, 2250),
        (Method::CHECK, 2500, 2250),
        (Method::CHECK, 4600, 1250),
        (Method::CHECK, 8000, 900),
    ] {
        let mut slowest = 0;
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let mut asked = Asked::new(seed, &mut rng);
            asked.idle = 1000;
            let now = asked.now;
            asked.leg.near.set_idle(now, 1000);
            asked.leg.up = [false; 2];
            asked.pass(before);
            let began = asked.now;
            let answer = asked.inquire(method);
            assert!(
                matches!(answer, Answer::Silent { .. }),
                "{before}: {answer:?}"
            );
            slowest = slowest.max(asked.now - began);
        }
        println!("silent for {before} ms: proven after {slowest} ms at the latest");
        assert!(slowest <= most, "{before}: {slowest}");
    }
}
