//! The kernel by raw call: the only module with `unsafe`, each block with its reason.
//!
//! Functions take raw descriptors: an invalid one is answered by the kernel with EBADF, and a
//! recycled one is excluded by the session table, which forgets a descriptor before it is closed.
#![allow(unsafe_code)]

mod activation;
mod clock;
mod memory;
pub mod netlink;
pub mod netns;
mod pidfd;
mod register;
mod signals;
pub mod sock_diag;
pub mod sockopt;
mod tcp_info;

pub use activation::passed_descriptors;
pub use clock::{monotonic_micros, now, process_time, thread_time, tick};
pub use memory::release_free_memory;
pub use pidfd::Foreign;
pub use register::register;
pub use signals::{hold_end_signals, release_end_signals};
pub use sockopt::duplicate;
pub use tcp_info::{TcpInfo, UNKNOWN_WINDOW, state_name, tcp_info};

/// Takes an answer of the kernel apart in each way that this module knows; how many messages it has.
#[cfg(fuzzing)]
pub fn parse_netlink(datagram: &[u8]) -> usize {
    let _acknowledged = netlink::acknowledged(datagram, 1);
    netlink::messages(datagram)
        .inspect(|message| sock_diag::parse(message))
        .count()
}
