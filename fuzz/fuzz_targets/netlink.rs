//! Datagrams of the kernel: acknowledgements, and dumps of sockets. Nothing panics, and what lies
//! behind the end of a datagram is never read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate::sys;

fuzz_target!(|datagram: &[u8]| {
    let messages = sys::parse_netlink(datagram);
    // A message has a header of 16 bytes.
    assert!(messages <= datagram.len() / 16);
});
