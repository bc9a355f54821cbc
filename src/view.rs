//! What `/connections` and `/summary` show: the shape of the JSON, and the only place that knows it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::metrics::{ListenerFigures, PerLeg};

/// A session that can be shown. Holding one does not delay the end of the session.
pub trait Shown: Send + Sync {
    /// Unique in the life of the process.
    fn id(&self) -> u64;
    /// Its state now; `None` once it has ended.
    fn view(&self) -> Option<ConnectionView>;
    /// What is known of it without asking the kernel; `None` once it has ended.
    fn brief(&self) -> Option<Brief>;
    /// The other ends, by leg.
    fn peers(&self) -> [Option<SocketAddr>; 2];
    /// What a list does not show.
    fn detail(&self) -> SessionDetail {
        SessionDetail::default()
    }
}

/// A session as it was last observed.
#[derive(Clone, Debug)]
pub struct Brief {
    /// Name of the listener that accepted it.
    pub listener: Arc<str>,
    /// Where it is in its life. A FIN of a moment ago may be unknown yet.
    pub phase: Phase,
    /// The conditions, by leg.
    pub conditions: [&'static str; 2],
    /// Since it was accepted, ms.
    pub age_ms: u64,
    /// No byte was known to have moved for so long, ms: no less than is true.
    pub idle_ms: u64,
    /// No sign of life of one of the peers was known for so long, ms: no less than is true.
    pub last_life_ms: u64,
    /// Bytes read from both peers.
    pub received_bytes: u64,
    /// Bytes written to both peers.
    pub sent_bytes: u64,
}

/// What an overview needs. No session is looked at for it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Of pulsegate.
    pub version: &'static str,
    /// When this was said, in seconds since the Unix epoch.
    pub now: i64,
    /// The same by a clock that never jumps, ms: for rates.
    pub monotonic_ms: u64,
    /// Whether no new clients are taken any more.
    pub draining: bool,
    /// Sessions of all listeners.
    pub sessions: usize,
    /// In the order of their names.
    pub listeners: Vec<ListenerSummary>,
}

/// The same of one listener.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerSummary {
    /// Its name.
    pub listener: String,
    /// Where clients connect.
    pub address: String,
    /// Where they are taken, as configured.
    pub upstream: String,
    /// The promise: a vanished peer is found within this time, ms.
    pub detect_within_ms: u64,
    /// Sessions now, clients that wait for a place included.
    pub active: usize,
    /// How many there may be; absent where the listener has no limit of its own.
    pub limit: Option<u32>,
    /// Places that are taken, during `limits.reconnect_delay`, too.
    pub in_use: usize,
    /// What a client meets when there is no place, as configured.
    pub on_full: String,
    /// How long a client may wait for a place, ms; absent: as long as it likes.
    pub queue_timeout_ms: Option<u64>,
    /// The PROXY protocol with clients, and with the service, as configured.
    pub proxy_protocol: ByLeg<String>,
    /// Until when the certificates in force are good, in seconds since the Unix epoch: the first to end; absent where
    /// none is shown.
    pub certificate_not_after: ByLeg<Option<i64>>,
    /// Clients that wait for a place.
    pub queued: usize,
    /// Connections that the kernel has completed and pulsegate has not accepted yet.
    pub accept_queue: u64,
    /// From which number on the kernel drops new ones.
    pub accept_queue_limit: u64,
    /// Endpoints of the service.
    pub endpoints: usize,
    /// Those of them that are neither down nor ejected.
    pub endpoints_up: usize,
    /// Total of bytes read.
    pub received_bytes: PerLeg,
    /// Total of bytes written.
    pub sent_bytes: PerLeg,
    /// What was counted.
    #[serde(flatten)]
    pub figures: ListenerFigures,
}

/// Something of each leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByLeg<T> {
    /// Client to pulsegate.
    pub downstream: T,
    /// Pulsegate to the legacy service.
    pub upstream: T,
}

/// What a reload did with each key that differs: its path, with the name of the listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// In force.
    pub applied: Vec<String>,
    /// In force for sessions that begin from now on.
    pub new_sessions_only: Vec<String>,
    /// Not in force until the process is started again.
    pub needs_restart: Vec<String>,
}

impl ReloadReport {
    /// Whether no key differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who had the configuration read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AskedBy {
    /// `POST /reload`.
    Admin,
    /// SIGHUP.
    Sighup,
    /// A file had changed (`reload.watch`).
    Watch,
}

/// A reload, or an attempt at one.
#[derive(Clone, Debug, Serialize)]
pub struct Reload {
    /// When it was over, in seconds since the Unix epoch.
    pub at: i64,
    /// Who asked for it.
    pub asked_by: AskedBy,
    /// A word of [`ReloadOutcome`](crate::metrics::ReloadOutcome).
    pub outcome: &'static str,
    /// What it did with each key that differs; nothing where it failed.
    #[serde(flatten)]
    pub report: ReloadReport,
    /// Why nothing has changed, one line each.
    pub errors: Vec<String>,
}

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Display, EnumString, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// The client waits for a place (`limits.on_full`).
    Queued,
    /// The upstream is being connected.
    Connecting,
    /// Both legs are up.
    Open,
    /// Both legs are up, and one side has said FIN.
    HalfClosed,
    /// The session is being ended.
    Closing,
}

