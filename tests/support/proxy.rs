//! The binary under test, inside the private network, seen through what an operator sees.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::sys::netns::Namespace;
use rustix::process::{Pid, Signal};

use super::{MemoryGroup, Net, eventually, ms};

/// The name that a listener given by flags gets.
pub const LISTENER: &str = "default";
/// Where its admin endpoint is, in its own network.
pub const ADMIN: &str = "127.0.0.1:9900";
const START_WITHIN: Duration = Duration::from_secs(15);

/// The binary under test. `PULSEGATE_TEST_BINARY` puts another build to the test.
pub fn binary() -> OsString {
    std::env::var_os("PULSEGATE_TEST_BINARY")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_pulsegate").into())
}

/// A running pulsegate. It is killed, by its handle, when it is dropped; its output is printed if
/// the test is failing then.
#[derive(Debug)]
pub struct Proxy {
    net: Arc<Net>,
    child: Child,
    output: File,
}

impl Proxy {
    /// Starts the binary in the proxy's namespace, in front of the service, and waits until it
    /// is ready.
    pub fn start(net: &Arc<Net>, flags: &[&str]) -> Self {
        Self::start_before(net, net.service(), flags)
    }

    /// The same in front of another service.
    pub fn start_before(net: &Arc<Net>, upstream: SocketAddr, flags: &[&str]) -> Self {
        Self::start_as(net, Command::new(binary()), upstream, flags)
    }

