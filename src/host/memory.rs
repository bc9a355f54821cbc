//! How much memory is in use, against how much there may be.

use std::fs;
use std::io;
use std::path::Path;

use super::groups::{Groups, MemoryGroup, numbers};

/// Measures what a limit is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMeter(Source);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Group(MemoryGroup),
    Process { limit: u64 },
}

impl MemoryMeter {
    /// The control group: pulsegate, whatever else is in it, and the kernel's memory for both; with
    /// version 2 socket buffers count. `None` where no group of the process has a limit.
    #[must_use]
    pub fn of_group() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    /// The resident memory of the process. The kernel counts socket buffers for no process.
    #[must_use]
    pub const fn of_process(limit: u64) -> Self {
        Self(Source::Process { limit })
    }

    fn below(root: &Path) -> Option<Self> {
        let group = Groups::of(root).memory()?;
        Some(Self(Source::Group(group)))
    }

    /// Bytes that may be in use.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        match &self.0 {
            Source::Group(group) => group.limit,
            Source::Process { limit } => *limit,
        }
    }

    /// Bytes in use (some 50 us).
    ///
    /// # Errors
    /// Where the files are hidden.
    pub fn used(&self) -> io::Result<u64> {
        match &self.0 {
            Source::Group(group) => group.used(),
            Source::Process { .. } => resident_memory(),
        }
    }
}

/// The resident memory of the process, in bytes.
///
/// # Errors
/// Where /proc is hidden.
pub fn resident_memory() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = numbers(&statm).get(1).copied();
    let pages = pages.ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::limits::tests::Root;
    use super::*;

    #[test]
    fn the_working_set_of_the_narrowest_group() {
        let root = Root::with(
            "memory-v2",
            &[
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/memory.max", "67108864\n"),
                ("sys/fs/cgroup/pod/memory.current", "5000\n"),
                (
                    "sys/fs/cgroup/pod/memory.stat",
                    "anon 7\nactive_file 2\ninactive_file 1000\nsock 9\n",
                ),
            ],
        );
        let meter = MemoryMeter::below(root.path()).expect("limited");
        assert_eq!(meter.limit(), 64 << 20);
        assert_eq!(meter.used().expect("read"), 4000);
    }

    #[test]
    fn version_1_counts_the_groups_below() {
        let root = Root::with(
            "memory-v1",
            &[
                ("proc/self/cgroup", "4:memory:/docker/x\n0::/\n"),
                (
                    "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes",
                    "9000\n",
                ),
                (
                    "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes",
                    "5000\n",
                ),
                (
                    "sys/fs/cgroup/memory/docker/x/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 6000\n",
                ),
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
        );
        let meter = MemoryMeter::below(root.path()).expect("limited");
        assert_eq!((meter.limit(), meter.used().expect("read")), (9000, 0));
    }

    #[test]
    fn what_is_hidden_is_an_error_and_no_limit_is_no_meter() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "9000\n"),
        ];
        let root = Root::with("memory-hidden", &files);
        let meter = MemoryMeter::below(root.path()).expect("limited");
        assert!(meter.used().is_err());
        assert_eq!(MemoryMeter::below(&root.path().join("nothing")), None);
    }

    #[test]
    fn the_process_holds_something() {
        let meter = MemoryMeter::of_process(1 << 30);
        let used = meter.used().expect("read");
        assert!(used > 1 << 20 && used < 1 << 30, "{used}");
    }
}
