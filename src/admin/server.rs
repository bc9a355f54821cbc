//! The HTTP server: connections and what they may hold.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tower::load_shed::error::Overloaded;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tracing::debug;

use super::Control;
use super::guard::{Guard, Reach, Scheme, TokenFile};
use super::patience::Patient;
use super::routes::{Refusal, Reply, Router, is_probe};
use super::tls;
use crate::tls::AdminAcceptor;

/// Connections at once to one address. Each is a descriptor that the data plane cannot have.
pub const MAX_CONNECTIONS: usize = 64;
/// Of these, the places for connections without a request so far. The others are for those that have
/// sent one. Neither kind can keep the other out.
const SILENT_CONNECTIONS: usize = MAX_CONNECTIONS / 2;
/// What the kernel may hold for a connection each way, so that a client that does not read cannot
/// have it keep megabytes (tcp_wmem). The kernel doubles it for its own overhead.
const SOCKET_BUFFER: usize = 32 * 1024;
/// For a request line with headers, and for the silence between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// A connection that is older answers what it has begun, for at most [`GRACE`].
const MAX_AGE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(30);
/// The same when the whole endpoint ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// accept() fails when descriptors run out; trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests that are answered at once, over all connections, and for how long each. Those of probes
/// do not count.
const MAX_REQUESTS: usize = 32;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket of the endpoint, which listens.
#[derive(Debug)]
pub enum Socket {
    /// On an address of TCP.
    Tcp(TcpListener),
    /// The same, with HTTPS.
    Https(TcpListener, Arc<AdminAcceptor>),
    /// On a file.
    Unix(UnixListener),
}

impl From<TcpListener> for Socket {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// One connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Socket {
    /// The socket that this descriptor is: HTTPS with an acceptor, where it is of TCP.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(listening: OwnedFd, tls: Option<Arc<AdminAcceptor>>) -> io::Result<Self> {
        if SockRef::from(&listening).local_addr()?.is_unix() {
            return UnixListener::from_std(listening.into()).map(Self::Unix);
        }
        let listener = TcpListener::from_std(listening.into())?;
        Ok(match tls {
            Some(acceptor) => Self::Https(listener, acceptor),
            None => Self::Tcp(listener),
        })
    }

    fn reach(&self) -> Reach {
        match self {
            Self::Tcp(listener) | Self::Https(listener, _) => match listener.local_addr() {
                Ok(address) => Reach::of(address.ip()),
                Err(_) => Reach::Network,
            },
            Self::Unix(_) => Reach::File,
        }
    }

    /// Bounds what the kernel holds for a connection; they inherit it.
    fn bound_buffers(&self) -> io::Result<()> {
        let socket = match self {
            Self::Tcp(listener) | Self::Https(listener, _) => SockRef::from(listener),
            Self::Unix(listener) => SockRef::from(listener),
        };
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER)
    }

    fn scheme(&self) -> Scheme {
        match self {
            Self::Https(..) => Scheme::Https,
            Self::Tcp(_) | Self::Unix(_) => Scheme::Http,
        }
    }

    async fn accept(&self) -> io::Result<(Accepted, Asker)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Accepted::Plain(Box::new(stream)), Asker::at(peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let asker = Asker::of(&stream);
                (Accepted::Plain(Box::new(stream)), asker)
            }
            Self::Https(listener, acceptor) => {
                let (stream, peer) = listener.accept().await?;
                let accepted = Accepted::Https(stream, peer, acceptor.clone());
                (accepted, Asker::at(peer))
            }
        })
    }
}

/// Who asks, for the log: a word that each request of a connection has with it.
#[derive(Clone, Debug)]
pub(super) struct Asker(pub Arc<str>);

impl Asker {
    fn at(peer: SocketAddr) -> Self {
        Self(
            SocketAddr::new(peer.ip().to_canonical(), peer.port())
                .to_string()
                .into(),
        )
    }

    /// The user and the process at the other end of a unix socket.
    fn of(stream: &UnixStream) -> Self {
        let known = stream.peer_cred().ok();
        let user = known.map_or("unknown user".to_owned(), |it| format!("uid {}", it.uid()));
        let process = known.and_then(|it| it.pid());
        let process = process.map_or_else(String::new, |pid| format!(", pid {pid}"));
        Self((user + &process).into())
    }
}

/// A connection that has just come.
enum Accepted {
    Plain(Box<dyn Stream>),
    Https(TcpStream, SocketAddr, Arc<AdminAcceptor>),
}

