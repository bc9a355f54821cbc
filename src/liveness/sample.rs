//! What is observed: plain data, translated from the kernel by `net`.

use super::policy::SLOWEST_QUESTION;
use super::reason::Evidence;
use super::time::Span;

/// Ages come from jiffies and are rounded; a shift this small is not a new sign of life.
pub const AGE_JITTER: Span = Span::ms(20);
/// A question has had its time after this, and after one and a half round trips.
pub const ANSWER_TAKES: Span = Span::ms(50);
/// But not longer than this.
const ANSWER_TAKES_AT_MOST: Span = Span::ms(1000);

/// The TCP states the verdict distinguishes (`enum` in `include/net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TcpState {
    /// Data flows both ways.
    #[default]
    Established,
    /// The peer said FIN, we did not.
    CloseWait,
    /// We said FIN, the peer has not acknowledged it.
    FinWait1,
    /// We said FIN, the peer acknowledged it and did not say FIN.
    FinWait2,
    /// Both said FIN, ours is not acknowledged (`CLOSING`, `LAST_ACK`).
    LastAck,
    /// Nothing is left to watch: both FINs are through, or the connection was reset.
    Closed,
}

impl TcpState {
    /// Whether exactly one side has said FIN.
    #[must_use]
    pub const fn is_half_closed(self) -> bool {
        matches!(self, Self::CloseWait | Self::FinWait1 | Self::FinWait2)
    }
}

/// The `TCP_INFO` fields of one leg that a verdict is made of (tcp(7), `include/uapi/linux/tcp.h`).
/// The age of what never happened may be that of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LegSample {
    /// Connection state.
    pub state: TcpState,
    /// Segments sent and not acknowledged (`tcpi_unacked`).
    pub unacked: u32,
    /// Consecutive retransmissions of the oldest segment (`tcpi_retransmits`).
    pub retransmits: u32,
    /// From the last retransmission to the next (`tcpi_rto`).
    pub rto: Span,
    /// Keepalive or window probes without an answer (`tcpi_probes`).
    pub probes: u32,
    /// How often the gap to the next question was doubled (`tcpi_backoff`).
    pub backoff: u8,
    /// Bytes queued and not yet sent (`tcpi_notsent_bytes`).
    pub notsent: u32,
    /// The peer's window is closed (`tcpi_snd_wnd` is 0).
    pub zero_window: bool,
    /// Since an acknowledgement came (`tcpi_last_ack_recv`).
    pub last_ack_age: Span,
    /// Since data came (`tcpi_last_data_recv`); since the connect when none ever came.
    pub last_data_age: Span,
    /// Since a segment with data was sent (`tcpi_last_data_sent`).
    pub last_sent_age: Span,
    /// How long data of ours has been waiting for acknowledgement, in all (`tcpi_busy_time`).
    pub busy: Span,
    /// Segments received, wrapping (`tcpi_segs_in`).
    pub segs_in: u32,
    /// Bytes the peer acknowledged (`tcpi_bytes_acked`); 1 for the SYN alone.
    pub bytes_acked: u64,
    /// Bytes received from the peer (`tcpi_bytes_received`).
    pub bytes_received: u64,
    /// Smoothed round-trip time, microseconds (`tcpi_rtt`).
    pub rtt_us: u32,
    /// How much it varies, microseconds (`tcpi_rttvar`).
    pub rttvar_us: u32,
    /// A local socket, of which the kernel tells the state only: its peer is heard at any time. The ages
    /// come from [`Traffic`].
    pub is_local: bool,
    /// The payload is wrapped (TLS). `bytes_received` is the payload that was read, and what has come on the
    /// wire and was not; the rest is of the wire.
    pub is_layered: bool,
    /// The last bytes, each way, may be a question and its answer ([`super::Pulse`]): their ages are not those
    /// of payload.
    pub is_asked: bool,
}

impl LegSample {
    /// Since the last acknowledgement or data.
    #[must_use]
    pub fn last_heard_age(&self) -> Span {
        self.last_ack_age.min(self.last_data_age)
    }

    /// Nothing of ours is on its way, so the kernel's questions are keepalive probes.
    pub(super) fn is_silent(&self) -> bool {
        self.unacked == 0 && self.notsent == 0
    }

    /// The peer has said FIN.
    #[must_use]
    pub fn said_fin(&self) -> bool {
        matches!(self.state, TcpState::CloseWait | TcpState::LastAck)
    }

