//! Decides whether the two peers of a session live. **Pure**: no I/O, no clock, no tokio, no
//! serialisation; what the kernel says about each leg comes in as [`LegSample`]s together with
//! the time, and a [`Verdict`] with the time of the next look comes out.
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
//! # What it costs
//!
//! * An outage kills nothing if it is shorter than D - I, or D - 2 s where I is below 2 s
//!   ([`Policy::survives`]): under suspicion the kernel's own questions are a second apart. Off that
//!   goes a round trip, and the lateness of the kernel's timers (up to an eighth of I).
//! * The kernel keeps no time for a segment that is neither data nor a valid acknowledgement (the
//!   peer's own keepalive or window probes); only their count moves. Such a segment is a sign of
//!   life *as of the previous look*, the earliest time it can have come: later would find a peer
//!   that vanished right after it up to D too late. The price is paid in a one-way cut (ours is
//!   lost, theirs arrives): there a peer can be closed up to one look interval sooner than D after
//!   its last segment, though never sooner than D after its last *answer*. Under suspicion, looks
//!   are at most a second apart.
//! * Without TCP_RTO_MAX_MS (Linux < 6.15) the kernel backs off: an outage with data in flight is
//!   survived if it is shorter than about (D - I) / 2; a peer that vanished while stalled is found
//!   at the second unanswered window probe, and one that spoke without acknowledging at the next
//!   retransmission, up to minutes later.
//! * Behind a closed window our kernel would give up a silent peer by itself, after 15 probes, or
//!   after 2 s where the window was taken back. So its questions become rarer, and come often again
//!   before the verdict only (`window.rs`): an inquiry in between may not find out, and a peer that
//!   was away for some 10 s or more (2 s, if it took its window back) is heard late when it is back,
//!   by up to half of D. If it goes away again before the next question, the two outages may count as
//!   one. With D above some 120 s, or where the driver comes late, the kernel's end may come first;
//!   so it does where keepalive probes were unanswered before something was written into a closed
//!   window, since they count as well.
//! * Where 1.5 round trips are longer than 50 ms, the last answer is awaited that long (at most
//!   1 s).
//!
//! # How it is driven
//!
//! The machine is not called for each packet. The monitor calls [`Machine::look`] when the time
//! that the previous look asked for has come (or when somebody wants fresh figures); every clock
//! here is reconstructed from the ages the kernel keeps (`tcpi_last_ack_recv` and friends), so a
//! late look loses no precision and the byte path needs no timestamps. One thing has no age: the
//! half-close clock starts at the look that first sees a FIN, so whoever passes a FIN on should
//! look at once. And whoever gives data to a leg that was quiet should look within
//! [`Policy::busy_look_every`]: its window may close, or its peer vanish.

mod inquiry;
mod leg;
mod machine;
mod policy;
mod pressure;
mod proof;
mod reason;
mod sample;
mod shed;
#[cfg(test)]
mod tests;
mod time;
mod window;

pub use inquiry::{Answer, Inquiry, Method, Step};
pub use leg::Condition;
pub use machine::{Ask, Close, Fault, LegView, Machine, Timer, Verdict};
pub use policy::Policy;
pub use pressure::{Pressure, Reading};
pub use reason::{CloseHow, CloseReason, Evidence, LEGS, Leg};
pub use sample::{LegSample, Look, TcpState, Traffic};
pub use shed::{Candidate, Rank};
pub use time::{Span, Time};
