//! What the low-water mark costs: how long the last bytes of a bulk stream are on their way.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::net::leg::LegStream;
use pulsegate::net::stream::TcpStream;
use pulsegate::relay::{Counters, Relay};

use crate::rig::{pair, runtime};

const ROUNDS: usize = 300;
/// Enough to be bulk.
const HEAD: usize = 8 << 20;

/// Time from the end of the last write to the arrival of its last byte, in microseconds, sorted.
fn delays(low_water: bool, apart: bool, tail: impl Fn(usize) -> usize) -> Vec<u128> {
    let [(down, mut client), (up, mut service)] = [pair(None, None), pair(None, None)];
    for socket in [&client, &service] {
        socket.set_nonblocking(false).unwrap();
    }
    let relaying = thread::spawn(move || {
        runtime().block_on(async {
            let mut legs =
                [down, up].map(|socket| LegStream::from(TcpStream::new(socket.into()).unwrap()));
            let counters = Counters::default();
            let mut relay = Relay::new(low_water);
            std::future::poll_fn(|cx| relay.poll(&mut legs, &counters, cx)).await
        })
    });
    let (sizes, rounds) = mpsc::channel::<usize>();
    let (arrivals, arrived) = mpsc::channel();
    let receiving = thread::spawn(move || {
        let mut buffer = vec![0; HEAD + (1 << 20)];
        for size in rounds {
            service.read_exact(&mut buffer[..size]).unwrap();
            arrivals.send(Instant::now()).unwrap();
        }
    });
    let bytes = vec![7; HEAD];
    let mut delays: Vec<_> = (0..ROUNDS)
        .map(|round| {
            let tail = tail(round);
            sizes.send(HEAD + tail).unwrap();
            client.write_all(&bytes).unwrap();
            if apart {
                thread::sleep(Duration::from_micros(500));
            }
            client.write_all(&bytes[..tail]).unwrap();
            let sent = Instant::now();
            let came: Instant = arrived.recv().unwrap();
            thread::sleep(Duration::from_millis(1));
            came.saturating_duration_since(sent).as_micros()
        })
        .collect();
    drop((sizes, client));
    receiving.join().unwrap();
    relaying.join().unwrap();
    delays.sort_unstable();
    delays
}

#[test]
#[ignore = "measures; prints a table"]
fn tail_delay() {
    println!("last bytes of an 8 MiB burst and a tail, microseconds from write to arrival");
    let any = |round| 1 + round * 99_991 % (512 << 10);
    for (name, apart, tail) in [
        ("10 B, at once", false, (|_| 10) as fn(usize) -> usize),
        ("1 B to 512 KiB, at once", false, any),
        ("10 B, 0.5 ms later", true, |_| 10),
        ("1 B to 512 KiB, 0.5 ms later", true, any),
    ] {
        for low_water in [true, false] {
            let d = delays(low_water, apart, tail);
            let at = |percent: usize| d[(d.len() - 1) * percent / 100];
            let (p50, p99, max) = (at(50), at(99), at(100));
            println!("tail of {name}; low_water {low_water}: p50 {p50}, p99 {p99}, max {max}");
        }
    }
}
