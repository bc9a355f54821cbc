//! An end of a connection in a process of its own: this test binary, executed again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::endpoint::stream_from;
use super::net::{Host, Net};

const ROLE: &str = "PULSEGATE_TEST_VICTIM";
/// Bytes that are exchanged before the victim is ready.
pub const HELLO: usize = 64;

/// The process. It is killed when it is dropped, and ends by itself when the test does.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Victim {
    /// A client that connects to the proxy, sends 64 bytes and expects 64 back.
    pub fn client(net: &Net) -> Self {
        let to = net.listener(Host::Client);
        Self::start(net, Host::Client, &format!("client {to}"))
    }

    /// A service that accepts one connection and echoes 64 bytes; it listens on return.
    pub fn service(net: &Net) -> Self {
        let at = net.service();
        let mut victim = Self::start(net, Host::Service, &format!("service {at}"));
        victim.expect("listening");
        victim
    }

    fn start(net: &Net, host: Host, role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = net
            .host(host)
            .run(|| command.spawn())
            .expect("enter")
            .expect("start a victim");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    /// Waits until the 64 bytes were exchanged.
    pub fn wait_ready(&mut self) {
        self.expect("ready");
    }

    /// Kills it; the kernel closes its sockets.
    pub fn kill(mut self) {
        self.stop();
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        assert_eq!(line.trim_end(), word, "what the victim says");
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Plays the victim if this process was started as one.
pub fn become_victim() -> bool {
    let Ok(role) = std::env::var(ROLE) else {
        return false;
    };
    let (role, address) = role.split_once(' ').expect("a role and an address");
    let hello = &stream_from(0)[..HELLO];
    let mut received = [0; HELLO];
    let _stream = if role == "client" {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.write_all(hello).expect("send");
        stream.read_exact(&mut received).expect("receive");
        stream
    } else {
        let listener = TcpListener::bind(address).expect("bind");
        println!("listening");
        let (mut stream, _) = listener.accept().expect("accept");
        stream.read_exact(&mut received).expect("receive");
        stream.write_all(hello).expect("send");
        stream
    };
    assert_eq!(received, hello);
    println!("ready");
    // The test holds the other end of the pipe, and sends nothing.
    let _ = std::io::stdin().read(&mut [0]);
    true
}
