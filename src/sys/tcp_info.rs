//! `TCP_INFO` (tcp(7), `include/uapi/linux/tcp.h`).

use std::io;
use std::os::fd::RawFd;

use super::sockopt;

/// The kernel's struct up to the last field used here. The kernel fills what it knows and what
/// fits; fields that an older kernel lacks stay 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct TcpInfo {
    pub state: u8,
    pub ca_state: u8,
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub options: u8,
    pub wscale: u8,
    pub flags: u8,
    pub rto_us: u32,
    pub ato_us: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub fackets: u32,
    pub last_data_sent_ms: u32,
    pub last_ack_sent_ms: u32,
    pub last_data_recv_ms: u32,
    pub last_ack_recv_ms: u32,
    pub pmtu: u32,
    pub rcv_ssthresh: u32,
    pub rtt_us: u32,
    pub rttvar_us: u32,
    pub snd_ssthresh: u32,
    pub snd_cwnd: u32,
    pub advmss: u32,
    pub reordering: u32,
    pub rcv_rtt_us: u32,
    pub rcv_space: u32,
    pub total_retrans: u32,
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub notsent_bytes: u32,
    pub min_rtt_us: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub delivery_rate: u64,
    pub busy_time_us: u64,
    pub rwnd_limited_us: u64,
    pub sndbuf_limited_us: u64,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub rcv_ooopack: u32,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub rehash: u32,
    pub total_rto: u16,
    pub total_rto_recoveries: u16,
    pub total_rto_time_ms: u32,
}

/// Wider than a window can be (RFC 7323, 2.3).
pub const UNKNOWN_WINDOW: u32 = u32::MAX;

/// Asks the kernel about a connection (0.3 to 1 us).
///
/// # Errors
/// What getsockopt(2) says.
pub fn tcp_info(fd: RawFd) -> io::Result<TcpInfo> {
    let mut info = TcpInfo::default();
    let filled = sockopt::get(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(info.filled_up_to(filled))
}

impl TcpInfo {
    /// From the bytes that sock_diag(7) gives.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut info = Self::default();
        let known = bytes.len().min(size_of::<Self>());
        // SAFETY: both are valid for so many bytes and do not overlap; the fields are integers, for
        // which each bit pattern is a value.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut info).cast(), known);
        }
        info.filled_up_to(known)
    }

    /// Before Linux 5.4 the kernel does not tell the peer's window: it is [`UNKNOWN_WINDOW`] then,
    /// since 0 would be a closed one.
    fn filled_up_to(mut self, bytes: usize) -> Self {
        if bytes < std::mem::offset_of!(Self, snd_wnd) + size_of::<u32>() {
            self.snd_wnd = UNKNOWN_WINDOW;
        }
        self
    }
}

/// The word ss(8) uses for a state number (`include/net/tcp_states.h`).
#[must_use]
pub const fn state_name(state: u8) -> &'static str {
    match state {
        1 => "ESTAB",
        2 => "SYN-SENT",
        3 => "SYN-RECV",
        4 => "FIN-WAIT-1",
        5 => "FIN-WAIT-2",
        6 => "TIME-WAIT",
        7 => "CLOSED",
        8 => "CLOSE-WAIT",
        9 => "LAST-ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_an_old_kernel_does_not_tell_is_not_closed() {
        let before = std::mem::offset_of!(TcpInfo, snd_wnd);
        let old = TcpInfo::default().filled_up_to(before);
        assert_eq!(old.snd_wnd, UNKNOWN_WINDOW);
        let new = TcpInfo::default().filled_up_to(before + 4);
        assert_eq!(new.snd_wnd, 0);
    }
}
