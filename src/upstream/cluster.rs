//! The endpoints of one listener.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::watch;

use super::dial::{self, Attempt, Begun, Dialler, Failed, Round};
use super::ejection::{Ejector, Row};
use super::endpoint::{ActiveSession, Endpoint, Standing};
use super::pick::{Pick, Turn};
use crate::config::{Balance, Upstream, UpstreamAddress};
use crate::net::stream::TcpStream;
use crate::sys;
use crate::tls::Connector;

/// Between two connects to a Unix socket whose queue is full.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// The endpoints of one listener: literal addresses, and the addresses of DNS names. They change as
/// names are looked up. A session keeps the endpoint that it has dialled.
#[derive(Debug)]
pub struct Cluster {
    upstream: Upstream,
    tls: Option<Arc<Connector>>,
    dialler: Dialler,
    /// Sessions that had a choice.
    turns: AtomicUsize,
    known: watch::Sender<Known>,
    /// The threads that look up its names, which end with it.
    pub(super) resolvers: Mutex<Vec<Thread>>,
    retired: AtomicBool,
}

#[derive(Clone, Debug)]
struct Known {
    /// What is known of each address that is configured, in their order.
    answers: Vec<Answer>,
    /// All of theirs, each once.
    endpoints: Arc<[Arc<Endpoint>]>,
}

/// What an address that is configured stands for.
#[derive(Clone, Debug)]
struct Answer {
    /// The last good answer of the resolver; empty: there was none yet. Of a literal, itself.
    addresses: Vec<UpstreamAddress>,
    /// Why the last look-up failed, until the next begins.
    failure: Option<Arc<str>>,
}

/// How far a connect has come at once.
#[derive(Debug)]
pub enum Connect {
    /// It is over.
    Connected(TcpStream),
    /// [`Cluster::finish`] goes on with it.
    Pending(Dialling),
}

/// A connect that is not over.
#[derive(Debug)]
pub struct Dialling {
    turn: Turn,
    /// `None`: no endpoint is known yet.
    begun: Option<Begun>,
}

impl Cluster {
    /// A cluster as it is configured. A DNS name has no endpoint until it is resolved.
    #[must_use]
    pub fn new(listener: Arc<str>, upstream: Upstream) -> Self {
        Self::made(listener, upstream, &[], Arc::default())
    }

    /// The cluster in the place of this one, where another upstream is configured. What is known of the
    /// same names and addresses stays.
    #[must_use]
    pub fn followed_by(&self, upstream: Upstream) -> Self {
        let Known { answers, endpoints } = self.known.borrow().clone();
        let known: Vec<_> = self.upstream.addresses().cloned().zip(answers).collect();
        Self::made(
            self.dialler.ejector.listener.clone(),
            upstream,
            &known,
            endpoints,
        )
    }

    fn made(
        listener: Arc<str>,
        upstream: Upstream,
        known: &[(UpstreamAddress, Answer)],
        endpoints: Arc<[Arc<Endpoint>]>,
    ) -> Self {
        let answer = |address: &UpstreamAddress| {
            let known = known.iter().find(|(known, _)| known == address);
            let of_literal = || Answer {
                addresses: address
                    .name()
                    .map_or_else(|| vec![address.clone()], |_| Vec::new()),
                failure: None,
            };
            known.map_or_else(of_literal, |(_, answer)| answer.clone())
        };
        let answers = upstream.addresses().map(answer).collect();
        let cluster = Self {
            dialler: Dialler::new(
                Ejector::new(listener, upstream.ejection.clone()),
                &upstream.source_address,
            ),
            upstream,
            tls: None,
            turns: AtomicUsize::new(0),
            known: watch::Sender::new(Known { answers, endpoints }),
            resolvers: Mutex::default(),
            retired: AtomicBool::new(false),
        };
        cluster.known.send_modify(|known| cluster.unite(known));
        cluster
    }

