//! TLS of a session: the handshake of each leg, and what is said where there is none.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::facts::Failed;
use super::opening::{Boxed, Client, Preamble, while_wanted};
use super::{Phase, Session, aborted};
use crate::liveness::{Close, CloseReason, Condition, Leg, Span};
use crate::metrics::HandshakeFailure;
use crate::net::leg::{Layer, LegStream};
use crate::net::stream::TcpStream;
use crate::relay::Relay;
use crate::sys;
use crate::tls::{Acceptor, Established, Handshake, HandshakeError, Side};
use crate::upstream::Endpoint;

/// Of the name in a certificate, bytes.
const LONGEST_IDENTITY: usize = 256;

/// A client begins with a handshake where its listener speaks TLS.
impl Preamble for Acceptor {
    fn limit(&self) -> Duration {
        self.handshake_timeout()
    }

    fn late(&self, session: &Session) -> CloseReason {
        let late = late("it was not complete within tls.handshake_timeout");
        session.insecure(Leg::Downstream, &late).reason
    }

    fn read<'a>(
        &'a self,
        session: &'a Session,
        client: &'a mut Client,
    ) -> Boxed<'a, Result<Option<Box<dyn Layer>>, Close>> {
        Box::pin(async move {
            let unread = std::mem::take(&mut client.unsent);
            let socket = client.stream.socket();
            // Whoever checks pulsegate connects, and leaves.
            if unread.is_empty()
                && let Err(close) = session.begins(socket).await
            {
                return Err(session.left_early(socket, close));
            }
            let began = sys::now();
            let shaken = shake(Side::Server(self.config()), unread, socket).await;
            session
                .shaken(Leg::Downstream, shaken, sys::now() - began)
                .map(|handshake| Some(handshake.into_layer()))
        })
    }
}

async fn shake(
    side: Side,
    unread: Vec<u8>,
    socket: &TcpStream,
) -> Result<(Handshake, Established), HandshakeError> {
    let mut handshake = Handshake::new(side, unread)?;
    let established = poll_fn(|cx| handshake.poll(socket, cx)).await?;
    Ok((handshake, established))
}

/// Has an upstream that is connected speak TLS, in what is left of `connect_timeout`. Both peers are judged
/// meanwhile; nothing of the client goes on before.
pub(super) async fn upstream(
    session: Arc<Session>,
    mut relay: Relay,
    [downstream, upstream]: [LegStream; 2],
) -> Result<(Relay, [LegStream; 2]), Close> {
    // Its last message must not hold the first request up.
    relay.begin_at_once(upstream.socket());
    let shaking = session.shake_upstream(upstream.socket());
    match while_wanted(&session, &downstream, shaking).await {
        Ok(handshake) => {
            session.lock().phase = Phase::Open;
            Ok((relay, [downstream, upstream.under(handshake.into_layer())]))
        }
        Err(close) => {
            session.last_words(Leg::Upstream, &upstream, &close).await;
            session.turn_away(&close);
            session.params.metrics.reset_sent(Leg::Upstream);
            Err(close)
        }
    }
}

/// A name in a certificate may be longer than a log or a header should have it.
fn bound(identity: &mut Option<String>) {
    if let Some(name) = identity
        .as_mut()
        .filter(|name| name.len() > LONGEST_IDENTITY)
    {
        let ends = name.char_indices().map(|(at, _)| at);
        let end = ends.take_while(|at| *at <= LONGEST_IDENTITY).last();
        name.truncate(end.unwrap_or(0));
    }
}

fn late(text: &str) -> HandshakeError {
    HandshakeError::new(HandshakeFailure::Timeout, text)
}

impl Session {
    async fn shake_upstream(&self, socket: &TcpStream) -> Result<Handshake, Close> {
        let cluster = &self.params.cluster;
        let (host, since) = {
            let state = self.lock();
            let host = state.endpoint.as_deref().map(Endpoint::host);
            (host.unwrap_or_default(), state.machine.waits_since())
        };
        let Some(connector) = cluster.tls() else {
            return Err(aborted(CloseReason::LocalError));
        };
        let name = connector.server_name(&host).map_err(|error| {
            let text = format!("{host} cannot be in a certificate: {error}; set server_name");
            let error = HandshakeError::new(HandshakeFailure::WrongName, text);
            self.insecure(Leg::Upstream, &error)
        })?;
        let began = sys::now();
        let left = (since + cluster.upstream().connect_timeout.into()) - began;
        let shaking = shake(Side::Client(connector.config(), name), Vec::new(), socket);
        match tokio::time::timeout(left.into(), shaking).await {
            Ok(shaken) => self.shaken(Leg::Upstream, shaken, sys::now() - began),
            Err(_elapsed) => Err(self.upstream_is_late()),
        }
    }

