//! The clock of the first response: it runs from the last request, whatever was asked and
//! answered before it, and a service that has answered is never ended by it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::case::{Case, PROMPT, SLACK};
use crate::support::{Channel, Host, Net, Test, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    request_right_behind_an_answer_is_waited_for,
    answered_requests_are_not_waited_for,
];

const PORT: u16 = 9001;
const TIMEOUT: Duration = ms(2000);
const FLAGS: [&str; 2] = ["--first-response-timeout", "2s"];
const WORD: usize = 16;
/// Of them, most end and begin within one tick of the kernel's clock.
const EXCHANGES: usize = 50;
const SESSIONS: usize = 5;

/// Answers so many words of each client, and reads on.
fn service(net: &Net, answers: usize) -> SocketAddr {
    let address = net.socket(Host::Service, PORT);
    let listen = || TcpListener::bind(address).expect("bind");
    let listener = net.host(Host::Service).run(listen).expect("enter");
    let speech = net.legs.of_services();
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = Channel::new(stream.expect("accept"), speech);
            thread::spawn(move || {
                let mut word = [0; WORD];
                let mut shaken = stream.shake();
                for n in 0.. {
                    shaken = shaken.and_then(|()| stream.read_exact(&mut word));
                    if shaken.is_err() || (n < answers && stream.write_all(&word).is_err()) {
                        stream.last_words();
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A client that asks the next question as soon as it has the answer.
fn ask(net: &Net, answers: usize) -> Channel {
    let to = net.listener(Host::Client);
    let connect = || TcpStream::connect(to).expect("connect");
    let stream = net.host(Host::Client).run(connect).expect("enter");
    stream.set_nodelay(true).expect("set");
    stream
        .set_read_timeout(Some(TIMEOUT + PROMPT))
        .expect("set");
    let mut stream = Channel::new(stream, net.legs.of_clients());
    stream.shake().expect("a handshake");
    let mut word = [7; WORD];
    for _ in 0..answers {
        stream.write_all(&word).expect("asked");
        stream.read_exact(&mut word).expect("answered");
    }
    stream
}

fn request_right_behind_an_answer_is_waited_for() {
    let net = Arc::new(Net::new());
    let upstream = service(&net, EXCHANGES);
    let case = Case::before(Arc::clone(&net), upstream, &FLAGS);
    let clients = (0..SESSIONS).map(|_| {
        let mut stream = ask(&net, EXCHANGES);
        stream.write_all(&[8; WORD]).expect("asked");
        (Instant::now(), stream)
    });
    for (since, mut stream) in clients.collect::<Vec<_>>() {
        let end = stream.read(&mut [0; WORD]).expect_err("no answer");
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        let after = since.elapsed();
        assert!(after >= TIMEOUT - ms(100), "ended after only {after:?}");
        assert!(after <= TIMEOUT + SLACK, "ended only after {after:?}");
    }
    case.expect_closed_times("first_response_timeout", SESSIONS as u32);
}

fn answered_requests_are_not_waited_for() {
    let net = Arc::new(Net::new());
    let upstream = service(&net, usize::MAX);
    let case = Case::before(Arc::clone(&net), upstream, &FLAGS);
    let mut clients: Vec<_> = (0..SESSIONS).map(|_| ask(&net, EXCHANGES)).collect();
    thread::sleep(TIMEOUT * 2);
    for stream in &mut clients {
        let mut word = [9; WORD];
        stream.write_all(&word).expect("open");
        stream.read_exact(&mut word).expect("answered");
        stream.last_words();
    }
    drop(clients);
    case.expect_closed_times("finished", SESSIONS as u32);
}
