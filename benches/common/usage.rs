//! What processes and the kernel use, read from /proc.

#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::fs;
use std::time::Duration;

/// CPU time of a process and all below it: user and system, every living thread.
pub fn cpu(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let one = |thread: fs::DirEntry| {
        let path = thread.path();
        let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        let run: u64 = first_number(&text).unwrap_or_default();
        Duration::from_nanos(run)
    };
    let own: Duration = threads.flatten().map(one).sum();
    own + children(pid).into_iter().map(cpu).sum::<Duration>()
}

/// Memory of a process and all below it, in bytes: its own pages and its share of others.
pub fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    let own = line.and_then(first_number).unwrap_or_default() * 1024;
    own + children(pid).into_iter().map(memory).sum::<u64>()
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let of_one = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let pids = text.split_whitespace().filter_map(|p| p.parse().ok());
        pids.collect::<Vec<u32>>()
    };
    threads.flatten().flat_map(of_one).collect()
}

/// For how long the processors of the machine were not idle, all together, since some moment. The
/// idle time is exact on usual kernels. What runs is only sampled at the ticks, and work of timers
/// falls between them: a reading of softirq time would miss most of it.
pub fn machine_busy() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let processors = text.lines().filter(|l| is_processor(l)).count();
    let line = text.lines().next().unwrap_or_default();
    let ticks = line
        .split_whitespace()
        .skip(1)
        .map(|n| n.parse().unwrap_or(0));
    let ticks: Vec<u32> = ticks.collect();
    let each = Duration::from_secs(1) / ticks_per_second();
    // user nice system idle iowait ...
    let waited = each * ticks.iter().skip(3).take(2).sum::<u32>();
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let uptime = Duration::try_from(uptime).unwrap_or_default();
    (uptime * u32::try_from(processors).unwrap_or(1)).saturating_sub(waited)
}

fn is_processor(line: &str) -> bool {
    let number = line.strip_prefix("cpu").unwrap_or_default();
    number.starts_with(|c: char| c.is_ascii_digit())
}

fn ticks_per_second() -> u32 {
    u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)
}

/// TCP segments received and sent in the network namespace of the calling thread.
pub fn segments() -> (u64, u64) {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let value = |name: &str| {
        let at = names.split(' ').position(|n| n == name)?;
        values.split(' ').nth(at)?.parse().ok()
    };
    (
        value("InSegs").unwrap_or_default(),
        value("OutSegs").unwrap_or_default(),
    )
}

/// Raises the limit of descriptors as far as the system allows, for this process and those it
/// starts; returns it.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, all);
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The value below which a share of the samples lies; they are sorted.
pub fn quantile(samples: &mut [u32], share: f64) -> u32 {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    samples.get(at).copied().unwrap_or_default()
}
