//! The control groups of the process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Version 1 says "no limit" by a number near 2^63.
const NO_MEMORY_LIMIT: u64 = 1 << 60;

/// A group that limits memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryGroup {
    /// Bytes.
    pub limit: u64,
    current: PathBuf,
    stat: PathBuf,
    inactive_file: &'static str,
}

/// How a version of control groups calls its files.
struct Files {
    limit: &'static str,
    current: &'static str,
    stat: &'static str,
    /// A line of `stat`, groups below included.
    inactive_file: &'static str,
}

const VERSION_2: Files = Files {
    limit: "memory.max",
    current: "memory.current",
    stat: "memory.stat",
    inactive_file: "inactive_file",
};
const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    stat: "memory.stat",
    inactive_file: "total_inactive_file",
};

impl MemoryGroup {
    /// Its working set: all but the pages of files that nobody used lately, which the kernel drops
    /// before it kills.
    pub fn used(&self) -> io::Result<u64> {
        let current = parsed(&self.current).ok_or(io::ErrorKind::InvalidData)?;
        let stat = fs::read_to_string(&self.stat)?;
        let inactive = stat.lines().find_map(|line| {
            let value = line.strip_prefix(self.inactive_file)?.strip_prefix(' ')?;
            value.parse().ok()
        });
        Ok(u64::saturating_sub(current, inactive.unwrap_or(0)))
    }
}

/// The control groups of the process, innermost first. Each of them limits.
pub(super) struct Groups {
    unified: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
    memory: Vec<PathBuf>,
}

impl Groups {
    pub fn of(root: &Path) -> Self {
        let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mount = root.join("sys/fs/cgroup");
        let mut groups = Self {
            unified: Vec::new(),
            cpu: Vec::new(),
            memory: Vec::new(),
        };
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            match controllers {
                "" => groups.unified = upwards(&mount, path),
                _ if lists(controllers, "memory") => {
                    groups.memory = upwards(&mount.join("memory"), path);
                }
                _ if lists(controllers, "cpu") => groups.cpu = upwards(&mount.join("cpu"), path),
                _ => {}
            }
        }
        groups
    }

    pub fn cpu_quota_millis(&self) -> Option<u64> {
        let share = |quota: u64, period: u64| (quota * 1000).checked_div(period);
        let version_2 = self.unified.iter().filter_map(|group| {
            // "max 100000" is no quota, and not two numbers.
            match *numbers(&fs::read_to_string(group.join("cpu.max")).ok()?) {
                [quota, period] => share(quota, period),
                _ => None,
            }
        });
        let version_1 = self.cpu.iter().filter_map(|group| {
            // -1 is no quota, and not a `u64`.
            share(
                parsed(&group.join("cpu.cfs_quota_us"))?,
                parsed(&group.join("cpu.cfs_period_us"))?,
            )
        });
        version_2.chain(version_1).min()
    }

    /// The one that allows the least memory.
    pub fn memory(&self) -> Option<MemoryGroup> {
        let version_2 = self.unified.iter().map(|group| (group, &VERSION_2));
        let version_1 = self.memory.iter().map(|group| (group, &VERSION_1));
        let limited = version_2.chain(version_1).filter_map(|(group, files)| {
            let limit = parsed(&group.join(files.limit)).filter(|n| *n < NO_MEMORY_LIMIT)?;
            Some(MemoryGroup {
                limit,
                current: group.join(files.current),
                stat: group.join(files.stat),
                inactive_file: files.inactive_file,
            })
        });
        limited.min_by_key(|group| group.limit)
    }
}

pub(super) fn numbers(text: &str) -> Vec<u64> {
    let words = text.split_ascii_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

fn lists(controllers: &str, wanted: &str) -> bool {
    controllers.split(',').any(|name| name == wanted)
}

/// A group and all above it. In a container the path may be that of the host, of which only the
/// root is visible: as the container's own group.
fn upwards(mount: &Path, path: &str) -> Vec<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| mount.join(group)).collect()
}

fn parsed<T: FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
