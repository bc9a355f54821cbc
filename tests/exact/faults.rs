//! What the kernel may refuse on the way into splice. Real refusals: a process of its own is
//! given limits that make the kernel say no.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use pulsegate::net::leg::LegStream;
use pulsegate::net::stream::TcpStream;
use pulsegate::relay::{Counters, Relay};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::MIB;
use crate::peer::{self, Saw, Side, Step};
use crate::rig::{self, Plan, Seen, run_when};

const CHILD: &str = "EXACT_CHILD";
/// Nobody: has no right to exceed the limits of pipes.
const NOBODY: u32 = 65_534;
/// The size that the relay asks for.
const WANTED: usize = 1024 * 1024;

/// What is copied at once.
const SCRATCH: usize = 65_536;

fn bulk() -> Plan {
    let side = || {
        let burst = [Step::Send(3 * MIB), Step::Send(10), Step::Send(700_001)];
        Side::sends(burst.to_vec())
    };
    let mut plan = Plan::of([side(), side()]);
    plan.send_buffers = [Some(60_000), None];
    plan
}

/// Runs a test of this file, that is ignored otherwise, in a process of its own.
fn in_a_child(test: &str, user: Option<u32>) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(CHILD, "1");
    if let Some(user) = user.filter(|_| rustix::process::geteuid().is_root()) {
        child.uid(user).current_dir("/");
    }
    let output = match child.output() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("SKIPPED: another user cannot run this file: {error}");
            return;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn whole(plan: &Plan, seen: &Seen) {
    println!("entered bulk {} times", seen.entered);
    rig::judge(plan, seen).unwrap();
}

#[test]
fn without_descriptors_for_pipes_bytes_are_copied() {
    in_a_child("faults::child_without_descriptors", None);
}

#[test]
#[ignore = "the child of another test"]
fn child_without_descriptors() {
    if !is_child() {
        return;
    }
    let plan = bulk();
    let seen = run_when(&plan, || {
        // Those that are open stay so, and none that is closed makes room for another.
        let hard = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            current: Some(3),
            maximum: hard,
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(
            pipe_with(PipeFlags::CLOEXEC).unwrap_err(),
            rustix::io::Errno::MFILE
        );
    });
    whole(&plan, &seen);
    assert_eq!(seen.entered, 0, "there is no pipe");
}

/// One after the other: each takes what the user has left.
#[test]
fn pipes_that_may_not_grow_lose_nothing() {
    in_a_child("faults::child_whose_pipes_stay_64_kib", Some(NOBODY));
    in_a_child("faults::child_whose_pipes_have_two_pages", Some(NOBODY));
}

#[test]
#[ignore = "the child of another test"]
fn child_whose_pipes_stay_64_kib() {
    // Two pipes, one for each direction, and the one that is tried here.
    small_pipes(70, 65_536);
}

#[test]
#[ignore = "the child of another test"]
fn child_whose_pipes_have_two_pages() {
    small_pipes(0, 8_192);
}

/// Leaves this user so many pages for pipes, then moves bytes.
fn small_pipes(left: usize, expected: usize) {
    if !is_child() {
        return;
    }
    let hoard = hoard(left);
    let trial = pipe_with(PipeFlags::CLOEXEC).unwrap();
    assert_eq!(fcntl_getpipe_size(&trial.0).unwrap(), expected);
    let refused = fcntl_setpipe_size(&trial.0, WANTED).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::PERM);
    drop(trial);
    let plan = bulk();
    let seen = rig::run(&plan);
    whole(&plan, &seen);
    assert!(
        seen.entered == 0 || expected >= SCRATCH,
        "copying is better"
    );
    drop(hoard);
}

/// Takes all pages but so many.
fn hoard(left: usize) -> Vec<(OwnedFd, OwnedFd)> {
    let page = 4096;
    let mut taken = Vec::new();
    let mut take = |pages: usize| {
        let pipe = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let grown = fcntl_setpipe_size(&pipe.0, pages * page).is_ok();
        taken.push(pipe);
        grown
    };
    let limit = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    assert!(
        (512..1 << 20).contains(&limit),
        "{limit} pages are not the usual limit"
    );
    // Powers of two only; a pipe has at most 1 MiB.
    let mut rest = limit - left;
    while rest >= 16 {
        let pages = (rest + 1).next_power_of_two() / 2;
        let pages = pages.min(256);
        take(pages);
        rest -= pages;
    }
    if left == 0 {
        // Other pipes of the user count, too.
        while take(16) {}
    }
    taken
}

/// Forty sessions on one thread, all in bulk both ways: more than there are pipes.
#[test]
fn more_bulk_streams_than_pipes_lose_nothing() {
    const SESSIONS: usize = 40;
    let mut side = Side::sends(vec![Step::Send(2 * MIB + 77)]);
    // All are in bulk before the first is through.
    side.pauses = vec![(0, 100), (MIB, 100)];
    let total = side.total();
    let pairs: Vec<_> = (0..2 * SESSIONS).map(|_| rig::pair(None, None)).collect();
    let (ours, peers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let relaying = std::thread::spawn(move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&rig::runtime(), async move {
            let mut ours = ours.into_iter();
            let mut tasks = tokio::task::JoinSet::new();
            while let (Some(a), Some(b)) = (ours.next(), ours.next()) {
                let legs =
                    [a, b].map(|socket| LegStream::from(TcpStream::new(socket.into()).unwrap()));
                tasks.spawn_local(one(legs, total));
            }
            tasks.join_all().await;
        });
    });
    let reports = rig::runtime().block_on(async {
        let play = |(i, socket)| {
            let side = side.clone();
            async move {
                let socket = tokio::net::TcpStream::from_std(socket).unwrap();
                peer::play(socket, &side, i).await
            }
        };
        let mut tasks = tokio::task::JoinSet::new();
        for peer in peers.into_iter().enumerate() {
            tasks.spawn(play(peer));
        }
        tasks.join_all().await
    });
    relaying.join().unwrap();
    assert_eq!(reports.len(), 2 * SESSIONS);
    for report in reports {
        assert!(
            report.wrong.is_none() && report.received == total,
            "{report:?}"
        );
        assert_eq!(report.saw, Saw::Fin, "{report:?}");
    }
}

async fn one(mut legs: [LegStream; 2], total: u64) {
    let counters = Counters::default();
    let mut relay = Relay::new(true);
    let end = std::future::poll_fn(|cx| relay.poll(&mut legs, &counters, cx)).await;
    assert!(
        matches!(end, pulsegate::relay::End::Finished { .. }),
        "{end:?}"
    );
    // The last FIN comes with the end of the leg.
    let traffic = counters.traffic();
    assert_eq!((traffic.received, traffic.sent), ([total; 2], [total; 2]));
}
