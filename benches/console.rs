//! What an operator who watches costs the sessions: the console, `pulsegate top`. See benches/README.md.

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

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arguments::Arguments;
use pulsegate::sys::netns;
use support::{ADMIN, Net, Proxy, binary};

const USAGE: &str = "cargo bench --bench console -- [flags]
  --sessions N      idle sessions (9000, or what the descriptor limit allows)
  --working N       sessions that work, ten messages a second each (200)
  --secs N          seconds of each phase (10)
  --repeats N       rounds of all phases; medians are printed (3)";

const SETTLE: Duration = Duration::from_secs(2);
/// The console asks for its table with each message of the event stream.
const EVERY: Duration = Duration::from_secs(1);

/// What an operator looks at.
#[derive(Clone, Copy)]
enum View {
    Nothing,
    Overview,
    /// The connections page, with this query.
    Connections(&'static str),
    Top,
    /// Nothing of the proxy: so much work of another process, once a second.
    Elsewhere(Duration),
}

const VIEWS: [(&str, View); 6] = [
    ("nobody watches", View::Nothing),
    (
        "another process works 20 ms each second",
        View::Elsewhere(Duration::from_millis(20)),
    ),
    ("console, overview", View::Overview),
    (
        "console, connections",
        View::Connections("sort=id&limit=100"),
    ),
    (
        "console, connections by idle time",
        View::Connections("sort=idle&limit=100"),
    ),
    ("`pulsegate top`", View::Top),
];

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(USAGE) else {
        return ExitCode::SUCCESS;
    };
    if let Err(reason) = netns::prepare() {
        eprintln!("no network namespaces here (root or user namespaces are needed): {reason}");
        return ExitCode::FAILURE;
    }
    let limit = usize::try_from(usage::raise_descriptor_limit()).unwrap_or(usize::MAX);
    let working = arguments.get("working", 200);
    let most = (limit.saturating_sub(600) / 2).saturating_sub(working);
    let sessions = arguments.get("sessions", 9000).min(most);
    let phase = Duration::from_secs(arguments.get("secs", 10));
    let repeats: usize = arguments.get("repeats", 3).max(1);

    let net = Arc::new(Net::new());
    let _service = hosts::serve(&net, sessions);
    let proxy = Proxy::start(&net, &["--access-log", "false"]);
    eprintln!("opens {sessions} sessions");
    let (_idle, opened) = hosts::hold(&net, sessions);
    assert_eq!(opened, sessions, "all sessions came about");
    let (_working, waits) = hosts::work(&net, working);
    thread::sleep(SETTLE);

    let mut rounds = VIEWS.map(|_| Vec::new());
    for round in 0..repeats {
        for n in 0..VIEWS.len() {
            // Each round starts with another one.
            let n = (n + round) % VIEWS.len();
            let watcher = Watcher::start(&net, VIEWS[n].1);
            thread::sleep(SETTLE);
            let before = usage::cpu(proxy.pid());
            waits.begin(0);
            waits.take(0);
            thread::sleep(phase);
            let mut samples = waits.take(0);
            let cpu = usage::cpu(proxy.pid()) - before;
            drop(watcher);
            let quantile = |samples: &mut [u32], share| usage::quantile(samples, share);
            let p50 = quantile(&mut samples, 0.5);
            let p99 = quantile(&mut samples, 0.99);
            let share = 100.0 * cpu.as_secs_f64() / phase.as_secs_f64();
            eprintln!(
                "round {round}, {}: p50 {p50} us, p99 {p99} us, {share:.1} %",
                VIEWS[n].0
            );
            rounds[n].push([p50, p99, (share * 10.0) as u32]);
        }
    }
    println!("{sessions} idle sessions; {working} that work, ten messages a second each");
    println!("| | p50 us | p99 us | p99, lowest and highest | proxy, of a core |");
    println!("|---|---:|---:|---:|---:|");
    for ((name, _), rounds) in VIEWS.iter().zip(&rounds) {
        let sorted = |figure: usize| {
            let mut all: Vec<u32> = rounds.iter().map(|r| r[figure]).collect();
            all.sort_unstable();
            all
        };
        let (p99, middle) = (sorted(1), repeats / 2);
        println!(
            "| {name} | {} | {} | {} to {} | {:.1} % |",
            sorted(0)[middle],
            p99[middle],
            p99[0],
            p99[repeats - 1],
            f64::from(sorted(2)[middle]) / 10.0
        );
    }
    let failures = waits.failures.load(Ordering::Relaxed);
    println!("\n{failures} working sessions failed");
    ExitCode::from(u8::from(failures > 0))
}

/// The operator; goes away when it is dropped.
struct Watcher {
    gone: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    top: Option<Child>,
}

impl Watcher {
    fn start(net: &Arc<Net>, view: View) -> Self {
        let mut watcher = Self {
            gone: Arc::default(),
            threads: Vec::new(),
            top: None,
        };
        match view {
            View::Nothing => {}
            View::Overview => watcher.read_events(net),
            View::Connections(query) => {
                watcher.read_events(net);
                watcher.read_pages(net, query);
            }
            View::Top => {
                let mut command = Command::new(binary());
                command.args(["top", "--json", "--admin", ADMIN]);
                command.stdin(Stdio::null()).stdout(Stdio::null());
                let child = net.proxy.run(|| command.spawn()).expect("enter");
                watcher.top = Some(child.expect("start it"));
            }
            View::Elsewhere(work) => watcher.repeat(net, move |_, _| {
                let begin = Instant::now();
                while begin.elapsed() < work {
                    std::hint::spin_loop();
                }
                thread::sleep(EVERY);
            }),
        }
        watcher
    }

    /// As a browser does: one stream, asked for again when it ends.
    fn read_events(&mut self, net: &Arc<Net>) {
        self.repeat(net, |net, gone| {
            let mut stream = connect(net, "/events");
            let timeout = Some(Duration::from_millis(200));
            stream.set_read_timeout(timeout).expect("a timeout");
            let mut buffer = [0; 4096];
            while !gone.load(Ordering::Relaxed) {
                if matches!(stream.read(&mut buffer), Ok(0)) {
                    return;
                }
            }
        });
    }

    fn read_pages(&mut self, net: &Arc<Net>, query: &'static str) {
        self.repeat(net, move |net, _| {
            let mut answer = Vec::new();
            let read = connect(net, &format!("/connections?{query}")).read_to_end(&mut answer);
            read.expect("an answer");
            assert!(answer.starts_with(b"HTTP/1.1 200"), "it is no page");
            thread::sleep(EVERY);
        });
    }

    fn repeat(&mut self, net: &Arc<Net>, body: impl Fn(&Net, &AtomicBool) + Send + 'static) {
        let (net, gone) = (Arc::clone(net), Arc::clone(&self.gone));
        self.threads.push(thread::spawn(move || {
            while !gone.load(Ordering::Relaxed) {
                body(&net, &gone);
            }
        }));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(mut top) = self.top.take() {
            let _ = top.kill();
            let _ = top.wait();
        }
    }
}

fn connect(net: &Net, path: &str) -> TcpStream {
    let stream = net.proxy.run(|| TcpStream::connect(ADMIN)).expect("enter");
    let mut stream = stream.expect("the endpoint answers");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("ask");
    stream
}