    /// The service has not completed the handshake; perhaps its application has never seen it.
    fn upstream_is_late(&self) -> Close {
        self.refresh(sys::now());
        let condition = self.lock().machine.leg(Leg::Upstream).condition;
        if condition == Condition::Phantom {
            return aborted(CloseReason::UpstreamPhantom);
        }
        self.insecure(
            Leg::Upstream,
            &late("it was not complete within connect_timeout"),
        )
    }

    fn shaken(
        &self,
        leg: Leg,
        shaken: Result<(Handshake, Established), HandshakeError>,
        took: Span,
    ) -> Result<Handshake, Close> {
        let (handshake, mut established) = shaken.map_err(|error| self.insecure(leg, &error))?;
        bound(&mut established.identity);
        let metrics = &self.params.metrics;
        metrics.handshake_made(leg, established.version, took.into());
        self.lock().facts_mut().tls[leg as usize] = Some(Box::new(established));
        Ok(handshake)
    }

    /// There is no TLS on a leg. Returns how the session is closed.
    fn insecure(&self, leg: Leg, error: &HandshakeError) -> Close {
        if let Some(error) = &error.io {
            let close = self.fault(leg, error);
            // A peer that was found gone is no less so for the handshake.
            if close.reason != CloseReason::reset(leg) {
                return close;
            }
        }
        self.params.metrics.handshake_failed(leg, error.failure);
        self.lock().facts_mut().failed = Some(Box::new(Failed {
            failure: error.failure,
            server_name: error.server_name.clone(),
        }));
        self.report(leg, error.failure, &error.text);
        aborted(CloseReason::tls_failed(leg))
    }

    /// A client was lost before it was heard of. If it had said something first, its handshake has failed.
    fn left_early(&self, socket: &TcpStream, close: Close) -> Close {
        if close.reason != CloseReason::ConnectCancelled || socket.has_left() {
            return close;
        }
        let reset = HandshakeError::from(io::Error::from_raw_os_error(libc::ECONNRESET));
        // What the socket says is known already.
        self.insecure(Leg::Downstream, &HandshakeError { io: None, ..reset })
    }

    /// TLS was there, and broke. In version 1.3 a server that refuses the certificate of its client says so
    /// after the handshake of the client.
    pub(super) fn report_broken(&self, leg: Leg, error: &io::Error) {
        let failure = match error.kind() {
            io::ErrorKind::ConnectionAborted => HandshakeFailure::RefusedByPeer,
            _ => HandshakeFailure::ProtocolError,
        };
        if self.counters.traffic().received[leg as usize] == 0 {
            self.params.metrics.handshake_failed(leg, failure);
        }
        let server_name = None;
        self.lock().facts_mut().failed = Some(Box::new(Failed {
            failure,
            server_name,
        }));
        self.report(leg, failure, &error.to_string());
    }

    fn report(&self, leg: Leg, failure: HandshakeFailure, text: &str) {
        let params = &self.params;
        if !params.tls_lines[leg as usize][failure as usize].begin() {
            return;
        }
        let peer = match leg {
            Leg::Downstream => self.client().to_string(),
            Leg::Upstream => {
                let state = self.lock();
                let address = state.endpoint.as_deref().map(|e| e.address().to_string());
                address.unwrap_or_default()
            }
        };
        let (listener, leg_word, reason) =
            (&*params.name, <&str>::from(leg), <&str>::from(failure));
        tracing::warn!(
            listener,
            leg = leg_word,
            peer,
            reason,
            id = self.id,
            "a connection is reset, because TLS failed: {text}"
        );
        let params = params.clone();
        tokio::spawn(async move {
            let listener = &*params.name;
            let write = |more| {
                tracing::warn!(
                    listener,
                    leg = leg_word,
                    reason,
                    "connections are reset, because TLS failed: {more} more in the last 10 s"
                );
            };
            params.tls_lines[leg as usize][failure as usize]
                .sum_up(write)
                .await;
        });
    }
}
