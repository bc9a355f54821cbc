//! What happens to a client when there is no place for it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::limiter::Turn;
use super::workers::Pool;
use super::{Limiter, Listener, Permit};
use crate::config::{Network, OnFull};
use crate::liveness::{Candidate, Close, CloseHow, CloseReason, Method, Span};
use crate::metrics::{RejectReason, Shortage, Takeover};
use crate::net::leg::Layer;
use crate::session::{Boxed, Client, Preamble, ProxyHeader, Session, SessionParams};
use crate::sys;

/// Holders that are asked at once, the longest quiet first.
const ASKED_AT_ONCE: usize = 64;
/// About so many sessions the kernel is asked in one round of making room.
const OBSERVED: usize = 512;
/// While a client waits, the holders are asked again this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a client waits for descriptors and memory.
const RESOURCES_WAIT: Duration = Duration::from_secs(3);

/// What a session holds while it lives: a place at its listener, and two descriptors' worth of
/// the process.
pub(super) type Places = [Permit; 2];

/// What a client needs of the process.
#[derive(Debug)]
pub(super) enum Resources {
    /// Descriptors for both legs, and memory is not short.
    Granted(Permit),
    /// One descriptor, of the reserve; the client has to wait for what is missing.
    Awaited(Permit),
}

/// The sessions of a listener, or those of one source there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holders<'a> {
    params: &'a Arc<SessionParams>,
    source: Option<&'a Network>,
}

impl Holders<'_> {
    fn have(&self, session: &Session) -> bool {
        let is_of = |source: &Network| source.contains(session.client().ip());
        // Listeners that replaced one another share their places.
        session.params.name == self.params.name && self.source.is_none_or(is_of)
    }
}

/// What a client does once it has its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is served.
    IsServed,
    /// It waits for a place: it is the last waiter, so nobody is ended for it but the dead.
    Waits,
}

/// Waits for what a client lacks, and lets it in unless it has gone meanwhile.
pub(super) async fn wait(
    pool: Arc<Pool>,
    listener: Arc<Listener>,
    client: Arc<Session>,
    place: Option<Permit>,
    resources: Resources,
) -> Result<Places, CloseReason> {
    let process = match resources {
        Resources::Granted(process) => process,
        Resources::Awaited(_waiting_room) => {
            let then = match listener.config.limits.on_full {
                OnFull::Queue | OnFull::Verify if place.is_none() => Then::Waits,
                _ => Then::IsServed,
            };
            let granted = timeout(RESOURCES_WAIT, wait_for_resources(&pool, then)).await;
            granted.map_err(|_elapsed| CloseReason::Rejected)?
        }
    };
    let place = match place {
        Some(place) => {
            client.until_client_answers().await;
            place
        }
        None => {
            let limiter = listener.limiter_for(client.client().ip());
            wait_for_place(&pool, &listener, &limiter, &client).await?
        }
    };
    Ok([place, process])
}

/// The same for one that has just said what it had to say.
pub(super) async fn admit(
    pool: Arc<Pool>,
    listener: Arc<Listener>,
    client: Arc<Session>,
    resources: Resources,
) -> Result<Places, CloseReason> {
    let ip = client.client().ip();
    match listener.place(ip) {
        Ok(place) => wait(pool, listener, client, place, resources).await,
        Err(reason) => Err(refuse(&listener, &client, reason)),
    }
}

/// Refuses a client by what it has said. Returns the reason that it is closed for.
fn refuse(listener: &Arc<Listener>, client: &Session, reason: RejectReason) -> CloseReason {
    client.refuse(reason);
    listener.report_refused(client.client().ip(), reason);
    CloseReason::Rejected
}

/// What clients of a listener have to say before they are admitted, in this order.
pub(super) fn preambles(listener: &Arc<Listener>) -> Vec<Arc<dyn Preamble>> {
    let header = listener.header.clone().map(|header| {
        let listener = listener.clone();
        Arc::new(Named { header, listener }) as Arc<dyn Preamble>
    });
    let tls = listener.params.tls.clone().map(|tls| tls as _);
    header.into_iter().chain(tls).collect()
}

/// A PROXY header. Whoever may not connect by what it says is given no handshake, either.
#[derive(Debug)]
struct Named {
    header: Arc<ProxyHeader>,
    listener: Arc<Listener>,
}

impl Preamble for Named {
    fn limit(&self) -> Duration {
        self.header.limit()
    }

    fn late(&self, session: &Session) -> CloseReason {
        self.header.late(session)
    }

