//! Containers, by podman, in namespaces of their own: nothing of them is in the network of this machine.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::tools::{run, scratch, tool, tools};

/// Where neither the default limits nor cgroups of version 2 can be had.
const CONF: &str = "\
[containers]
default_ulimits = [\"nofile=16384:16384\", \"nproc=4096:4096\"]
[engine]
runtime = \"runc\"
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
";

/// Whether a container runs here.
pub fn runs() -> bool {
    static RUNS: OnceLock<bool> = OnceLock::new();
    *RUNS.get_or_init(|| {
        let storage = Storage::of("podman-tried");
        let ran = storage.ask(&[
            "run",
            "--rm",
            "--network=none",
            "--rootfs",
            &rootfs(),
            "true",
        ]);
        ran.inspect_err(|why| eprintln!("no container runs here: {why}"))
            .is_ok()
    })
}

/// A small Debian, of which each container changes a copy.
pub fn rootfs() -> String {
    format!("{}:O", tools().join("rootfs").display())
}

/// For what a machine with other work does in containers.
pub const PATIENT: Duration = Duration::from_secs(60);

/// Asks Redis, and waits for its answer.
pub fn ping(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENT))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"+PONG\r\n");
    Ok(())
}

/// Images and containers in a folder of a test.
#[derive(Clone)]
pub struct Storage(PathBuf);

impl Storage {
    pub const fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Of a test of this name.
    pub fn of(test: &str) -> Self {
        Self(scratch(test, "marker", "").with_file_name(""))
    }

    /// A tool that works on it: buildah or podman.
    pub fn command(&self, name: &str) -> Command {
        let conf = self.0.join("containers.conf");
        fs::write(&conf, CONF).unwrap();
        let mut command = Command::new(tool(name));
        command.env("CONTAINERS_CONF", conf);
        command.arg("--root").arg(self.0.join("root"));
        command.arg("--runroot").arg(self.state());
        command.args(["--storage-driver", "vfs"]);
        command
    }

    /// podman wants a short path for it; another one for each storage.
    fn state(&self) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        std::env::temp_dir().join(format!("pulsegate-{:x}", hasher.finish()))
    }

    /// What podman says.
    pub fn ask(&self, words: &[&str]) -> Result<String, String> {
        let said = run(self.command("podman").args(words));
        said.map(|text| text.trim().to_owned())
    }
}

/// A container, removed when it is dropped.
pub struct Container {
    storage: Storage,
    name: String,
}

impl Container {
    /// `podman run` with these words.
    pub fn run(storage: &Storage, name: &str, words: &[&str]) -> Self {
        let container = Self::of(storage, name);
        // Of a run that was killed.
        container.remove();
        let words = [&["run", "--detach", "--name", name], words].concat();
        storage.ask(&words).unwrap();
        container
    }

    /// One that is there.
    pub fn of(storage: &Storage, name: &str) -> Self {
        Self {
            storage: storage.clone(),
            name: name.to_owned(),
        }
    }

    /// Runs a program in it.
    pub fn exec(&self, words: &[&str]) -> Result<String, String> {
        let words = [&["exec", &self.name], words].concat();
        self.storage.ask(&words)
    }

    /// Of its first process, as this machine counts them.
    pub fn pid(&self) -> u32 {
        self.inspect("{{.State.Pid}}").parse().unwrap()
    }

    pub fn inspect(&self, what: &str) -> String {
        let words = ["inspect", "--format", what, &self.name];
        self.storage.ask(&words).unwrap()
    }

    pub fn logs(&self) -> String {
        self.storage.ask(&["logs", &self.name]).unwrap()
    }

    /// SIGTERM, and SIGKILL when so many seconds have passed.
    pub fn stop(&self, seconds: u64) {
        let words = ["stop", &format!("--time={seconds}"), &self.name];
        self.storage.ask(&words).unwrap();
    }

    /// Runs `body` in its network.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        let enter = || {
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&network),
                Some(LinkNameSpaceType::Network),
            )
        };
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter().unwrap();
                body()
            });
            inside.join().unwrap()
        })
    }

    fn remove(&self) {
        let _none = self.storage.ask(&["rm", "--force", "--time=0", &self.name]);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "{}",
                self.storage
                    .ask(&["logs", "--tail=40", &self.name])
                    .unwrap_or_else(|why| why)
            );
        }
        self.remove();
    }
}