impl Accepted {
    /// What requests come over; `None` where it is over before.
    async fn open(self) -> Option<Box<dyn Stream>> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Https(stream, peer, acceptor) => {
                let stream = tls::accept(stream, peer, &acceptor).await?;
                Some(Box::new(stream))
            }
        }
    }
}

/// Serves the endpoint until `shutdown` resolves; answers begun by then are finished, within a
/// second. Changes (POST, DELETE) are refused unless `socket` can be reached from this host only, or
/// they bear the token.
///
/// It calls [`Control`], which may block, on the thread that polls it: give it a runtime of its
/// own.
pub async fn serve(
    socket: Socket,
    token: Option<TokenFile>,
    control: Arc<dyn Control>,
    shutdown: impl Future,
) {
    if let Err(error) = socket.bound_buffers() {
        debug!(%error, "admin: cannot bound the socket buffers");
    }
    let guard = Guard {
        reach: socket.reach(),
        scheme: socket.scheme(),
        token,
    };
    let mut connections = Connections::new(Router::new(control, guard));
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            _ = &mut shutdown => break,
            () = connections.reap() => {}
            accepted = socket.accept() => match accepted {
                Ok((accepted, asker)) => {
                    connections.start(accepted, asker);
                    // It is read before the next one may take its place.
                    yield_now().await;
                }
                Err(error) => {
                    debug!(%error, "admin: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(socket);
    connections.finish().await;
}

/// What answers all requests but those of probes; its clones share their limits.
type Answers = BoxCloneSyncService<Request<Incoming>, Reply, BoxError>;

/// The open connections, at most [`MAX_CONNECTIONS`].
struct Connections {
    router: Router,
    answers: Answers,
    tasks: JoinSet<()>,
    open: HashMap<Id, Slot>,
    /// Counts connections and requests; tells which came last.
    clock: Arc<AtomicU64>,
    stop: watch::Sender<()>,
}

struct Slot {
    abort: AbortHandle,
    born: u64,
    /// The clock at the last request; 0 before the first one.
    active: Arc<AtomicU64>,
}

impl Connections {
    fn new(router: Router) -> Self {
        let inner = router.clone();
        let inner = service_fn(move |request: Request<Incoming>| {
            let answer = inner.answer(request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        Self {
            router,
            answers: BoxCloneSyncService::new(layered(inner)),
            tasks: JoinSet::new(),
            open: HashMap::new(),
            clock: Arc::default(),
            stop: watch::Sender::new(()),
        }
    }

    fn start(&mut self, accepted: Accepted, asker: Asker) {
        if self.open.len() >= MAX_CONNECTIONS {
            self.evict();
        }
        let active = Arc::new(AtomicU64::new(0));
        let (seen, clock) = (Arc::clone(&active), Arc::clone(&self.clock));
        let (router, answers) = (self.router.clone(), self.answers.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(asker.clone());
            seen.store(clock.fetch_add(1, Relaxed) + 1, Relaxed);
            let (router, answers) = (router.clone(), answers.clone());
            async move {
                if is_probe(&request) {
                    return Ok(router.answer(request).await);
                }
                answers.oneshot(request).await
            }
        });
        let task = serve_accepted(accepted, service, self.stop.subscribe());
        let abort = self.tasks.spawn(task);
        let born = self.clock.fetch_add(1, Relaxed) + 1;
        self.open.insert(
            abort.id(),
            Slot {
                abort,
                born,
                active,
            },
        );
    }

    /// Closes the least active connection of the kind that has more than its places.
    fn evict(&mut self) {
        let asked = |slot: &Slot| slot.active.load(Relaxed) > 0;
        let silent = self.open.values().filter(|slot| !asked(slot)).count();
        let least = self
            .open
            .iter()
            .filter(|(_, slot)| asked(slot) == (silent <= SILENT_CONNECTIONS))
            .min_by_key(|(_, slot)| (slot.active.load(Relaxed), slot.born))
            .map(|(id, _)| *id);
        if let Some(slot) = least.and_then(|id| self.open.remove(&id)) {
            debug!("admin: too many connections, the least active one is closed");
            slot.abort.abort();
        }
    }

    /// Waits for a connection to end; forever if there is none.
    async fn reap(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => return std::future::pending().await,
        };
        self.open.remove(&id);
    }

    async fn finish(mut self) {
        self.stop.send_replace(());
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // What is left is aborted with the JoinSet.
        let _ = timeout(SHUTDOWN_GRACE, all).await;
    }
}

async fn serve_accepted<S>(accepted: Accepted, service: S, stop: watch::Receiver<()>)
where
    S: Service<Request<Incoming>, Response = Reply, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    if let Some(stream) = accepted.open().await {
        serve_connection(stream, service, stop).await;
    }
}

/// One connection, to its end.
async fn serve_connection<T, S>(stream: T, service: S, mut stop: watch::Receiver<()>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Reply, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        // `printf 'GET ...' | nc` ends its side right after the request.
        .half_close(true)
        .serve_connection(
            TokioIo::new(Patient::new(stream)),
            TowerToHyperService::new(service),
        );
    tokio::pin!(connection);
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        _ = stop.changed() => None,
        () = sleep(MAX_AGE) => None,
    };
    let result = if let Some(result) = ended {
        result
    } else {
        connection.as_mut().graceful_shutdown();
        timeout(GRACE, connection).await.unwrap_or(Ok(()))
    };
    // Port scanners, TLS clients and the like end here.
    if let Err(error) = result {
        debug!(%error, "admin: connection failed");
    }
}

/// Bounds what requests may take together; to be called once, for the limit is that of the clones.
fn layered<R, S>(
    inner: S,
) -> impl Service<R, Response = Reply, Error = BoxError, Future: Send> + Clone + Send
where
    S: Service<R, Response = Reply, Error = Infallible, Future: Send> + Clone + Send,
{
    ServiceBuilder::new()
        .map_result(answered)
        .load_shed()
        .concurrency_limit(MAX_REQUESTS)
        .timeout(REQUEST_TIMEOUT)
        .service(inner)
}

/// Turns the errors of the layers into answers; none is left.
fn answered(result: Result<Reply, BoxError>) -> Result<Reply, BoxError> {
    Ok(result.unwrap_or_else(|error| {
        let refusal = if error.is::<Overloaded>() {
            Refusal::busy("too many requests at once; try again")
        } else {
            Refusal::new(StatusCode::GATEWAY_TIMEOUT, format!("no answer: {error}"))
        };
        refusal.into()
    }))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::super::patience::PATIENCE;
    use super::super::routes::text;
    use super::*;

    /// Reads so much each second; how long its connection is kept.
    async fn kept_for(bytes_a_second: usize) -> Duration {
        let (mut client, server) = duplex(1024);
        let large = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(text(vec![b'x'; 1 << 20]))
        });
        let stop = watch::Sender::new(());
        let start = Instant::now();
        let task = tokio::spawn(serve_connection(server, layered(large), stop.subscribe()));
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.write_all(request).await.expect("written");
        let mut taken = vec![0; bytes_a_second];
        while !task.is_finished() {
            sleep(Duration::from_secs(1)).await;
            let _ = timeout(Duration::from_millis(1), client.read_exact(&mut taken)).await;
        }
        task.await.expect("no panic");
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_hardly_reads_is_left_after_a_while() {
        for bytes_a_second in [0, 1, 6000] {
            let kept = kept_for(bytes_a_second).await;
            assert!(kept >= PATIENCE, "{bytes_a_second}: {kept:?}");
            assert!(kept < PATIENCE * 2, "{bytes_a_second}: {kept:?}");
        }
        let kept = kept_for(20_000).await;
        assert!(kept > Duration::from_secs(50), "{kept:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_left_sooner() {
        let (_client, server) = duplex(1024);
        let idle = service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(text("")) });
        let stop = watch::Sender::new(());
        let start = Instant::now();
        serve_connection(server, layered(idle), stop.subscribe()).await;
        assert_eq!(start.elapsed().as_secs(), HEADER_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_cut_and_too_many_are_shed() {
        let stuck = service_fn(|()| std::future::pending::<Result<Reply, Infallible>>());
        let service = layered(stuck);
        let mut waiting = JoinSet::new();
        for _ in 0..MAX_REQUESTS {
            waiting.spawn(service.clone().oneshot(()));
        }
        tokio::task::yield_now().await;

        let shed = service.clone().oneshot(()).await.expect("answered");
        assert_eq!(shed.status(), StatusCode::SERVICE_UNAVAILABLE);
        while let Some(cut) = waiting.join_next().await {
            let cut = cut.expect("no panic").expect("answered");
            assert_eq!(cut.status(), StatusCode::GATEWAY_TIMEOUT);
        }
    }
}