    fn read<'a>(
        &'a self,
        session: &'a Session,
        client: &'a mut Client,
    ) -> Boxed<'a, Result<Option<Box<dyn Layer>>, Close>> {
        Box::pin(async move {
            self.header.read(session, client).await?;
            match self.listener.admits(session.client().ip()) {
                Ok(()) => Ok(None),
                Err(reason) => Err(Close {
                    how: CloseHow::Abort,
                    ..over(refuse(&self.listener, session, reason))
                }),
            }
        })
    }
}

/// Makes room for descriptors; memory has a watch of its own.
async fn wait_for_resources(pool: &Pool, then: Then) -> Permit {
    // An error is the end of the watch: nobody waits for it.
    drop(pool.out_of_memory.subscribe().wait_for(|full| !*full).await);
    if let Some(permit) = pool.descriptors.try_acquire() {
        return permit;
    }
    let make_room = async {
        loop {
            let made_room = {
                let _one_at_a_time = pool.shedding.lock().await;
                match then {
                    Then::IsServed => shed(pool, None, Shortage::Descriptors, 1).await,
                    Then::Waits => {
                        let why = Shortage::Descriptors;
                        shed_the_dead(pool, None, Method::CHECK, why).await
                    }
                }
            };
            if made_room > 0 {
                // One client makes room once.
                return std::future::pending::<()>().await;
            }
            sleep(ASK_AGAIN).await;
        }
    };
    tokio::select! {
        biased;
        turn = pool.descriptors.turn() => turn.with(None),
        // It never ends by itself.
        () = make_room => std::future::pending().await,
    }
}

async fn wait_for_place(
    pool: &Pool,
    listener: &Listener,
    limiter: &Arc<Limiter>,
    client: &Session,
) -> Result<Permit, CloseReason> {
    let _counted = listener.limiter.count_queued();
    let timeout = async {
        match listener.config.limits.queue_timeout {
            Some(timeout) => sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let mut waiter = pool.wait_queue.join();
    let mut outcome = Outcome {
        listener,
        served: false,
    };
    let place = tokio::select! {
        biased;
        place = take_place(pool, listener, limiter, client) => place,
        () = timeout => Err(CloseReason::QueueTimeout),
        why = waiter.turned_away() => {
            listener.params.metrics.shed(why);
            Err(CloseReason::Rejected)
        }
    };
    outcome.served = place.is_ok();
    place
}

/// Queues for a place: for one of its source first, where that is limited, so that nobody is ended for a
/// client that cannot be served anyway.
async fn take_place(
    pool: &Pool,
    listener: &Listener,
    limiter: &Arc<Limiter>,
    client: &Session,
) -> Result<Permit, CloseReason> {
    let turn = |limiter| async move {
        tokio::select! {
            biased;
            turn = take_turn(limiter, client) => Ok(turn),
            reason = make_room(pool, listener, limiter) => Err(reason),
        }
    };
    let own = turn(limiter).await?;
    let of_all = match limiter.of_all() {
        Some(all) => Some(turn(all).await?),
        None => None,
    };
    Ok(own.with(of_all))
}

/// Queues for a turn. A client that does not answer when its turn comes leaves it to the next
/// waiter, and queues again once it is heard: until then nobody knows whether it has gone.
async fn take_turn<'a>(limiter: &'a Arc<Limiter>, client: &Session) -> Turn<'a> {
    loop {
        let turn = limiter.turn().await;
        if client.client_answers().await {
            return turn;
        }
        drop(turn);
        client.until_client_is_heard().await;
    }
}

/// What came of a client; counted on drop, since it may leave at any moment.
struct Outcome<'a> {
    listener: &'a Listener,
    served: bool,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let how = if self.served {
            self.listener.freed_by()
        } else {
            Takeover::NotServed
        };
        self.listener.params.metrics.takeover(how);
    }
}

