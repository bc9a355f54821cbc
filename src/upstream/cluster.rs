//! The endpoints of one listener.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::dial::{self, Attempt};
use super::endpoint::{ActiveSession, Endpoint};
use super::pick::{self, Pick};
use crate::config::{Upstream, UpstreamAddress};
use crate::net::stream::TcpStream;
use crate::sys;

/// The endpoints of one listener: a literal address, or the addresses of a DNS name. They can be
/// replaced at any time. A session keeps the endpoint that it has dialled.
#[derive(Debug)]
pub struct Cluster {
    upstream: Upstream,
    known: watch::Sender<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last good answer of the resolver. Empty: there was none yet.
    endpoints: Arc<[Arc<Endpoint>]>,
    /// Why the last look-up failed, until the next begins.
    failure: Option<Arc<str>>,
}

/// How far a connect has come at once.
#[derive(Debug)]
pub enum Connect {
    /// It is over.
    Connected(TcpStream),
    /// [`Cluster::finish`] goes on with it; with the choice of an endpoint if none is dialled yet.
    Pending(Option<Attempt>),
}

impl Cluster {
    /// A cluster as it is configured. A DNS name has no endpoint until it is resolved.
    #[must_use]
    pub fn new(upstream: Upstream) -> Self {
        let literal = upstream.address.literal();
        let cluster = Self {
            upstream,
            known: watch::Sender::default(),
        };
        cluster.replace(literal);
        cluster
    }

    /// What is configured.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Replaces the endpoints. Those whose address stays are the same ones.
    pub fn replace(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.known.send_modify(|known| {
            let endpoint = |address| {
                let mut old = known.endpoints.iter();
                let same = old.find(|endpoint| endpoint.address() == address);
                same.map_or_else(|| Endpoint::new(address), Arc::clone)
            };
            let new: Arc<[_]> = addresses.into_iter().map(endpoint).collect();
            for old in known.endpoints.iter() {
                if !new.iter().any(|endpoint| Arc::ptr_eq(endpoint, old)) {
                    tracing::debug!(
                        upstream = %self.upstream.address,
                        address = %old.address(),
                        sessions = old.active(),
                        connects = old.connects(),
                        failures = old.failures(),
                        "an address of the upstream is no longer used for new sessions"
                    );
                }
            }
            known.endpoints = new;
        });
    }

    /// Begins to connect. If there is one endpoint only, it is dialled at once, and `early` finds
    /// out whether it is connected already. `assign` gets the endpoint that is dialled.
    ///
    /// # Errors
    /// Why it cannot be connected.
    pub fn connect(
        &self,
        assign: impl FnOnce(ActiveSession),
        early: impl FnOnce(&TcpStream) -> io::Result<bool>,
    ) -> io::Result<Connect> {
        let only = pick::only(&self.known.borrow().endpoints);
        let Some(endpoint) = only else {
            return Ok(Connect::Pending(None));
        };
        assign(ActiveSession::new(endpoint.clone()));
        let begun =
            Attempt::begin(endpoint).and_then(|attempt| Ok((attempt.try_early(early)?, attempt)));
        match begun {
            Ok((true, attempt)) => Ok(Connect::Connected(attempt.stream)),
            Ok((false, attempt)) => Ok(Connect::Pending(Some(attempt))),
            Err(error) if self.retry_after(&error).is_some() => Ok(Connect::Pending(None)),
            Err(error) => Err(error),
        }
    }

    /// The pause before another connect, where the service refused this one and may be restarting.
    fn retry_after(&self, error: &io::Error) -> Option<Duration> {
        let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
        self.upstream.connect_retry.filter(|_| is_refused)
    }

    /// Goes on with a connect for `connect_timeout`. `assign` gets each endpoint that is dialled,
    /// and in the end the one that counts.
    ///
    /// # Errors
    /// Why it cannot be connected, or that the time is over.
    pub async fn finish(
        &self,
        mut begun: Option<Attempt>,
        assign: impl Fn(ActiveSession),
    ) -> io::Result<TcpStream> {
        let until = sys::now() + self.upstream.connect_timeout.into();
        let left = || Duration::from(until - sys::now());
        loop {
            let connected = match begun.take() {
                Some(attempt) => attempt.connected(left()).await,
                None => self.dial(left, &assign).await,
            };
            let retry = connected.as_ref().err().and_then(|e| self.retry_after(e));
            match retry.filter(|pause| *pause < left()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return connected,
            }
        }
    }

    /// Dials the endpoints that are known, or will be.
    async fn dial(
        &self,
        left: impl Fn() -> Duration,
        assign: &impl Fn(ActiveSession),
    ) -> io::Result<TcpStream> {
        let Ok(endpoints) = tokio::time::timeout(left(), self.resolved()).await else {
            let host = self.upstream.address.name().unwrap_or_default();
            let late = format!("{host} is not resolved within connect_timeout");
            return Err(io::Error::other(late));
        };
        let left = left();
        dial::first_of(Pick::new(endpoints?, left), left, assign).await
    }

