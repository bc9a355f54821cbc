//! A session as the operator sees it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::{Phase, Session, State};
use crate::liveness::{CloseReason, LEGS, Leg, Policy, Time, Timer, Traffic};
use crate::net::listen;
use crate::sys;
use crate::tls::Established;
use crate::view::{
    self, Brief, ByLeg, ConnectionView, LegView, SessionDetail, Shown, TcpInfoView, TimerView,
    TlsView,
};

impl Shown for Session {
    fn id(&self) -> u64 {
        self.id
    }

    fn view(&self) -> Option<ConnectionView> {
        // Other threads begin sessions and move bytes meanwhile, so that a time they noted may lie
        // after this one.
        let now = sys::now();
        self.refresh(now);
        let state = self.lock();
        if state.fds == [-1; 2] {
            return None;
        }
        let policy = self.shown_policy(&state);
        let [downstream, upstream] = LEGS.map(|leg| self.leg_view(&state, leg, &policy, now));
        Some(ConnectionView {
            id: self.id,
            listener: self.params.name.to_string(),
            phase: shown_phase(&state),
            age_ms: (now - state.machine.started()).as_millis(),
            idle_ms: (now - state.machine.last_activity()).as_millis(),
            proxy: state
                .facts
                .as_ref()
                .and_then(|facts| facts.proxy)
                .map(unmapped),
            downstream,
            upstream: (state.fds[Leg::Upstream as usize] >= 0).then_some(upstream),
            timer: self
                .timers(&state, &policy, now)
                .min_by_key(|timer| timer.at)
                .map(|t| timer_view(t, now)),
            verdict: state.order.as_deref().map(|close| close.reason.into()),
        })
    }

    fn detail(&self) -> SessionDetail {
        let now = sys::now();
        let state = self.lock();
        let policy = self.shown_policy(&state);
        let mut timers: Vec<_> = self.timers(&state, &policy, now).collect();
        timers.sort_by_key(|timer| timer.at);
        let [downstream, upstream] = state
            .fds
            .map(|fd| sys::tcp_info(fd).ok().map(tcp_info_view));
        SessionDetail {
            clocks: timers.into_iter().map(|t| timer_view(t, now)).collect(),
            tcp_info: ByLeg {
                downstream,
                upstream,
            },
        }
    }

    fn brief(&self) -> Option<Brief> {
        let now = sys::now();
        let state = self.lock();
        if state.fds == [-1; 2] {
            return None;
        }
        let Traffic { received, sent } = self.counters.traffic();
        Some(Brief {
            listener: self.params.name.clone(),
            phase: shown_phase(&state),
            conditions: LEGS.map(|leg| state.machine.leg(leg).condition.into()),
            age_ms: (now - state.machine.started()).as_millis(),
            idle_ms: (now - state.machine.last_activity()).as_millis(),
            last_life_ms: LEGS
                .map(|leg| (now - state.machine.leg(leg).last_heard).as_millis())
                .into_iter()
                .fold(0, u64::max),
            received_bytes: received.iter().sum(),
            sent_bytes: sent.iter().sum(),
        })
    }

    fn peers(&self) -> [Option<SocketAddr>; 2] {
        let state = self.lock();
        let service = sys::sockopt::peer_address(state.fds[Leg::Upstream as usize]);
        [shown_client(state.client), service]
    }
}

/// An IPv4 address is shown as one, whatever socket it came by.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

/// The client; `None` where it came by a unix socket.
fn shown_client(client: (IpAddr, u16)) -> Option<SocketAddr> {
    let client = SocketAddr::from(client);
    (client != listen::NO_ADDRESS).then(|| unmapped(client))
}

fn shown_phase(state: &State) -> view::Phase {
    match state.phase {
        Phase::Queued => view::Phase::Queued,
        Phase::Preamble | Phase::Mute | Phase::Connecting | Phase::Securing => {
            view::Phase::Connecting
        }
        Phase::Open if state.machine.is_half_closed() => view::Phase::HalfClosed,
        Phase::Open => view::Phase::Open,
        Phase::Closing | Phase::Refused => view::Phase::Closing,
    }
}

impl Session {
    /// The client as it is shown.
    pub(super) fn shown_client(&self) -> Option<SocketAddr> {
        shown_client(self.lock().client)
    }

    fn shown_policy(&self, state: &State) -> Policy {
        let mut policy = self.params.policy.of_session(self.id).into_owned();
        for leg in LEGS.map(|leg| leg as usize) {
            // A local peer is never asked, so it is never found dead.
            policy.probes[leg] &= !is_local(&sys::tcp_info(state.fds[leg]));
        }
        policy
    }

