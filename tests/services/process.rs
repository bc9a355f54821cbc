//! Services and clients as child processes, with their ports, files and accounts.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::sys::netns::Namespace;
use rustix::process::{Pid, Signal};
use socket2::{Domain, Socket, Type};

use crate::support::{eventually, ms};

/// A client that takes longer hangs.
const CLIENT_WITHIN: Duration = Duration::from_secs(120);
const START_WITHIN: Duration = Duration::from_secs(30);
const END_WITHIN: Duration = Duration::from_secs(10);

/// Where a tool is: on PATH, or where Debian keeps the ones that are for administrators.
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<PathBuf> = versions.flatten().map(|v| v.path().join("bin")).collect();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    folders
        .iter()
        .map(|folder| folder.join(tool))
        .find(|path| path.is_file())
}

/// A tool that was found before the test was started.
pub fn tool(name: &str) -> Command {
    Command::new(find(name).expect("checked before the test"))
}

/// A loopback address that nobody listens on.
pub fn free_address() -> SocketAddr {
    // Below the range that the kernel takes ports of outgoing connections from, which thousands
    // of sessions use up. Other processes of tests begin elsewhere.
    const FIRST: u16 = 10_000;
    const SPAN: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 200).expect("small") * 100;
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) % SPAN;
        let port = FIRST + (start + n) % SPAN;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        // It does not listen: a child that another thread starts just now holds a copy until it
        // executes its program, and a copy that listens would keep the port taken.
        if socket.bind(&address.into()).is_ok() {
            return address;
        }
    }
}

/// A folder of a test's own, removed with everything in it when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pulsegate-services-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("make a folder");
        // Services under other accounts must get in, whatever the umask is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("open the folder");
        Self(path)
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// An account for services that refuse to run as root; nothing is changed unless this is root.
#[derive(Clone, Copy, Debug)]
pub struct Account(Option<(u32, u32)>);

impl Account {
    /// The first of these accounts that exists.
    pub fn of(names: &[&str]) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let users = fs::read_to_string("/etc/passwd").expect("read the accounts");
        let numbers = |name: &&str| {
            let line = users.lines().find(|l| l.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2).map(str::parse);
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        };
        Self(Some(
            names.iter().find_map(numbers).expect("an account exists"),
        ))
    }

    /// Has the command run under this account.
    pub fn runs(self, command: &mut Command) {
        if let Some((user, group)) = self.0 {
            command.gid(group).uid(user);
        }
    }

    /// Gives a path to this account.
    pub fn owns(self, path: &Path) {
        if let Some((user, group)) = self.0 {
            std::os::unix::fs::chown(path, Some(user), Some(group)).expect("give a folder away");
        }
        assert!(fs::metadata(path).is_ok_and(|m| self.0.is_none_or(|(u, _)| m.uid() == u)));
    }
}

/// A child process whose output is kept. It is ended when it is dropped; its output is printed
/// if the test is failing then.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: File,
    errors: File,
    end: Signal,
}

impl Process {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Self {
        Self::start_by(command, Command::spawn)
    }

    /// Starts a command inside a namespace.
    pub fn start_in(namespace: &Namespace, command: &mut Command) -> Self {
        Self::start_by(command, |command| namespace.run(|| command.spawn())?)
    }

    fn start_by(
        command: &mut Command,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let [output, errors] = [kept(), kept()];
        command
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(errors.try_clone().expect("a second handle"));
        let child = spawn(command).unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            name,
            child,
            output,
            errors,
            end: Signal::TERM,
        }
    }

    /// Another signal than SIGTERM ends it without waiting for its clients.
    pub fn ends_by(mut self, signal: Signal) -> Self {
        self.end = signal;
        self
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // Not reaped before `wait`, so the number is still that of the child.
        let _ended = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// Where its input is written.
    pub fn input(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().expect("piped")
    }

    /// What it has written to standard output.
    pub fn output(&self) -> String {
        text(&self.output)
    }

    /// What it has written to standard error.
    pub fn errors(&self) -> String {
        text(&self.errors)
    }

    /// Waits until it can be used, for which it may matter what it has written to standard
    /// error; it must not end before.
    #[track_caller]
    pub fn wait_until(&mut self, mut usable: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + START_WITHIN;
        while !usable(&self.errors()) {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                panic!("{} ended at its start: {status}", self.name);
            }
            assert!(Instant::now() < deadline, "{} does not start", self.name);
            thread::sleep(ms(20));
        }
    }

    /// Whether it has ended by itself.
    pub fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        drop(self.child.stdin.take());
        let mut status = None;
        let ended = eventually(within, || {
            status = self.child.try_wait().expect("wait for a child");
            status.is_some()
        });
        assert!(ended, "{} does not end", self.name);
        status.expect("ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            let (output, errors) = (self.output(), self.errors());
            eprintln!("--- {}\n{output}{errors}---", self.name);
        }
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        if !ended(&mut self.child) {
            self.signal(self.end);
            if !eventually(END_WITHIN, || ended(&mut self.child)) {
                eprintln!("{} does not end and is killed", self.name);
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

/// Runs a client to its end; returns what it printed. It must succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let mut client = Process::start(command);
    let status = client.wait(CLIENT_WITHIN);
    assert!(status.success(), "{}: {status}", client.name);
    client.output()
}

/// The same with what it printed to standard error.
#[track_caller]
pub fn run_all(command: &mut Command) -> (String, String) {
    let mut client = Process::start(command);
    let status = client.wait(CLIENT_WITHIN);
    assert!(status.success(), "{}: {status}", client.name);
    (client.output(), client.errors())
}

/// A file without a name, in memory.
fn kept() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("output", flags).expect("a file in memory");
    file.into()
}

fn text(file: &File) -> String {
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let n = file.read_at(&mut bytes, 0).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

/// Reads until the other side ends the connection, in whatever way; returns the bytes. Fails if
/// it does not within the stream's read timeout.
#[track_caller]
pub fn read_to_any_end(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = from.read_to_end(&mut bytes) {
        let ended = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(ended.contains(&error.kind()), "not ended: {error}");
    }
    bytes
}
