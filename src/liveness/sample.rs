//! What a look sees: plain data, translated from the kernel by `net`.

use super::Millis;

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
/// Ages in milliseconds before the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LegSample {
    /// Connection state.
    pub state: TcpState,
    /// Segments sent and not acknowledged (`tcpi_unacked`).
    pub unacked: u32,
    /// Consecutive retransmissions of the oldest segment (`tcpi_retransmits`).
    pub retransmits: u32,
    /// Segments repeated for whatever reason, in all, wrapping (`tcpi_total_retrans`).
    pub repeated: u32,
    /// From the last retransmission to the next, ms (`tcpi_rto`).
    pub rto_ms: Millis,
    /// How long retransmissions stayed unanswered, in all, wrapping, ms (`tcpi_total_rto_time`,
    /// Linux 6.7; else 0).
    pub timeouts_ms: u32,
    /// How often they began, in all, wrapping (`tcpi_total_rto_recoveries`, Linux 6.7; else 0).
    pub timeouts: u16,
    /// Nothing of what is in flight counts as lost (`tcpi_ca_state` is Open).
    pub nothing_lost: bool,
    /// The peer would have said so if later data had come than what is missing, and has not
    /// (`tcpi_options`, `tcpi_sacked`).
    pub no_hole_reported: bool,
    /// Keepalive or window probes without an answer (`tcpi_probes`).
    pub probes: u32,
    /// Bytes queued and not yet sent (`tcpi_notsent_bytes`).
    pub notsent: u32,
    /// The peer's window is closed (`tcpi_snd_wnd` is 0).
    pub zero_window: bool,
    /// Since an acknowledgement came (`tcpi_last_ack_recv`).
    pub last_ack_age: Millis,
    /// Since data came (`tcpi_last_data_recv`); since the connect when none ever came.
    pub last_data_age: Millis,
    /// Since a segment with data was sent (`tcpi_last_data_sent`).
    pub last_sent_age: Millis,
    /// How long data of ours has been waiting for acknowledgement, in all (`tcpi_busy_time`).
    pub busy_ms: Millis,
    /// Segments received, wrapping (`tcpi_segs_in`).
    pub segs_in: u32,
    /// Bytes the peer acknowledged (`tcpi_bytes_acked`); 1 for the SYN alone.
    pub bytes_acked: u64,
    /// Bytes received from the peer (`tcpi_bytes_received`).
    pub bytes_received: u64,
    /// Smoothed round-trip time, microseconds (`tcpi_rtt`).
    pub rtt_us: u32,
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

/// One look at a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Look {
    /// Indexed by [`super::Leg`]; `None` when the kernel could not be asked or the leg is closed.
    pub legs: [Option<LegSample>; 2],
    /// The relay's counters.
    pub traffic: Traffic,
    /// Bytes that the relay had read from the upstream when it last wrote to it.
    pub answers_before: u64,
}