    /// With TLS as the upstream of it has it.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<Arc<Connector>>) -> Self {
        self.tls = tls;
        self
    }

    /// How TLS with its endpoints is spoken, if it is.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<Connector>> {
        self.tls.as_ref()
    }

    /// What is configured.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// No new session will come: its names are looked up no longer.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        let resolvers = self.resolvers.lock();
        let resolvers = resolvers.unwrap_or_else(PoisonError::into_inner);
        resolvers.iter().for_each(Thread::unpark);
    }

    /// Whether no new session will come.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Makes the endpoints of the answers. Those whose address stays are the same ones.
    fn unite(&self, known: &mut Known) {
        let old = known.endpoints.iter().map(|e| (e.address().clone(), e));
        let mut old: BTreeMap<_, _> = old.collect();
        let (mut new, mut seen) = (Vec::new(), BTreeSet::new());
        for (configured, answer) in self.upstream.addresses().zip(&known.answers) {
            let name = configured.name().map(|_| configured.to_string().into());
            for address in &answer.addresses {
                if seen.insert(address) {
                    let same = old.remove(address).map(Arc::clone);
                    new.push(same.unwrap_or_else(|| Endpoint::new(address.clone(), name.clone())));
                }
            }
        }
        for gone in old.into_values() {
            tracing::debug!(
                upstream = %self.upstream,
                address = %gone.address(),
                sessions = gone.active(),
                connects = gone.connects(),
                failures = gone.failures(),
                "an address of the upstream is no longer used for new sessions"
            );
        }
        self.dialler
            .ejector
            .endpoints
            .store(new.len(), Ordering::Relaxed);
        known.endpoints = new.into();
    }

    /// A session ended in which the service had answered, by no fault of it.
    pub fn served(&self, endpoint: &Endpoint) {
        self.dialler.ejector.went_well(endpoint, Row::Sessions);
    }

    /// A session ended because of the endpoint.
    pub fn failed(&self, endpoint: &Endpoint, why: &dyn Display) {
        self.dialler.ejector.failed(endpoint, Row::Sessions, why);
    }

    /// Begins to connect a client: the endpoint whose turn it is is dialled at once, and `early` finds out
    /// whether it is connected already. `assign` gets the endpoint that is dialled.
    ///
    /// # Errors
    /// Why it cannot be connected, where there is no other endpoint.
    pub fn connect(
        &self,
        client: IpAddr,
        assign: impl FnOnce(ActiveSession),
        early: impl FnOnce(&TcpStream) -> io::Result<bool>,
    ) -> io::Result<Connect> {
        let (turn, first, has_others) = {
            let endpoints = &self.known.borrow().endpoints;
            let turn = self.turn(client, endpoints.len());
            let first = turn.first(endpoints).cloned();
            (turn, first, endpoints.len() > 1)
        };
        let pending = |begun| Ok(Connect::Pending(Dialling { turn, begun }));
        let Some(endpoint) = first else {
            return pending(None);
        };
        assign(ActiveSession::new(endpoint.clone()));
        let round = self.first_round();
        let begun = Attempt::begin(endpoint.clone(), round)
            .and_then(|attempt| Ok((attempt.try_early(round, early)?, attempt)));
        match begun {
            Ok((true, attempt)) => Ok(Connect::Connected(attempt.stream)),
            Ok((false, attempt)) => pending(Some(Begun::Attempt(attempt))),
            Err(error) if has_others || self.retry_after(&error).is_some() => {
                pending(Some(Begun::Failed(endpoint, error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an endpoint is at this address, which is of IPv4 where it can be.
    #[must_use]
    pub fn is_at(&self, address: SocketAddr) -> bool {
        let is_there = |endpoint: &Arc<Endpoint>| match endpoint.address() {
            UpstreamAddress::Socket(other) => {
                (other.ip().to_canonical(), other.port()) == (address.ip(), address.port())
            }
            _ => false,
        };
        self.known.borrow().endpoints.iter().any(is_there)
    }

    fn first_round(&self) -> Round<'_> {
        Round {
            dialler: &self.dialler,
            is_repeated: false,
        }
    }

    fn turn(&self, source: IpAddr, endpoints: usize) -> Turn {
        let balance = self.upstream.balance;
        let takes_turns = matches!(balance, Balance::RoundRobin | Balance::LeastConnections);
        let number = match takes_turns && endpoints > 1 {
            true => self.turns.fetch_add(1, Ordering::Relaxed),
            false => 0,
        };
        Turn {
            balance,
            number,
            source,
        }
    }

    /// The pause before another connect, where the service refused this one and may be restarting.
    fn retry_after(&self, error: &io::Error) -> Option<Duration> {
        match error.kind() {
            // The queue of a Unix socket is full: the kernel does not wait for it as TCP does.
            io::ErrorKind::WouldBlock => Some(QUEUE_FULL),
            // There is no Unix socket yet.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                self.upstream.connect_retry
            }
            _ => None,
        }
    }

    /// Goes on with a connect for `connect_timeout`. `assign` gets each endpoint that is dialled,
    /// and in the end the one that counts.
    ///
    /// # Errors
    /// Why it cannot be connected, or that the time is over.
    pub async fn finish(
        &self,
        dialling: Dialling,
        assign: impl Fn(ActiveSession),
    ) -> io::Result<TcpStream> {
        let until = sys::now() + self.upstream.connect_timeout.into();
        let left = || Duration::from(until - sys::now());
        let Dialling { turn, mut begun } = dialling;
        let mut round = self.first_round();
        loop {
            let dialled = self.dial(turn, begun.take(), left, round, &assign).await;
            let (error, endpoint) = match dialled {
                Ok(stream) => return Ok(stream),
                Err(failed) => failed,
            };
            match self.retry_after(&error).filter(|pause| *pause < left()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(self.given_up(error, endpoint)),
            }
            round.is_repeated = true;
        }
    }

    /// The queue of a Unix socket was full all the time: that was not counted yet.
    fn given_up(&self, error: io::Error, endpoint: Option<Arc<Endpoint>>) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock
            && let Some(endpoint) = endpoint
        {
            endpoint.count_failure(&self.dialler.ejector, &error);
        }
        error
    }

    /// Dials the endpoints that are known, or will be, one of which may have been dialled.
    async fn dial(
        &self,
        turn: Turn,
        begun: Option<Begun>,
        left: impl Fn() -> Duration,
        round: Round<'_>,
        assign: &impl Fn(ActiveSession),
    ) -> Result<TcpStream, Failed> {
        let Ok(endpoints) = tokio::time::timeout(left(), self.resolved()).await else {
            let late = format!("{} is not resolved within connect_timeout", self.upstream);
            return Err((io::Error::other(late), None));
        };
        let left = left();
        let mut order = turn.order(&endpoints.map_err(|error| (error, None))?);
        if let Some(begun) = &begun {
            order.retain(|endpoint| !Arc::ptr_eq(endpoint, begun.endpoint()));
        }
        let pick = Pick::new(order, left);
        dial::first_of(pick, begun, left, round, assign).await
    }

    /// The endpoints that new sessions may dial; none before a name is resolved.
    #[must_use]
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        self.known.borrow().endpoints.clone()
    }

    /// Whether there is an endpoint that checks have not found down.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let endpoints = &self.known.borrow().endpoints;
        endpoints
            .iter()
            .any(|endpoint| endpoint.standing() != Standing::Down)
    }

    /// What a session that dialled this endpoint, or none yet, is said to be connected to: an address, and
    /// the name that it comes from.
    #[must_use]
    pub fn described<'a>(
        &'a self,
        dialled: Option<&'a Endpoint>,
    ) -> (Option<&'a UpstreamAddress>, Option<Arc<str>>) {
        let mut configured = self.upstream.addresses();
        match (dialled, configured.next(), configured.next()) {
            (Some(endpoint), ..) => (Some(endpoint.address()), endpoint.name().cloned()),
            (None, Some(only), None) if only.name().is_none() => (Some(only), None),
            _ => (None, Some(self.upstream.to_string().into())),
        }
    }

    /// Waits for the first good answer of the resolver.
    ///
    /// # Errors
    /// Why the look-up that was going on has failed, or the one before if it was a moment ago.
    async fn resolved(&self) -> io::Result<Arc<[Arc<Endpoint>]>> {
        let mut known = self.known.subscribe();
        let have_failed = |known: &Known| known.answers.iter().all(|a| a.failure.is_some());
        let known = known
            .wait_for(|known| !known.endpoints.is_empty() || have_failed(known))
            .await
            .map_err(io::Error::other)?;
        let failure = known.answers.iter().find_map(|a| a.failure.clone());
        match failure.filter(|_| known.endpoints.is_empty()) {
            Some(failure) => Err(io::Error::other(&*failure)),
            None => Ok(known.endpoints.clone()),
        }
    }

    /// Whether there was never an answer for this name.
    pub(super) fn is_unknown(&self, host: &str) -> bool {
        let known = self.known.borrow();
        self.named(host)
            .all(|n| known.answers[n].addresses.is_empty())
    }

    /// The places of a name among the addresses that are configured.
    fn named<'a>(&'a self, host: &'a str) -> impl Iterator<Item = usize> + 'a {
        let addresses = self.upstream.addresses().enumerate();
        let named = addresses.filter(move |(_, address)| address.name() == Some(host));
        named.map(|(n, _)| n)
    }

    /// A look-up begins: whoever comes from now on waits for its answer.
    pub(super) fn looking_up(&self, host: &str) {
        self.known.send_if_modified(|known| {
            self.named(host)
                .for_each(|n| known.answers[n].failure = None);
            false
        });
    }

    /// Has the first address that is configured stand for others.
    #[cfg(test)]
    pub fn replace(&self, addresses: &[SocketAddr]) {
        self.known.send_modify(|known| {
            let addresses = addresses.iter().copied().map(UpstreamAddress::Socket);
            known.answers[0].addresses = addresses.collect();
            self.unite(known);
        });
    }

    /// The answer of a look-up. If it failed, the last good one is kept.
    pub(super) fn looked_up(&self, host: &str, found: &io::Result<Vec<IpAddr>>) {
        self.known.send_modify(|known| {
            for (n, address) in self.upstream.addresses().enumerate() {
                match (found, address) {
                    (Ok(found), UpstreamAddress::Name { host: its, port }) if its == host => {
                        let found = found.iter().map(|ip| (*ip, *port).into());
                        let found = found.map(UpstreamAddress::Socket);
                        known.answers[n].addresses = found.collect();
                    }
                    (Err(error), UpstreamAddress::Name { host: its, .. }) if its == host => {
                        known.answers[n].failure = Some(error.to_string().into());
                    }
                    _ => {}
                }
            }
            self.unite(known);
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.retire();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::config::UpstreamEndpoint;

    fn named(host: &str, port: u16) -> UpstreamAddress {
        let host = host.to_owned();
        UpstreamAddress::Name { host, port }
    }

    /// Port 80 of a name.
    pub(in crate::upstream) fn cluster(host: &str) -> Arc<Cluster> {
        of(&[named(host, 80)])
    }

    /// In the order of the list.
    fn of(addresses: &[UpstreamAddress]) -> Arc<Cluster> {
        let mut upstream = Upstream::of(addresses[0].clone());
        upstream.resolve_interval = Duration::from_secs(60);
        upstream.balance = Balance::FirstAvailable;
        if addresses.len() > 1 {
            let endpoint = |address: &UpstreamAddress| UpstreamEndpoint {
                address: address.clone(),
            };
            upstream.address = None;
            upstream.endpoints = addresses.iter().map(endpoint).collect();
        }
        Arc::new(Cluster::new("db".into(), upstream))
    }

    /// The addresses that the next session may dial.
    pub(in crate::upstream) async fn next(cluster: &Cluster) -> io::Result<Vec<SocketAddr>> {
        let endpoints = cluster.resolved().await?;
        Ok(endpoints
            .iter()
            .filter_map(|e| e.address().literal())
            .collect())
    }

    fn answer<const N: usize>(last: [u8; N]) -> io::Result<Vec<IpAddr>> {
        Ok(last.map(|last| [192, 0, 2, last].into()).to_vec())
    }

    fn addresses<const N: usize>(last: [u8; N]) -> Vec<SocketAddr> {
        last.map(|last| ([192, 0, 2, last], 80).into()).to_vec()
    }

    fn out() -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("out"))
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
        cluster.looked_up("db.example", &answer([1]));
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap(), addresses([1]));
        }
    }

    #[tokio::test]
    async fn the_last_good_answer_is_kept_while_dns_is_out() {
        let cluster = cluster("db.example");
        let looked_up = |found| cluster.looked_up("db.example", &found);
        looked_up(out());
        assert_eq!(next(&cluster).await.unwrap_err().to_string(), "out");
        looked_up(answer([1]));
        looked_up(out());
        assert_eq!(next(&cluster).await.unwrap(), addresses([1]));
        looked_up(answer([2]));
        assert_eq!(next(&cluster).await.unwrap(), addresses([2]));
    }

    #[tokio::test]
    async fn an_endpoint_stays_the_same_while_its_address_stays() {
        let cluster = cluster("db.example");
        cluster.looked_up("db.example", &answer([1]));
        let before = cluster.endpoints()[0].clone();
        cluster.looked_up("db.example", &answer([2, 1]));
        let after = cluster.endpoints();
        assert_eq!(after.len(), 2);
        assert!(Arc::ptr_eq(&before, &after[1]));
    }

    /// With another upstream in its place, and with answers that come and go.
    #[test]
    fn what_is_known_of_an_address_stays_as_long_as_it_does() {
        let (a, b) = (named("a.example", 80), named("b.example", 80));
        let before = of(&[a.clone(), b]);
        before.looked_up("a.example", &answer([1, 2]));
        before.looked_up("b.example", &answer([3]));
        let known = before.endpoints();
        let literal = UpstreamAddress::Socket(([192, 0, 2, 3], 80).into());
        let after = before.followed_by(of(&[a, literal]).upstream().clone());
        let kept = after.endpoints();
        assert!(kept.iter().zip(&*known).all(|(a, b)| Arc::ptr_eq(a, b)));
        assert_eq!(kept.len(), 3, "a name is not unknown for that");

        let many: Vec<IpAddr> = (0..200).map(|n| [198, 51, 100, n].into()).collect();
        after.looked_up("a.example", &Ok(many));
        assert_eq!(after.endpoints().len(), 201);
        assert!(Arc::ptr_eq(&after.endpoints()[200], &known[2]));
        after.looked_up("a.example", &answer([1]));
        assert_eq!(after.endpoints().len(), 2);
    }

    #[tokio::test]
    async fn endpoints_are_those_of_all_names_each_once() {
        let literal = UpstreamAddress::Socket(([192, 0, 2, 9], 80).into());
        let (a, b) = (named("a.example", 80), named("b.example", 80));
        let cluster = of(&[a, literal, b, named("b.example", 81)]);
        assert_eq!(next(&cluster).await.unwrap(), addresses([9]), "at once");
        cluster.looked_up("a.example", &answer([1, 2]));
        cluster.looked_up("b.example", &answer([2, 3]));
        let all = next(&cluster).await.unwrap();
        assert_eq!(all[..4], addresses([1, 2, 9, 3]));
        assert_eq!(
            all[4..].iter().map(SocketAddr::port).collect::<Vec<_>>(),
            [81, 81]
        );
        let shared = cluster.endpoints()[1].clone();
        assert_eq!(shared.name().map(|name| &**name), Some("a.example:80"));
        cluster.looked_up("a.example", &answer([1]));
        assert!(cluster.endpoints().iter().any(|e| Arc::ptr_eq(e, &shared)));
        cluster.looked_up("b.example", &out());
        assert_eq!(
            next(&cluster).await.unwrap().len(),
            6,
            "the last good answer"
        );
    }

    #[tokio::test]
    async fn a_client_waits_until_a_name_is_known_or_all_have_failed() {
        let cluster = of(&[named("a.example", 80), named("b.example", 80)]);
        cluster.looked_up("a.example", &out());
        let waiting = {
            let cluster = cluster.clone();
            tokio::spawn(async move { next(&cluster).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        cluster.looked_up("b.example", &answer([4]));
        assert_eq!(waiting.await.unwrap().unwrap(), addresses([4]));
        assert!(cluster.is_unknown("a.example") && !cluster.is_unknown("b.example"));
    }

    /// Connects without an early write; returns the stream and where it counts as active.
    async fn connect(cluster: &Cluster) -> (io::Result<TcpStream>, Option<ActiveSession>) {
        let active = Mutex::default();
        let assign = |endpoint| *active.lock().unwrap() = Some(endpoint);
        let client = [192, 0, 2, 77].into();
        let stream = match cluster.connect(client, assign, |_| Ok(false)) {
            Ok(Connect::Connected(stream)) => Ok(stream),
            Ok(Connect::Pending(dialling)) => cluster.finish(dialling, assign).await,
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
        let mut upstream = Upstream::of(UpstreamAddress::Socket(address));
        upstream.connect_retry = Some(Duration::from_millis(10));
        let patient = Arc::new(Cluster::new("db".into(), upstream.clone()));
        let waiting = tokio::spawn(async move { connect(&patient).await.0 });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        let back = TcpListener::bind(address).unwrap();
        assert!(waiting.await.unwrap().is_ok());

        drop(back);
        upstream.connect_timeout = Duration::from_millis(50);
        let (stream, _) = connect(&Cluster::new("db".into(), upstream)).await;
        let error = stream.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// However often it tries: others would lose an endpoint that restarts.
    #[tokio::test]
    async fn a_client_is_one_failure_at_each_endpoint() {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = [bind(), bind()].map(|listener| listener.local_addr().unwrap());
        let mut upstream = of(&dead.map(UpstreamAddress::Socket)).upstream().clone();
        upstream.connect_retry = Some(Duration::from_millis(10));
        upstream.connect_timeout = Duration::from_millis(100);
        let cluster = Cluster::new("db".into(), upstream);
        for clients in 1..=2 {
            assert!(connect(&cluster).await.0.is_err());
            for endpoint in &*cluster.endpoints() {
                assert_eq!(endpoint.failures(), clients);
                assert_eq!(endpoint.consecutive_failures(), clients as u32);
            }
        }
    }

    #[tokio::test]
    async fn outcomes_are_counted_at_the_endpoint_that_had_them() {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = bind();
        let alive = listening.local_addr().unwrap();
        let dead = bind().local_addr().unwrap();
        let both = [dead, alive].map(UpstreamAddress::Socket);
        let counts = |e: &Endpoint| (e.active(), e.connects(), e.failures());

        let alone = of(&both[..1]);
        let (stream, active) = connect(&alone).await;
        assert!(stream.is_err());
        let endpoint = alone.endpoints()[0].clone();
        assert_eq!(counts(&endpoint), (1, 0, 1));
        drop(active);
        assert_eq!(endpoint.active(), 0);

        let cluster = of(&both);
        let (stream, active) = connect(&cluster).await;
        let (stream, active) = (stream.unwrap(), active.unwrap());
        assert_eq!(sys::sockopt::peer_address(stream.raw_fd()), Some(alive));
        assert_eq!(active.address().literal(), Some(alive));
        assert_eq!(counts(&active), (1, 1, 0));
        assert_eq!(counts(&cluster.endpoints()[0]), (0, 0, 1));
    }

    #[tokio::test]
    async fn an_endpoint_that_all_refuse_is_the_last_that_did() {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = [bind(), bind()].map(|listener| listener.local_addr().unwrap());
        let cluster = of(&dead.map(UpstreamAddress::Socket));
        let (stream, active) = connect(&cluster).await;
        assert_eq!(stream.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(active.unwrap().address().literal(), Some(dead[1]));
    }

    #[tokio::test]
    async fn a_unix_socket_whose_queue_is_full_is_waited_for() {
        let path = std::env::temp_dir().join(format!("pulsegate-queue-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let cluster = of(&[UpstreamAddress::Unix(path.clone())]);
        let (first, active) = connect(&cluster).await;
        assert!(first.is_ok() && active.unwrap().is_unix());
        let waiting = {
            let cluster = cluster.clone();
            tokio::spawn(async move { connect(&cluster).await.0 })
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        let _accepted = listener.accept().unwrap();
        assert!(waiting.await.unwrap().is_ok());
        let endpoint = cluster.endpoints()[0].clone();
        assert_eq!(endpoint.failures(), 0, "it had to wait");

        // Nobody takes the second one out of the queue.
        let mut upstream = cluster.upstream().clone();
        upstream.connect_timeout = Duration::from_millis(50);
        let late = connect(&cluster.followed_by(upstream)).await.0;
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(endpoint.failures(), 1, "it gave up");
        std::fs::remove_file(path).unwrap();
        let gone = connect(&cluster).await.0.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
