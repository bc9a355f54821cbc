//! Where clients are taken: the endpoints of a listener, which one is next, and the connect.

mod cluster;
mod dial;
mod endpoint;
mod pick;
mod resolve;

use std::collections::BTreeSet;

pub use cluster::{Cluster, Connect};
pub use dial::Attempt;
pub use endpoint::{ActiveSession, Endpoint};
pub use resolve::start as start_resolving;

use crate::config::Upstream;

/// Descriptors that DNS look-ups and dials of several addresses hold at most, beside those of
/// sessions.
#[must_use]
pub fn descriptors<'a>(upstreams: impl Iterator<Item = &'a Upstream>) -> u64 {
    let names: BTreeSet<_> = upstreams.filter_map(|u| u.address.name()).collect();
    match names.len() {
        0 => 0,
        names => resolve::descriptors(names) + dial::MOST_DOUBLE as u64,
    }
}
