//! From the accept to two open legs: a client says what it has to say before its upstream is dialled, waits
//! for its place, and waits for the connect.
//!
//! All that time it is watched like everybody, and may abort, and the operator may end it.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::view::unmapped;
use super::{Phase, Session, Watch, aborted, closing};
use crate::config::{Abandoned, Dial};
use crate::liveness::{Close, CloseReason, Leg};
use crate::metrics::{ConnectFailure, RejectReason};
use crate::net::leg::{Layer, LegStream};
use crate::net::options;
use crate::net::stream::TcpStream;
use crate::proxy_protocol::Header;
use crate::relay::Relay;
use crate::sys::{self, sockopt};
use crate::upstream::{ActiveSession, Dialling, Endpoint, is_local};

/// How long a client that is turned away may take to acknowledge what it was told, such as an alert of TLS.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Payload that is read at once while the first byte is waited for.
const FIRST_BYTES: usize = 4096;

/// A future in a box of its own.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whether a client has its place; `P` is the place, given back when the session has ended.
pub enum Admission<P> {
    /// It has.
    Now(P),
    /// It has to wait; ends with the place, or with the reason why there is none.
    Wait(Boxed<'static, Result<P, CloseReason>>),
}

/// What a client says before its upstream is dialled, such as a PROXY header or a TLS handshake.
pub trait Preamble: fmt::Debug + Send + Sync {
    /// How long that may take.
    fn limit(&self) -> Duration;

    /// It takes longer. Returns the reason that the session is closed for.
    fn late(&self, session: &Session) -> CloseReason;

    /// Reads it. Returns the layer that the leg of the client has from now on, if any. Fails with how the session is closed.
    fn read<'a>(
        &'a self,
        session: &'a Session,
        client: &'a mut Client,
    ) -> Boxed<'a, Result<Option<Box<dyn Layer>>, Close>>;
}

/// A client that has no upstream yet.
#[derive(Debug)]
pub struct Client {
    /// Its leg.
    pub stream: LegStream,
    /// Payload that was read from it, and is to go to the upstream before anything else.
    pub unsent: Vec<u8>,
    /// What was said about it by the PROXY protocol.
    pub header: Option<Box<Header>>,
}

impl From<LegStream> for Client {
    fn from(stream: LegStream) -> Self {
        Self {
            stream,
            unsent: Vec::new(),
            header: None,
        }
    }
}

impl Client {
    /// Whether it has said FIN, or was lost, and left no payload. Behind a layer only a read tells payload from
    /// its last words.
    pub(super) fn has_left(&mut self) -> bool {
        if !self.unsent.is_empty() {
            return false;
        }
        if !self.stream.is_layered() {
            return self.stream.socket().has_left();
        }
        let mut bytes = vec![0; FIRST_BYTES];
        let mut cx = Context::from_waker(Waker::noop());
        match self.stream.poll_read_now(&mut cx, &mut bytes) {
            Poll::Ready(Ok(n)) => {
                bytes.truncate(n);
                self.unsent = bytes;
                n == 0
            }
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }
}

/// The time between accept and dial: the client says what it has to say first, then waits for its place,
/// and holds that while its first byte is waited for. What it sends beyond that stays in its socket.
pub(super) async fn open<P>(
    session: Arc<Session>,
    mut client: Client,
    admission: Admission<P>,
    preambles: Vec<Arc<dyn Preamble>>,
) -> (Option<P>, Result<Client, Close>) {
    let (mut place, wait) = match admission {
        Admission::Now(place) => (Some(place), None),
        Admission::Wait(wait) => (None, Some(wait)),
    };
    let mut opened = Ok(());
    for preamble in preambles {
        match read(&session, &mut client, &*preamble).await {
            Ok(None) => {}
            Ok(Some(layer)) => client.stream = client.stream.under(layer),
            Err(close) => {
                session
                    .last_words(Leg::Downstream, &client.stream, &close)
                    .await;
                opened = Err(close);
                break;
            }
        }
    }
    if opened.is_ok() {
        session.log_start();
        opened = admit(&session, &mut client, &mut place, wait).await;
    }
    if let Err(close) = &opened {
        session.turn_away(close);
    }
    (place, opened.map(|()| client))
}

/// A client that has said who it is waits for its place.
async fn admit<P>(
    session: &Session,
    client: &mut Client,
    place: &mut Option<P>,
    wait: Option<Boxed<'static, Result<P, CloseReason>>>,
) -> Result<(), Close> {
    if let Some(mut wait) = wait {
        let admitted = match poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx))).await {
            Poll::Ready(place) => place.map_err(aborted)?,
            Poll::Pending => {
                session.begin(Phase::Queued);
                queue(session, client, wait).await?
            }
        };
        *place = Some(admitted);
    }
    if session.params.cluster.upstream().dial == Dial::FirstByte {
        session.begin(Phase::Mute);
        first_byte(session, client).await?;
    }
    session.begin(Phase::Connecting);
    Ok(())
}

