//! `pulsegate top` in a terminal that nobody looks at.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::rig::{PATIENT, Ports, Proxy, Service, ask, eventually, kept, pulsegate, text, wait};

/// The terminal, and the program that has it.
struct Terminal {
    keys: File,
    line: File,
    top: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(arguments: &[&str]) -> Self {
        Self::of(pulsegate(arguments).env_remove("NO_COLOR"), 80)
    }

    /// So many columns wide.
    fn of(command: &mut Command, columns: u16) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&keys).expect("granted");
        unlockpt(&keys).expect("unlocked");
        let name = ptsname(&keys, Vec::new()).expect("a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let line = File::from(rustix::fs::open(name, flags, Mode::empty()).expect("opened"));
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&line, size).expect("set");
        let stdio = || Stdio::from(line.try_clone().expect("a second handle"));
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        let top = command.spawn().expect("started");
        let shown = Arc::new(Mutex::new(String::new()));
        let keys = File::from(keys);
        let (mut from, into) = (keys.try_clone().expect("a second handle"), shown.clone());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                into.lock().expect("not poisoned").push_str(&text);
            }
        });
        Self {
            keys,
            line,
            top,
            shown,
        }
    }

    fn press(&mut self, keys: &str) {
        self.shown.lock().expect("not poisoned").clear();
        self.keys.write_all(keys.as_bytes()).expect("pressed");
    }

    #[track_caller]
    fn until(&self, part: &str) {
        let has = || self.shown.lock().expect("not poisoned").contains(part);
        let last = || {
            self.shown
                .lock()
                .map(|shown| shown.lines().rev().take(24).collect::<String>())
        };
        assert!(eventually(PATIENT, has), "{part}: {:?}", last());
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).expect("a terminal").local_modes;
        !modes.contains(LocalModes::ICANON)
    }
}

#[test]
fn sessions_are_watched_and_ended_in_a_terminal() {
    let service = Service::start();
    let (log, into) = kept();
    let proxy = Proxy::start(Ports::free(), service.address, into, &[]);
    let mut client = TcpStream::connect(proxy.ports.clients).expect("connected");
    ask(&mut client).expect("served");
    let admin = proxy.ports.admin.to_string();
    let peer = client.local_addr().expect("bound").to_string();

    let mut terminal = Terminal::start(&["top", "--admin", &admin]);
    terminal.until("- live");
    terminal.until(&peer);
    assert!(terminal.is_raw());
    terminal.press("d");
    terminal.until("suspects only");
    terminal.press("d/127.0.0.1\r");
    terminal.until("filter 127.0.0.1");
    terminal.until(&peer);
    terminal.press("v");
    terminal.until("downstream alive");
    terminal.press("/ listener=nope\r");
    terminal.until("there is none of the name 'nope'");
    terminal.press("s");
    terminal.until("- live - sort idle");
    let back = "\u{7f}".repeat(" listener=nope".len());
    terminal.press(&format!("/{back}\r"));
    terminal.until(&peer);
    terminal.press("knot this\u{1b}");
    terminal.until("q quit");
    terminal.press("kit hangs\r");
    terminal.until("is being ended");
    let ended = client.read(&mut [0]);
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let logged = || text(&log).contains("it hangs");
    assert!(eventually(PATIENT, logged), "{}", text(&log));
    terminal.press("?");
    terminal.until("choose a session");
    terminal.press(" q");
    assert_eq!(wait(&mut terminal.top, PATIENT).code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal is as it was before");
    terminal.until("\u{1b}[?1049l");
}

#[test]
fn an_error_says_what_was_not_done() {
    let service = Service::start();
    let proxy = Proxy::start(Ports::free(), service.address, kept().1, &[]);
    let mut client = TcpStream::connect(proxy.ports.clients).expect("connected");
    ask(&mut client).expect("served");
    let mut terminal = Terminal::start(&["top", "--admin", &proxy.ports.admin.to_string()]);
    terminal.until(&client.local_addr().expect("bound").to_string());
    drop(proxy);
    terminal.until("- no news");
    terminal.press("v");
    terminal.until("session 1: not verified: ");
    terminal.press("q");
    assert_eq!(wait(&mut terminal.top, PATIENT).code(), Some(0));
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let service = Service::start();
    let proxy = Proxy::start(Ports::free(), service.address, kept().1, &[]);
    let admin = proxy.ports.admin.to_string();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = Terminal::start(&["top", "--admin", &admin]);
        terminal.until("- live");
        assert!(terminal.is_raw());
        kill_process(Pid::from_child(&terminal.top), signal).expect("sent");
        let status = wait(&mut terminal.top, PATIENT);
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
        assert!(!terminal.is_raw(), "{signal:?}");
        terminal.until("\u{1b}[?25h\u{1b}[?1049l");
    }
}

