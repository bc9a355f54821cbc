//! A control group with a memory limit, made for one test.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{eventually, ms};

const MOUNT: &str = "/sys/fs/cgroup";

/// How a version of control groups calls its files.
struct Files {
    limit: &'static str,
    /// The same with swap, or swap alone; absent where the kernel does not account for it.
    swap: (&'static str, fn(u64) -> u64),
    usage: &'static str,
    inactive_file: &'static str,
    /// Where the line `oom_kill` is.
    kills: &'static str,
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    swap: ("memory.memsw.limit_in_bytes", |limit| limit),
    usage: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file",
    kills: "memory.oom_control",
};
const VERSION_2: Files = Files {
    limit: "memory.max",
    swap: ("memory.swap.max", |_| 0),
    usage: "memory.current",
    inactive_file: "inactive_file",
    kills: "memory.events",
};

/// The group. It is removed when it is dropped: after the processes inside.
pub struct MemoryGroup {
    directory: PathBuf,
    files: &'static Files,
}

impl MemoryGroup {
    /// Makes a group that may use so many bytes and no swap, below a group of the test itself.
    pub fn new(limit: u64) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("pulsegate-test-{}-{number}", std::process::id());
        let (parent, files) = parent()?;
        let directory = parent.join(name);
        fs::create_dir(&directory)?;
        // From here on it is removed whatever happens.
        let group = Self { directory, files };
        group.write(files.limit, limit)?;
        let (file, swap) = files.swap;
        let _not_accounted_for = group.write(file, swap(limit));
        let joined = group.command("true".into()).status()?.success();
        if joined {
            Ok(group)
        } else {
            Err(io::Error::other("a process may not be put into it"))
        }
    }

    /// A command that runs a program inside the group.
    pub fn command(&self, program: OsString) -> Command {
        let mut command = Command::new("sh");
        let join = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        command.args(["-c", join]).arg(&self.directory).arg(program);
        command
    }

    /// A process in the group that holds so many bytes.
    #[track_caller]
    pub fn fill(&self, bytes: u64) -> Filler {
        let before = self.used();
        // It keeps the last lines, and this one never ends.
        let mut command = self.command("tail".into());
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("start tail");
        let mut input = child.stdin.take().expect("a pipe");
        let copied = io::copy(&mut io::repeat(b'x').take(bytes), &mut input);
        copied.expect("it reads");
        let filler = Filler {
            child,
            _input: input,
        };
        let holds = || self.used() >= before + bytes / 10 * 9;
        assert!(eventually(ms(10_000), holds), "{} in use", self.used());
        filler
    }

    /// Bytes in use, without the pages of files that nobody used lately.
    pub fn used(&self) -> u64 {
        let usage = self.read(self.files.usage);
        let usage: u64 = usage.trim().parse().expect("a number");
        usage.saturating_sub(self.line("memory.stat", self.files.inactive_file))
    }

    /// Processes that the kernel has killed for memory.
    pub fn kills(&self) -> u64 {
        self.line(self.files.kills, "oom_kill")
    }

    fn line(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let value = text.lines().find_map(|line| {
            let (key, value) = line.split_once(' ')?;
            (key == name).then(|| value.parse().ok())?
        });
        value.unwrap_or_else(|| panic!("no {name} in {file}: {text}"))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).expect("read a file of the group")
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        fs::write(self.directory.join(file), value.to_string())
    }
}

/// It ends when it is dropped.
pub struct Filler {
    child: Child,
    _input: ChildStdin,
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that has just ended may be there for a moment.
        let removed = || fs::remove_dir(&self.directory).is_ok();
        if !eventually(ms(10_000), removed) {
            eprintln!("{} is left over", self.directory.display());
        }
    }
}

/// The innermost group of this process below which memory can be limited.
fn parent() -> io::Result<(PathBuf, &'static Files)> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let find = |controller: &str| {
        own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let found = controllers.split(',').any(|name| name == controller);
            found.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    if let Some(path) = find("memory") {
        return Ok((Path::new(MOUNT).join("memory").join(path), &VERSION_1));
    }
    let path = find("").ok_or(io::ErrorKind::NotFound)?;
    // With version 2, groups that hold processes have no groups with limits below them.
    let limits = |group: &&Path| {
        let control = Path::new(MOUNT).join(group).join("cgroup.subtree_control");
        let control = fs::read_to_string(control).unwrap_or_default();
        control.split_whitespace().any(|name| name == "memory")
    };
    let found = Path::new(&path).ancestors().find(limits);
    let none = || io::Error::other("the memory controller is not delegated");
    Ok((Path::new(MOUNT).join(found.ok_or_else(none)?), &VERSION_2))
}