/// One session: two legs, paired.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionView {
    /// Unique in the life of the process.
    pub id: u64,
    /// Name of the listener that accepted it.
    pub listener: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since it was accepted, ms.
    pub age_ms: u64,
    /// Since a byte last moved on either leg, ms.
    pub idle_ms: u64,
    /// The peer of the client's connection, if that told by the PROXY protocol of another client.
    pub proxy: Option<SocketAddr>,
    /// Client to pulsegate.
    pub downstream: LegView,
    /// Pulsegate to the legacy service; absent while connecting.
    pub upstream: Option<LegView>,
    /// What ends the session next if nothing changes.
    pub timer: Option<TimerView>,
    /// The close reason, once the session is being ended.
    pub verdict: Option<&'static str>,
}

/// One session with all that is known of it.
#[derive(Debug, Serialize)]
pub struct SessionView {
    /// As in the list.
    #[serde(flatten)]
    pub connection: ConnectionView,
    /// The rest.
    #[serde(flatten)]
    pub detail: SessionDetail,
}

/// What is shown of a session that is looked at alone.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionDetail {
    /// Every clock that runs, the next to ring first.
    pub clocks: Vec<TimerView>,
    /// What the kernel says; absent without a connection, and for a unix socket.
    pub tcp_info: ByLeg<Option<TcpInfoView>>,
}

/// Fields of `TCP_INFO` beside those of [`LegView`], by their names in tcp(7), with their units.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the kernel's own words")]
pub struct TcpInfoView {
    pub last_data_sent_ms: u32,
    pub last_data_recv_ms: u32,
    pub last_ack_recv_ms: u32,
    pub rto_us: u32,
    pub backoff: u8,
    pub total_retrans: u32,
    pub rttvar_us: u32,
    pub min_rtt_us: u32,
    pub snd_cwnd: u32,
    /// Absent before Linux 5.4.
    pub snd_wnd: Option<u32>,
    pub bytes_acked: u64,
    pub bytes_received: u64,
}

/// One leg of a session.
#[derive(Clone, Debug, Serialize)]
pub struct LegView {
    /// Pulsegate's end.
    pub local: Option<SocketAddr>,
    /// The other end.
    pub peer: Option<SocketAddr>,
    /// The kernel's word for the connection state: `ESTAB`, `CLOSE-WAIT`, ...
    pub state: &'static str,
    /// A word of [`Condition`](crate::liveness::Condition).
    pub condition: &'static str,
    /// Since the last sign of life, ms.
    pub last_life_ms: u64,
    /// Bytes read from the peer.
    pub received_bytes: u64,
    /// Bytes written to the peer.
    pub sent_bytes: u64,
    /// Segments in flight.
    pub unacked: u32,
    /// Bytes queued and not sent.
    pub notsent_bytes: u32,
    /// Consecutive retransmissions of the oldest segment.
    pub retransmits: u32,
    /// Probes without an answer.
    pub probes: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
    /// What is known of heartbeats; absent where its peer is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<HeartbeatView>,
    /// What ends the session next because of this leg, if nothing more is heard of it.
    pub timer: Option<TimerView>,
    /// What is known of TLS; absent without it, or during the handshake.
    pub tls: Option<TlsView>,
}

/// TLS of one leg.
#[derive(Clone, Debug, Serialize)]
pub struct TlsView {
    /// `TLSv1.3`, `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite by its name at IANA.
    pub cipher: &'static str,
    /// Whether the peers knew each other from an earlier session.
    pub resumed: bool,
    /// The name that the client asked for (SNI).
    pub server_name: Option<String>,
    /// The protocol that was agreed on (ALPN).
    pub alpn: Option<String>,
    /// The first name of the peer's certificate (SAN, else CN), if it showed one.
    pub identity: Option<String>,
}

/// What is known of the heartbeats of a leg.
#[derive(Clone, Debug, Serialize)]
pub struct HeartbeatView {
    /// The protocol in which its peer is asked.
    pub profile: &'static str,
    /// `starting`: no complete exchange was seen yet; `ready`: a question may be asked; `busy`: the peer owes an
    /// answer to somebody else, or a message is incomplete; `asked`: an answer is waited for; `opaque`: nothing is
    /// asked any more.
    pub state: &'static str,
    /// Questions that were answered.
    pub answers: u32,
    /// Since the last answer, ms; absent where there was none.
    pub last_answer_ms: Option<u64>,
}