#[test]
fn doctor_follows_the_terminal() {
    for (no_color, coloured) in [("", true), ("1", false)] {
        let mut command = pulsegate(&["doctor"]);
        command.env("NO_COLOR", no_color).env("TERM", "xterm");
        let mut terminal = Terminal::of(&mut command, 60);
        terminal.until(" ok\r\n");
        let _ended = wait(&mut terminal.top, PATIENT);
        let shown = terminal.shown.lock().expect("not poisoned").clone();
        assert_eq!(shown.contains("\u{1b}[32mok"), coloured, "{shown}");
        let plain = shown.replace("\u{1b}[", "");
        for line in plain.lines().filter(|line| line.starts_with("     ")) {
            let is_one_word = line.trim().split(' ').count() == 1;
            assert!(line.chars().count() <= 60 || is_one_word, "{line}");
        }
        assert!(shown.contains("\n          "), "wrapped: {shown}");
    }
}

#[test]
fn a_screen_is_printed_where_there_is_no_terminal() {
    let service = Service::start();
    let proxy = Proxy::start(Ports::free(), service.address, kept().1, &[]);
    let mut client = TcpStream::connect(proxy.ports.clients).expect("connected");
    ask(&mut client).expect("served");
    let peer = client.local_addr().expect("bound").to_string();
    let admin = proxy.ports.admin.to_string();
    let run = |flags: &[&str]| {
        let mut command = pulsegate(&["top", "--admin", &admin]);
        command.args(flags).output().expect("run")
    };
    let once = run(&["--once"]);
    let shown = String::from_utf8_lossy(&once.stdout);
    assert!(once.status.success() && shown.contains(&peer), "{once:?}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    let json = run(&["--once", "--json"]);
    let both: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(both["summary"]["sessions"], 1, "{both}");
    assert_eq!(
        both["connections"]["connections"][0]["downstream"]["peer"],
        peer
    );
    for (listener, limit, code) in [("nope", "1", 1), ("default", "x", 2)] {
        let filters = ["conns", "--listener", listener, "--limit", limit];
        let wrong = pulsegate(&filters).args(["--admin", &admin]).output();
        assert_eq!(wrong.expect("run").status.code(), Some(code), "{filters:?}");
    }
    // As `head` does it.
    let mut endless = pulsegate(&["top", "--admin", &admin, "--json"]);
    let mut endless = endless.stdout(Stdio::piped()).spawn().expect("started");
    let first = endless.stdout.take().expect("a pipe").read(&mut [0; 16]);
    assert_eq!(first.expect("a line"), 16);
    assert_eq!(wait(&mut endless, PATIENT).code(), Some(0));
    let none = run(&[]);
    assert_eq!(none.status.code(), Some(2));
    let why = String::from_utf8_lossy(&none.stderr);
    assert!(why.contains("--once and --json do without"), "{why}");
}

#[test]
fn another_server_is_no_pulsegate() {
    let other = TcpListener::bind("127.0.0.1:0").expect("bound");
    let at = other.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for mut client in other.incoming().flatten() {
            let _asked = client.read(&mut [0; 4096]);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"hello\":1}";
            let _gone = client.write_all(answer);
        }
    });
    let expected = format!("pulsegate: {at}: not a pulsegate: it answers 200 OK\n");
    for command in [
        &["reload"][..],
        &["healthcheck"],
        &["drain", "--wait"],
        &["conns"],
        &["found"],
        &["upstreams"],
        &["verify", "1"],
        &["kill", "--all"],
        &["top", "--once"],
    ] {
        let output = pulsegate(command).args(["--admin", &at]).output();
        let output = output.expect("run");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
        assert!(output.stdout.is_empty(), "{command:?}: {output:?}");
    }
}
