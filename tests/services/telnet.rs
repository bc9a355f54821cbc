//! Telnet: a real client on a terminal and a real server, whose interrupts and Synch are TCP
//! urgent data in both directions.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::Case;
use crate::heartbeats::{Stopped, expect_answers, expect_ended, profile};
use crate::process::{Folder, Process, tool};
use crate::pulsegate::Pulsegate;
use crate::support::{eventually, ms};

const TELNET: &[&str] = &["telnet", "telnetd", "script"];

pub const CASES: &[Case] = &[
    Case::new(
        "telnet_interrupts_as_it_does_directly",
        TELNET,
        telnet_interrupts_as_it_does_directly,
    ),
    Case::new(
        "telnet_with_heartbeats_is_as_it_is_directly",
        TELNET,
        telnet_with_heartbeats_is_as_it_is_directly,
    ),
    Case::new(
        "a_telnetd_that_stops_is_found",
        TELNET,
        a_telnetd_that_stops_is_found,
    ),
];

/// What the server runs: answers lines, and says when it is interrupted.
const SHELL: &str = r#"#!/bin/sh
trap 'echo GOT-INT' INT
echo READY
n=0
while [ $n -lt 20 ]; do
    if read -r line; then
        # Without a word: telnetd may lose what is printed just before the end.
        [ "$line" = end ] && exit
        echo "LINE:$line"
        [ "$line" = flood ] && seq -f 'flood %.0f' 200000
    else
        # The interrupt.
        n=$((n + 1))
    fi
done
"#;

/// A program that can be interrupted. A shell cannot trap a signal that was ignored when it started, as it is
/// for a test run in the background of a script, and its children inherit that.
fn with_interrupts(program: &str) -> Command {
    let mut command = tool("env");
    command
        .arg("--default-signal=INT")
        .arg(tool(program).get_program());
    command
}

/// A telnet client on a terminal of its own.
struct Client(Process);

impl Client {
    fn connect(to: SocketAddr) -> Self {
        let mut command = with_interrupts("script");
        // `exec`, so that the end of `script` is that of the client.
        let telnet = format!("exec telnet {} {}", to.ip(), to.port());
        command
            .args(["-qefc", &telnet, "/dev/null"])
            .env("TERM", "dumb");
        let client = Self(Process::start(&mut command));
        client.expect("READY", 1);
        client
    }

    /// Presses these keys.
    fn press(&mut self, keys: &str) {
        let input = self.0.input();
        input.write_all(keys.as_bytes()).expect("it lives");
        input.flush().expect("it lives");
    }

    /// Gives the client a command of its own.
    fn command(&mut self, line: &str) {
        let prompts = self.0.output().matches("telnet>").count();
        self.press("\x1d");
        self.expect("telnet>", prompts + 1);
        self.press(&format!("{line}\r"));
    }

    /// Waits until this was printed so often.
    #[track_caller]
    fn expect(&self, text: &str, times: usize) {
        let count = || self.0.output().matches(text).count();
        let printed = eventually(ms(20_000), || count() >= times);
        assert!(printed, "{} \"{text}\", not {times}", count());
    }
}

/// Serves one client with a telnetd, as inetd does; says its process number.
fn serve(
    listener: TcpListener,
    shell: String,
    process: Sender<u32>,
) -> JoinHandle<io::Result<bool>> {
    thread::spawn(move || {
        let socket = OwnedFd::from(listener.accept()?.0);
        let mut telnetd = with_interrupts("telnetd")
            .args(["-E", &shell])
            .stdin(socket.try_clone()?)
            .stdout(socket)
            .stderr(Stdio::null())
            .spawn()?;
        let _unwanted = process.send(telnetd.id());
        Ok(telnetd.wait()?.success())
    })
}