/// What fires next.
#[derive(Clone, Debug, Serialize)]
pub struct TimerView {
    /// The close reason the session would end with.
    pub reason: &'static str,
    /// In how many ms.
    pub in_ms: u64,
}

/// One endpoint of a listener's upstream.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointView {
    /// Name of the listener.
    pub listener: String,
    /// Its address.
    pub endpoint: String,
    /// The name that it was found by; absent where its address is configured.
    pub name: Option<String>,
    /// How it stands.
    pub state: EndpointState,
    /// For how long it has stood so, ms.
    pub since_ms: u64,
    /// Sessions that are connected to it, or are being connected.
    pub active_sessions: usize,
    /// Connects made.
    pub connects: u64,
    /// Connects that failed.
    pub failures: u64,
    /// Connects or sessions, whichever are more, that failed since the last that went well.
    pub consecutive_failures: u32,
    /// How often it was ejected.
    pub ejections: u64,
    /// How long it is ejected for yet, ms.
    pub ejected_for_ms: Option<u64>,
    /// Why checks have found it down.
    pub cause: Option<String>,
    /// The last check; absent where there was none.
    pub last_check: Option<CheckView>,
}

/// One check of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckView {
    /// How long ago its result came, ms.
    pub ago_ms: u64,
    /// Why it failed; absent: it passed.
    pub error: Option<String>,
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum EndpointState {
    /// New sessions use it.
    Up,
    /// Sessions failed there, one after the other: used only where no other one connects.
    Ejected,
    /// Checks have found it down: used only where no other one connects.
    Down,
}

/// What becomes of a session when it is verified and a peer is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSilent {
    /// The answer says so.
    #[default]
    Report,
    /// The session is ended at once, too.
    End,
}

/// What came of asking the peers of many sessions. A session counts by its worst leg: silent,
/// unknown, over, alive, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyList {
    /// Sessions whose peers were asked.
    pub asked: usize,
    /// Sessions whose peers answer.
    pub alive: usize,
    /// Sessions with a peer that answered no question.
    pub silent: usize,
    /// Sessions with a peer that could not be asked enough for a judgement.
    pub unknown: usize,
    /// Sessions that ended meanwhile.
    pub over: usize,
    /// Sessions that have ended or are being ended.
    pub closed: usize,
    /// Sessions whose turn did not come in the time for one request; ask again.
    pub skipped: usize,
    /// One entry for each session that was asked.
    pub sessions: Vec<VerifiedSession>,
}

/// What came of asking the peers of one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedSession {
    /// Unique in the life of the process.
    pub id: u64,
    /// Name of the listener that accepted it.
    pub listener: String,
    /// Client to pulsegate.
    pub downstream: VerifiedLeg,
    /// Pulsegate to the legacy service; absent where it is not connected.
    pub upstream: Option<VerifiedLeg>,
    /// The session has ended or is being ended.
    pub closed: bool,
}

/// What came of asking one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedLeg {
    /// The result.
    pub answer: AnswerWord,
    /// Since the peer was last heard, ms; absent where the connection is over.
    pub silent_ms: Option<u64>,
    /// Alive: `answered`, or `recent` where it was heard within the last second and not asked.
    /// Silent: the kind of question that stayed unanswered.
    pub evidence: Option<String>,
    /// How long the answer, or the proof that there is none, took, ms.
    pub took_ms: u64,
}

/// The result of asking a peer. The worst is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Display, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AnswerWord {
    /// Its kernel answers.
    Alive,
    /// The connection is over: it was reset, or ended meanwhile.
    Over,
    /// Not enough could be asked in the time there was: no judgement.
    Unknown,
    /// It left every question unanswered.
    Silent,
}

impl VerifiedSession {
    /// The worst answer of its legs.
    #[must_use]
    pub fn worst(&self) -> AnswerWord {
        let upstream = self.upstream.as_ref().map(|leg| leg.answer);
        upstream.map_or(self.downstream.answer, |u| u.max(self.downstream.answer))
    }
}

impl VerifyList {
    /// Counts; `wanted` is how many should have been asked.
    #[must_use]
    pub fn of(sessions: Vec<VerifiedSession>, wanted: usize) -> Self {
        let mut list = Self {
            asked: sessions.len(),
            skipped: wanted.saturating_sub(sessions.len()),
            closed: sessions.iter().filter(|s| s.closed).count(),
            ..Self::default()
        };
        for session in &sessions {
            *match session.worst() {
                AnswerWord::Alive => &mut list.alive,
                AnswerWord::Over => &mut list.over,
                AnswerWord::Unknown => &mut list.unknown,
                AnswerWord::Silent => &mut list.silent,
            } += 1;
        }
        list.sessions = sessions;
        list
    }
}

impl ConnectionView {
    /// The legs that exist.
    pub fn legs(&self) -> impl Iterator<Item = &LegView> {
        std::iter::once(&self.downstream).chain(&self.upstream)
    }
}
