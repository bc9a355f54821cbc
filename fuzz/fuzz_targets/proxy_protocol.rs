//! The first bytes of a connection. Reading never panics, stays within its bounds, does not depend on how
//! the bytes come, and what was read is read again as it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate::proxy_protocol::{LONGEST_V1, LONGEST_V2, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    if whole == Ok(None) {
        assert!(bytes.len() < LONGEST_V2 && (bytes.first() != Some(&b'P') || bytes.len() < LONGEST_V1));
    }
    let Ok(Some((header, length))) = whole else { return };
    assert!(length <= bytes.len());
    for short in 0..length {
        assert_eq!(parse(&bytes[..short]), Ok(None));
    }
    let line = header.to_v1();
    let read = parse(&line).map(|read| read.map(|(header, length)| (header.addresses, length)));
    assert!(line.len() <= LONGEST_V1 && matches!(read, Ok(Some((_, length))) if length == line.len()));
    let again = header.to_v2();
    let (read, _) = parse(&again).unwrap().unwrap();
    // Mapped addresses are written as what they are, and what is `LOCAL` says nothing else.
    assert!(read.addresses.is_some() == header.addresses.is_some());
    if header.addresses.is_some() {
        assert_eq!(read.tlvs, header.tlvs);
    }
});
