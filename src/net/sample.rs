//! From the kernel's struct to the plain data that the verdict is made of.

use std::os::fd::RawFd;

use crate::liveness::{LegSample, Span, TcpState};
use crate::sys::sockopt::Hangup;
use crate::sys::{self, TcpInfo};

/// Asks the kernel about one leg; `None` if it cannot say.
#[must_use]
pub fn sample(fd: RawFd) -> Option<LegSample> {
    match sys::tcp_info(fd) {
        Ok(info) => Some(from_info(&info)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => local(fd),
        Err(_) => None,
    }
}

/// A local socket (unix(7)): its peer lives until the socket says otherwise, for one kernel knows both.
fn local(fd: RawFd) -> Option<LegSample> {
    let state = match sys::sockopt::hangup(fd).ok()? {
        Hangup::None => TcpState::Established,
        Hangup::OfPeer => TcpState::CloseWait,
        Hangup::OfBoth => TcpState::Closed,
    };
    Some(LegSample {
        state,
        is_local: true,
        ..LegSample::default()
    })
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
        is_local: false,
        is_layered: false,
        is_asked: false,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "waits in a thread of its own")]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;
    use crate::liveness::{Action, Condition, Judge, Leg, LegVerdict, Policy};
    use crate::net::options;
    use crate::sys::sockopt;

    /// Observes when it is due, or a little sooner, until `done`.
    fn until(
        judge: &mut Judge,
        stream: &TcpStream,
        done: impl Fn(&Judge, &LegVerdict) -> bool,
    ) -> LegVerdict {
        let policy = Policy::without_limits(Span::ms(2000), Span::ms(1000));
        let end = sys::now() + Span::ms(20_000);
        loop {
            let now = sys::now();
            let sample = sample(stream.as_raw_fd()).expect("it is open");
            let verdict = judge.observe(now, &policy, &sample);
            assert_eq!(verdict.gone, None, "the peer lives");
            if done(judge, &verdict) {
                return verdict;
            }
            assert!(now < end, "{judge:?}, {sample:?}");
            let pause = verdict.next.expect("it is open") - now;
            std::thread::sleep(Duration::from(pause.min(Span::ms(100))));
        }
    }

    /// The judge of one leg needs no session, and no connection that pulsegate made.
    #[test]
    fn a_foreign_connection_is_judged() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let address = listener.local_addr().expect("bound");
        let mut near = TcpStream::connect(address).expect("connected");
        let _reads_nothing = listener.accept().expect("accepted");
        let fd = near.as_raw_fd();
        sockopt::set_int(fd, sockopt::KEEPALIVE, 1).expect("set");
        std::thread::sleep(Duration::from_millis(300));
        let before = sample(fd).expect("open");
        let mut judge = Judge::adopt(sys::now(), Leg::Upstream, &before);
        let adopted = judge.last_heard();
        assert!(sys::now() - adopted >= Span::ms(280), "its past counts");
        until(&mut judge, &near, |_, v| v.action == Some(Action::ProbeNow));
        assert_eq!(judge.last_heard(), adopted);
        options::probe_now(fd).expect("set");
        let answered = until(&mut judge, &near, |judge, _| judge.last_heard() > adopted);
        assert_eq!(answered.action, Some(Action::ProbeNormally));
        assert_eq!(judge.condition(), Condition::Alive);
        near.set_nonblocking(true).expect("set");
        while near.write(&[0; 65_536]).is_ok() {}
        let stalled = |judge: &Judge, _: &LegVerdict| judge.condition() == Condition::Stalled;
        until(&mut judge, &near, stalled);
    }
}
