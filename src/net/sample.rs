//! From the kernel's struct to the plain data that the verdict is made of.

use std::os::fd::RawFd;

use crate::liveness::{LegSample, Span, TcpState};
use crate::sys::{self, TcpInfo};

/// Asks the kernel about one leg; `None` if it cannot say.
#[must_use]
pub fn sample(fd: RawFd) -> Option<LegSample> {
    sys::tcp_info(fd).ok().map(|info| from_info(&info))
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
        rto: Span::ms((info.rto_us / 1000).into()),
        probes: u32::from(info.probes),
        backoff: info.backoff,
        notsent: info.notsent_bytes,
        zero_window: info.snd_wnd == 0,
        last_ack_age: Span::ms(info.last_ack_recv_ms.into()),
        last_data_age: Span::ms(info.last_data_recv_ms.into()),
        last_sent_age: Span::ms(info.last_data_sent_ms.into()),
        busy: Span::ms(info.busy_time_us / 1000),
        segs_in: info.segs_in,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
        rtt_us: info.rtt_us,
        rttvar_us: info.rttvar_us,
    }
}
