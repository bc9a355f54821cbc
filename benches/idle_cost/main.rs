//! What it costs to watch idle sessions, and how fast vanished ones are reclaimed. The release
//! binary runs in a private network whose client link is cut for real. See benches/README.md.

#![allow(
    clippy::disallowed_methods,
    reason = "measures real time, beside the process that it judges"
)]

#[path = "../common/arguments.rs"]
mod arguments;
mod hosts;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../common/usage.rs"]
mod usage;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use arguments::Arguments;
use hosts::{Endings, Waits};
use pulsegate::config;
use pulsegate::sys::netns;
use support::{Host, Net, Proxy, eventually};

const USAGE: &str = "cargo bench --bench idle_cost -- [flags]
  --detect LIST     budgets to measure (30s,10s,2s)
  --sessions N      idle sessions (9000, or what the descriptor limit allows)
  --healthy N       clients that work while the others vanish (500)
  --secs N          seconds of idleness measured (30)";

/// How long the healthy clients are measured before the cut.
const BEFORE: Duration = Duration::from_secs(8);
/// Sessions are put under watch after 250 ms; what opening them cost is over by then.
const SETTLE: Duration = Duration::from_secs(3);

struct Plan {
    sessions: usize,
    healthy: usize,
    secs: u64,
}

/// What was measured with one budget.
struct Row {
    detect: String,
    idle: Idle,
    reclaim: Reclaim,
}

struct Idle {
    cpu: Duration,
    took: Duration,
    segments: (u64, u64),
    /// The machine was not idle, beside the proxy.
    kernel: Duration,
    bytes_each: u64,
}

struct Reclaim {
    first: Duration,
    last: Duration,
    closed: usize,
    p99: [u32; 2],
    failures: u64,
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(USAGE) else {
        return ExitCode::SUCCESS;
    };
    if let Err(reason) = netns::prepare() {
        eprintln!("no network namespaces here (root or user namespaces are needed): {reason}");
        return ExitCode::FAILURE;
    }
    let limit = usize::try_from(usage::raise_descriptor_limit()).unwrap_or(usize::MAX);
    let healthy = arguments.get("healthy", 500);
    // Both ends of every session are in this process, both legs in the proxy.
    let most = (limit.saturating_sub(600) / 2).saturating_sub(healthy);
    let plan = Plan {
        sessions: arguments.get("sessions", 9000).min(most),
        healthy,
        secs: arguments.get("secs", 30),
    };
    let budgets = arguments.list("detect", "30s,10s,2s");
    say("nothing at all, for 10 s: what the machine does by itself");
    let before = usage::machine_busy();
    thread::sleep(Duration::from_secs(10));
    let base = usage::machine_busy().saturating_sub(before) / 10;
    let rows: Vec<Row> = budgets.iter().map(|d| measure(d, &plan)).collect();
    print(&rows, &plan, base);
    let whole = |r: &Row| r.reclaim.closed == plan.sessions && r.reclaim.failures == 0;
    if rows.iter().all(whole) {
        ExitCode::SUCCESS
    } else {
        eprintln!("not every vanished session was reclaimed, or a healthy one failed");
        ExitCode::FAILURE
    }
}

fn measure(detect: &str, plan: &Plan) -> Row {
    let net = Arc::new(Net::new());
    let (_service, endings) = hosts::serve(&net, plan.sessions);
    let flags = ["--detect-within", detect, "--access-log", "false"];
    let proxy = Proxy::start(&net, &flags);
    let memory = usage::memory(proxy.pid());
    say(&format!(
        "detect_within {detect}: opens {} sessions",
        plan.sessions
    ));
    let (_idle_clients, opened) = hosts::hold(&net, plan.sessions);
    assert_eq!(opened, plan.sessions, "all sessions came about");
    thread::sleep(SETTLE);
    let bytes_each = (usage::memory(proxy.pid()) - memory) / plan.sessions as u64;
    let idle = Idle {
        bytes_each,
        ..measure_idle(&net, &proxy, plan)
    };
    let (_working_clients, waits) = hosts::work(&net, plan.healthy);
    let reclaim = measure_reclaim(detect, &net, plan, &endings, &waits);
    Row {
        detect: detect.to_owned(),
        idle,
        reclaim,
    }
}

