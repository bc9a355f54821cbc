//! Settings of the kernel and of the container that bound the promise.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What was read; `None` is unknown: no such setting in this kernel or namespace, or hidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `net.core.somaxconn`: the longest accept queue.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 when a queue is full, 2 always.
    pub syncookies: Option<u64>,
    /// `net.ipv4.tcp_synack_retries`.
    pub synack_retries: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`: handshakes, where cookies are off.
    pub max_syn_backlog: Option<u64>,
    /// `net.ipv4.ip_local_port_range`, first and last port.
    pub port_range: Option<(u64, u64)>,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub max_time_wait: Option<u64>,
    /// `net.ipv4.tcp_mem`, pages: below is no pressure, pressure from, limit.
    pub tcp_memory_pages: Option<(u64, u64, u64)>,
    /// `net.ipv4.tcp_congestion_control`.
    pub congestion_control: Option<String>,
    /// `net.ipv4.tcp_retries2`.
    pub retries2: Option<u64>,
    /// `net.ipv4.tcp_orphan_retries`; 0 stands for 8.
    pub orphan_retries: Option<u64>,
    /// `net.ipv4.tcp_keepalive_time`, seconds.
    pub keepalive_time: Option<u64>,
    /// `fs.pipe-user-pages-soft`, pages of 4 KiB for all pipes of a user; 0 is no limit.
    pub pipe_user_pages: Option<u64>,
    /// `fs.pipe-max-size`, bytes of one pipe.
    pub pipe_max_size: Option<u64>,
    /// File descriptors that the process may raise its own limit to; `u64::MAX` is no limit.
    pub descriptors: u64,
    /// Processor time by the CPU quota of the control group, thousandths of a processor.
    /// `None`: no quota, or unknown.
    pub cpu_quota_millis: Option<u64>,
    /// Memory limit of the control group, bytes. `None`: no limit, or unknown.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// Reads them for the calling process.
    #[must_use]
    pub fn read() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            descriptors: descriptors.maximum.unwrap_or(u64::MAX),
            ..Self::below(Path::new("/"))
        }
    }

    /// Reads what is in files, below another root than `/` in tests.
    fn below(root: &Path) -> Self {
        let text = |name: &str| {
            let path = root.join("proc/sys").join(name.replace('.', "/"));
            Some(fs::read_to_string(path).ok()?.trim().to_owned())
        };
        let number = |name: &str| text(name)?.parse().ok();
        let groups = Groups::of(root);
        Self {
            somaxconn: number("net.core.somaxconn"),
            syncookies: number("net.ipv4.tcp_syncookies"),
            synack_retries: number("net.ipv4.tcp_synack_retries"),
            max_syn_backlog: number("net.ipv4.tcp_max_syn_backlog"),
            port_range: text("net.ipv4.ip_local_port_range").and_then(|t| match *numbers(&t) {
                [first, last] => Some((first, last)),
                _ => None,
            }),
            max_time_wait: number("net.ipv4.tcp_max_tw_buckets"),
            tcp_memory_pages: text("net.ipv4.tcp_mem").and_then(|t| match *numbers(&t) {
                [low, pressure, high] => Some((low, pressure, high)),
                _ => None,
            }),
            congestion_control: text("net.ipv4.tcp_congestion_control"),
            retries2: number("net.ipv4.tcp_retries2"),
            orphan_retries: number("net.ipv4.tcp_orphan_retries"),
            keepalive_time: number("net.ipv4.tcp_keepalive_time"),
            pipe_user_pages: number("fs.pipe-user-pages-soft"),
            pipe_max_size: number("fs.pipe-max-size"),
            descriptors: 0,
            cpu_quota_millis: groups.cpu_quota_millis(),
            memory_bytes: groups.memory_bytes(),
        }
    }
}

fn numbers(text: &str) -> Vec<u64> {
    let words = text.split_ascii_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Version 1 says "no limit" by a number near 2^63.
const NO_MEMORY_LIMIT: u64 = 1 << 60;

/// The control groups of the process, innermost first. Each of them limits.
struct Groups {
    unified: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
    memory: Vec<PathBuf>,
}

impl Groups {
    fn of(root: &Path) -> Self {
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

    fn cpu_quota_millis(&self) -> Option<u64> {
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

    fn memory_bytes(&self) -> Option<u64> {
        let version_2 = self.unified.iter().map(|group| group.join("memory.max"));
        let version_1 = self
            .memory
            .iter()
            .map(|group| group.join("memory.limit_in_bytes"));
        let limits = version_2.chain(version_1).filter_map(|path| parsed(&path));
        limits.filter(|bytes| *bytes < NO_MEMORY_LIMIT).min()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with some files in it, removed at the end.
    struct Root(PathBuf);

    impl Root {
        fn with(name: &str, files: &[(&str, &str)]) -> Self {
            let name = format!("pulsegate-limits-{}-{name}", std::process::id());
            let root = Self(std::env::temp_dir().join(name));
            for (path, text) in files {
                let path = root.0.join(path);
                fs::create_dir_all(path.parent().expect("in the root")).expect("made");
                fs::write(path, text).expect("written");
            }
            root
        }

        fn limits(&self) -> Limits {
            Limits::below(&self.0)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            // Nothing was made where no file was asked for.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn settings_are_read_and_the_rest_is_unknown() {
        let root = Root::with(
            "sysctl",
            &[
                ("proc/sys/net/core/somaxconn", "128\n"),
                ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
                ("proc/sys/net/ipv4/tcp_mem", "1 2\n"),
                ("proc/sys/net/ipv4/tcp_congestion_control", "cubic\n"),
                ("proc/sys/fs/pipe-user-pages-soft", "many\n"),
            ],
        );
        let expected = Limits {
            somaxconn: Some(128),
            port_range: Some((32_768, 60_999)),
            congestion_control: Some("cubic".to_owned()),
            ..Limits::default()
        };
        assert_eq!(root.limits(), expected);
        assert_eq!(Root::with("nothing", &[]).limits(), Limits::default());
    }

    #[test]
    fn the_narrowest_group_limits() {
        let root = Root::with(
            "v2",
            &[
                ("proc/self/cgroup", "0::/pod/app\n"),
                ("sys/fs/cgroup/pod/app/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/pod/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/memory.max", "67108864\n"),
            ],
        );
        let limits = root.limits();
        assert_eq!(limits.cpu_quota_millis, Some(1500));
        assert_eq!(limits.memory_bytes, Some(64 << 20));
    }

    #[test]
    fn version_1_is_understood() {
        let root = Root::with(
            "v1",
            &[
                ("proc/self/cgroup", "4:memory:/docker/x\n2:cpu,cpuacct:/\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
        );
        assert_eq!(root.limits().cpu_quota_millis, Some(500));
        assert_eq!(root.limits().memory_bytes, None);
        fs::write(root.0.join("sys/fs/cgroup/cpu/cpu.cfs_quota_us"), "-1\n").expect("written");
        assert_eq!(root.limits().cpu_quota_millis, None);
    }

    #[test]
    fn this_host_can_be_read() {
        let limits = Limits::read();
        assert!(limits.somaxconn.is_some() && limits.descriptors > 0);
    }
}
