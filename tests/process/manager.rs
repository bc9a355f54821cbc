//! Under a service manager (sd_notify(3)).

use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};

use rustix::process::Signal;

use super::rig::{PATIENT, PROMPT, Ports, Proxy, Temporary, pulsegate, wait};

const WATCHDOG: Duration = Duration::from_millis(600);

/// Hears what it is told.
struct Manager(UnixDatagram);

impl Manager {
    fn next(&self) -> io::Result<String> {
        let mut message = [0; 256];
        let length = self.0.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// The next message that is not about the watchdog.
    #[track_caller]
    fn hear(&self) -> String {
        self.0.set_read_timeout(Some(PATIENT)).expect("a limit");
        loop {
            let message = self.next().expect("a message");
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// Whether the watchdog is fed within the time; what was told before does not count.
    fn is_fed(&self, within: Duration) -> bool {
        self.0.set_nonblocking(true).expect("an option");
        while self.next().is_ok() {}
        self.0.set_nonblocking(false).expect("an option");
        self.0.set_read_timeout(Some(within)).expect("a limit");
        self.next().is_ok_and(|message| message == "WATCHDOG=1")
    }
}

/// With a configuration file, so that it can be reloaded.
fn start(socket: &str) -> (Proxy, Temporary) {
    let (ports, file) = (Ports::free(), Temporary::new("yaml"));
    let text = format!(
        "listeners: [{{ address: '{}', upstream: {{ address: '127.0.0.1:1' }} }}]\n\
         admin: {{ address: '{}' }}\n\
         drain: {{ delay: 1s, timeout: 4s }}\n\
         workers: 2\n",
        ports.clients, ports.admin
    );
    fs::write(&file.0, text).expect("written");
    let mut command = pulsegate(&["run", "--config"]);
    command
        .arg(&file.0)
        .env("NOTIFY_SOCKET", socket)
        .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
        .stdout(Stdio::null());
    (Proxy::of(&mut command, ports), file)
}

fn number(message: &str, name: &str) -> u64 {
    let line = message.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|number| number.strip_prefix('=')?.parse().ok());
    number.unwrap_or_else(|| panic!("{name} in {message:?}"))
}

#[test]
fn the_manager_is_told_of_each_phase() {
    let path = Temporary::new("notify");
    let manager = Manager(UnixDatagram::bind(&path.0).expect("bound"));
    let (mut proxy, file) = start(&path.0.display().to_string());
    assert_eq!(manager.hear(), "READY=1");
    TcpStream::connect(proxy.ports.clients).expect("clients are accepted by then");

    for text in [fs::read_to_string(&file.0).unwrap(), "wrong".to_owned()] {
        fs::write(&file.0, text).expect("written");
        let before = pulsegate::sys::monotonic_micros();
        proxy.signal(Signal::HUP);
        let message = manager.hear();
        assert!(message.starts_with("RELOADING=1\n"), "{message}");
        // systemd takes what is older than its signal for the answer to another one.
        assert!(number(&message, "MONOTONIC_USEC") >= before, "{message}");
        assert_eq!(manager.hear(), "READY=1", "whether or not it was reloaded");
    }

    assert!(manager.is_fed(PROMPT));
    proxy.signal(Signal::TERM);
    let message = manager.hear();
    assert!(message.starts_with("STOPPING=1\n"), "{message}");
    let longest = number(&message, "EXTEND_TIMEOUT_USEC");
    assert_eq!(longest, 10_000_000, "the drain and a margin");
    assert!(manager.is_fed(PROMPT), "while it drains, too");
    assert_eq!(wait(&mut proxy.child, PROMPT).code(), Some(0));
}

/// By the event loops of the workers: not by a timer that goes on when one of them hangs.
#[test]
fn a_worker_that_hangs_starves_the_watchdog() {
    let name = format!("pulsegate-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let manager = Manager(UnixDatagram::bind_addr(&address).expect("bound"));
    let (proxy, _file) = start(&format!("@{name}"));
    assert_eq!(manager.hear(), "READY=1");
    assert!(manager.is_fed(PROMPT));

    let worker = stopped::Thread::stop(proxy.child.id(), "worker-1");
    // What was on its way.
    manager.is_fed(WATCHDOG);
    assert!(
        !manager.is_fed(3 * WATCHDOG),
        "fed beside a worker that hangs"
    );
    drop(worker);
    assert!(manager.is_fed(PROMPT), "it moves again");
}

/// One thread of another process, stopped by ptrace(2): signals stop all of them.
#[allow(unsafe_code, reason = "nothing else stops one thread")]
mod stopped {
    use std::fs;
    use std::ptr::null_mut;

    pub struct Thread(libc::pid_t);

    impl Thread {
        pub fn stop(process: u32, name: &str) -> Self {
            let threads = fs::read_dir(format!("/proc/{process}/task")).expect("threads");
            let is_it = |thread: &fs::DirEntry| {
                let found = fs::read_to_string(thread.path().join("comm"));
                found.is_ok_and(|found| found.trim() == name)
            };
            let thread = threads.flatten().find(is_it).expect(name).file_name();
            let id: libc::pid_t = thread
                .to_str()
                .and_then(|id| id.parse().ok())
                .expect("a number");
            // SAFETY: no memory of this process is passed but null; `waitpid` may store nowhere.
            let stopped = unsafe {
                let none = null_mut::<libc::c_void>();
                assert_eq!(
                    libc::ptrace(libc::PTRACE_SEIZE, id, none, none),
                    0,
                    "seized"
                );
                assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, id, none, none), 0);
                libc::waitpid(id, null_mut(), libc::__WALL)
            };
            assert_eq!(stopped, id);
            Self(id)
        }
    }

    impl Drop for Thread {
        fn drop(&mut self) {
            let none = null_mut::<libc::c_void>();
            // SAFETY: as above. Its process may have ended: then there is nothing to detach from.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
        }
    }
}