fn measure_idle(net: &Net, proxy: &Proxy, plan: &Plan) -> Idle {
    say(&format!("  idle for {} s", plan.secs));
    let segments = || net.proxy.run(usage::segments).expect("enter the namespace");
    let before = (
        Instant::now(),
        usage::cpu(proxy.pid()),
        segments(),
        usage::machine_busy(),
    );
    thread::sleep(Duration::from_secs(plan.secs));
    let cpu = usage::cpu(proxy.pid()) - before.1;
    let after = segments();
    Idle {
        cpu,
        took: before.0.elapsed(),
        segments: (after.0 - before.2.0, after.1 - before.2.1),
        kernel: usage::machine_busy()
            .saturating_sub(before.3)
            .saturating_sub(cpu),
        bytes_each: 0,
    }
}

fn measure_reclaim(
    detect: &str,
    net: &Net,
    plan: &Plan,
    endings: &Endings,
    waits: &Waits,
) -> Reclaim {
    say(&format!("  {} healthy clients at work", plan.healthy));
    thread::sleep(Duration::from_secs(1));
    waits.begin(1);
    thread::sleep(BEFORE);
    say("  the link of the idle clients is cut");
    waits.begin(2);
    let cut = Instant::now();
    net.cut(Host::Client);
    let budget = config::duration(detect).expect("a duration");
    let deadline = budget + budget / 20 + Duration::from_secs(20);
    eventually(deadline, || endings.times().len() >= plan.sessions);
    waits.begin(0);
    let times = endings.times();
    let after = |at: Option<&Instant>| at.map_or(Duration::MAX, |at| at.duration_since(cut));
    let (first, last) = (after(times.first()), after(times.last()));
    say(&format!(
        "  {} reclaimed {first:.1?} to {last:.1?} after it",
        times.len()
    ));
    let p99 = [1, 2].map(|phase| usage::quantile(&mut waits.take(phase), 0.99));
    Reclaim {
        first,
        last,
        closed: times.len(),
        p99,
        failures: waits.failures.load(Ordering::Relaxed),
    }
}

fn print(rows: &[Row], plan: &Plan, base: Duration) {
    println!(
        "\n{} idle sessions, {} s each; then all of them vanish while {} healthy clients ask ten \
         times a second.\nkernel: time in which the machine was busy, without the proxy's own: probes \
         and answers at both ends of every link, and whatever else runs here; {:.1} ms/s of it with no session at all.\n",
        plan.sessions,
        plan.secs,
        plan.healthy,
        base.as_secs_f64() * 1e3
    );
    println!(
        "| detect_within | CPU, 10k sessions | of a core | memory each | segments/s in, out | \
         kernel ms/s | reclaimed after | healthy p99 before, during |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for Row {
        detect,
        idle,
        reclaim,
    } in rows
    {
        let secs = idle.took.as_secs_f64();
        let cpu = idle.cpu.as_secs_f64() * 1e4 / plan.sessions as f64;
        let [before, during] = reclaim.p99;
        println!(
            "| {detect} | {:.0} ms in {secs:.0} s | {:.2} % | {} B | {:.0}, {:.0} | {:.1} | \
             {:.1} to {:.1} s | {before}, {during} us (x{:.2}) |",
            cpu * 1e3,
            cpu / secs * 100.0,
            idle.bytes_each,
            idle.segments.0 as f64 / secs,
            idle.segments.1 as f64 / secs,
            idle.kernel.as_secs_f64() * 1e3 / secs,
            reclaim.first.as_secs_f64(),
            reclaim.last.as_secs_f64(),
            f64::from(during) / f64::from(before.max(1)),
        );
    }
}

/// Progress goes to standard error, so that the table can be kept.
fn say(what: &str) {
    eprintln!("{what}");
}