    /// Every clock that runs.
    fn timers(&self, state: &State, policy: &Policy, now: Time) -> impl Iterator<Item = Timer> {
        let waiting = match state.phase {
            Phase::Queued => {
                let span = self.params.queue_timeout;
                span.map(|span| (CloseReason::QueueTimeout, state.machine.waits_since(), span))
            }
            phase @ (Phase::Connecting | Phase::Securing) => {
                let span = self.params.cluster.upstream().connect_timeout;
                let reason = match phase {
                    Phase::Securing => CloseReason::UpstreamTlsFailed,
                    _ => CloseReason::ConnectTimeout,
                };
                Some((reason, state.machine.waits_since(), span))
            }
            Phase::Preamble | Phase::Mute | Phase::Open | Phase::Closing | Phase::Refused => None,
        };
        let is_over = matches!(state.phase, Phase::Closing | Phase::Refused);
        let waiting = waiting.map(|(reason, since, span)| {
            let at = since + span.into();
            Timer { reason, at }
        });
        let of_peers = (!state.is_left_alone()).then(|| state.machine.timers(policy));
        let first_byte = self.first_byte_timer(state);
        let heartbeat = self.heartbeat_timer(state, now);
        let timers = waiting
            .into_iter()
            .chain(of_peers.into_iter().flatten())
            .chain(first_byte)
            .chain(heartbeat);
        timers.filter(move |_| !is_over)
    }

    fn leg_view(&self, state: &State, leg: Leg, policy: &Policy, now: Time) -> LegView {
        let fd = state.fds[leg as usize];
        let told = sys::tcp_info(fd);
        let is_local = is_local(&told);
        let info = told.unwrap_or_default();
        let Traffic { received, sent } = self.counters.traffic();
        let known = state.machine.leg(leg);
        LegView {
            local: sys::sockopt::local_address(fd).map(unmapped),
            peer: match leg {
                Leg::Downstream => shown_client(state.client),
                Leg::Upstream => sys::sockopt::peer_address(fd).map(unmapped),
            },
            state: if is_local {
                "UNIX"
            } else {
                sys::state_name(info.state)
            },
            condition: known.condition.into(),
            last_life_ms: (now - known.last_heard).as_millis(),
            received_bytes: received[leg as usize],
            sent_bytes: sent[leg as usize],
            unacked: info.unacked,
            notsent_bytes: info.notsent_bytes,
            retransmits: u32::from(info.retransmits),
            probes: u32::from(info.probes),
            rtt_us: info.rtt_us,
            heartbeat: self.heartbeat_view(state, leg, now),
            timer: (state.phase != Phase::Closing && !state.is_left_alone())
                .then(|| state.machine.leg_timer(policy, leg))
                .flatten()
                .map(|t| timer_view(t, now)),
            tls: state.tls(leg).map(TlsView::from),
        }
    }
}

/// Whether the kernel says so of a socket: it has no TCP to tell of.
fn is_local<T>(told: &io::Result<T>) -> bool {
    let is_unix = |error: &io::Error| error.raw_os_error() == Some(libc::EOPNOTSUPP);
    told.as_ref().is_err_and(is_unix)
}

fn timer_view(timer: Timer, now: Time) -> TimerView {
    TimerView {
        reason: timer.reason.into(),
        in_ms: (timer.at - now).as_millis(),
    }
}

fn tcp_info_view(info: sys::TcpInfo) -> TcpInfoView {
    TcpInfoView {
        last_data_sent_ms: info.last_data_sent_ms,
        last_data_recv_ms: info.last_data_recv_ms,
        last_ack_recv_ms: info.last_ack_recv_ms,
        rto_us: info.rto_us,
        backoff: info.backoff,
        total_retrans: info.total_retrans,
        rttvar_us: info.rttvar_us,
        min_rtt_us: info.min_rtt_us,
        snd_cwnd: info.snd_cwnd,
        snd_wnd: Some(info.snd_wnd).filter(|window| *window != sys::UNKNOWN_WINDOW),
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
    }
}

impl From<&Established> for TlsView {
    fn from(tls: &Established) -> Self {
        Self {
            version: tls.version.into(),
            cipher: tls.cipher,
            resumed: tls.is_resumed,
            server_name: tls.server_name.clone(),
            alpn: tls.alpn.clone(),
            identity: tls.identity.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Span, tests::params};
    use super::*;

    fn session(started: Time) -> Arc<Session> {
        let address = "127.0.0.1:1".parse().expect("valid");
        Session::new(1, Arc::new(params(address)), address, started)
    }

    #[test]
    fn a_client_of_ipv4_is_shown_as_one() {
        let shown = |ip: &str| shown_client((ip.parse().expect("valid"), 7)).map(|a| a.to_string());
        assert_eq!(shown("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7:7"));
        assert_eq!(shown("2001:db8::7").as_deref(), Some("[2001:db8::7]:7"));
        let local = (listen::NO_ADDRESS.ip(), listen::NO_ADDRESS.port());
        assert_eq!(shown_client(local), None);
    }

    /// It is accepted on another thread, perhaps after the time was read for a list.
    #[test]
    fn a_session_that_began_after_the_clock_was_read_is_new() {
        let session = session(sys::now() + Span::ms(60_000));
        // No socket, so that there is nothing to be asked of it.
        session.lock().fds[Leg::Downstream as usize] = i32::MAX;
        let view = session.view().expect("it has a leg");
        assert_eq!((view.age_ms, view.idle_ms), (0, 0));
        assert_eq!(view.downstream.last_life_ms, 0);
        session.lock().fds = [-1; 2];
        assert!(session.view().is_none(), "it has ended");
    }
}
