//! A port that is closed while every endpoint is down (`when_down: refuse`), across takeovers and reloads.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use socket2::{Domain, Socket, Type};

use crate::reload::{Rig, UNWATCHED, refuses, session};
use crate::rig::{PATIENT, PROMPT, Proxy, ask, eventually, free_address, text};

/// A service at an address, until it is dropped.
struct Up {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Up {
    fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("its address is free");
        listener.set_nonblocking(true).expect("an option");
        let over: Arc<AtomicBool> = Arc::default();
        let ended = over.clone();
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(thread::spawn(move || echo(&stream))),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("once");
        let _panicked = thread.join();
    }
}

fn echo(stream: &TcpStream) {
    stream.set_nonblocking(false).expect("an option");
    let (mut from, mut to) = (stream, stream);
    let _ended = io::copy(&mut from, &mut to);
}

/// A listener whose only endpoint is, or is not, there.
struct Case {
    rig: Rig,
    clients: SocketAddr,
    upstream: SocketAddr,
}

/// How the listener is configured, where a case varies it.
#[derive(Clone, Copy)]
struct Keys<'a> {
    when_down: &'a str,
    /// Beside its kind and interval.
    check: &'a str,
    upstream: SocketAddr,
    /// Of the listener.
    more: &'a str,
}

impl Case {
    /// It runs when nobody is at the endpoint.
    fn start() -> Self {
        let case = Self {
            rig: Rig::new(),
            clients: free_address(),
            upstream: free_address(),
        };
        case.write(case.keys());
        case
    }

    fn keys(&self) -> Keys<'static> {
        Keys {
            when_down: "refuse",
            check: "fall: 1, rise: 1",
            upstream: self.upstream,
            more: "",
        }
    }

    fn write(&self, keys: Keys<'_>) {
        let Keys {
            when_down,
            check,
            upstream,
            more,
        } = keys;
        let (clients, admin) = (self.clients, self.rig.admin);
        let check = format!("{{ kind: tcp, interval: 100ms, {check} }}");
        let upstream =
            format!("{{ address: '{upstream}', when_down: {when_down}, check: {check} }}");
        let yaml = format!(
            "admin: {{ address: '{admin}' }}\n{UNWATCHED}\ndrain: {{ timeout: 60s }}\n\
             listeners:\n- name: a\n  address: '{clients}'\n  upstream: {upstream}\n{more}\n"
        );
        fs::write(self.rig.file(), yaml).expect("written");
    }

    fn reload(&self, keys: Keys<'_>) {
        self.write(keys);
        self.rig.reloaded();
    }

    /// Starts an instance that takes over from the one that runs, which is returned.
    fn take_over(&mut self) -> Option<Proxy> {
        let before = self.rig.proxy.take();
        self.rig.run(&["--takeover"]);
        let took = || text(&self.rig.log).contains("took over");
        let done = before.is_none() || eventually(PATIENT, took);
        assert!(done, "{}", text(&self.rig.log));
        before
    }

    #[track_caller]
    fn expect_refused(&self) {
        let refused = eventually(PATIENT, || refuses(self.clients));
        assert!(refused, "{}", text(&self.rig.log));
        self.expect_refused_on();
    }

    /// For some checks, nobody can have the address meanwhile.
    #[track_caller]
    fn expect_refused_on(&self) {
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            assert!(refuses(self.clients), "{}", text(&self.rig.log));
            let stolen = steal(self.clients).map_err(|error| error.kind());
            assert_eq!(stolen.err(), Some(io::ErrorKind::AddrInUse));
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn expect_served(&self) {
        let served = || {
            let client = TcpStream::connect(self.clients);
            client.is_ok_and(|mut client| ask(&mut client).is_ok())
        };
        assert!(eventually(PATIENT, served), "{}", text(&self.rig.log));
        // For good.
        for _ in 0..20 {
            let mut client = TcpStream::connect(self.clients).expect("taken");
            ask(&mut client).unwrap_or_else(|error| panic!("{error}: {}", text(&self.rig.log)));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Listens beside whoever does not, as most servers do.
fn steal(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    Ok(socket)
}

#[test]
fn a_closed_port_is_taken_over_closed() {
    let mut case = Case::start();
    assert!(case.take_over().is_none());
    case.expect_refused();
    // The new one needs three checks to find an endpoint down, but the port is closed already.
    let patient = Keys {
        check: "fall: 3, rise: 1",
        ..case.keys()
    };
    case.write(patient);
    let mut before = case.take_over().expect("it ran");
    case.expect_refused_on();
    assert_eq!(before.wait().code(), Some(0));
    case.expect_refused_on();
    let up = Up::at(case.upstream);
    case.expect_served();
    drop(up);
    case.expect_refused();
}

/// What the old one finds at its end, and the new one at its start, is different each time.
#[test]
fn an_endpoint_that_comes_and_goes_in_takeovers_is_served_in_the_end() {
    let mut case = Case::start();
    case.take_over();
    case.expect_refused();
    for round in 0..8 {
        let upstream = case.upstream;
        let flap = thread::spawn(move || {
            for pause in [0, 40, 90] {
                thread::sleep(Duration::from_millis(pause + round * 17));
                let up = Up::at(upstream);
                thread::sleep(Duration::from_millis(110));
                drop(up);
            }
        });
        let mut before = case.take_over().expect("it ran");
        flap.join().expect("no panic");
        assert_eq!(before.wait().code(), Some(0));
        match round % 2 {
            0 => {
                let _up = Up::at(upstream);
                case.expect_served();
            }
            _ => case.expect_refused(),
        }
    }
}

#[test]
fn an_open_port_is_closed_by_the_checks_of_a_successor() {
    let mut case = Case::start();
    let _up = Up::at(case.upstream);
    case.take_over();
    case.expect_served();
    let mut lives = session(case.clients);
    let elsewhere = free_address();
    let check = format!("fall: 1, rise: 1, port: {}", elsewhere.port());
    let keys = Keys {
        check: &check,
        ..case.keys()
    };
    case.write(keys);
    let mut before = case.take_over().expect("it ran");
    case.expect_refused();
    ask(&mut lives).expect("the old one drains");
    drop(lives);
    assert_eq!(before.wait().code(), Some(0));
    let up = Up::at(elsewhere);
    case.expect_served();
    drop(up);
    case.expect_refused();
}

/// It has closed the port, and could not go on: as if it were killed between the two.
#[test]
fn a_port_that_another_instance_has_closed_is_opened_again() {
    let mut case = Case::start();
    let _up = Up::at(case.upstream);
    for when_down in ["refuse", "reset"] {
        case.write(Keys {
            when_down,
            ..case.keys()
        });
        case.take_over();
        case.expect_served();
        let pid = Pid::from_child(&case.rig.proxy().child);
        let sockets = listening_sockets(pid, case.clients);
        let Ok(sockets) = sockets else {
            return println!("not allowed to take a descriptor: {sockets:?}");
        };
        assert!(!sockets.is_empty());
        for socket in sockets {
            rustix::net::connect_unspec(&socket).expect("closed");
        }
        case.expect_served();
        assert!(!text(&case.rig.log).contains("cannot accept"));
    }
}

/// Copies of the sockets with which a process listens on an address.
fn listening_sockets(pid: Pid, address: SocketAddr) -> io::Result<Vec<OwnedFd>> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        let copy = rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())?;
        let socket = socket2::SockRef::from(&copy);
        let is_its = socket.is_listener().is_ok_and(|listens| listens)
            && socket
                .local_addr()
                .is_ok_and(|a| a.as_socket() == Some(address));
        if is_its {
            found.push(copy);
        }
    }
    Ok(found)
}

