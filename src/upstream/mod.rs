//! Where clients are taken: the endpoints of a listener, which one is next, and the connect.

mod check;
mod cluster;
mod dial;
mod ejection;
mod endpoint;
mod pick;
mod resolve;

use std::collections::BTreeSet;

pub use cluster::{Cluster, Connect, Dialling};
pub use endpoint::{ActiveSession, Change, Endpoint, LastCheck, Standing, is_local};
pub use resolve::start as start_resolving;

use crate::config::{CheckKind, Upstream};

/// Descriptors that checks, DNS look-ups and dials of several addresses hold at most, beside those of
/// sessions.
#[must_use]
pub fn descriptors<'a>(upstreams: impl Iterator<Item = &'a Upstream>) -> u64 {
    let (mut names, mut double, mut checks) = (BTreeSet::new(), 0, 0);
    for upstream in upstreams {
        let (named, places) = (names.len(), upstream.addresses().count());
        names.extend(upstream.addresses().filter_map(|address| address.name()));
        if upstream.check.kind != CheckKind::Off {
            checks = check::MOST as u64;
        }
        if names.len() > named || places > 1 {
            double = dial::MOST_DOUBLE as u64;
        }
    }
    resolve::descriptors(names.len()) + double + checks
}
