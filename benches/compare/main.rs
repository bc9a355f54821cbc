//! pulsegate beside other proxies: the same load, the same service, the same machine, one run,
//! one table. Everything happens in a private network namespace. See benches/README.md.

#![allow(
    clippy::disallowed_methods,
    reason = "measures real time, beside the processes that it compares"
)]

#[path = "../common/arguments.rs"]
mod arguments;
mod backend;
mod load;
mod table;
mod target;
mod tls;
#[path = "../common/usage.rs"]
mod usage;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use arguments::Arguments;
use load::Tally;
use pulsegate::sys::netns::{self, Namespace};
use table::Table;
use target::{Place, Target};
use tls::Sessions;

const USAGE: &str = "cargo bench --bench compare -- [flags]
  --targets LIST    of direct,pulsegate,haproxy,haproxy-splice,haproxy-threads,nginx,envoy (all)
                    and other: another build of pulsegate, by the variable OTHER
  --scenarios LIST  of ping,rate,trickle,upload,download,both,connect,mixed,mixed-max,idle,
                    idle-burst (all); and of tls, or some of tls-ping,tls-upload,tls-download,
                    tls-connect,tls-resume,tls-idle,tls-idle-burst
  --secs S          seconds measured in each run (1)
  --repeats N       runs of each scenario and target (3)
  --sessions N      sessions of the scenarios trickle, idle and idle-burst (2000)
  --idle-secs S     seconds for which idle holds them (5)";

const SCENARIOS: &str =
    "ping,rate,trickle,upload,download,both,connect,mixed,mixed-max,idle,idle-burst";
/// What `tls` stands for.
const TLS_SCENARIOS: [&str; 7] = [
    "tls-ping",
    "tls-upload",
    "tls-download",
    "tls-connect",
    "tls-resume",
    "tls-idle",
    "tls-idle-burst",
];
const TLS_IDLE_SESSIONS: usize = 1000;
const WARM_UP: Duration = Duration::from_millis(300);

/// What a run has shown. Times are of the proxy's processes.
struct Run {
    units: f64,
    bytes: f64,
    secs: f64,
    cpu: Duration,
    micros: Vec<u32>,
    errors: u64,
    others: f64,
}

struct Plan {
    secs: Duration,
    idle_secs: Duration,
    sessions: usize,
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(USAGE) else {
        return ExitCode::SUCCESS;
    };
    let descriptors = usage::raise_descriptor_limit().min(1 << 20);
    if let Err(reason) = private_network() {
        eprintln!("no network namespaces here (root or user namespaces are needed): {reason}");
        return ExitCode::FAILURE;
    }
    let place = Place {
        backend: SocketAddr::from(([127, 0, 0, 1], 19_000)),
        directory: env::temp_dir().join(format!("pulsegate-compare-{}", std::process::id())),
        descriptors,
        threads: thread::available_parallelism().map_or(1, Into::into),
    };
    let compared = compare(&arguments, &place);
    let _ = fs::remove_dir_all(&place.directory);
    match compared {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments, place: &Place) -> io::Result<Table> {
    fs::create_dir_all(&place.directory)?;
    tls::certify(&place.directory)?;
    target::end_with_this_process(place.directory.clone());
    backend::start(place.backend);
    // A session of trickle takes three here: the two ends, and one more to read answers.
    let third = usize::try_from(place.descriptors / 3).unwrap_or(usize::MAX);
    let plan = Plan {
        secs: Duration::from_secs_f64(arguments.get("secs", 1.0)),
        idle_secs: Duration::from_secs_f64(arguments.get("idle-secs", 5.0)),
        sessions: arguments
            .get("sessions", 2000)
            .min(third.saturating_sub(200)),
    };
    let mut targets = start_all(&arguments.list("targets", target::NAMES), place);
    let mut table = Table::new(&targets);
    let repeats = arguments.get("repeats", 3);
    let scenarios: Vec<String> = arguments
        .list("scenarios", SCENARIOS)
        .into_iter()
        .flat_map(|name| match name.as_str() {
            "tls" => TLS_SCENARIOS.map(str::to_owned).to_vec(),
            _ => vec![name],
        })
        .collect();
    let begin = Instant::now();
    for repeat in 0..repeats {
        for scenario in &scenarios {
            let elapsed = begin.elapsed().as_secs();
            eprintln!("[{elapsed:>4} s] {scenario}, {} of {repeats}", repeat + 1);
            // Whoever comes first in one round is not the first in the next.
            for n in 0..targets.len() {
                let at = (n + repeat) % targets.len();
                run(
                    scenario,
                    &mut targets[at],
                    &plan,
                    |row, value, others, errors| {
                        table.add(row, at, value, others, errors);
                    },
                )?;
            }
        }
    }
    Ok(table)
}

fn start_all(names: &[String], place: &Place) -> Vec<Target> {
    let mut targets = Vec::new();
    for (name, number) in names.iter().zip(0..) {
        let started = Target::new(name, number, place)
            .and_then(|mut t| t.start().map(|()| t).map_err(|e| e.to_string()));
        match started {
            Ok(target) => targets.push(target),
            Err(reason) => eprintln!("{name} is left out: {reason}"),
        }
    }
    targets
}

/// A network of this process and its children alone, tuned alike for all.
fn private_network() -> io::Result<()> {
    netns::prepare()?;
    Namespace::new()?.enter()?;
    let settings = [
        ("ip_local_port_range", "21000 65535"),
        ("tcp_max_tw_buckets", "4096"),
        ("tcp_max_syn_backlog", "8192"),
        ("../core/somaxconn", "4096"),
    ];
    for (name, value) in settings {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv4/{name}"), value) {
            eprintln!("{name} stays as it is: {error}");
        }
    }
    // One that paces (BBR) limits bulk on loopback and hides what a proxy costs.
    let congestion = "/proc/sys/net/ipv4/tcp_congestion_control";
    fs::write(congestion, "cubic").or_else(|_| fs::write(congestion, "reno"))
}