/// A session with Ctrl-C, `send ip`, `send synch`, Ctrl-C sent as a character, and an interrupt of
/// much output, which the server cuts with a Synch of its own.
fn session(to: SocketAddr, pause: Duration) -> Vec<String> {
    let mut client = Client::connect(to);
    client.press("one\r");
    client.expect("LINE:one", 1);
    thread::sleep(pause);
    client.press("\x03");
    client.expect("GOT-INT", 1);
    client.press("two\r");
    client.expect("LINE:two", 1);
    client.command("send ip");
    client.expect("GOT-INT", 2);
    thread::sleep(pause);
    client.command("send synch");
    client.press("three\r");
    client.expect("LINE:three", 1);
    thread::sleep(pause);
    // Both at once, twice.
    for n in 3..5 {
        client.command("send ip synch");
        client.expect("GOT-INT", n);
    }
    client.press("flood\r");
    client.expect("flood 9\r", 1);
    client.press("\x03");
    client.expect("GOT-INT", 5);
    client.press("four\r");
    client.expect("LINE:four", 1);
    thread::sleep(pause);
    client.press("end\r");
    client.expect("Connection closed by foreign host", 1);
    // Where the flood was cut, and how much of it came, is for the machines to say.
    let told = |line: &str| match line {
        line if line.contains("GOT-INT") => Some("GOT-INT".to_owned()),
        line => line.starts_with("LINE:").then(|| line.to_owned()),
    };
    let told = client.0.output().lines().filter_map(told).collect();
    client.0.wait(ms(20_000));
    told
}

/// The program that the server runs.
fn shell(folder: &Folder) -> String {
    let shell = folder.join("shell");
    fs::write(&shell, SHELL).expect("write");
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).expect("a program");
    shell.to_str().expect("text").to_owned()
}

/// What comes of a session directly, and through pulsegate.
fn outcomes(flags: &[&str], pause: Duration, look: fn(&Pulsegate)) -> [(Vec<String>, bool); 2] {
    let folder = Folder::new();
    [None, Some(flags)].map(|flags| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let direct = listener.local_addr().expect("bound");
        let proxy = flags.map(|flags| Pulsegate::start(direct, flags));
        let address = proxy.as_ref().map_or(direct, |proxy| proxy.address);
        let server = serve(listener, shell(&folder), channel().0);
        let lines = session(address, pause);
        let ended = server.join().expect("no panic").expect("a telnetd");
        if let Some(proxy) = proxy {
            proxy.expect_all_closed("finished", 1);
            look(&proxy);
        }
        (lines, ended)
    })
}

fn telnet_interrupts_as_it_does_directly() {
    let flags = ["--detect-within", "5s"];
    let [direct, proxied] = outcomes(&flags, Duration::ZERO, |_| ());
    assert_eq!(proxied, direct);
}

/// Both ends are asked.
const ASKED: [&str; 8] = {
    let [of, telnet, after, second, timeout, limit] = profile("telnet");
    let [leg, both] = ["--heartbeat-leg", "both"];
    [of, telnet, after, second, timeout, limit, leg, both]
};

fn telnet_with_heartbeats_is_as_it_is_directly() {
    let [direct, proxied] = outcomes(&ASKED, ms(2500), |proxy| {
        let metrics = proxy.metrics();
        for leg in ["downstream", "upstream"] {
            let count = |what| {
                let name = format!("pulsegate_heartbeats_{what}_total");
                metrics.value(&name, &[("leg", leg)])
            };
            let all = metrics.excerpt("pulsegate_heartbeats");
            assert!(count("answered") >= 4.0, "{all}");
            assert_eq!(count("missed") + count("misfit"), 0.0, "{all}");
        }
    });
    assert_eq!(proxied, direct);
}

fn a_telnetd_that_stops_is_found() {
    let folder = Folder::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let proxy = Pulsegate::start(listener.local_addr().expect("bound"), &ASKED);
    let (process, started) = channel();
    let server = serve(listener, shell(&folder), process);
    let mut client = Client::connect(proxy.address);
    client.press("one\r");
    client.expect("LINE:one", 1);
    expect_answers(&proxy, 2.0);
    let stopped = Instant::now();
    let stop = Stopped::new(started.recv().expect("it runs"));
    expect_ended(&proxy, stopped);
    client.expect("Connection closed by foreign host", 1);
    drop(stop);
    let _it_was_reset = server.join().expect("no panic").expect("a telnetd");
}