#[test]
fn a_reload_leaves_a_closed_port_closed_and_opens_it_when_it_is_time() {
    let mut case = Case::start();
    case.take_over();
    case.expect_refused();
    // The listener changes: nobody is let in for a moment.
    let limited = Keys {
        more: "  limits: { max_connections: 5 }",
        ..case.keys()
    };
    case.reload(limited);
    case.expect_refused_on();
    // What is not reloaded changes nothing.
    let broken = Keys {
        more: "  no_key: 1",
        ..case.keys()
    };
    case.write(broken);
    assert_eq!(case.rig.reload().0, 422);
    case.expect_refused_on();

    // Another endpoint, of which nothing is known.
    let elsewhere = free_address();
    let keys = Keys {
        upstream: elsewhere,
        check: "fall: 3, rise: 1",
        ..case.keys()
    };
    case.reload(keys);
    case.expect_refused_on();
    let up = Up::at(elsewhere);
    case.expect_served();
    drop(up);
    case.expect_refused();

    // One that is there already.
    let up = Up::at(case.upstream);
    case.reload(case.keys());
    case.expect_served();
    drop(up);
    case.expect_refused();
}

#[test]
fn when_down_is_switched_while_all_is_down() {
    let mut case = Case::start();
    case.take_over();
    for _ in 0..3 {
        case.reload(case.keys());
        case.expect_refused();
        case.reload(Keys {
            when_down: "reset",
            ..case.keys()
        });
        // Accepted, and reset where nobody can be dialled.
        let accepted = || !refuses(case.clients);
        assert!(eventually(PROMPT, accepted));
        (0..20).for_each(|_| assert!(accepted(), "{}", text(&case.rig.log)));
    }
    let up = Up::at(case.upstream);
    case.expect_served();
    drop(up);
    case.reload(case.keys());
    case.expect_refused();
}

#[test]
fn reloads_beside_an_endpoint_that_flaps_leave_no_port_closed() {
    let mut case = Case::start();
    case.take_over();
    let upstream = case.upstream;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let up = Up::at(upstream);
                thread::sleep(Duration::from_millis(130));
                drop(up);
                thread::sleep(Duration::from_millis(130));
            }
        });
        let until = Instant::now() + Duration::from_secs(4);
        for round in 0.. {
            let keys = Keys {
                when_down: ["refuse", "refuse", "reset"][round % 3],
                more: ["", "  limits: { max_connections: 9 }"][round % 2],
                ..case.keys()
            };
            case.reload(keys);
            thread::sleep(Duration::from_millis(70));
            if Instant::now() >= until {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    case.reload(case.keys());
    case.expect_refused();
    let _up = Up::at(upstream);
    case.expect_served();
}