    /// The endpoints that new sessions may dial; none before a name is resolved.
    #[must_use]
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.known.borrow().endpoints.clone()
    }

    /// Waits for the first good answer of the resolver.
    ///
    /// # Errors
    /// Why the look-up that was going on has failed, or the one before if it was a moment ago.
    async fn resolved(&self) -> io::Result<Arc<[Arc<Endpoint>]>> {
        let mut known = self.known.subscribe();
        let known = known
            .wait_for(|known| !known.endpoints.is_empty() || known.failure.is_some())
            .await
            .map_err(io::Error::other)?;
        match &known.failure {
            Some(failure) if known.endpoints.is_empty() => Err(io::Error::other(&**failure)),
            _ => Ok(known.endpoints.clone()),
        }
    }

    /// A look-up begins: whoever comes from now on waits for its answer.
    pub(super) fn looking_up(&self) {
        self.known.send_if_modified(|known| {
            known.failure = None;
            false
        });
    }

    /// The answer of a look-up. If it failed, the last good one is kept.
    pub(super) fn looked_up(&self, found: &io::Result<Vec<IpAddr>>) {
        match (found, &self.upstream.address) {
            (Ok(found), UpstreamAddress::Name { port, .. }) => {
                self.replace(found.iter().map(|ip| (*ip, *port).into()));
            }
            (Err(error), _) => {
                let failure = Some(error.to_string().into());
                self.known.send_modify(|known| known.failure = failure);
            }
            (Ok(_), UpstreamAddress::Socket(_)) => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;
    use std::sync::Mutex;

    use super::*;

    /// Port 80 of a name.
    pub(in crate::upstream) fn cluster(host: &str) -> Arc<Cluster> {
        of(UpstreamAddress::Name {
            host: host.to_owned(),
            port: 80,
        })
    }

    fn of(address: UpstreamAddress) -> Arc<Cluster> {
        Arc::new(Cluster::new(Upstream {
            address,
            connect_timeout: Duration::from_secs(5),
            connect_retry: None,
            resolve_interval: Duration::from_secs(60),
        }))
    }

    /// The addresses that the next session may dial.
    pub(in crate::upstream) async fn next(cluster: &Cluster) -> io::Result<Vec<SocketAddr>> {
        let endpoints = cluster.resolved().await?;
        Ok(endpoints.iter().map(|e| e.address()).collect())
    }

    fn answer(last: u8) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([192, 0, 2, last])])
    }

    fn address(last: u8) -> Vec<SocketAddr> {
        vec![([192, 0, 2, last], 80).into()]
    }

    #[tokio::test]
    async fn all_who_wait_share_one_answer() {
        let cluster = cluster("db.example");
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let cluster = cluster.clone();
                tokio::spawn(async move { next(&cluster).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        cluster.looked_up(&answer(1));
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap(), address(1));
        }
    }

    #[tokio::test]
    async fn the_last_good_answer_is_kept_while_dns_is_out() {
        let cluster = cluster("db.example");
        let out = || Err(io::Error::other("out"));
        cluster.looked_up(&out());
        assert_eq!(next(&cluster).await.unwrap_err().to_string(), "out");
        cluster.looked_up(&answer(1));
        cluster.looked_up(&out());
        assert_eq!(next(&cluster).await.unwrap(), address(1));
        cluster.looked_up(&answer(2));
        assert_eq!(next(&cluster).await.unwrap(), address(2));
    }

    #[tokio::test]
    async fn an_endpoint_stays_the_same_while_its_address_stays() {
        let cluster = cluster("db.example");
        cluster.looked_up(&answer(1));
        let before = cluster.endpoints()[0].clone();
        let both = [answer(2).unwrap(), answer(1).unwrap()].concat();
        cluster.looked_up(&Ok(both));
        let after = cluster.endpoints();
        assert_eq!(after.len(), 2);
        assert!(Arc::ptr_eq(&before, &after[1]));
    }

    /// Connects without an early write; returns the stream and where it counts as active.
    async fn connect(cluster: &Cluster) -> (io::Result<TcpStream>, Option<ActiveSession>) {
        let active = Mutex::default();
        let assign = |endpoint| *active.lock().unwrap() = Some(endpoint);
        let stream = match cluster.connect(assign, |_| Ok(false)) {
            Ok(Connect::Connected(stream)) => Ok(stream),
            Ok(Connect::Pending(begun)) => cluster.finish(begun, assign).await,
            Err(error) => Err(error),
        };
        (stream, active.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_refused_connect_is_tried_again_until_the_service_is_back() {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut upstream = of(UpstreamAddress::Socket(address)).upstream().clone();
        upstream.connect_retry = Some(Duration::from_millis(10));
        let patient = Arc::new(Cluster::new(upstream.clone()));
        let waiting = tokio::spawn(async move { connect(&patient).await.0 });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        let back = TcpListener::bind(address).unwrap();
        assert!(waiting.await.unwrap().is_ok());

        drop(back);
        upstream.connect_timeout = Duration::from_millis(50);
        let (stream, _) = connect(&Cluster::new(upstream)).await;
        let error = stream.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn outcomes_are_counted_at_the_endpoint_that_had_them() {
        let (alive, dead) = {
            let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
            (bind(), bind().local_addr().unwrap())
        };
        let cluster = of(UpstreamAddress::Socket(dead));
        let (stream, active) = connect(&cluster).await;
        assert!(stream.is_err());
        let dead_endpoint = cluster.endpoints()[0].clone();
        assert_eq!(dead_endpoint.active(), 1);
        drop(active);
        assert_eq!(dead_endpoint.active(), 0);

        let alive = alive.local_addr().unwrap();
        cluster.replace([dead, alive]);
        let (stream, active) = connect(&cluster).await;
        let (stream, active) = (stream.unwrap(), active.unwrap());
        assert_eq!(sys::sockopt::peer_address(stream.raw_fd()), Some(alive));
        let counts = |e: &Endpoint| (e.active(), e.connects(), e.failures());
        assert_eq!((active.address(), counts(&active)), (alive, (1, 1, 0)));
        assert_eq!(counts(&dead_endpoint), (0, 0, 2));
    }
}
