//! Settings of the kernel and of the container that bound the promise.

use std::fs;
use std::path::Path;

use super::groups::{Groups, numbers};

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
            memory_bytes: groups.memory().map(|group| group.limit),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A root with some files in it, removed at the end.
    pub(in crate::host) struct Root(PathBuf);

    impl Root {
        pub(in crate::host) fn with(name: &str, files: &[(&str, &str)]) -> Self {
            let name = format!("pulsegate-limits-{}-{name}", std::process::id());
            let root = Self(std::env::temp_dir().join(name));
            for (path, text) in files {
                let path = root.0.join(path);
                fs::create_dir_all(path.parent().expect("in the root")).expect("made");
                fs::write(path, text).expect("written");
            }
            root
        }

        pub(in crate::host) fn path(&self) -> &Path {
            &self.0
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
