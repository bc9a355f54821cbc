//! What one source that connects without pause costs the sessions of others. See benches/README.md.

#![allow(
    clippy::disallowed_methods,
    reason = "measures real time, beside the process that it judges"
)]

#[path = "common/arguments.rs"]
mod arguments;
#[path = "idle_cost/hosts.rs"]
mod hosts;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "common/usage.rs"]
mod usage;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arguments::Arguments;
use pulsegate::sys::netns;
use support::{Host, Net, Proxy};

const USAGE: &str = "cargo bench --bench flood -- [flags]
  --rate N          connects a second from one source (5000)
  --healthy N       sessions that work meanwhile, ten messages a second each (200)
  --secs N          seconds of each phase (10)";

const SETTLE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(USAGE) else {
        return ExitCode::SUCCESS;
    };
    if let Err(reason) = netns::prepare() {
        eprintln!("no network namespaces here (root or user namespaces are needed): {reason}");
        return ExitCode::FAILURE;
    }
    usage::raise_descriptor_limit();
    let rate: u32 = arguments.get("rate", 5000);
    let healthy: usize = arguments.get("healthy", 200);
    let phase = Duration::from_secs(arguments.get("secs", 10));

    let net = Arc::new(Net::new());
    let _service = hosts::serve(&net, 0);
    let burst = (2 * healthy).to_string();
    let limits = ["--rate-per-source", "20/s", "--burst-per-source", &burst];
    let flags = [&limits[..], &["--access-log", "false"]].concat();
    let proxy = Proxy::start(&net, &flags);
    let (_working, waits) = hosts::work(&net, healthy);
    thread::sleep(SETTLE);

    println!(
        "{healthy} sessions, ten messages a second each; {rate} connects a second from one source"
    );
    println!("| | p50 us | p99 us | connects/s | proxy, of a core |");
    println!("|---|---:|---:|---:|---:|");
    let listener = net.listener(Host::Client);
    let closed = SocketAddr::new(listener.ip(), 1);
    let phases = [
        ("no flood", None),
        ("the flood at a closed port of the same host", Some(closed)),
        ("the flood at the listener, rate_per_source", Some(listener)),
    ];
    let mut p99 = Vec::new();
    for (number, (name, to)) in phases.into_iter().enumerate() {
        let flood = to.map(|to| hosts::flood(&net, to, rate));
        thread::sleep(SETTLE);
        let count = || flood.as_ref().map_or(0, |(_, made)| made());
        let before = (count(), usage::cpu(proxy.pid()));
        waits.begin(number);
        thread::sleep(phase);
        let made = count() - before.0;
        let cpu = usage::cpu(proxy.pid()) - before.1;
        let mut samples = waits.take(number);
        p99.push(usage::quantile(&mut samples, 0.99));
        println!(
            "| {name} | {} | {} | {:.0} | {:.1} % |",
            usage::quantile(&mut samples, 0.5),
            p99[number],
            made as f64 / phase.as_secs_f64(),
            100.0 * cpu.as_secs_f64() / phase.as_secs_f64()
        );
        drop(flood);
        thread::sleep(SETTLE);
    }
    let metrics = proxy.metrics();
    let refused = metrics.value(
        "pulsegate_connections_rejected_total",
        &[("reason", "source_rate")],
    );
    let failures = waits.failures.load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "\n{refused} clients refused; {failures} working sessions failed; p99 x{:.2}",
        { f64::from(p99[2]) / f64::from(p99[0].max(1)) }
    );
    ExitCode::from(u8::from(failures > 0))
}