/// Makes room by the listener's policy until the client has its turn; returns only when that
/// is hopeless.
async fn make_room(pool: &Pool, listener: &Listener, limiter: &Limiter) -> CloseReason {
    // One client makes room at a time: the one that has waited longest.
    let _turn = limiter.making_room.lock().await;
    let here = Holders {
        params: &listener.params,
        source: limiter.source(),
    };
    loop {
        match listener.config.limits.on_full {
            OnFull::Reject | OnFull::Queue => return std::future::pending().await,
            OnFull::Verify => {
                end_the_dead(pool, Some(here), Method::TAKEOVER).await;
            }
            OnFull::Replace => {
                let quiet = |holder: &Candidate| Some(Reverse(holder.idle));
                let holders = first(pool, Some(here), 1, quiet);
                if let Some((_, holder)) = holders.first() {
                    holder.order(over(CloseReason::Replaced));
                    // One client replaces one holder.
                    return std::future::pending().await;
                }
            }
            OnFull::Shed => {
                let why = Shortage::Places;
                // Where all are active, one may have vanished just after its last word.
                if shed(pool, Some(here), why, 1).await > 0
                    || shed_the_dead(pool, Some(here), Method::TAKEOVER, why).await > 0
                {
                    return std::future::pending().await;
                }
                // A holder that ends for a reason of its own, such as an RST for an answer, makes room
                // as well.
                if open_holders(pool, here) >= limiter.in_use() {
                    return CloseReason::Rejected;
                }
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Ends the proven dead; where these are fewer than `most`, the last waiter as well, and then the
/// first sessions in the shedding order. Returns how many: 0 if every session is active. Under
/// pressure of the process (of no limiter) only listeners that shed by policy lose sessions that
/// are merely quiet.
pub(super) async fn shed(
    pool: &Pool,
    here: Option<Holders<'_>>,
    why: Shortage,
    most: usize,
) -> usize {
    let mut ended = shed_the_dead(pool, here, Method::CHECK, why).await;
    if here.is_none() {
        while ended < most && pool.wait_queue.turn_away_last(why) {
            ended += 1;
        }
    }
    if ended >= most {
        return ended;
    }
    let wanted = most - ended;
    // A session that began before its listener shed by policy goes by the policy of today.
    let by_policy = here.is_some();
    let may_go = |session: &Candidate| {
        let rank = session.rank();
        rank.filter(|r| by_policy || session.sheds || !r.is_quiet())
    };
    let ranked = first(pool, here, wanted, may_go);
    for (_, session) in &ranked {
        session.order(over(CloseReason::Shed));
        session.params.metrics.shed(why);
    }
    ended + ranked.len()
}

async fn shed_the_dead(
    pool: &Pool,
    here: Option<Holders<'_>>,
    method: Method,
    why: Shortage,
) -> usize {
    let dead = end_the_dead(pool, here, method).await;
    for session in &dead {
        session.params.metrics.shed(why);
    }
    dead.len()
}

/// Asks the suspects and the longest quiet, and ends those that are proven gone; returns them.
async fn end_the_dead(pool: &Pool, here: Option<Holders<'_>>, method: Method) -> Vec<Arc<Session>> {
    let order = |holder: &Candidate| Some((!holder.suspect, Reverse(holder.idle)));
    let mut asking = JoinSet::new();
    for (_, session) in first(pool, here, ASKED_AT_ONCE, order) {
        asking.spawn(async move {
            let answers = session.verify(method).await;
            let ended = session.end_if_silent(&answers, Some(CloseHow::Abort));
            ended.then_some(session)
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

/// How many hold a place and are not ending.
fn open_holders(pool: &Pool, here: Holders<'_>) -> usize {
    let now = sys::now();
    let mut open = 0;
    pool.balancer.for_each(|session| {
        let holds = here.have(session) && session.known_candidate(now).is_some();
        open += usize::from(holds);
    });
    open
}

/// The first ones of the sessions that hold a place, of one limiter or of all, in an order. It is made
/// of what the kernel says now where they are few. Of many thousands it is asked about some in each
/// round, those that were observed longest ago, and about the first ones.
fn first<K: Ord>(
    pool: &Pool,
    here: Option<Holders<'_>>,
    most: usize,
    order: impl Fn(&Candidate) -> Option<K>,
) -> Vec<(K, Arc<Session>)> {
    let now = sys::now();
    let mut holders = Vec::new();
    pool.balancer.for_each(|session| {
        if here.is_none_or(|here| here.have(session)) && session.known_candidate(now).is_some() {
            holders.push((session.last_observed(), session.clone()));
        }
    });
    holders.sort_by_key(|(observed, _)| *observed);
    let longest_ago = holders.iter().take(OBSERVED);
    longest_ago.for_each(|(_, session)| session.refresh(now));
    let holders = holders.into_iter().map(|(_, session)| session);
    let known = holders.filter_map(|s| Some((order(&s.known_candidate(now)?)?, s)));
    let mut known: Vec<_> = known.collect();
    known.sort_by(|(a, _), (b, _)| a.cmp(b));
    let first = known.into_iter().take(most).map(|(_, session)| session);
    let first = first.filter_map(|s| Some((order(&s.candidate(now)?)?, s)));
    let mut first: Vec<_> = first.collect();
    first.sort_by(|(a, _), (b, _)| a.cmp(b));
    first
}

fn over(reason: CloseReason) -> Close {
    Close {
        reason,
        how: CloseHow::Flush,
        evidence: None,
        silent_for: Span::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::atomic::{AtomicU8, AtomicUsize};

    use tokio::runtime::Handle;

    use super::*;
    use crate::config::{Abandoned, Liveness, OnDead, OnEnd, Upstream, UpstreamAddress};
    use crate::liveness::Time;
    use crate::metrics::Metrics;
    use crate::net::stream;
    use crate::server::Limiter;
    use crate::session::{Admission, Balancer, Task, Worker, monitor};
    use crate::upstream::Cluster;

    fn params(name: &str, upstream: SocketAddr, metrics: &Metrics) -> Arc<SessionParams> {
        Arc::new(SessionParams {
            name: name.into(),
            tls: None,
            cluster: Arc::new(Cluster::new(
                name.into(),
                Upstream::of(UpstreamAddress::Socket(upstream)),
            )),
            connect_lines: Default::default(),
            tls_lines: Default::default(),
            policy: Liveness::default().policy(),
            on_dead: OnDead::Reset,
            on_end: OnEnd::Reset,
            metrics: metrics.listener(name),
            first_byte_timeout: None,
            queue_timeout: None,
            abandoned: Abandoned::Serve,
            heartbeats: [None, None],
            asking: Liveness::default().heartbeat.asking(),
            misfit_lines: Default::default(),
            low_water: true,
            probes: Default::default(),
            reconnect_delay: Duration::ZERO,
            sheds: false,
            sessions: AtomicUsize::new(0),
            last_end: AtomicU8::default(),
        })
    }

    /// So many sessions of a listener, and the clients' ends.
    fn start(
        worker: &Arc<Worker>,
        params: &Arc<SessionParams>,
        count: u64,
    ) -> Vec<(Arc<Session>, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let start = |id| {
            let client = TcpStream::connect(address).expect("connected");
            let (downstream, peer) = listener.accept().expect("accepted");
            downstream.set_nonblocking(true).expect("set");
            let downstream = stream::TcpStream::new(downstream.into()).expect("registered");
            let session = Session::new(id, params.clone(), peer, sys::now());
            let admission = Admission::Now(());
            let worker = worker.clone();
            let downstream = downstream.into();
            tokio::spawn(Task::new(session.clone(), worker, downstream, admission));
            (session, client)
        };
        (0..count).map(start).collect()
    }

    fn observed(sessions: &[(Arc<Session>, TcpStream)], since: Time) -> usize {
        let is_observed = |(session, _): &&(Arc<Session>, _)| session.last_observed() >= since;
        sessions.iter().filter(is_observed).count()
    }

    /// Whoever waits for a place of one listener has nobody observed of another, and of its own as
    /// many as are bounded, but all in their turn.
    #[tokio::test]
    async fn few_are_observed_for_one_who_waits() {
        const MANY: u64 = OBSERVED as u64 + 50;
        let upstream = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = upstream.local_addr().expect("bound");
        let serve = move || upstream.incoming().collect::<Vec<_>>();
        std::thread::spawn(serve);
        let metrics = Arc::new(Metrics::new());
        let balancer = Balancer::new([Handle::current()]);
        let pool = Pool::new(balancer.clone(), Limiter::new(None));
        let worker = balancer.workers()[0].clone();
        tokio::spawn(monitor(worker.clone()));
        let [here, elsewhere] = ["db", "other"].map(|name| params(name, address, &metrics));
        let others = start(&worker, &elsewhere, 3);
        let holders = start(&worker, &here, MANY);
        // An observation finds out about them once they are open and under watch.
        let deadline = sys::now() + Span::ms(30_000);
        loop {
            sleep(Duration::from_millis(50)).await;
            let now = sys::now();
            let all = || others.iter().chain(&holders);
            all().for_each(|(session, _)| session.refresh(now));
            let is_ready = |session: &Session| {
                session.last_observed() >= now && session.known_candidate(now).is_some()
            };
            if all().all(|(session, _)| is_ready(session)) {
                break;
            }
            assert!(now < deadline, "they do not come up");
        }
        sleep(Duration::from_millis(5)).await;

        let order = |holder: &Candidate| Some(Reverse(holder.idle));
        let since = sys::now();
        let source = None;
        let params = &here;
        let here = Some(Holders { params, source });
        assert_eq!(first(&pool, here, 1, order).len(), 1);
        assert_eq!(observed(&others, since), 0);
        let count = observed(&holders, since);
        assert!((OBSERVED..=OBSERVED + 1).contains(&count), "{count}");
        // The next round.
        first(&pool, here, 1, order);
        assert_eq!(observed(&holders, since), holders.len());
        assert_eq!(observed(&others, since), 0);
    }
}
