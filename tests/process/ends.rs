//! Ends that are due for many sessions at once are spread over time.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::SockRef;

use crate::rig::{
    PATIENT, Ports, Proxy, Service, ask, eventually, kept, nobody, pulsegate, text, wait,
};

const SESSIONS: usize = 40;

fn sessions(to: SocketAddr) -> Vec<TcpStream> {
    let session = |_| {
        let mut client = TcpStream::connect(to).expect("connected");
        ask(&mut client).expect("served");
        client
    };
    (0..SESSIONS).map(session).collect()
}

/// How long each of them goes on.
fn ends(clients: Vec<TcpStream>, since: Instant) -> Vec<Duration> {
    let watch = |mut client: TcpStream| {
        thread::spawn(move || {
            let _reset = client.read(&mut [0]);
            since.elapsed()
        })
    };
    let watching: Vec<_> = clients.into_iter().map(watch).collect();
    let ended = watching.into_iter().map(thread::JoinHandle::join);
    let mut ended: Vec<_> = ended.map(|end| end.expect("it ended")).collect();
    ended.sort();
    ended
}

/// The idle ones go by and by, and one that works stays to the end.
#[test]
fn a_drain_spreads_its_ends_and_prefers_quiet_moments() {
    let service = Service::start();
    let ports = Ports::free();
    let flags = ["--drain-timeout", "8s"];
    let mut proxy = Proxy::start(ports, service.address, kept().1, &flags);
    let mut busy = TcpStream::connect(ports.clients).expect("connected");
    ask(&mut busy).expect("served");
    let idle = sessions(ports.clients);
    let since = Instant::now();
    proxy.signal(Signal::TERM);
    let over = AtomicBool::new(false);
    let (ended, busy_until) = thread::scope(|scope| {
        let working = scope.spawn(|| {
            while ask(&mut busy).is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
            assert!(
                over.load(Ordering::Relaxed),
                "it ended before the idle ones"
            );
            since.elapsed()
        });
        let ended = ends(idle, since);
        over.store(true, Ordering::Relaxed);
        (ended, working.join().expect("it worked"))
    });
    let half = Duration::from_secs(4);
    assert!(ended[0] >= half, "{ended:?}");
    assert!(
        ended[SESSIONS - 1] - ended[0] >= Duration::from_secs(2),
        "{ended:?}"
    );
    assert!(busy_until >= half * 2, "{busy_until:?}");
    assert_eq!(proxy.wait().code(), Some(0));
}

/// As the kubelet stops a Pod: the preStop hook asks for the drain and waits, SIGTERM comes after it.
#[test]
fn a_signal_after_the_hook_that_drains_cuts_nobody() {
    let service = Service::start();
    let ports = Ports::free();
    let flags = ["--drain-delay", "1s", "--drain-timeout", "60s"];
    let mut proxy = Proxy::start(ports, service.address, kept().1, &flags);
    let mut session = TcpStream::connect(ports.clients).expect("connected");
    ask(&mut session).expect("served");
    let admin = ports.admin.to_string();
    let hook = ["drain", "--admin", &admin, "--wait", "--timeout"];
    let output = pulsegate(&hook).arg("300ms").output().expect("run it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 session left"), "{said}");
    proxy.signal(Signal::TERM);
    // The delay is kept, too: clients that do not know yet are served.
    let mut late = TcpStream::connect(ports.clients).expect("still accepts");
    ask(&mut late).expect("served");
    thread::sleep(Duration::from_millis(1500));
    ask(&mut session).expect("not cut");
    ask(&mut late).expect("not cut");
    drop((session, late));
    assert_eq!(proxy.wait().code(), Some(0));
}

