//! What sessions need: descriptors, ports, memory, processor time.

use super::{Check, Demands, Facts, Memory, Row};

/// A host that should hold fewer sessions says so by `max_connections`.
const FEW_SESSIONS: u64 = 1000;
/// The default range of Linux is 28232 ports.
const USUAL_PORTS: u64 = 28_000;
/// What is taken before the first session, and by each idle one; buffers come on top.
struct Need {
    base: u64,
    session: u64,
}

/// Of the kernel and the process.
const OF_THE_GROUP: Need = Need {
    base: 16 << 20,
    session: 10 << 10,
};
/// Of the process alone.
const OF_THE_PROCESS: Need = Need {
    base: 8 << 20,
    session: 2 << 10,
};
/// A pipe of 64 KiB.
const PIPE_PAGES: u64 = 16;
const PIPE_BYTES: u64 = 64 << 10;
const FEW_PIPES: u64 = 16;

pub(super) const CHECKS: &[Row] = &[
    ("descriptors", "RLIMIT_NOFILE", descriptors),
    ("ip_local_port_range", "ip_local_port_range", ports),
    ("time_wait", "TIME_WAIT or tcp_max_tw_buckets", time_wait),
    ("cpu_quota", "cpu.max", processors),
    ("memory_limit", "memory.max", memory),
    ("tcp_mem", "tcp_mem", tcp_memory),
    ("pipes", "fs.pipe-*", pipes),
];

fn descriptors(facts: &Facts, demands: &Demands) -> Option<Check> {
    let (limit, reserved) = (facts.limits.descriptors, demands.reserved_descriptors);
    let room = limit.saturating_sub(reserved) / 2;
    let limit = match limit {
        u64::MAX => "unlimited".to_owned(),
        limit => limit.to_string(),
    };
    let raise = |sessions: u64| {
        let needed = sessions.saturating_mul(2).saturating_add(reserved);
        format!("ulimit -n {needed} (systemd: LimitNOFILE={needed})")
    };
    let has_room = format!("room for {room} sessions (2 each, {reserved} for the rest)");
    Some(match demands.sessions {
        Some(sessions) if sessions > room => {
            let meaning = format!(
                "{has_room}, and max_connections add up to {sessions}: pulsegate does not start"
            );
            let setting = format!("{}, or lower max_connections to {room}", raise(sessions));
            Check::fail(limit, meaning).set(setting)
        }
        Some(sessions) => {
            let meaning = format!("room for {room} sessions, {sessions} asked for");
            Check::ok(limit, meaning)
        }
        None if room == 0 => {
            let meaning = format!(
                "no room for a session beside {reserved} for the rest: pulsegate does not start"
            );
            Check::fail(limit, meaning).set(raise(FEW_SESSIONS))
        }
        None if room < FEW_SESSIONS => Check::warn(limit, has_room).set(raise(FEW_SESSIONS)),
        None => Check::ok(limit, has_room),
    })
}

/// Every connection to one address of a service takes another local port.
fn ports(facts: &Facts, demands: &Demands) -> Option<Check> {
    let (first, last) = facts.limits.port_range?;
    let ports = (last + 1).saturating_sub(first);
    let found = format!("{first} {last}");
    let most = demands.upstreams.iter().max_by_key(|u| u.sessions);
    let asked = most.and_then(|u| Some((u.sessions?, &u.name)));
    let taken = taken(facts);
    let setting = "sysctl -w net.ipv4.ip_local_port_range='10240 65535'";
    let at_most = format!("at most {ports} sessions to one address of a service");
    Some(match asked {
        Some((sessions, upstream)) if sessions > ports => {
            let meaning = format!(
                "{ports} ports, and max_connections allow {sessions} sessions to {upstream}: \
                 connects beyond fail, unless it has several addresses"
            );
            Check::fail(found, meaning).set(setting)
        }
        _ if taken > ports / 5 * 4 => {
            let meaning = format!(
                "{taken} connections of the namespace are in use or in TIME_WAIT, and there are \
                 {ports} ports: if most lead to one address, connects to it will fail \
                 (source_ports)"
            );
            Check::warn(found, meaning).set(setting)
        }
        _ if ports < USUAL_PORTS => {
            let meaning = format!("{at_most}; a narrow range makes each connect search longer");
            Check::warn(found, meaning).set(setting)
        }
        _ => Check::ok(found, at_most),
    })
}

/// What may hold a local port. Clients' connections are among them, and hold none of their own.
fn taken(facts: &Facts) -> u64 {
    let sockets = facts.sockets.unwrap_or_default();
    sockets.in_use.unwrap_or(0) + sockets.time_wait.unwrap_or(0)
}