/// Runs a scenario and gives its figures to `note`.
fn run(
    scenario: &str,
    target: &mut Target,
    plan: &Plan,
    mut note: impl FnMut(&'static str, f64, f64, u64),
) -> io::Result<()> {
    if scenario.contains("idle") {
        // A fresh process: what others have left in its pools must not hide what this costs.
        target.stop();
        target.start()?;
    }
    if scenario.starts_with("tls") && target.pid().is_none() {
        // The service itself speaks none.
        return Ok(());
    }
    let (to, over_tls) = (target.address, target.tls);
    let run = match scenario {
        "ping" => measure(target, plan.secs, |t| load::ping(to, 64, t)),
        "rate" => {
            let open = load::open(to, 64);
            measure(target, plan.secs, |t| load::rate(open, 5000, t))
        }
        "trickle" => {
            let open = load::open(to, plan.sessions);
            // What opening them costs is over by then.
            thread::sleep(Duration::from_millis(500));
            // The turn of each comes every 10 s.
            let pace = u32::try_from(plan.sessions / 10).unwrap_or(u32::MAX).max(1);
            measure(target, plan.secs, |t| load::rate(open, pace, t))
        }
        "upload" => measure(target, plan.secs, |t| load::upload(to, 4, None, t)),
        "download" => measure(target, plan.secs, |t| load::download(to, 4, t)),
        "both" => measure(target, plan.secs, |t| load::both(to, 4, t)),
        "connect" => measure(target, plan.secs, |t| load::connect(to, 32, t)),
        "mixed" => measure(target, plan.secs, |t| mixed(to, Some(400_000_000), t)),
        "mixed-max" => measure(target, plan.secs, |t| mixed(to, None, t)),
        "tls-ping" => measure(target, plan.secs, |t| tls::ping(over_tls, 64, t)),
        "tls-upload" => measure(target, plan.secs, |t| tls::upload(over_tls, 4, t)),
        "tls-download" => measure(target, plan.secs, |t| tls::download(over_tls, 4, t)),
        "tls-connect" => measure(target, plan.secs, |t| {
            tls::connect(over_tls, 32, Sessions::New, t);
        }),
        "tls-resume" => measure(target, plan.secs, |t| {
            tls::connect(over_tls, 32, Sessions::Resumed, t);
        }),
        "idle" => return idle(target, plan, note),
        "idle-burst" => return idle_burst(target, plan, note),
        "tls-idle" | "tls-idle-burst" => return tls_idle(scenario, target, note),
        _ => return Err(io::Error::other(format!("no scenario {scenario}"))),
    };
    for (row, value) in figures(scenario, &run) {
        // There is no process whose time could be measured.
        if row.contains("CPU") && target.pid().is_none() {
            continue;
        }
        note(row, value, run.others, run.errors);
    }
    Ok(())
}

/// The rows of a scenario.
fn figures(scenario: &str, run: &Run) -> Vec<(&'static str, f64)> {
    let per_unit = run.cpu.as_secs_f64() * 1e6 / run.units.max(1.0);
    let per_gb = run.cpu.as_secs_f64() * 1e9 / run.bytes.max(1.0);
    let (per_second, gb) = (run.units / run.secs, run.bytes / run.secs / 1e9);
    let wait = |share| f64::from(usage::quantile(&mut run.micros.clone(), share));
    let p99 = wait(0.99);
    match scenario {
        "ping" => vec![
            ("ping, 64 connections: messages/s", per_second),
            ("ping: CPU us/message", per_unit),
            ("ping: p99 us", p99),
        ],
        "rate" => vec![
            ("5000 messages/s: CPU us/message", per_unit),
            ("5000 messages/s: p99 us", p99),
        ],
        "trickle" => vec![
            ("trickle: CPU us/message", per_unit),
            ("trickle: p50 us", wait(0.5)),
            ("trickle: p99 us", p99),
        ],
        "upload" => vec![("upload: GB/s", gb), ("upload: CPU s/GB", per_gb)],
        "download" => vec![("download: GB/s", gb), ("download: CPU s/GB", per_gb)],
        "both" => vec![("both ways: GB/s", gb), ("both ways: CPU s/GB", per_gb)],
        "connect" => vec![
            ("connect, message, FIN: connections/s", per_second),
            ("connect: CPU us/connection", per_unit),
            ("connect: p99 us", p99),
        ],
        "tls-ping" => vec![
            ("TLS: ping, 64 connections: messages/s", per_second),
            ("TLS: ping: CPU us/message", per_unit),
            ("TLS: ping: p99 us", p99),
        ],
        "tls-upload" => vec![("TLS: upload: GB/s", gb), ("TLS: upload: CPU s/GB", per_gb)],
        "tls-download" => vec![
            ("TLS: download: GB/s", gb),
            ("TLS: download: CPU s/GB", per_gb),
        ],
        "tls-connect" => vec![
            (
                "TLS: full handshake, message, end: connections/s",
                per_second,
            ),
            ("TLS: full handshake: CPU us/connection", per_unit),
        ],
        "tls-resume" => vec![
            ("TLS: resumed, message, end: connections/s", per_second),
            ("TLS: resumed: CPU us/connection", per_unit),
        ],
        "mixed-max" => vec![
            ("2000 messages/s beside full uploads: p99 us", p99),
            ("full uploads: GB/s", gb),
            ("full uploads: CPU s/GB", per_gb),
        ],
        _ => vec![
            ("2000 messages/s beside 400 MB/s: p99 us", p99),
            ("beside: CPU s/GB", per_gb),
        ],
    }
}

fn mixed(to: SocketAddr, uploads: Option<u64>, tally: &Arc<Tally>) {
    thread::scope(|scope| {
        scope.spawn(|| load::upload(to, 2, uploads, tally));
        load::rate(load::open(to, 16), 2000, tally);
    });
}

/// Measures while a load runs: after the warm-up, for so long, until it is told to stop.
fn measure(target: &Target, secs: Duration, load: impl FnOnce(&Arc<Tally>) + Send) -> Run {
    let tally = Arc::new(Tally::default());
    thread::scope(|scope| {
        scope.spawn(|| load(&tally));
        thread::sleep(WARM_UP);
        let look = || {
            (
                Instant::now(),
                target.pid().map(usage::cpu).unwrap_or_default(),
                tally.units.load(Ordering::Relaxed),
                backend::ARRIVED.load(Ordering::Relaxed),
                usage::machine_busy(),
                usage::cpu(std::process::id()),
            )
        };
        tally.recording.store(true, Ordering::Relaxed);
        let before = look();
        thread::sleep(secs);
        let after = look();
        tally.recording.store(false, Ordering::Relaxed);
        tally.stop.store(true, Ordering::Relaxed);
        let took = after.0.duration_since(before.0).as_secs_f64();
        let ours = after.5.saturating_sub(before.5);
        let others = after
            .4
            .saturating_sub(before.4)
            .saturating_sub(ours)
            .as_secs_f64();
        let processors = thread::available_parallelism().map_or(1, Into::into);
        Run {
            units: (after.2 - before.2) as f64,
            bytes: (after.3 - before.3) as f64,
            secs: took,
            cpu: after.1.saturating_sub(before.1),
            micros: tally.take(),
            errors: tally.errors.load(Ordering::Relaxed),
            others: others / took / processors as f64,
        }
    })
}

/// Memory of sessions on which nothing happens, and the CPU time of watching them.
fn idle(
    target: &Target,
    plan: &Plan,
    mut note: impl FnMut(&'static str, f64, f64, u64),
) -> io::Result<()> {
    let mut cpu = 0.0;
    let to = target.address;
    let open = |tally: &_| load::hold(to, plan.sessions, load::MESSAGE, tally);
    let held = hold(target, plan.sessions, open, |pid| {
        let before = usage::cpu(pid);
        thread::sleep(plan.idle_secs);
        cpu = usage::cpu(pid).saturating_sub(before).as_secs_f64() * 1e3;
    });
    if let Some((each, errors)) = held {
        note("idle sessions: B/session", each, 0.0, errors);
        note("idle sessions: CPU ms in all", cpu, 0.0, errors);
    }
    Ok(())
}

/// Memory of sessions that needed a buffer once, and do no more.
fn idle_burst(
    target: &Target,
    plan: &Plan,
    mut note: impl FnMut(&'static str, f64, f64, u64),
) -> io::Result<()> {
    let to = target.address;
    let open = |tally: &_| load::hold(to, plan.sessions, 16 << 10, tally);
    if let Some((each, errors)) = hold(target, plan.sessions, open, |_| {}) {
        note("idle after 16 KiB: B/session", each, 0.0, errors);
    }
    Ok(())
}

/// The same in TLS.
fn tls_idle(
    scenario: &str,
    target: &Target,
    mut note: impl FnMut(&'static str, f64, f64, u64),
) -> io::Result<()> {
    let (row, size) = match scenario {
        "tls-idle" => ("TLS: idle sessions: B/session", load::MESSAGE),
        _ => ("TLS: idle after 16 KiB: B/session", 16 << 10),
    };
    let to = target.tls;
    let open = |tally: &_| tls::hold(to, TLS_IDLE_SESSIONS, size, tally);
    if let Some((each, errors)) = hold(target, TLS_IDLE_SESSIONS, open, |_| {}) {
        note(row, each, 0.0, errors);
    }
    Ok(())
}

/// Holds sessions that have carried a message, for as long as `meanwhile` takes; the memory of each,
/// and errors.
fn hold(
    target: &Target,
    sessions: usize,
    open: impl FnOnce(&Arc<Tally>) + Send,
    meanwhile: impl FnOnce(u32),
) -> Option<(f64, u64)> {
    let pid = target.pid()?;
    let tally = Arc::new(Tally::default());
    thread::sleep(WARM_UP);
    let empty = usage::memory(pid);
    let each = thread::scope(|scope| {
        scope.spawn(|| open(&tally));
        let done = || tally.units.load(Ordering::Relaxed) + tally.errors.load(Ordering::Relaxed);
        while done() < sessions as u64 {
            thread::sleep(Duration::from_millis(20));
        }
        // What opening them costs is over by then.
        thread::sleep(Duration::from_secs(1));
        meanwhile(pid);
        let used = usage::memory(pid).saturating_sub(empty);
        tally.stop.store(true, Ordering::Relaxed);
        used as f64 / sessions as f64
    });
    // Read after the last look at the sessions: one that was lost meanwhile is an error.
    Some((each, tally.errors.load(Ordering::Relaxed)))
}
