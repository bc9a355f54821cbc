//! The listening side: what a newcomer meets before pulsegate sees it.

use super::{Check, Demands, Facts, Status, Upstream, of};

/// The default of Linux: a client is given up 63 s after its SYN.
const USUAL_SYNACK_RETRIES: u64 = 5;

pub(super) fn all(facts: &Facts, demands: &Demands) -> Vec<Check> {
    let mut checks = vec![
        somaxconn(facts, demands),
        syncookies(facts),
        syn_backlog(facts, demands),
        synack_retries(facts),
        handshakes(facts),
        drops(facts),
    ];
    checks.extend(demands.upstreams.iter().filter_map(upstream_queue));
    checks
}

fn somaxconn(facts: &Facts, demands: &Demands) -> Check {
    let name = "somaxconn";
    of(
        name,
        "net.core.somaxconn",
        facts.limits.somaxconn,
        |limit| {
            let backlog = demands.backlog;
            let found = format!("{limit}, backlog {backlog}");
            if limit >= backlog {
                let meaning = "accept queues are as long as asked for";
                return Check::new(name, Status::Ok, found, meaning);
            }
            let meaning = format!(
                "the kernel cuts each accept queue to {limit}; in a burst of more newcomers it drops \
             the rest, who try again after 1 s and more"
            );
            Check::new(name, Status::Warn, found, &meaning)
                .set(format!("sysctl -w net.core.somaxconn={backlog}"))
        },
    )
}

fn syncookies(facts: &Facts) -> Check {
    let name = "tcp_syncookies";
    of(name, name, facts.limits.syncookies, |mode| {
        let (status, meaning) = match mode {
            1 => (Status::Ok, "a flood of SYNs does not shut out clients"),
            0 => (Status::Warn, "a flood of SYNs shuts out clients"),
            _ => (
                Status::Warn,
                "every client gets a cookie, which costs it window scaling or SACK",
            ),
        };
        let check = Check::new(name, status, mode.to_string(), meaning);
        if status == Status::Ok {
            return check;
        }
        check.set("sysctl -w net.ipv4.tcp_syncookies=1".to_owned())
    })
}

fn syn_backlog(facts: &Facts, demands: &Demands) -> Check {
    let name = "tcp_max_syn_backlog";
    of(name, name, facts.limits.max_syn_backlog, |limit| {
        let backlog = demands.backlog;
        let found = format!("{limit}, backlog {backlog}");
        if facts.limits.syncookies != Some(0) {
            let meaning = "does not bound handshakes while tcp_syncookies is on";
            return Check::new(name, Status::Ok, found, meaning);
        }
        if limit >= backlog {
            let meaning = "as many handshakes as the accept queue is long";
            return Check::new(name, Status::Ok, found, meaning);
        }
        let meaning = "newcomers are dropped while so many handshakes are in progress";
        Check::new(name, Status::Warn, found, meaning)
            .set(format!("sysctl -w net.ipv4.tcp_max_syn_backlog={backlog}"))
    })
}

fn synack_retries(facts: &Facts) -> Check {
    let name = "tcp_synack_retries";
    of(name, name, facts.limits.synack_retries, |retries| {
        // The gap doubles from 1 s on, and grows to 120 s at most.
        let seconds: u64 = (0..=retries.min(64))
            .map(|n| (1 << n.min(7)).min(120))
            .sum();
        let meaning = format!(
            "a client that vanishes within its handshake is held for {seconds} s, by the kernel \
             alone: no session, no descriptor"
        );
        if retries <= USUAL_SYNACK_RETRIES {
            return Check::new(name, Status::Ok, retries.to_string(), &meaning);
        }
        Check::new(name, Status::Warn, retries.to_string(), &meaning).set(format!(
            "sysctl -w net.ipv4.tcp_synack_retries={USUAL_SYNACK_RETRIES}"
        ))
    })
}

fn handshakes(facts: &Facts) -> Check {
    let name = "handshakes";
    of(name, "sock_diag", facts.handshakes, |now| {
        let found = format!("{now} in progress");
        let meaning = "of the whole network namespace (SYN_RECV)";
        Check::new(name, Status::Ok, found, meaning)
    })
}

/// A past overflow may be long ago, and somebody else's: nothing to fail for.
fn drops(facts: &Facts) -> Check {
    let name = "listen_drops";
    let counters = facts.counters.unwrap_or_default();
    of(name, "/proc/net/netstat", counters.listen_drops, |drops| {
        let found = match counters.listen_overflows {
            Some(overflows) => format!("{drops}, of it {overflows} by full accept queues"),
            None => drops.to_string(),
        };
        if drops == 0 {
            let meaning = "no newcomer was dropped in this network namespace";
            return Check::new(name, Status::Ok, found, meaning);
        }
        let meaning = "newcomers dropped since this network namespace was made, by any of its \
                       listening sockets; ss -ltn shows whose queue is full now";
        Check::new(name, Status::Info, found, meaning)
    })
}

fn upstream_queue(upstream: &Upstream) -> Option<Check> {
    let queue = upstream.queue?;
    let found = format!("{} of {} at {}", queue.length, queue.limit, upstream.name);
    let name = "upstream_queue";
    Some(if queue.length > queue.limit {
        let meaning = "the service does not accept: clients are connected to nobody";
        Check::new(name, Status::Warn, found, meaning)
            .set("a longer backlog, or more threads, in the service".to_owned())
    } else {
        let meaning = "the service accepts its connections";
        Check::new(name, Status::Ok, found, meaning)
    })
}