fn time_wait(facts: &Facts, _: &Demands) -> Option<Check> {
    let (now, limit) = (facts.sockets?.time_wait?, facts.limits.max_time_wait?);
    let found = format!("{now} of {limit}");
    if now <= limit / 5 * 4 {
        let meaning = "connections that ended a minute ago at most, of the whole namespace";
        return Some(Check::ok(found, meaning));
    }
    let meaning = "at the limit the kernel forgets ended connections at once: late segments of an \
                   old one may meet a new one, which answers with RST";
    let setting = format!("sysctl -w net.ipv4.tcp_max_tw_buckets={}", limit * 2);
    Some(Check::warn(found, meaning).set(setting))
}

fn processors(facts: &Facts, demands: &Demands) -> Option<Check> {
    let workers = demands.workers;
    let Some(millis) = facts.limits.cpu_quota_millis else {
        let found = format!("none seen, {workers} workers");
        return Some(Check::ok(found, "no worker is stopped by a quota"));
    };
    let (whole, rest) = (millis / 1000, millis % 1000);
    let found = format!("{whole}.{rest:03} processors, {workers} workers");
    let fitting = millis.div_ceil(1000);
    if workers <= fitting {
        return Some(Check::ok(found, "the workers fit into the quota"));
    }
    let meaning = "busy workers use up the quota together and are then all stopped for the rest \
                   of its period (100 ms as a rule): every session pauses, verdicts are as late";
    let workers = fitting.max(1);
    let setting = format!("--workers {workers}, or a larger CPU limit");
    Some(Check::warn(found, meaning).set(setting))
}

fn memory(facts: &Facts, demands: &Demands) -> Option<Check> {
    let (limit, found, need) = match (demands.memory, facts.limits.memory_bytes) {
        (Memory::Process(limit), Some(group)) if limit > group => {
            let (limit, group) = (mebibytes(limit), mebibytes(group));
            let found = format!("{limit} for the process, control group {group}");
            let meaning = "the kernel kills the process before anything is shed";
            let setting = "limits.memory auto, or a size below the control group's";
            return Some(Check::warn(found, meaning).set(setting));
        }
        (Memory::Process(limit), _) => {
            let found = format!("{} for the process", mebibytes(limit));
            (limit, found, OF_THE_PROCESS)
        }
        (_, Some(group)) => (group, mebibytes(group), OF_THE_GROUP),
        (_, None) => {
            let meaning = "bounded by the host only: nothing is shed for memory";
            return Some(Check::ok("none seen", meaning));
        }
    };
    let room = limit.saturating_sub(need.base) / need.session;
    let then = match demands.memory {
        Memory::Unwatched => "at the limit the kernel kills the process, and all sessions with it",
        _ => "from 95 % of it on sessions are shed and new clients wait",
    };
    Some(match demands.sessions {
        Some(sessions) if sessions > room => {
            let needed = mebibytes(need.base + sessions.saturating_mul(need.session));
            let meaning = format!(
                "room for about {room} idle sessions, and max_connections add up to {sessions}: \
                 {then}"
            );
            let setting = format!("a memory limit above {needed}, or lower max_connections");
            Check::fail(found, meaning).set(setting)
        }
        _ => {
            let kib = need.session >> 10;
            let meaning = format!("room for about {room} idle sessions ({kib} KiB each); {then}");
            Check::ok(found, meaning)
        }
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Of the whole host, and hidden in most containers.
fn tcp_memory(facts: &Facts, _: &Demands) -> Option<Check> {
    let now = facts.sockets?.memory_pages?;
    let (_, pressure, limit) = facts.limits.tcp_memory_pages?;
    let found = format!("{now} pages now, pressure from {pressure}, limit {limit}");
    if now < pressure {
        return Some(Check::ok(found, "the kernel has memory for socket buffers"));
    }
    let meaning = "the kernel shrinks windows and, at the limit, drops segments and ends \
                   connections (TCPAbortOnMemory)";
    let raised = limit * 2;
    let setting = format!("sysctl -w net.ipv4.tcp_mem='{pressure} {limit} {raised}'");
    Some(Check::warn(found, meaning).set(setting))
}

/// Bulk transfers go through pipes of the kernel where there are enough of them.
fn pipes(facts: &Facts, _: &Demands) -> Option<Check> {
    let (pages, size) = (facts.limits.pipe_user_pages?, facts.limits.pipe_max_size?);
    let found = format!("pipe-user-pages-soft {pages}, pipe-max-size {size}");
    Some(if size < PIPE_BYTES {
        let meaning = "bulk transfers move in small steps and cost more processor time";
        Check::warn(found, meaning).set("sysctl -w fs.pipe-max-size=1048576")
    } else if pages != 0 && pages / PIPE_PAGES < FEW_PIPES {
        let meaning = "too little for bulk transfers through the kernel: they are copied";
        Check::warn(found, meaning).set("sysctl -w fs.pipe-user-pages-soft=16384")
    } else {
        let meaning = "enough for bulk transfers through the kernel; beyond, they are copied";
        Check::ok(found, meaning)
    })
}