    /// The peer has said FIN and is owed nothing: it may have forgotten the connection, and nobody
    /// is the worse for it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state == TcpState::CloseWait && self.is_silent()
    }

    /// The peer has shrunk the window that data of ours was on its way to. The kernel retransmits that
    /// data and does not count it (`tcp_retransmit_timer`, net/ipv4/tcp_timer.c).
    pub(super) fn is_shrunk(&self) -> bool {
        self.unacked > 0 && self.zero_window
    }

    /// Unanswered retransmissions of the oldest segment, as far as they are counted: where they are not,
    /// one that came after the last acknowledgement.
    pub(super) fn unanswered_retransmissions(&self) -> u32 {
        let uncounted = self.is_shrunk() && self.last_sent_age < self.last_ack_age;
        let counted = if self.unacked > 0 {
            self.retransmits
        } else {
            0
        };
        counted.max(uncounted.into())
    }

    /// The questions of the kernel that are unanswered, as far as it counts them; an answer sets them
    /// to 0. The first transmission is none of them: its answer may be on the way.
    pub(super) fn unanswered(&self) -> u32 {
        self.probes
            .saturating_add(self.unanswered_retransmissions())
    }

    /// What the kernel asks by.
    pub(super) fn question(&self) -> Evidence {
        if self.unacked > 0 {
            Evidence::Retransmit
        } else if self.notsent > 0 {
            Evidence::WindowProbe
        } else {
            Evidence::Keepalive
        }
    }

    /// From a transmission to the first retransmission (`tcp_set_rto`, net/ipv4/tcp_input.c).
    pub(super) fn usual_rto(&self) -> Span {
        let variation = (u64::from(self.rttvar_us) * 4).max(200_000);
        Span::ms((u64::from(self.rtt_us) + variation) / 1000)
    }

    /// The kernel's questions about what is in flight are to be no further apart, and need be no
    /// closer: on a slow path a retransmission of what is only queued makes it slower.
    pub(super) fn usual_gap(&self) -> Span {
        self.usual_rto().max(SLOWEST_QUESTION)
    }

    /// How long a question has to be unanswered.
    pub(super) fn answer_takes(&self) -> Span {
        Span::ms(u64::from(self.rtt_us) * 3 / 2000).clamp(ANSWER_TAKES, ANSWER_TAKES_AT_MOST)
    }

    /// What we sent last has been acknowledged, no data came after it, and some still may. The
    /// ages tell the order of two events only where they lie in different ticks of the kernel's
    /// clock. Of an answer and the next request within one tick the relay knows: it had read the
    /// answer when it wrote the request. (Were it written unread, they count as answered.) Of a layer
    /// the last data sent may be the end of the stream, which is no request.
    pub(super) fn awaits_answer(&self, answers_before: u64) -> bool {
        let may_answer = matches!(
            self.state,
            TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2
        );
        let is_request = !self.is_layered || self.state == TcpState::Established;
        let no_answer = self.bytes_received == answers_before
            || (is_request && self.last_sent_age < self.last_data_age);
        may_answer && self.is_silent() && no_answer
    }

    /// The first segments of ours are retransmitted, and none was ever acknowledged. If the
    /// peer's kernel speaks all the same, it repeats its SYN-ACK: it dropped our last word of the
    /// handshake because the accept queue was full (`tcp_check_req`, net/ipv4/tcp_minisocks.c).
    pub(super) fn took_nothing(&self) -> bool {
        !self.anything_taken() && self.unacked > 0 && self.retransmits >= 2
    }

    /// The peer has acknowledged or sent a byte at some time; the SYN counts as one.
    pub(super) fn anything_taken(&self) -> bool {
        self.bytes_acked > 1 || self.bytes_received > 0
    }
}

/// The relay's own counters: what it took from each leg and gave to it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes read from the leg.
    pub received: [u64; 2],
    /// Bytes written to the leg.
    pub sent: [u64; 2],
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        for leg in 0..2 {
            self.received[leg] += other.received[leg];
            self.sent[leg] += other.sent[leg];
        }
    }
}

/// One observation of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Observation {
    /// Indexed by [`super::Leg`]; `None` when the kernel could not be asked or the leg is closed.
    pub legs: [Option<LegSample>; 2],
    /// The relay's counters.
    pub traffic: Traffic,
    /// Bytes of payload that the relay had read from the upstream when it last wrote to it.
    pub answers_before: u64,
}
