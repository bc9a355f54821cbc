//! The listening side: what a client meets before pulsegate sees it.

use super::{Check, Demands, Facts, Row};

/// The default of Linux: a client is given up 63 s after its SYN.
const USUAL_SYNACK_RETRIES: u64 = 5;

pub(super) const CHECKS: &[Row] = &[
    ("somaxconn", "net.core.somaxconn", somaxconn),
    ("tcp_syncookies", "tcp_syncookies", syncookies),
    ("tcp_max_syn_backlog", "tcp_max_syn_backlog", syn_backlog),
    ("tcp_synack_retries", "tcp_synack_retries", synack_retries),
    ("handshakes", "sock_diag", handshakes),
    ("listen_drops", "/proc/net/netstat", drops),
];

fn somaxconn(facts: &Facts, demands: &Demands) -> Option<Check> {
    let (limit, backlog) = (facts.limits.somaxconn?, demands.backlog);
    let found = format!("{limit}, backlog {backlog}");
    if limit >= backlog {
        return Some(Check::ok(found, "accept queues are as long as asked for"));
    }
    let meaning = format!(
        "the kernel cuts each accept queue to {limit}; in a burst of more new clients it drops the \
         rest, who try again after 1 s and more"
    );
    let setting = format!("sysctl -w net.core.somaxconn={backlog}");
    Some(Check::warn(found, meaning).set(setting))
}

fn syncookies(facts: &Facts, _: &Demands) -> Option<Check> {
    let mode = facts.limits.syncookies?;
    let meaning = match mode {
        1 => {
            let meaning = "a flood of SYNs does not shut out clients";
            return Some(Check::ok(mode.to_string(), meaning));
        }
        0 => "a flood of SYNs shuts out clients",
        _ => "every client gets a cookie, which costs it window scaling or SACK",
    };
    let warning = Check::warn(mode.to_string(), meaning);
    Some(warning.set("sysctl -w net.ipv4.tcp_syncookies=1"))
}

fn syn_backlog(facts: &Facts, demands: &Demands) -> Option<Check> {
    let (limit, backlog) = (facts.limits.max_syn_backlog?, demands.backlog);
    let found = format!("{limit}, backlog {backlog}");
    if facts.limits.syncookies != Some(0) {
        let meaning = "does not bound handshakes while tcp_syncookies is on";
        return Some(Check::ok(found, meaning));
    }
    if limit >= backlog {
        let meaning = "as many handshakes as the accept queue is long";
        return Some(Check::ok(found, meaning));
    }
    let meaning = "new clients are dropped while so many handshakes are in progress";
    let setting = format!("sysctl -w net.ipv4.tcp_max_syn_backlog={backlog}");
    Some(Check::warn(found, meaning).set(setting))
}

fn synack_retries(facts: &Facts, _: &Demands) -> Option<Check> {
    let retries = facts.limits.synack_retries?;
    // The gap doubles from 1 s on, and grows to 120 s at most.
    let seconds: u64 = (0..=retries.min(64))
        .map(|n| (1 << n.min(7)).min(120))
        .sum();
    let meaning = format!(
        "a client that vanishes within its handshake is held for {seconds} s, by the kernel \
         alone: no session, no descriptor"
    );
    if retries <= USUAL_SYNACK_RETRIES {
        return Some(Check::ok(retries.to_string(), meaning));
    }
    let setting = format!("sysctl -w net.ipv4.tcp_synack_retries={USUAL_SYNACK_RETRIES}");
    Some(Check::warn(retries.to_string(), meaning).set(setting))
}

fn handshakes(facts: &Facts, _: &Demands) -> Option<Check> {
    let found = format!("{} in progress", facts.handshakes?);
    let meaning = "of the whole network namespace (SYN_RECV)";
    Some(Check::ok(found, meaning))
}

/// A past overflow may be long ago, and somebody else's: nothing to fail for.
fn drops(facts: &Facts, _: &Demands) -> Option<Check> {
    let counters = facts.counters?;
    let drops = counters.listen_drops?;
    let found = match counters.listen_overflows {
        Some(overflows) => format!("{drops}, of it {overflows} by full accept queues"),
        None => drops.to_string(),
    };
    if drops == 0 {
        let meaning = "no new client was dropped in this network namespace";
        return Some(Check::ok(found, meaning));
    }
    let meaning = "new clients dropped since this network namespace was made, by any of its \
                   listening sockets; ss -ltn shows whose queue is full now";
    Some(Check::info(found, meaning))
}

/// One check for each service whose queue can be seen.
pub(super) fn upstream_queues(demands: &Demands) -> impl Iterator<Item = Check> {
    demands.upstreams.iter().filter_map(|upstream| {
        let queue = upstream.queue?;
        let found = format!("{} of {} at {}", queue.length, queue.limit, upstream.name);
        let check = if queue.length > queue.limit {
            let meaning = "the service does not accept: clients are connected to nobody";
            let setting = "a longer backlog, or more threads, in the service";
            Check::warn(found, meaning).set(setting)
        } else {
            Check::ok(found, "the service accepts its connections")
        };
        let name = "upstream_queue";
        Some(Check { name, ..check })
    })
}