/// Waits for a place.
async fn queue<P>(
    session: &Session,
    client: &mut Client,
    mut wait: Boxed<'static, Result<P, CloseReason>>,
) -> Result<P, Close> {
    let mut said_fin = false;
    loop {
        let socket = client.stream.socket();
        let place = tokio::select! {
            biased;
            close = poll_fn(|_| session.take_order()) => return Err(close),
            error = socket.failed() => return Err(session.client_failed(&error)),
            () = socket.finished(), if !said_fin => None,
            place = &mut wait => Some(place.map_err(aborted)?),
        };
        // A FIN may have come in this moment.
        said_fin = place.is_none() || session.client_said_fin();
        if said_fin && !stays(session, client) {
            return Err(aborted(CloseReason::ConnectCancelled));
        }
        if let Some(place) = place {
            let waited = sys::now() - session.lock().machine.waits_since();
            let waited = u32::try_from(waited.as_millis().max(1)).unwrap_or(u32::MAX);
            session.queued_ms.store(waited, Ordering::Relaxed);
            return Ok(place);
        }
    }
}

/// Has the client say what it has to say.
async fn read(
    session: &Session,
    client: &mut Client,
    preamble: &dyn Preamble,
) -> Result<Option<Box<dyn Layer>>, Close> {
    tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => Err(close),
        read = preamble.read(session, client) => read,
        () = tokio::time::sleep(preamble.limit()) => Err(aborted(preamble.late(session))),
    }
}

/// Waits for the first byte of payload.
async fn first_byte(session: &Session, client: &mut Client) -> Result<(), Close> {
    if !client.unsent.is_empty() {
        return Ok(());
    }
    let too_long = async {
        match session.params.first_byte_timeout {
            Some(timeout) => tokio::time::sleep(timeout.into()).await,
            None => std::future::pending().await,
        }
    };
    let comes = async {
        if client.stream.is_layered() {
            session.first_payload(client).await
        } else {
            session.begins(client.stream.socket()).await
        }
    };
    tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => Err(close),
        came = comes => came,
        () = too_long => Err(aborted(CloseReason::FirstByteTimeout)),
    }
}

/// Whether a client that has said FIN is to be served: it must have sent something.
fn stays(session: &Session, client: &mut Client) -> bool {
    session.abandon();
    session.params.abandoned == Abandoned::Serve && !client.has_left()
}

/// Waits for a connect. A client that does not answer then is waited for, so that none of its bytes goes on
/// if it has gone.
pub(super) async fn connect(
    session: Arc<Session>,
    mut relay: Relay,
    greeting: Vec<u8>,
    downstream: LegStream,
    dialling: Dialling,
) -> Result<(Relay, [LegStream; 2]), Close> {
    let cluster = &session.params.cluster;
    let connect = async {
        let connect = cluster.finish(dialling, |endpoint| session.assign(endpoint));
        let connected = connect
            .await
            .map_err(|error| session.cannot_connect(&error))?;
        session.until_client_answers().await;
        Ok(connected)
    };
    let greeted = while_wanted(&session, &downstream, connect).await;
    let greeted = greeted.and_then(|upstream| {
        let greeted = relay.greet(&upstream, &greeting).map(|()| upstream);
        greeted.map_err(|error| session.cannot_connect(&error))
    });
    match greeted {
        Ok(upstream) => Ok((relay, [downstream, session.upstream_leg(upstream)])),
        Err(close) => {
            session.turn_away(&close);
            Err(close)
        }
    }
}

/// Waits for something for as long as the client and the operator allow.
pub(super) async fn while_wanted<T>(
    session: &Session,
    downstream: &LegStream,
    wanted: impl Future<Output = Result<T, Close>>,
) -> Result<T, Close> {
    tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => Err(close),
        error = downstream.socket().failed() => Err(session.client_failed(&error)),
        came = wanted => came,
    }
}

impl Session {
    /// Goes on to wait for its place, or for its upstream.
    fn begin(&self, phase: Phase) {
        let mut state = self.lock();
        state.machine.wait(sys::now());
        state.phase = phase;
    }

    /// The client is refused by what it has said about itself. It is counted as such, and not as a session.
    pub fn refuse(&self, reason: RejectReason) {
        self.params.metrics.rejected(reason);
        self.lock().phase = Phase::Refused;
    }

    /// Waits for the first byte of a client, which stays in its socket.
    pub(super) async fn begins(&self, socket: &TcpStream) -> Result<(), Close> {
        tokio::select! {
            biased;
            error = socket.failed() => Err(self.client_failed(&error)),
            came = socket.first_byte() => match came {
                true => Ok(()),
                false => Err(aborted(CloseReason::NoBytes)),
            },
        }
    }

    /// Reads the first payload of a client behind a layer.
    async fn first_payload(&self, client: &mut Client) -> Result<(), Close> {
        let mut bytes = vec![0; FIRST_BYTES];
        match poll_fn(|cx| client.stream.poll_read(cx, &mut bytes)).await {
            Ok(0) => Err(aborted(CloseReason::NoBytes)),
            Ok(n) => {
                client.unsent = bytes[..n].to_vec();
                Ok(())
            }
            Err(error) => Err(self.client_failed(&error)),
        }
    }