/// As the kubelet stops the Pod of the gateway, which has no hook.
#[test]
fn a_signal_keeps_the_delay_and_the_sessions() {
    let service = Service::start();
    let ports = Ports::free();
    let flags = ["--drain-delay", "3s", "--drain-timeout", "60s"];
    let mut proxy = Proxy::start(ports, service.address, kept().1, &flags);
    let mut session = TcpStream::connect(ports.clients).expect("connected");
    ask(&mut session).expect("served");
    let since = Instant::now();
    proxy.signal(Signal::TERM);
    let admin = ports.admin.to_string();
    let is_ready = || {
        let mut check = pulsegate(&["healthcheck", "--ready", "--admin", &admin]);
        check.output().expect("run it").status.success()
    };
    assert!(eventually(PATIENT, || !is_ready()), "still ready");
    let mut late = TcpStream::connect(ports.clients).expect("still accepts");
    ask(&mut late).expect("served");
    let refuses = || TcpStream::connect(ports.clients).is_err();
    assert!(eventually(PATIENT, refuses), "still accepts");
    assert!(since.elapsed() >= Duration::from_secs(3));
    ask(&mut session).expect("not cut");
    drop((session, late));
    assert_eq!(proxy.wait().code(), Some(0));
}

/// A Pod without clients is on every node's list until `drain.delay` is over.
#[test]
fn an_idle_process_is_waited_for_until_it_has_gone() {
    let ports = Ports::free();
    let flags = ["--drain-delay", "1s"];
    let mut proxy = Proxy::start(ports, nobody(), kept().1, &flags);
    let admin = ports.admin.to_string();
    let since = Instant::now();
    let hook = ["drain", "--admin", &admin, "--wait"];
    let output = pulsegate(&hook).output().expect("run it");
    assert!(output.status.success(), "{output:?}");
    assert!(since.elapsed() >= Duration::from_secs(1));
    assert_eq!(proxy.wait().code(), Some(0));
}

/// As in a container: the kernel kills all others with the first process of their namespace.
#[test]
fn a_hook_in_a_container_succeeds_before_the_first_process_goes() {
    let ports = Ports::free();
    let script = "(until \"$0\" healthcheck --admin $1; do sleep 0.1; done; \
                  \"$0\" drain --admin $1 --wait; echo hook: $?) & \
                  exec \"$0\" run --listen $2 --upstream 127.0.0.1:1 --admin $1 --drain-delay 300ms";
    let (log, output) = kept();
    let mut first = Command::new("unshare")
        .args(["-Urpf", "--kill-child", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_pulsegate"))
        .args([ports.admin.to_string(), ports.clients.to_string()])
        .stdout(output)
        .spawn()
        .expect("unshare");
    assert_eq!(wait(&mut first, PATIENT).code(), Some(0));
    let said = text(&log);
    assert!(
        said.contains("drained, the process ends\nhook: 0\n"),
        "{said}"
    );
}

#[test]
fn sessions_of_one_age_do_not_end_at_once() {
    let service = Service::start();
    let ports = Ports::free();
    let flags = ["--max-connection-duration", "10s"];
    let _proxy = Proxy::start(ports, service.address, kept().1, &flags);
    let since = Instant::now();
    let clients = sessions(ports.clients);
    let began = since.elapsed();
    let ended = ends(clients, since);
    assert!(ended[0] >= Duration::from_secs(9), "{ended:?}");
    let spread = ended[SESSIONS - 1] - ended[0] + began;
    assert!(spread >= Duration::from_millis(500), "{ended:?}");
}

/// The kernel tells a reset once, and a FIN from then on.
#[test]
fn a_client_that_is_reset_before_it_is_served_has_not_finished() {
    let service = Service::start();
    let ports = Ports::free();
    let (log, output) = kept();
    let proxy = Proxy::start(ports, service.address, output, &[]);
    proxy.signal(Signal::STOP);
    for _ in 0..SESSIONS {
        let client = TcpStream::connect(ports.clients).expect("in the accept queue");
        let at_once = Some(Duration::ZERO);
        SockRef::from(&client).set_linger(at_once).expect("a reset");
    }
    proxy.signal(Signal::CONT);
    let ended = |reason: &str| {
        let lines = text(&log);
        let ended = lines.lines().filter(|line| line.contains("session ended"));
        ended.filter(|line| line.contains(reason)).count()
    };
    assert!(eventually(PATIENT, || ended("") == SESSIONS));
    assert_eq!(
        ended("reason=\"downstream_reset\""),
        SESSIONS,
        "{}",
        text(&log)
    );
}
