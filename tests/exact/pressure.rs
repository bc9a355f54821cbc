//! The real binary: many sessions at once that move bytes both ways, beside threads that want every
//! processor for themselves. Nothing is lost, and no peer looks dead because it or pulsegate has to
//! wait for its turn.

use std::net::{SocketAddr, TcpStream as StdStream};
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::task::JoinSet;

use crate::MIB;
use crate::peer::{self, Report, Saw, Side, Step};
use crate::proxy::{Pulsegate, bytes_on, figure};
use crate::rig::{self, SMALL_SEGMENT};
use crate::support::under_cpu_pressure;

const SESSIONS: usize = 50;
/// Each way in each session.
const BYTES: usize = 4 * MIB;
/// Longer than a dead peer would be given.
const LONG_PAUSE_MS: u64 = 3_500;
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn many_sessions_both_ways_under_cpu_pressure() {
    let mut runner = crate::runner(crate::seed("pressure"), 1);
    let mut side = || whole(crate::side().new_tree(&mut runner).unwrap().current());
    let mut sessions: Vec<_> = (0..SESSIONS).map(|_| [side(), side()]).collect();
    for (number, sides) in sessions.iter_mut().enumerate().step_by(5) {
        sides[number % 2].pauses.push((MIB, LONG_PAUSE_MS));
    }

    let service = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    service.bind(&any.into()).unwrap();
    service.set_tcp_mss(SMALL_SEGMENT).unwrap();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    service.listen(128).unwrap();
    let upstream = service.local_addr().unwrap().as_socket().unwrap();
    let flags = ["--detect-within", "3s", "--probe-interval", "1s"];
    let proxy = Pulsegate::start(upstream, &flags);

    let reports = under_cpu_pressure(|| {
        let open = |sides| (open(&service, &proxy.address.into(), &sides), sides);
        let ends: Vec<_> = sessions.into_iter().map(open).collect();
        rig::runtime().block_on(play(ends))
    });
    assert_eq!(reports.len(), 2 * SESSIONS);
    for report in reports {
        let whole = report.received == BYTES as u64 && report.wrong.is_none();
        assert!(whole && report.saw == Saw::Fin, "{report:?}");
    }
    let metrics = proxy.expect_all_closed("finished", SESSIONS);
    let total = figure(SESSIONS * BYTES);
    for leg in ["downstream", "upstream"] {
        assert_eq!(bytes_on(&metrics, leg), (total, total), "{leg}");
    }
}

/// The same, sending as much as every other one.
fn whole(mut side: Side) -> Side {
    let urgent = side.steps.iter().filter(|s| matches!(s, Step::Urgent));
    let mut left = BYTES - urgent.count();
    for step in &mut side.steps {
        if let Step::Send(n) = step {
            *n = left.min(*n);
            left -= *n;
        }
    }
    side.steps.push(Step::Send(left));
    side
}

/// The client and the service of one session: the next one is opened only when both are known.
fn open(service: &Socket, proxy: &SockAddr, sides: &[Side; 2]) -> [StdStream; 2] {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(bytes) = sides[0].receive_buffer {
        client.set_tcp_mss(SMALL_SEGMENT).unwrap();
        client.set_recv_buffer_size(bytes).unwrap();
    }
    // Inherited by what is accepted.
    let bytes = sides[1].receive_buffer.unwrap_or(MIB);
    service.set_recv_buffer_size(bytes).unwrap();
    client.connect_timeout(proxy, PATIENCE).unwrap();
    [client, service.accept().unwrap().0].map(|socket| {
        socket.set_nonblocking(true).unwrap();
        socket.set_out_of_band_inline(true).unwrap();
        socket.into()
    })
}

/// All of them at once.
async fn play(sessions: Vec<([StdStream; 2], [Side; 2])>) -> Vec<Report> {
    let mut tasks = JoinSet::new();
    for (number, (sockets, sides)) in sessions.into_iter().enumerate() {
        for (i, (socket, side)) in sockets.into_iter().zip(sides).enumerate() {
            let socket = tokio::net::TcpStream::from_std(socket).unwrap();
            tasks.spawn(async move { peer::play(socket, &side, 2 * number + i).await });
        }
    }
    let played = tokio::time::timeout(PATIENCE, tasks.join_all()).await;
    played.expect("a session is stuck")
}
