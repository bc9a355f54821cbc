//! Decides whether the two peers of a session live. **Pure**: no I/O, no clock, no tokio, no
//! serialisation; what the kernel says about each leg comes in as [`LegSample`]s together with
//! the time, and a [`Verdict`] with the time of the next observation comes out.
//!
//! # The promise
//!
//! With `detect_within` = D and `probe_interval` = I:
//!
//! * a peer that vanished is found D after its *last sign of life*, which lies at most I before
//!   it vanished; nothing but a sign of life restarts that clock;
//! * it is never found earlier, and never unless questions (keepalive probes, retransmissions,
//!   window probes) were asked inside the budget and stayed unanswered, so many that at 10 % loss
//!   each way fewer than 1 in 10,000 such verdicts on live peers is false (`proof.rs`); where D has
//!   no time for that (below 3 s; 4 s in flight, 7 s behind a closed window), as many as fit;
//! * a peer whose kernel answers but which takes no data is *stalled*: another word, another
//!   clock (`stall_timeout`), never dead.
//!
//! An outage ends nothing if it is shorter than D - I, or D - 2 s where I is below 2 s
//! ([`Policy::survives`]), less a round trip and the lateness of the kernel's timers (an eighth of I):
//! under suspicion the kernel's own questions are a second apart. There are two exceptions:
//!
//! * Where the kernel asks more rarely, a peer that is back is heard late, by up to half of D, and two
//!   outages may count as one: behind a closed window after 9 s of silence, behind a shrunk one at once
//!   (`window.rs`; with D above 120 s the kernel's own end may come first). On a kernel without
//!   `TCP_RTO_MAX_MS` (Linux < 6.15) only (D - I) / 2 is survived with data in flight, and a peer that
//!   vanished while it was stalled is found at the second unanswered window probe, up to minutes later.
//! * The kernel keeps no time for a segment that is neither data nor a valid acknowledgement (the peer's
//!   own probes): it counts as of the observation before. So where our segments are lost and such
//!   segments of the peer still arrive, the verdict comes up to one interval of observation sooner than
//!   D after the last of them, but never sooner than D after the last answer.
//!
//! # How it is driven
//!
//! The machine is not called for each packet. The monitor calls [`Machine::observe`] when the time
//! that the previous observation asked for has come (or when somebody wants fresh figures). Every
//! clock here is reconstructed from the ages that the kernel keeps (`tcpi_last_ack_recv` and the like):
//! a late observation loses no precision, and the byte path needs no timestamps. One thing has no age:
//! the half-close clock starts at the observation that first sees a FIN, so whoever passes a FIN on
//! should observe at once. And whoever gives data to a leg that was quiet should observe within
//! [`Policy::busy_interval`]: its window may close, or its peer vanish.
//!
//! [`Machine`] decides about a session; it is two [`Judge`]s, one for each leg, and what belongs to the
//! pair. A judge alone decides about any one TCP connection, also one that pulsegate did not make
//! ([`Judge::adopt`]).

mod inquiry;
mod judge;
mod machine;
mod policy;
mod pressure;
mod proof;
mod pulse;
mod reason;
mod sample;
mod shed;
mod spread;
#[cfg(test)]
mod tests;
mod time;
mod verdict;
mod window;

pub use inquiry::{Answer, Inquiry, Method, RECENT, Step};
pub use judge::Judge;
pub use machine::Machine;
pub use policy::Policy;
pub use pressure::{Pressure, Reading};
pub use pulse::{Asking, Beat, Moment, Other, Peer, Pulse, Then};
pub use reason::{CloseHow, CloseReason, Evidence, LEGS, Leg};
pub use sample::{AGE_JITTER, LegSample, Observation, TcpState, Traffic};
pub use shed::{Candidate, Rank};
pub use spread::Turn;
pub use time::{Span, Time};
pub use verdict::{Action, Close, Condition, Fault, LegVerdict, LegView, Timer, Verdict};
