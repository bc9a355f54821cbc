//! A relay between two peers, driven as a session drives it.

use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use pulsegate::liveness::{LEGS, Leg, Traffic};
use pulsegate::net::leg::LegStream;
use pulsegate::net::stream::TcpStream;
use pulsegate::relay::{Counters, End, Relay};
use pulsegate::sys::sockopt;
use socket2::{Domain, Socket, Type};

use crate::peer::{self, Ending, Report, Saw, Side};

/// For a whole run; a generous one, since the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
/// Small buffers need small segments, or they wait for the timers of TCP.
pub const SMALL_SEGMENT: u32 = 1400;

/// One run: `sides` are the client and the service.
#[derive(Clone, Debug)]
pub struct Plan {
    pub sides: [Side; 2],
    pub low_water: bool,
    /// Of the relay's own legs.
    pub send_buffers: [Option<usize>; 2],
    /// Give the leg up when so many bytes came from it.
    pub drain: Option<(Leg, u64)>,
}

impl Plan {
    pub fn of(sides: [Side; 2]) -> Self {
        Self {
            sides,
            low_water: true,
            send_buffers: [None; 2],
            drain: None,
        }
    }
}

/// What a run has shown.
#[derive(Debug)]
pub struct Seen {
    pub traffic: Traffic,
    pub peers: [Report; 2],
    /// How often a source got the low-water mark, and lost it.
    pub entered: usize,
    pub left: usize,
    /// The leg that was gone.
    pub gone: Option<Leg>,
}

pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// A connected pair on the loopback: the relay's end, and the peer's.
pub fn pair(receive_buffer: Option<usize>, send_buffer: Option<usize>) -> (Socket, StdStream) {
    let small = receive_buffer.is_some() || send_buffer.is_some();
    let socket = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if small {
            socket.set_tcp_mss(SMALL_SEGMENT).unwrap();
        }
        socket
    };
    let listener = socket();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    let listener = TcpListener::from(listener);
    let peer = socket();
    if let Some(bytes) = receive_buffer {
        peer.set_recv_buffer_size(bytes).unwrap();
    }
    peer.connect(&listener.local_addr().unwrap().into())
        .unwrap();
    let ours = Socket::from(listener.accept().unwrap().0);
    if let Some(bytes) = send_buffer {
        ours.set_send_buffer_size(bytes).unwrap();
    }
    for socket in [&ours, &peer] {
        socket.set_nonblocking(true).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        socket.set_out_of_band_inline(true).unwrap();
    }
    (ours, peer.into())
}

/// Runs the plan in threads of its own.
pub fn run(plan: &Plan) -> Seen {
    run_when(plan, || {})
}

/// The same; `ready` is called when every descriptor is there and no byte has been sent.
pub fn run_when(plan: &Plan, ready: impl FnOnce()) -> Seen {
    let pairs = LEGS.map(|leg| {
        let i = leg as usize;
        pair(plan.sides[i].receive_buffer, plan.send_buffers[i])
    });
    let [(down, client), (up, service)] = pairs;
    let start = Barrier::new(3);
    // Peers that have ended.
    let over = AtomicUsize::new(0);
    thread::scope(|scope| {
        let play = |socket: StdStream, i: usize| {
            let (start, over, side) = (&start, &over, &plan.sides[i]);
            scope.spawn(move || {
                let report = runtime().block_on(async {
                    let socket = tokio::net::TcpStream::from_std(socket).unwrap();
                    // Here are the descriptors; then, here we go.
                    start.wait();
                    start.wait();
                    tokio::time::timeout(PATIENCE, peer::play(socket, side, i)).await
                });
                over.fetch_add(1, Ordering::Relaxed);
                report.expect("a peer is stuck")
            })
        };
        let peers = [play(client, 0), play(service, 1)];
        let mut seen = runtime().block_on(async {
            let legs =
                [down, up].map(|socket| LegStream::from(TcpStream::new(socket.into()).unwrap()));
            start.wait();
            ready();
            start.wait();
            let relayed = relay(plan, legs, &over);
            tokio::time::timeout(PATIENCE, relayed)
                .await
                .expect("the relay is stuck")
        });
        seen.peers = peers.map(|peer| peer.join().unwrap());
        seen
    })
}

