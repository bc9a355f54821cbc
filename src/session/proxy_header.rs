//! Who the client is: as the PROXY protocol tells it, and as the upstream is told.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::opening::{Boxed, Client, Preamble};
use super::{Session, aborted};
use crate::config::{ListenerConfig, Network, ProxyProtocol, SendProxy};
use crate::liveness::{Close, CloseReason, Leg};
use crate::net::leg::{Layer, LegStream};
use crate::proxy_protocol::{self, ALPN, AUTHORITY, Addresses, Header, SSL, Ssl, UNIQUE_ID};
use crate::sys::sockopt;
use crate::telemetry::Repeated;
use crate::tls::Established;

/// Read at once. A header seldom has more than some hundred bytes.
const CHUNK_BYTES: usize = 1024;

/// Each client of a listener begins with a header of the PROXY protocol.
#[derive(Debug)]
pub struct ProxyHeader {
    listener: Arc<str>,
    trusted: Vec<Network>,
    timeout: Duration,
    /// Lines about headers that are none.
    lines: Arc<Repeated>,
}

impl ProxyHeader {
    /// As it is configured; `None` if it is off.
    #[must_use]
    pub fn of(config: &ListenerConfig) -> Option<Arc<Self>> {
        (config.proxy_protocol == ProxyProtocol::Require).then(|| {
            Arc::new(Self {
                listener: config.name.as_str().into(),
                trusted: config.proxy_protocol_trusted.clone(),
                timeout: config.proxy_protocol_timeout,
                lines: Arc::default(),
            })
        })
    }

    /// Whether a header from there is believed.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }

    /// The header is none, is cut, or does not come.
    fn refuse(&self, session: &Session, why: &str) -> CloseReason {
        if self.lines.begin() {
            let (listener, peer) = (&*self.listener, session.client());
            tracing::warn!(listener, %peer, "a connection without a valid PROXY header is reset: {why}");
            let (lines, listener) = (self.lines.clone(), self.listener.clone());
            tokio::spawn(async move {
                let write = |more| {
                    tracing::warn!(
                        listener = &*listener,
                        "connections without a valid PROXY header are reset: {more} more in the last 10 s"
                    );
                };
                lines.sum_up(write).await;
            });
        }
        CloseReason::ProxyProtocolError
    }
}

impl Preamble for ProxyHeader {
    fn limit(&self) -> Duration {
        self.timeout
    }

    fn late(&self, session: &Session) -> CloseReason {
        self.refuse(session, "it was not complete within proxy_protocol_timeout")
    }

    fn read<'a>(
        &'a self,
        session: &'a Session,
        client: &'a mut Client,
    ) -> Boxed<'a, Result<Option<Box<dyn Layer>>, Close>> {
        Box::pin(async move {
            let mut bytes = Vec::new();
            let (header, length) = loop {
                let more = poll_fn(|cx| poll_more(&mut client.stream, &mut bytes, cx)).await;
                let more = more.map_err(|error| session.client_failed(&error))?;
                match proxy_protocol::parse(&bytes) {
                    Ok(Some(header)) => break header,
                    Ok(None) if more > 0 => {}
                    Ok(None) if bytes.is_empty() => return Err(aborted(CloseReason::NoBytes)),
                    Ok(None) => {
                        return Err(aborted(
                            self.refuse(session, "the connection ended before it was complete"),
                        ));
                    }
                    Err(wrong) => return Err(aborted(self.refuse(session, &wrong.to_string()))),
                }
            };
            client.unsent = bytes.split_off(length);
            session.take_header(&header, length);
            // Whoever checks pulsegate connects, says so, and leaves.
            if header.addresses.is_none() && client.has_left() {
                return Err(aborted(CloseReason::NoBytes));
            }
            if session.params.cluster.upstream().proxy_protocol != SendProxy::Off {
                client.header = Some(Box::new(header));
            }
            Ok(None)
        })
    }
}

/// Reads what is there; 0 is the FIN.
fn poll_more(
    stream: &mut LegStream,
    bytes: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    let mut chunk = [0; CHUNK_BYTES];
    let n = ready!(stream.poll_read(cx, &mut chunk))?;
    bytes.extend(&chunk[..n]);
    Poll::Ready(Ok(n))
}

impl Session {
    fn take_header(&self, header: &Header, length: usize) {
        let client = header.addresses.map(|addresses| addresses.source);
        self.lock().told_of(client, length);
    }

    /// What the upstream is told about the client before its payload; nothing if that is off.
    pub(super) fn greeting(&self, client: &mut Client) -> Vec<u8> {
        let version = self.params.cluster.upstream().proxy_protocol;
        if version == SendProxy::Off {
            return Vec::new();
        }
        let mut header = client
            .header
            .take()
            .map(|header| *header)
            .unwrap_or_default();
        let known = header.addresses.map(|addresses| addresses.destination);
        let own = || sockopt::local_address(client.stream.socket().raw_fd());
        header.addresses = known.or_else(own).map(|destination| Addresses {
            source: self.client(),
            destination,
        });
        if version == SendProxy::V1 {
            return header.to_v1();
        }
        if let Some(tls) = self.lock().tls(Leg::Downstream) {
            tell(&mut header, tls);
        }
        header.add(UNIQUE_ID, unique_id(self.id).as_bytes());
        header.to_v2()
    }
}

/// What the load balancer in front has said of the client's own TLS goes before what is known here.
fn tell(header: &mut Header, tls: &Established) {
    let told = [
        (ALPN, tls.alpn.as_deref()),
        (AUTHORITY, tls.server_name.as_deref()),
    ];
    for (kind, value) in told {
        value
            .into_iter()
            .for_each(|value| header.add(kind, value.as_bytes()));
    }
    let ssl = Ssl {
        version: tls.version.into(),
        cipher: tls.cipher,
        common_name: tls.identity.as_deref(),
    };
    header.add(SSL, &ssl.value());
}

/// The id of a session as the log has it, behind what tells this process from others.
fn unique_id(id: u64) -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(()));
    format!("{:08x}-{id}", *PROCESS & 0xFFFF_FFFF)
}
