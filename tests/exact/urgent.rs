//! TCP urgent data: recv(2) stops at its mark, splice(2) does not pass it, and a socket without
//! `SO_OOBINLINE` loses the byte. Nothing is lost, nothing hangs, no end is taken for granted, and
//! the peer gets the mark where the sender had it.

use std::future::poll_fn;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream as StdStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use pulsegate::liveness::LEGS;
use pulsegate::net::leg::LegStream;
use pulsegate::net::stream::TcpStream;
use pulsegate::relay::{Counters, End, Relay};
use pulsegate::sys::sockopt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockRef;

use crate::MIB;
use crate::peer::{Side, Step, pattern};
use crate::proxy::Pulsegate;
use crate::rig::{self, Plan, pair, run, runtime};

const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// What is sent at once.
#[derive(Clone)]
enum Part {
    Plain(Vec<u8>),
    /// The last byte is the urgent one.
    Urgent(Vec<u8>),
}

/// What a reader without `SO_OOBINLINE` gets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    plain: Vec<u8>,
    urgent: Vec<u8>,
    /// How many plain bytes were before the mark.
    mark: Option<usize>,
}

/// Telnet's Synch around an abort, as an old FTP client sends it.
fn telnet() -> Vec<Part> {
    vec![
        Part::Plain(b"LIST\r\n".to_vec()),
        Part::Urgent(b"\xff\xf4\xf2".to_vec()),
        Part::Plain(b"ABOR\r\n".to_vec()),
    ]
}

fn telnet_got() -> Got {
    Got {
        plain: b"LIST\r\n\xff\xf4ABOR\r\n".to_vec(),
        urgent: b"\xf2".to_vec(),
        mark: Some(8),
    }
}

fn bytes(n: usize) -> Part {
    Part::Plain(pattern(0, 0).iter().copied().cycle().take(n).collect())
}

fn send(mut to: &StdStream, parts: &[Part], apart: Duration) {
    for part in parts {
        match part {
            Part::Plain(bytes) => to.write_all(bytes).unwrap(),
            Part::Urgent(bytes) => {
                let sent = SockRef::from(to).send_out_of_band(bytes).unwrap();
                assert_eq!(sent, bytes.len());
            }
        }
        thread::sleep(apart);
    }
}

/// Reads so many bytes or to the end, and urgent bytes as soon as they are announced.
fn receive(from: &StdStream, most: usize) -> Got {
    let mut got = Got::default();
    let mut buffer = vec![0; MIB];
    while got.plain.len() + got.urgent.len() < most {
        let mut polled = [PollFd::new(from, PollFlags::IN | PollFlags::PRI)];
        if poll(&mut polled, Some(&PATIENCE)).unwrap() == 0 {
            eprintln!("nothing comes");
            break;
        }
        if polled[0].revents().contains(PollFlags::PRI) {
            let mut byte = [0];
            if rustix::net::recv(from, &mut byte, RecvFlags::OOB).is_ok() {
                got.urgent.extend_from_slice(&byte);
            }
        }
        if sockopt::at_urgent_mark(from.as_raw_fd()) {
            got.mark = Some(got.plain.len());
        }
        match rustix::net::recv(from, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => break,
            Ok((n, _)) => got.plain.extend_from_slice(&buffer[..n]),
            Err(error) => assert_eq!(error, Errno::AGAIN),
        }
    }
    got
}