async fn relay(plan: &Plan, mut legs: [LegStream; 2], over: &AtomicUsize) -> Seen {
    let counters = Counters::default();
    let mut relay = Relay::new(plan.low_water);
    let mut seen = Seen {
        traffic: Traffic::default(),
        peers: Default::default(),
        entered: 0,
        left: 0,
        gone: None,
    };
    match drive(plan, &mut relay, &mut legs, &counters, &mut seen).await {
        End::Finished { last } => {
            poll_fn(|cx| legs[last as usize].poll_finish(cx))
                .await
                .unwrap();
            while over.load(Ordering::Relaxed) < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        End::Failed { leg, .. } => {
            seen.gone = Some(leg);
            abort(plan, &mut relay, legs, &counters, leg).await;
        }
    }
    seen.traffic = counters.traffic();
    seen
}

async fn drive(
    plan: &Plan,
    relay: &mut Relay,
    legs: &mut [LegStream; 2],
    counters: &Counters,
    seen: &mut Seen,
) -> End {
    let mut marked = [false; 2];
    poll_fn(|cx| {
        let polled = match given_up(plan, counters) {
            None => relay.poll(legs, counters, cx),
            Some(end) => return Poll::Ready(end),
        };
        for leg in LEGS {
            let mark = sockopt::get_int(legs[leg as usize].socket().raw_fd(), sockopt::RCVLOWAT);
            let now = mark.is_ok_and(|mark| mark > 1);
            let before = std::mem::replace(&mut marked[leg as usize], now);
            seen.entered += usize::from(now && !before);
            seen.left += usize::from(before && !now);
        }
        if let Some(end) = given_up(plan, counters) {
            return Poll::Ready(end);
        }
        if polled.is_ready() {
            return polled;
        }
        for leg in LEGS {
            if relay.unread(leg)
                && let Poll::Ready(error) = legs[leg as usize].socket().poll_failed(cx)
            {
                return Poll::Ready(End::Failed { leg, error });
            }
        }
        Poll::Pending
    })
    .await
}

/// The end by order, when it is time for it.
fn given_up(plan: &Plan, counters: &Counters) -> Option<End> {
    let (leg, at) = plan.drain?;
    let error = std::io::Error::other("given up");
    (counters.traffic().received[leg as usize] >= at).then_some(End::Failed { leg, error })
}

/// Delivers what the leg that is gone has sent, then resets both.
async fn abort(
    plan: &Plan,
    relay: &mut Relay,
    mut legs: [LegStream; 2],
    counters: &Counters,
    gone: Leg,
) {
    let total = plan.sides[gone as usize].total();
    loop {
        let mut left = usize::MAX;
        poll_fn(|cx| relay.poll_drain(gone, &mut legs, counters, &mut left, cx)).await;
        // A peer that was given up while it lived goes on.
        if plan.drain.is_none() || counters.traffic().received[gone as usize] >= total {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while !legs[gone.other() as usize].is_delivered() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for leg in &legs {
        sockopt::arm_abort(leg.socket().raw_fd()).unwrap();
    }
}

/// Whether the plan was carried out to the byte.
pub fn judge(plan: &Plan, seen: &Seen) -> Result<(), String> {
    let ends = plan.sides.each_ref().map(|side| side.ending);
    let resets = LEGS
        .into_iter()
        .find(|leg| ends[*leg as usize] == Ending::Reset);
    let gone = plan.drain.map(|(leg, _)| leg).or(resets);
    let expect = |right: bool, what: &str| {
        let story = || {
            format!(
                "{what}: {seen:?}, {:?}",
                plan.sides.each_ref().map(Side::total)
            )
        };
        right.then_some(()).ok_or_else(story)
    };
    expect(seen.gone == gone, "the end")?;
    for source in LEGS {
        let (s, d) = (source as usize, source.other() as usize);
        let (total, report) = (plan.sides[s].total(), &seen.peers[d]);
        let (received, sent) = (seen.traffic.received[s], seen.traffic.sent[d]);
        expect(report.wrong.is_none(), "a wrong byte")?;
        if gone.is_none_or(|gone| gone == source) {
            expect(report.received == total, "bytes")?;
            expect(received == total && sent == total, "counters")?;
        } else {
            expect(report.received <= sent, "more than was sent")?;
            expect(sent <= received && received <= total, "counters")?;
        }
        let saw = if gone.is_some() { Saw::Reset } else { Saw::Fin };
        let hidden = report.write_failed && report.saw == Saw::Fin;
        // A FIN may have been passed on before its source was given up.
        let abandoned = plan.drain.is_some() && report.saw == Saw::Fin;
        let abandoned = abandoned || gone.is_some_and(|gone| gone != source);
        expect(
            report.saw == saw || hidden || abandoned,
            "the end of a stream",
        )?;
    }
    Ok(())
}