    /// The same where the process may hold so many descriptors, and no more.
    pub fn start_limited(net: &Arc<Net>, descriptors: u32, flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""),
            ])
            .arg(binary());
        Self::start_as(net, command, net.service(), flags)
    }

    /// The same in a control group of the kernel's.
    pub fn start_limited_by(net: &Arc<Net>, group: &MemoryGroup, flags: &[&str]) -> Self {
        Self::start_as(net, group.command(binary()), net.service(), flags)
    }

    /// The same in a control group with a memory limit, of which the process sees what the test
    /// says: the files are the test's own, in a mount namespace of the process.
    pub fn start_in_group(net: &Arc<Net>, memory_limit: u64, flags: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        let files = format!(
            "mount -t tmpfs none /sys/fs/cgroup && cd /sys/fs/cgroup && echo 0 > memory.current && \
             echo inactive_file 1000 > memory.stat && echo {memory_limit} > memory.max && \
             cd / && exec \"$0\" \"$@\""
        );
        // As its own root it may mount, whoever runs the test.
        let namespaces = ["--map-root-user", "--mount", "sh", "-c", &files];
        command.args(namespaces).arg(binary());
        Self::start_as(net, command, net.service(), flags)
    }

    /// Has the control group use so much memory.
    pub fn set_memory_in_use(&self, bytes: u64) {
        let group = format!("/proc/{}/root/sys/fs/cgroup", self.child.id());
        // The file is never seen half-written. Of these bytes 1000 are inactive pages of files.
        let (new, current) = (format!("{group}/new"), format!("{group}/memory.current"));
        fs::write(&new, format!("{}\n", bytes + 1000)).expect("write");
        fs::rename(new, current).expect("rename");
    }

    /// Started with a file instead of flags, where the process may hold so many descriptors, and
    /// its only name server is what listens on 127.0.0.1:53 of its network. The endpoint is at its
    /// usual place.
    pub fn start_with_dns(net: &Arc<Net>, descriptors: u32, file: &str) -> Self {
        let mut command = Command::new("unshare");
        // Both files are the test's own, in a mount namespace of the process.
        let files = format!(
            "mount -t tmpfs none /mnt && echo nameserver 127.0.0.1 > /mnt/resolv.conf && \
             echo 127.0.0.1 localhost > /mnt/hosts && printf %s \"$1\" > /mnt/pulsegate.yaml && \
             mount --bind /mnt/resolv.conf /etc/resolv.conf && \
             mount --bind /mnt/hosts /etc/hosts && ulimit -n {descriptors} && \
             exec \"$0\" run --config /mnt/pulsegate.yaml"
        );
        command.args(["--map-root-user", "--mount", "sh", "-c", &files]);
        command.arg(binary()).arg(file);
        Self::launch(net, command)
    }

    fn start_as(
        net: &Arc<Net>,
        mut command: Command,
        upstream: SocketAddr,
        flags: &[&str],
    ) -> Self {
        command
            .arg("run")
            .args(["--listen", &net.everywhere().to_string()])
            .args(["--upstream", &upstream.to_string()])
            .args(["--admin", ADMIN])
            .args(net.legs.flags())
            .args(flags);
        Self::launch(net, command)
    }

    fn launch(net: &Arc<Net>, mut command: Command) -> Self {
        let output = output_file().expect("a file for the output");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output.try_clone().expect("a third handle"));
        let child = net
            .proxy
            .run(|| command.spawn())
            .expect("enter")
            .expect("start the binary");
        let mut proxy = Self {
            net: Arc::clone(net),
            child,
            output,
        };
        proxy.wait_ready();
        proxy
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + START_WITHIN;
        while !matches!(self.get("/readyz"), Ok((200, _))) {
            if let Some(status) = self.child.try_wait().expect("wait for the child") {
                panic!("the proxy ended before it was ready: {status}");
            }
            assert!(Instant::now() < deadline, "the proxy does not become ready");
            thread::sleep(ms(20));
        }
    }

    /// GETs a page of the admin endpoint: status and body.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        self.ask("GET", path)
    }

    /// Sends the admin endpoint a request: status and body.
    pub fn ask(&self, method: &str, path: &str) -> io::Result<(u16, String)> {
        ask(&self.net.proxy, method, path)
    }

    /// Runs a subcommand against the endpoint: its exit code and standard output.
    pub fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let child = self
            .net
            .proxy
            .run(|| command.spawn())
            .expect("enter")
            .expect("start it");
        let output = child.wait_with_output().expect("wait for it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    }

    /// The current metrics.
    pub fn metrics(&self) -> Metrics {
        let (status, body) = self.get("/metrics").expect("scrape");
        assert_eq!(status, 200, "{body}");
        Metrics(body)
    }

    /// Sessions that ended for a reason.
    pub fn closed(&self, reason: &str) -> f64 {
        self.metrics().closed(reason)
    }

    /// Descriptors that the process has open.
    pub fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(directory).map_or(0, Iterator::count)
    }

    /// Its threads.
    pub fn threads(&self) -> usize {
        let directory = format!("/proc/{}/task", self.child.id());
        fs::read_dir(directory).map_or(0, Iterator::count)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory that the process holds, in KiB.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        number.expect("a resident size")
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal the child");
    }

    /// Stops the process, and waits until each of its threads has stopped.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.child.id());
        let stopped = |entry: io::Result<fs::DirEntry>| {
            let status = entry.and_then(|e| fs::read_to_string(e.path().join("status")));
            status.is_ok_and(|text| text.contains("\nState:\tT"))
        };
        let all = || fs::read_dir(&threads).is_ok_and(|mut all| all.all(stopped));
        assert!(eventually(ms(10_000), all), "the process does not stop");
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        let mut status = None;
        eventually(within, || {
            status = child.try_wait().expect("wait for the child");
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("the proxy still runs after {within:?}"))
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        let length = self.output.metadata().map_or(0, |m| m.len());
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        let _ = self.output.read_exact_at(&mut bytes, 0);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- output of the proxy\n{}---", self.output());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file without a name, in memory.
fn output_file() -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("proxy-output", flags)?.into())
}

fn ask(namespace: &Namespace, method: &str, path: &str) -> io::Result<(u16, String)> {
    let admin: SocketAddr = ADMIN.parse().expect("an address");
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&admin, ms(2000)))??;
    stream.set_read_timeout(Some(ms(5000)))?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.ok_or_else(invalid)?, body.to_owned()))
}

/// A scrape in the Prometheus text format.
#[derive(Clone, Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of the series of a family that carry these labels, whatever others they carry; 0
    /// if there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).sum()
    }

    /// Whether there is such a series.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.series(name, labels).next().is_some()
    }

    /// Sessions of the listener that ended for a reason.
    pub fn closed(&self, reason: &str) -> f64 {
        let labels = [("listener", LISTENER), ("reason", reason)];
        self.value("pulsegate_connections_closed_total", &labels)
    }

    /// The lines of families whose name begins so, for messages.
    pub fn excerpt(&self, prefix: &str) -> String {
        let wanted = |line: &&str| line.starts_with(prefix) && !line.ends_with(" 0");
        self.0
            .lines()
            .filter(wanted)
            .fold(String::new(), |all, line| all + line + "\n")
    }

    fn series(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            // No value of a label here contains a comma.
            let has = |label: &String| labels.split(',').any(|l| l == label);
            if wanted.iter().all(has) {
                value.trim().parse().ok()
            } else {
                None
            }
        })
    }
}
