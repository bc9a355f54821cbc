//! From the kernel's struct to the plain data that the verdict is made of.

use std::os::fd::RawFd;

use super::options::QUESTION_GAP_MS;
use crate::liveness::{LegSample, Millis, TcpState, window_probe_gap};
use crate::sys::{self, TcpInfo, sock_diag, sockopt};

/// The longest gap where the kernel has no `TCP_RTO_MAX_MS` to read, ms.
const LONGEST_GAP: Millis = 120_000;

/// Asks the kernel about one leg; `None` if it cannot say.
#[must_use]
pub fn sample(fd: RawFd) -> Option<LegSample> {
    sys::tcp_info(fd).ok().map(|info| from_info(&info))
}

/// How long ago the kernel last asked about the closed window of a leg, ms; `None` where it did not,
/// or does not say when. It keeps the time of its next question only, but the gap between the two
/// is known.
#[must_use]
pub fn window_probe_age(fd: RawFd) -> Option<Millis> {
    let info = sys::tcp_info(fd).ok()?;
    let waits = info.unacked == 0 && info.notsent_bytes > 0;
    // Each question doubles the gap: before the first one there is no backoff.
    if !waits || info.probes == 0 || info.backoff == 0 {
        return None;
    }
    let (local, peer) = (sockopt::local_address(fd)?, sockopt::peer_address(fd)?);
    let next = sock_diag::until_window_probe(local, peer).ok()??;
    let longest = match sockopt::get_int(fd, sockopt::RTO_MAX_MS) {
        Ok(QUESTION_GAP_MS) => u64::from(QUESTION_GAP_MS.unsigned_abs()),
        // It was raised, and may have been another when the next question was set.
        Ok(_) => return None,
        Err(_) => LONGEST_GAP,
    };
    let rto_ms = Millis::from(info.rto_us / 1000);
    window_probe_gap(rto_ms, info.backoff.into(), longest).checked_sub(next)
}

/// Translates the kernel's struct.
#[must_use]
pub fn from_info(info: &TcpInfo) -> LegSample {
    LegSample {
        state: match info.state {
            1..=3 => TcpState::Established,
            4 => TcpState::FinWait1,
            5 => TcpState::FinWait2,
            8 => TcpState::CloseWait,
            9 | 11 => TcpState::LastAck,
            _ => TcpState::Closed,
        },
        unacked: info.unacked,
        retransmits: u32::from(info.retransmits),
        rto_ms: u64::from(info.rto_us / 1000),
        probes: u32::from(info.probes),
        backoff: info.backoff,
        notsent: info.notsent_bytes,
        zero_window: info.snd_wnd == 0,
        last_ack_age: u64::from(info.last_ack_recv_ms),
        last_data_age: u64::from(info.last_data_recv_ms),
        last_sent_age: u64::from(info.last_data_sent_ms),
        busy_ms: info.busy_time_us / 1000,
        segs_in: info.segs_in,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
        rtt_us: info.rtt_us,
    }
}