    /// What a peer was told in an alert is not to be lost with its connection. Nobody waits for one that is gone.
    pub(super) async fn last_words(&self, leg: Leg, stream: &LegStream, close: &Close) {
        if close.reason == CloseReason::tls_failed(leg) {
            let _best_effort = tokio::time::timeout(LAST_WORDS, closing::delivered(stream)).await;
        }
    }

    /// What the failure of a client's socket says before both legs are up.
    pub(super) fn client_failed(&self, error: &io::Error) -> Close {
        match self.fault(Leg::Downstream, error) {
            close if close.reason == CloseReason::DownstreamReset => {
                aborted(CloseReason::ConnectCancelled)
            }
            dead => dead,
        }
    }

    /// The client has said FIN while it waited. It is left alone from now on.
    fn abandon(&self) {
        self.refresh(sys::now());
        let mut state = self.lock();
        state.abandoned = true;
        if std::mem::replace(&mut state.watch, Watch::None) != Watch::None {
            let fd = state.fds[Leg::Downstream as usize];
            self.check_option(options::leave_alone(fd));
        }
    }

    pub(super) fn assign(&self, endpoint: ActiveSession) {
        self.lock().endpoint = Some(endpoint);
    }

    /// Fails if the client is an upstream leg of this listener: it is of this host, and was accepted at the
    /// address of an endpoint.
    pub(super) fn refuse_loop(&self, client: &LegStream) -> io::Result<()> {
        let fd = client.socket().raw_fd();
        let ours = sockopt::local_address(fd).map(unmapped);
        let Some(ours) = ours.filter(|ours| self.params.cluster.is_at(*ours)) else {
            return Ok(());
        };
        match sockopt::peer_address(fd).map(|peer| unmapped(peer).ip()) {
            Some(peer) if peer.is_loopback() || peer == ours.ip() => {
                let itself = "it leads back to this listener: a loop";
                Err(io::Error::new(io::ErrorKind::ConnectionRefused, itself))
            }
            _ => Ok(()),
        }
    }

    /// The leg to the endpoint that was dialled.
    pub(super) fn upstream_leg(&self, socket: TcpStream) -> LegStream {
        let state = self.lock();
        match state.endpoint.as_deref().is_some_and(Endpoint::is_unix) {
            true => LegStream::local(socket),
            false => socket.into(),
        }
    }

    pub(super) fn cannot_connect(&self, error: &io::Error) -> Close {
        let (reason, failure) = match error.kind() {
            io::ErrorKind::TimedOut => (CloseReason::ConnectTimeout, ConnectFailure::Timeout),
            io::ErrorKind::ConnectionRefused => {
                (CloseReason::ConnectRefused, ConnectFailure::Refused)
            }
            io::ErrorKind::AddrNotAvailable => {
                (CloseReason::LocalError, ConnectFailure::SourcePorts)
            }
            _ if is_local(error) => (CloseReason::LocalError, ConnectFailure::Failed),
            _ => (CloseReason::ConnectFailed, ConnectFailure::Failed),
        };
        let params = &self.params;
        params.metrics.connect_failed(failure);
        if params.connect_lines[failure as usize].begin() {
            let advice = advice(error);
            let upstream = match &self.lock().endpoint {
                Some(endpoint) => endpoint.address().to_string(),
                None => params.cluster.upstream().to_string(),
            };
            tracing::warn!(
                listener = &*params.name,
                upstream,
                reason = <&str>::from(reason),
                "cannot connect to the upstream: {error}{advice}"
            );
            let params = params.clone();
            tokio::spawn(async move {
                let lines = &params.connect_lines[failure as usize];
                let upstream = params.cluster.upstream();
                let write = |more| {
                    tracing::warn!(
                        listener = &*params.name,
                        %upstream,
                        reason = <&str>::from(reason),
                        "cannot connect to the upstream: {more} more in the last 10 s"
                    );
                };
                lines.sum_up(write).await;
            });
        }
        aborted(reason)
    }

    /// A client that was not served is about to be reset, unless it has aborted itself.
    pub(super) fn turn_away(&self, close: &Close) {
        let mut state = self.lock();
        state.fds = [-1; 2];
        // That of a client that was refused is counted with the refusal.
        if close.reason != CloseReason::ConnectCancelled && state.phase != Phase::Refused {
            self.params.metrics.reset_sent(Leg::Downstream);
        }
    }
}

/// What helps.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        _ if error.kind() == io::ErrorKind::AddrNotAvailable => {
            "; no local port is left for that address (sysctl net.ipv4.ip_local_port_range; more of \
             upstream.source_address), or no local address leads to it"
        }
        Some(libc::EMFILE) => {
            "; no descriptor is left: raise `ulimit -n` (systemd: LimitNOFILE=) or lower \
             limits.max_connections"
        }
        _ => "",
    }
}
