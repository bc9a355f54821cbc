//! DNS names of upstreams.
//!
//! getaddrinfo(3) blocks for as long as the resolver's configuration allows, and cannot be
//! cancelled. So it runs on threads that are made at the start, one for each name, whatever the
//! number of clients. A name server that does not answer takes one thread and a few sockets and
//! delays no other name. No thread is joined when the process ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::cluster::Cluster;
use crate::liveness::{Span, Time};
use crate::sys;

/// Threads at most; names beyond share them.
const MOST_THREADS: usize = 64;
/// What getaddrinfo(3) needs is far below; glibc keeps what is large on the heap.
const STACK: usize = 256 * 1024;
/// Descriptors that a look-up holds at most: a socket for each of three name servers, and one file,
/// or connection to a cache, or by TCP.
const DESCRIPTORS: u64 = 4;
/// A name that cannot be resolved is tried again after so long.
const RETRY: Duration = Duration::from_secs(1);
/// Between two lines of the log about a name that cannot be resolved.
const LINE_EVERY: Span = Span::ms(60_000);

/// A name, and the clusters that have it.
#[derive(Debug)]
struct Name {
    host: Box<str>,
    /// The shortest `resolve_interval` of the clusters.
    every: Duration,
    clusters: Vec<Weak<Cluster>>,
    /// When the last line of the log said that it cannot be resolved.
    failing: Option<Time>,
}

/// Descriptors that look-ups of so many names hold at most.
pub(super) fn descriptors(names: usize) -> u64 {
    DESCRIPTORS * names.min(MOST_THREADS) as u64
}

/// Looks up the names of clusters from now on, each name again and again, until its clusters are
/// retired or dropped.
///
/// # Errors
/// When a thread cannot be made.
pub fn start<'a>(clusters: impl IntoIterator<Item = &'a Arc<Cluster>>) -> io::Result<()> {
    let mut threads: Vec<Vec<Name>> = Vec::new();
    for (n, name) in names(clusters).into_values().enumerate() {
        if n < MOST_THREADS {
            threads.push(Vec::new());
        }
        threads[n % MOST_THREADS].push(name);
    }
    for names in threads {
        let clusters: Vec<_> = names.iter().flat_map(Name::clusters).collect();
        let thread = thread::Builder::new().name("resolver".to_owned());
        let thread = thread.stack_size(STACK).spawn(move || keep_up(names))?;
        for cluster in clusters {
            let resolvers = cluster.resolvers.lock();
            let mut resolvers = resolvers.unwrap_or_else(PoisonError::into_inner);
            resolvers.push(thread.thread().clone());
        }
    }
    Ok(())
}

fn names<'a>(clusters: impl IntoIterator<Item = &'a Arc<Cluster>>) -> BTreeMap<&'a str, Name> {
    let mut names = BTreeMap::new();
    for cluster in clusters {
        let upstream = cluster.upstream();
        // Of several ports it is one name.
        let hosts: BTreeSet<_> = upstream.addresses().filter_map(|a| a.name()).collect();
        for host in hosts {
            let name = names.entry(host).or_insert_with(|| Name {
                host: host.into(),
                every: upstream.resolve_interval,
                clusters: Vec::new(),
                failing: None,
            });
            name.every = name.every.min(upstream.resolve_interval);
            name.clusters.push(Arc::downgrade(cluster));
        }
    }
    names
}

/// The work of a thread. It is never joined, since a look-up may hang.
fn keep_up(mut names: Vec<Name>) {
    loop {
        names.retain(|name| name.clusters().next().is_some());
        let Some(pause) = names.iter_mut().map(Name::refresh).min() else {
            return;
        };
        // A cluster that is retired or dropped wakes it up.
        thread::park_timeout(pause);
    }
}

impl Name {
    /// Looks it up; returns the pause until the next time.
    fn refresh(&mut self) -> Duration {
        self.clusters().for_each(|c| c.looking_up(&self.host));
        let found = self.look_up();
        self.report(&found);
        self.clusters()
            .for_each(|c| c.looked_up(&self.host, &found));
        if found.is_ok() { self.every } else { RETRY }
    }

    fn clusters(&self) -> impl Iterator<Item = Arc<Cluster>> {
        let clusters = self.clusters.iter().filter_map(Weak::upgrade);
        clusters.filter(|cluster| !cluster.is_retired())
    }

    fn look_up(&self) -> io::Result<Vec<IpAddr>> {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in (&*self.host, 0).to_socket_addrs()? {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        if addresses.is_empty() {
            return Err(io::Error::other("the name has no address"));
        }
        Ok(addresses)
    }

    /// One line when it begins to fail, then seldom, and one when it is over.
    fn report(&mut self, found: &io::Result<Vec<IpAddr>>) {
        let now = sys::now();
        let host = &*self.host;
        match found {
            Ok(_) if self.failing.take().is_some() => {
                tracing::info!(host, "the name is resolved again");
            }
            Ok(_) => {}
            Err(error) if self.failing.is_none_or(|last| now >= last + LINE_EVERY) => {
                let then = if !self.clusters().all(|c| c.is_unknown(host)) {
                    "its last addresses are used"
                } else if self.clusters().any(|c| c.endpoints().is_empty()) {
                    "its clients are turned away"
                } else {
                    "the other endpoints are used"
                };
                tracing::warn!(host, "cannot resolve a name: {error}; {then}");
                self.failing = Some(now);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::cluster::tests::{cluster, next};

    #[tokio::test]
    async fn a_literal_and_a_file_need_no_dns() {
        let clusters = ["localhost", "192.0.2.7"].map(cluster);
        start(&clusters).unwrap();
        let found = next(&clusters[0]).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(
            next(&clusters[1]).await.unwrap(),
            ["192.0.2.7:80".parse().unwrap()]
        );
    }

    #[tokio::test]
    async fn names_beyond_the_most_threads_share_them() {
        let clusters: Vec<_> = (0..200).map(|n| cluster(&format!("192.0.2.{n}"))).collect();
        start(&clusters).unwrap();
        for (n, cluster) in clusters.iter().enumerate() {
            let found = next(cluster).await.unwrap();
            assert_eq!(found[0].ip(), IpAddr::from([192, 0, 2, n as u8]));
        }
    }

    #[test]
    fn clusters_of_one_name_share_its_look_ups_at_the_shortest_interval() {
        let mut slow = cluster("db.example").upstream().clone();
        slow.resolve_interval *= 2;
        let clusters = [
            Arc::new(Cluster::new("db".into(), slow)),
            cluster("db.example"),
        ];
        let names = names(&clusters);
        let name = &names["db.example"];
        assert_eq!((names.len(), name.clusters.len()), (1, 2));
        assert_eq!(name.every, clusters[1].upstream().resolve_interval);
    }

    /// Long before the next look-up is due.
    #[test]
    fn a_thread_ends_when_its_clusters_are_retired_or_dropped() {
        for end in [Cluster::retire as fn(&Cluster), |_| {}] {
            let cluster = cluster("192.0.2.7");
            let name: Vec<_> = names([&cluster]).into_values().collect();
            let thread = thread::spawn(|| keep_up(name));
            cluster
                .resolvers
                .lock()
                .unwrap()
                .push(thread.thread().clone());
            end(&cluster);
            let still_used_by_a_session = cluster.is_retired().then(|| cluster.clone());
            drop(cluster);
            thread.join().unwrap();
            drop(still_used_by_a_session);
        }
    }
}
