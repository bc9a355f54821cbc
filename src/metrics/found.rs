//! The last ends of sessions that are worth an operator's look: a peer was gone, or hung.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::{ListenerMetrics, Metrics};
use crate::liveness::Leg;

/// As many ends are kept, of all listeners.
pub const KEPT: usize = 200;
/// Ends within so many seconds are counted together.
const A_DAY: i64 = 24 * 3600;

/// A session that ended because a peer was gone, or hung. The names are those of the access line.
#[derive(Clone, Debug, Serialize)]
pub struct End {
    /// When, in seconds since the Unix epoch.
    pub at: i64,
    /// The id that `/connections` showed.
    pub id: u64,
    /// Name of the listener.
    pub listener: String,
    /// The close reason.
    pub reason: &'static str,
    /// What proved the peer gone.
    pub evidence: Option<&'static str>,
    /// The leg of that peer.
    #[serde(serialize_with = "as_text")]
    pub leg: Leg,
    /// The client; absent where it came by a unix socket.
    pub downstream: Option<SocketAddr>,
    /// The address that was dialled.
    pub upstream: Option<String>,
    /// From the last sign of life of the peer to the verdict, ms; absent where it was heard.
    pub silent_ms: Option<u64>,
    /// The promise that was in force for this session, ms.
    pub detect_within_ms: u64,
    /// Age of the session, ms.
    pub duration_ms: u64,
    /// Bytes read from the client.
    pub downstream_received: u64,
    /// Bytes written to the client.
    pub downstream_sent: u64,
    /// Bytes read from the service.
    pub upstream_received: u64,
    /// Bytes written to the service.
    pub upstream_sent: u64,
}

fn as_text<S: serde::Serializer>(leg: &Leg, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(leg)
}

impl End {
    /// Whom it happened with: the host of a client, whose port is another one each time; or the endpoint.
    #[must_use]
    pub fn peer(&self) -> String {
        let peer = match self.leg {
            Leg::Downstream => self.downstream.map(|client| client.ip().to_string()),
            Leg::Upstream => self.upstream.clone(),
        };
        peer.unwrap_or_else(|| "-".to_owned())
    }
}

/// The same thing that happened with the same peer, in the last 24 hours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The host of a client, or an endpoint.
    pub peer: String,
    /// Name of the listener.
    pub listener: String,
    /// The close reason.
    pub reason: &'static str,
    /// How often, as far as the ends are kept.
    pub times: usize,
    /// When last, in seconds since the Unix epoch.
    pub last_at: i64,
}

/// What `/found` shows.
#[derive(Clone, Debug, Serialize)]
pub struct FoundList {
    /// When this was said, in seconds since the Unix epoch.
    pub now: i64,
    /// By peer and reason; what happened most often is the first.
    pub groups: Vec<Group>,
    /// The newest is the first.
    pub ends: Vec<End>,
}

impl FoundList {
    /// Groups them.
    #[must_use]
    pub fn of(ends: Vec<End>, now: i64) -> Self {
        let mut counted: BTreeMap<_, (usize, i64)> = BTreeMap::new();
        for end in ends.iter().filter(|end| end.at > now - A_DAY) {
            let key = (end.peer(), end.listener.clone(), end.reason);
            let (times, last) = counted.entry(key).or_default();
            *times += 1;
            *last = end.at.max(*last);
        }
        let group = |((peer, listener, reason), (times, last_at))| Group {
            peer,
            listener,
            reason,
            times,
            last_at,
        };
        let mut groups: Vec<_> = counted.into_iter().map(group).collect();
        groups.sort_by_key(|group| std::cmp::Reverse((group.times, group.last_at)));
        Self { now, groups, ends }
    }
}

/// The last 200 ends.
#[derive(Debug, Default)]
pub struct Found(Mutex<VecDeque<End>>);

impl Found {
    /// The oldest one goes where there is no place.
    pub fn add(&self, end: End) {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.truncate(KEPT - 1);
        ends.push_front(end);
    }

    /// All of them; the newest is the first.
    #[must_use]
    pub fn ends(&self) -> Vec<End> {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().cloned().collect()
    }
}

impl Metrics {
    /// The last ends that are worth a look, of all listeners.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }
}

impl ListenerMetrics {
    /// A session ended because a peer was gone, or hung.
    pub fn found(&self, end: End) {
        self.found.add(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(id: u64, at: i64, client: &str, reason: &'static str) -> End {
        End {
            at,
            id,
            listener: "db".into(),
            reason,
            evidence: Some("keepalive"),
            leg: Leg::Downstream,
            downstream: Some(client.parse().expect("valid")),
            upstream: Some("10.0.0.9:5432".into()),
            silent_ms: Some(30_000),
            detect_within_ms: 30_000,
            duration_ms: 90_000,
            downstream_received: 1,
            downstream_sent: 2,
            upstream_received: 3,
            upstream_sent: 4,
        }
    }

    #[test]
    fn the_oldest_goes() {
        let found = Found::default();
        (0..300).for_each(|id| found.add(end(id, 1, "10.0.3.7:1", "downstream_dead")));
        let ids: Vec<_> = found.ends().iter().map(|end| end.id).collect();
        assert_eq!(ids, (100..300).rev().collect::<Vec<_>>());
    }

    #[test]
    fn what_happens_again_and_again_comes_first() {
        let now = 1_000_000;
        let mut of_upstream = end(6, now - 1, "10.0.3.8:1", "upstream_dead");
        of_upstream.leg = Leg::Upstream;
        let list = FoundList::of(
            vec![
                of_upstream,
                end(5, now - 2, "10.0.3.8:1", "downstream_stalled"),
                end(4, now - 3, "10.0.3.7:40001", "downstream_dead"),
                end(3, now - 4, "10.0.3.7:40000", "downstream_dead"),
                end(2, now - A_DAY, "10.0.3.7:39999", "downstream_dead"),
            ],
            now,
        );
        let said = |group: &Group| (group.peer.clone(), group.reason, group.times);
        let groups: Vec<_> = list.groups.iter().map(said).collect();
        let expected = [
            ("10.0.3.7".to_owned(), "downstream_dead", 2),
            ("10.0.0.9:5432".to_owned(), "upstream_dead", 1),
            ("10.0.3.8".to_owned(), "downstream_stalled", 1),
        ];
        assert_eq!(groups, expected);
        assert_eq!(list.groups[0].last_at, now - 3);
        assert_eq!(list.ends.len(), 5);
    }
}
