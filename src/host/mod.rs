//! The host as far as it bounds the promise: counters of the network namespace, limits, and what
//! the kernel is able to do. Read by `pulsegate doctor` and, in part, when metrics are served.
//!
//! What cannot be read is unknown, not an error of pulsegate: containers hide much of it.

pub mod checks;
mod groups;
pub mod limits;
mod memory;
pub mod netns;
mod probe;
mod queue;

pub use limits::Limits;
pub use memory::{MemoryMeter, resident_memory};
pub use netns::{Counters, Sockets};
pub use probe::{Abilities, probe_on_demand};
pub use queue::{AcceptQueue, accept_queue};
