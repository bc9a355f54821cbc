//! Sequences of samples and faults of one session, of a kernel that may say anything. Nothing
//! panics, the next sample is always due later, and no peer is found gone before D after the last
//! sign of life that a sample told.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pulsegate::liveness::{
    Fault, LEGS, Leg, LegSample, Machine, Observation, Policy, Span, TcpState, Time, Traffic,
};

/// Ages are rounded by the kernel: a sign of life that seems this much newer is the same one.
const JITTER: Span = Span::ms(20);

#[derive(Arbitrary, Debug)]
struct Input {
    detect_seconds: u8,
    probe_seconds: u8,
    probes: [bool; 2],
    /// Seconds, in the order of the policy.
    limits: [Option<u16>; 6],
    events: Vec<(u16, Event)>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Observe {
        legs: [Option<Sample>; 2],
        received: [u16; 2],
        sent: [u16; 2],
    },
    Fault(u8, Option<Sample>),
    Open,
    GiveUp,
    Asked,
    Hasten(Sample),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Sample {
    state: u8,
    ack_age: u32,
    data_age: u32,
    sent_age: u32,
    rto: u16,
    unacked: u8,
    notsent: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    zero_window: bool,
    busy: u32,
    segs_in: u8,
    bytes_acked: u16,
    bytes_received: u16,
    rtt_us: u32,
    rttvar_us: u32,
}

fuzz_target!(|input: Input| {
    let policy = policy(&input);
    let start = Time::ms(1 << 40);
    let mut now = start;
    let mut machine = Machine::accepted(start);
    let mut heard = [start; 2];
    assert!(machine.first_observation(&policy) > start);
    for (wait, event) in &input.events {
        now = now + Span::ms((*wait).into());
        match event {
            Event::Observe {
                legs,
                received,
                sent,
            } => {
                let legs = [0, 1].map(|leg| {
                    let up = leg == 0 || machine.opened().is_some();
                    legs[leg].filter(|_| up).map(|sample| sample.into())
                });
                hear(&mut heard, &legs, now, start);
                let observation = Observation {
                    legs,
                    traffic: Traffic {
                        received: received.map(u64::from),
                        sent: sent.map(u64::from),
                    },
                    answers_before: received[1].into(),
                };
                let verdict = machine.observe(now, &policy, &observation);
                assert!(verdict.next > now, "{verdict:?}");
                if let Some(close) = verdict.close {
                    if close.evidence.is_some() {
                        let gone = LEGS
                            .iter()
                            .any(|leg| now - heard[*leg as usize] + JITTER >= policy.detect_within);
                        assert!(gone, "{close:?} at {now:?}, heard {heard:?}");
                        assert!(close.silent_for + JITTER >= policy.detect_within);
                    }
                    return;
                }
            }
            Event::Fault(kind, after) => {
                let faults = [
                    Fault::Reset,
                    Fault::TimedOut,
                    Fault::Unreachable,
                    Fault::Truncated,
                    Fault::Layer,
                    Fault::Local,
                ];
                let after = after.map(LegSample::from);
                let fault = faults[usize::from(kind / 2) % faults.len()];
                let _close = machine.fault(now, leg(*kind), fault, after.as_ref());
            }
            Event::Open => {
                machine.open(now);
                heard[1] = now;
            }
            Event::GiveUp => machine.give_up(leg(*wait as u8)),
            Event::Asked => machine.probes_resumed(leg(*wait as u8)),
            Event::Hasten(sample) => {
                let _gap = machine.hasten(leg(sample.state), &(*sample).into());
            }
        }
        let _timer = machine.next_timer(&policy);
        for leg in LEGS {
            let _timer = machine.leg_timer(&policy, leg);
            assert!(machine.leg(leg).last_heard <= now);
        }
    }
});

fn leg(number: u8) -> Leg {
    LEGS[usize::from(number % 2)]
}

/// Notes when each peer was last heard, as the samples tell it.
fn hear(heard: &mut [Time; 2], legs: &[Option<LegSample>; 2], now: Time, start: Time) {
    for (heard, sample) in heard.iter_mut().zip(legs) {
        // A closed connection is not judged, so its ages are not taken.
        if let Some(sample) = sample.filter(|s| s.state != TcpState::Closed) {
            let age = sample.last_ack_age.min(sample.last_data_age);
            *heard = (*heard).max(now - age.min(now - start));
        }
    }
}

/// What a configuration may say.
fn policy(input: &Input) -> Policy {
    let detect = u64::from(input.detect_seconds).max(2);
    let probe = u64::from(input.probe_seconds).clamp(1, detect - 1);
    let [idle, half_close, stall, delivery, first_response, max] = input
        .limits
        .map(|limit| limit.map(|seconds| Span::ms(1000 * u64::from(seconds).max(1))));
    Policy {
        detect_within: Span::ms(1000 * detect),
        probe_interval: Span::ms(1000 * probe),
        probes: input.probes,
        idle_timeout: idle,
        half_close_timeout: half_close,
        stall_timeout: stall,
        delivery_timeout: delivery,
        receive_timeout: [idle, stall],
        first_response_timeout: first_response,
        max_duration: max,
    }
}

impl From<Sample> for LegSample {
    fn from(sample: Sample) -> Self {
        let states = [
            TcpState::Established,
            TcpState::CloseWait,
            TcpState::FinWait1,
            TcpState::FinWait2,
            TcpState::LastAck,
            TcpState::Closed,
        ];
        Self {
            state: states[usize::from(sample.state) % states.len()],
            unacked: sample.unacked.into(),
            retransmits: sample.retransmits.into(),
            rto: Span::ms(sample.rto.into()),
            probes: sample.probes.into(),
            backoff: sample.backoff,
            notsent: sample.notsent.into(),
            zero_window: sample.zero_window,
            last_ack_age: Span::ms(sample.ack_age.into()),
            last_data_age: Span::ms(sample.data_age.into()),
            last_sent_age: Span::ms(sample.sent_age.into()),
            busy: Span::ms(sample.busy.into()),
            segs_in: sample.segs_in.into(),
            bytes_acked: sample.bytes_acked.into(),
            bytes_received: sample.bytes_received.into(),
            rtt_us: sample.rtt_us,
            rttvar_us: sample.rttvar_us,
            is_local: false,
            is_layered: false,
            is_asked: false,
        }
    }
}