/// What comes out of a relay in each direction, when both ends send this.
fn relayed(parts: [&[Part]; 2], low_water: bool) -> [Got; 2] {
    let [(down, client), (up, service)] = [pair(None, None), pair(None, None)];
    thread::scope(|scope| {
        scope.spawn(move || {
            runtime().block_on(async {
                let mut legs = [down, up]
                    .map(|socket| LegStream::from(TcpStream::new(socket.into()).unwrap()));
                let (mut relay, counters) = (Relay::new(low_water), Counters::default());
                let end = poll_fn(|cx| relay.poll(&mut legs, &counters, cx)).await;
                assert!(matches!(end, End::Finished { .. }), "{end:?}");
            });
        });
        let ends = [(client, parts[0]), (service, parts[1])];
        let readers = ends.map(|(end, parts)| {
            end.set_nonblocking(false).unwrap();
            SockRef::from(&end).set_out_of_band_inline(false).unwrap();
            let sender = end.try_clone().unwrap();
            scope.spawn(move || {
                send(&sender, parts, Duration::ZERO);
                sender.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || receive(&end, usize::MAX))
        });
        let [at_client, at_service] = readers.map(|reader| reader.join().unwrap());
        [at_service, at_client]
    })
}

#[test]
fn the_mark_of_small_messages_is_passed_on() {
    for _ in 0..50 {
        let [up, down] = relayed([&telnet(), &telnet()], true);
        assert_eq!(up, telnet_got());
        assert_eq!(down, telnet_got());
    }
}

/// The mark before, at and behind what looks like bulk; also right before the FIN.
#[test]
fn the_mark_of_a_bulk_stream_is_passed_on() {
    for (before, behind) in [
        (8 * MIB, 3 * MIB),
        (8 * MIB, 0),
        (0, 8 * MIB),
        (65_536, 65_536),
    ] {
        let parts = [bytes(before), Part::Urgent(b"!".to_vec()), bytes(behind)];
        let whole = bytes(before)
            .plain()
            .into_iter()
            .chain(bytes(behind).plain());
        let whole: Vec<_> = whole.collect();
        for low_water in [true, false] {
            // One way, and both ways at once.
            for other in [&[][..], &parts[..]] {
                let [up, down] = relayed([&parts, other], low_water);
                let ways = [(up, &parts[..]), (down, other)];
                for (got, _) in ways.iter().filter(|(_, sent)| !sent.is_empty()) {
                    let case = format!("{before} and {behind} bytes, {low_water}");
                    assert!(got.plain == whole, "{case}: {} bytes", got.plain.len());
                    assert_eq!(got.urgent, b"!", "{case}");
                    assert_eq!(got.mark, Some(before), "{case}");
                }
            }
        }
    }
}

impl Part {
    fn plain(self) -> Vec<u8> {
        match self {
            Self::Plain(bytes) | Self::Urgent(bytes) => bytes,
        }
    }
}

/// Readers with `SO_OOBINLINE` here: each byte is in the stream.
#[test]
fn urgent_bytes_in_quick_succession_are_not_lost() {
    let side = |rest| {
        let mut steps = [Step::Send(5), Step::Urgent, Step::Urgent].repeat(300);
        steps.extend([Step::Send(rest), Step::Urgent]);
        Side::sends(steps)
    };
    for rest in [1, 4 * MIB] {
        let plan = Plan::of([side(rest), side(rest)]);
        rig::judge(&plan, &run(&plan)).unwrap();
    }
}

#[test]
fn urgent_bytes_to_a_stalled_reader_are_not_lost() {
    for leg in LEGS {
        let mut steps = vec![Step::Send(2 * MIB), Step::Urgent];
        // Into the back-pressure, and when it is over.
        steps.extend([Step::Send(10), Step::Urgent].repeat(50));
        steps.extend([Step::Pause(Duration::from_millis(300)), Step::Urgent]);
        let mut plan = Plan::of([Side::sends(vec![]), Side::sends(vec![])]);
        plan.sides[leg as usize].steps = steps;
        let reader = &mut plan.sides[leg.other() as usize];
        reader.receive_buffer = Some(16_384);
        reader.pauses = vec![(0, 250), (MIB, 100)];
        plan.send_buffers[leg.other() as usize] = Some(4_608);
        rig::judge(&plan, &run(&plan)).unwrap();
    }
}

/// Through the real binary. Both ends send and say FIN at once, or each waits for the other.
fn session(ends: [StdStream; 2], parts: &[Part], at_once: bool, apart: Duration) -> [Got; 2] {
    let total = parts.iter().cloned().map(|part| part.plain().len()).sum();
    let [client, service] = &ends;
    thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let got = (!at_once).then(|| receive(service, total));
            let sending = scope.spawn(move || send(service, parts, apart));
            let got = got.unwrap_or_else(|| receive(service, usize::MAX));
            sending.join().unwrap();
            service.shutdown(Shutdown::Write).unwrap();
            got
        });
        let sending = scope.spawn(move || {
            send(client, parts, apart);
            if at_once {
                client.shutdown(Shutdown::Write).unwrap();
            }
        });
        let got = receive(client, if at_once { usize::MAX } else { total });
        sending.join().unwrap();
        if !at_once {
            client.shutdown(Shutdown::Write).unwrap();
        }
        let at_service = answering.join().unwrap();
        // Orderly: the service has read everything, and so has the client.
        receive(client, usize::MAX);
        [got, at_service]
    })
}

fn sessions(count: usize, parts: &[Part], check: impl Fn(&Got) -> bool) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let proxy = Pulsegate::start(listener.local_addr().unwrap(), &["--detect-within", "5s"]);
    for i in 0..count {
        let client = proxy.connect();
        let (service, _) = listener.accept().unwrap();
        let apart = Duration::from_micros([0, 100, 1_000][i / 2 % 3]);
        for (end, got) in
            ["client", "service"]
                .iter()
                .zip(session([client, service], parts, i % 2 == 0, apart))
        {
            let excerpt = &got.plain[..got.plain.len().min(20)];
            let seen = (got.plain.len(), excerpt, &got.urgent, got.mark);
            assert!(check(&got), "at the {end}, session {i}: {seen:?}");
        }
    }
    proxy.expect_all_closed("finished", count);
}

/// From the first read, before the upstream is connected, on.
#[test]
fn small_sessions_with_urgent_bytes_end_whole() {
    sessions(300, &telnet(), |got| *got == telnet_got());
}

#[test]
fn bulk_sessions_with_urgent_bytes_end_whole() {
    let parts = [bytes(5 * MIB), Part::Urgent(b"!".to_vec()), bytes(10)];
    let whole = [bytes(5 * MIB).plain(), bytes(10).plain()].concat();
    sessions(12, &parts, |got| {
        got.plain == whole && got.urgent == b"!" && got.mark == Some(5 * MIB)
    });
}
