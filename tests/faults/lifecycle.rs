//! The end of the process: new clients are refused, running sessions finish, and it ends in time.

use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use rustix::process::Signal;

use crate::case::{Case, HELLO, PROMPT, SLACK};
use crate::support::{End, Host, Net, Options, Test, binary, eventually, ms};
use crate::tests;

pub const TESTS: &[Test] = tests![
    demo_finds_its_vanished_client,
    drain_refuses_newcomers_and_lets_sessions_finish,
    drain_ends_idle_sessions_when_its_time_is_over,
    second_signal_ends_the_process_at_once,
    subcommands_find_the_only_instance_and_its_control_address,
];

/// Whether a new client is refused. A connection that is only closed at once does not count.
fn refuses(case: &Case) -> bool {
    let result = case.net.try_dial(Host::Healthy, Options::default());
    result.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

fn drain_refuses_newcomers_and_lets_sessions_finish() {
    // A client that comes in before the door is shut is a session like any other; a polite
    // service lets it go.
    let polite = Options {
        polite: true,
        ..Options::default()
    };
    let mut case = Case::with(&["--drain-timeout", "30s"], polite);
    let (client, service) = case.session();
    case.proxy.signal(Signal::TERM);
    let not_ready = || !matches!(case.proxy.get("/readyz"), Ok((200, _)));
    assert!(eventually(PROMPT, not_ready), "still ready");
    assert!(eventually(PROMPT, || refuses(&case)), "still accepts");
    assert!(client.is_open() && service.is_open());
    client.send(100_000);
    service.send(100_000);
    assert!(client.wait_received(HELLO + 100_000, PROMPT));
    assert!(service.wait_received(HELLO + 100_000, PROMPT));
    client.finish();
    assert_eq!(service.wait_end(PROMPT).1, End::Finished);
    assert_eq!(client.wait_end(PROMPT).1, End::Finished);
    let status = case.proxy.wait_exit(PROMPT);
    assert!(status.success(), "{status}");
}

/// Of all instances that run on this machine meanwhile, it is the only one in its network.
fn subcommands_find_the_only_instance_and_its_control_address() {
    let socket = std::env::temp_dir().join(format!("pulsegate-found-{}", std::process::id()));
    let control = format!("unix:{}", socket.display());
    let case = Case::with(&["--admin-control", &control], Options::default());
    let (client, service) = case.session();
    let (code, conns) = case.proxy.command(&["conns"]);
    assert!(code == Some(0) && conns.contains("1 in all"), "{conns}");
    let (code, said) = case.proxy.command(&["kill", "--all"]);
    assert_eq!((code, &*said), (Some(0), "1 session is being ended\n"));
    assert_eq!(client.wait_end(PROMPT).1, End::Reset);
    assert_eq!(service.wait_end(PROMPT).1, End::Reset);
    // Where nobody can connect to the socket any more, the other address is asked.
    std::fs::remove_file(&socket).expect("it is there");
    assert_eq!(case.proxy.command(&["conns"]).0, Some(0));
}

fn drain_ends_idle_sessions_when_its_time_is_over() {
    let mut case = Case::with(&["--drain-timeout", "2s"], Options::default());
    let (client, service) = case.session();
    let since = Instant::now();
    case.proxy.signal(Signal::TERM);
    client.wait_end(ms(2000) + SLACK);
    service.wait_end(PROMPT);
    let after = since.elapsed();
    // In the second half, when its turn has come.
    assert!(after >= ms(1000), "ended after only {after:?}");
    // The ends do not say FIN themselves; the process does not wait for them for ever.
    case.proxy.wait_exit(PROMPT);
    let output = case.proxy.output();
    let line = output
        .lines()
        .find(|l| l.contains("reason") && l.contains("drain"));
    assert!(line.is_some(), "no session ended for the reason drain");
}

fn second_signal_ends_the_process_at_once() {
    let mut case = Case::with(&["--drain-timeout", "60s"], Options::default());
    let (client, service) = case.session();
    case.proxy.signal(Signal::TERM);
    thread::sleep(ms(500));
    assert!(
        client.is_open() && service.is_open(),
        "the first one is patient"
    );
    case.proxy.signal(Signal::TERM);
    case.proxy.wait_exit(PROMPT);
    client.wait_end(PROMPT);
    service.wait_end(PROMPT);
}

/// It makes its own namespaces, inside the private one that it is started in.
fn demo_finds_its_vanished_client() {
    let net = Net::new();
    let mut command = Command::new(binary());
    command
        .args(["demo", "--duration", "12s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = net
        .proxy
        .run(|| command.spawn())
        .expect("enter")
        .expect("start the demo");
    let output = child.wait_with_output().expect("wait for the demo");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in [
        "THE LINK IS CUT",
        "downstream_dead",
        "aborted",
        "nobody here has noticed",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}
