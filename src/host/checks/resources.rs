//! What sessions need: descriptors, ports, memory, processor time.

use super::{Check, Demands, Facts, Memory, Status, of};

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

pub(super) fn all(facts: &Facts, demands: &Demands) -> Vec<Check> {
    vec![
        descriptors(facts, demands),
        ports(facts, demands),
        time_wait(facts),
        processors(facts, demands),
        memory(facts, demands),
        tcp_memory(facts),
        pipes(facts),
    ]
}

fn descriptors(facts: &Facts, demands: &Demands) -> Check {
    let (limit, reserved) = (facts.limits.descriptors, demands.reserved_descriptors);
    let name = "descriptors";
    let room = limit.saturating_sub(reserved) / 2;
    let limit = match limit {
        u64::MAX => "unlimited".to_owned(),
        limit => limit.to_string(),
    };
    let raise = |sessions: u64| {
        let needed = sessions.saturating_mul(2).saturating_add(reserved);
        format!("ulimit -n {needed} (systemd: LimitNOFILE={needed})")
    };
    match demands.sessions {
        Some(sessions) if sessions > room => {
            let meaning = format!(
                "room for {room} sessions (2 each, {reserved} for the rest), and max_connections \
                 add up to {sessions}: pulsegate does not start"
            );
            let setting = format!("{}, or lower max_connections to {room}", raise(sessions));
            Check::new(name, Status::Fail, limit, &meaning).set(setting)
        }
        Some(sessions) => {
            let meaning = format!("room for {room} sessions, {sessions} asked for");
            Check::new(name, Status::Ok, limit, &meaning)
        }
        None if room == 0 => {
            let meaning = format!(
                "no room for a session beside {reserved} for the rest: pulsegate does not start"
            );
            Check::new(name, Status::Fail, limit, &meaning).set(raise(FEW_SESSIONS))
        }
        None if room < FEW_SESSIONS => {
            let meaning = format!("room for {room} sessions (2 each, {reserved} for the rest)");
            Check::new(name, Status::Warn, limit, &meaning).set(raise(FEW_SESSIONS))
        }
        None => {
            let meaning = format!("room for {room} sessions (2 each, {reserved} for the rest)");
            Check::new(name, Status::Ok, limit, &meaning)
        }
    }
}

/// Every connection to one address of a service takes another local port.
fn ports(facts: &Facts, demands: &Demands) -> Check {
    let name = "ip_local_port_range";
    of(name, name, facts.limits.port_range, |(first, last)| {
        let ports = (last + 1).saturating_sub(first);
        let found = format!("{first} {last}");
        let most = demands.upstreams.iter().max_by_key(|u| u.sessions);
        let asked = most.and_then(|u| Some((u.sessions?, &u.name)));
        let setting = "sysctl -w net.ipv4.ip_local_port_range='10240 65535'".to_owned();
        match asked {
            Some((sessions, upstream)) if sessions > ports => {
                let meaning = format!(
                    "{ports} ports, and max_connections allow {sessions} sessions to {upstream}: \
                     connects beyond fail, unless it has several addresses"
                );
                Check::new(name, Status::Fail, found, &meaning).set(setting)
            }
            _ if taken(facts) > ports / 5 * 4 => {
                let meaning = format!(
                    "{} connections of the namespace are in use or in TIME_WAIT, and there are \
                     {ports} ports: if most lead to one address, connects to it will fail \
                     (source_ports)",
                    taken(facts)
                );
                Check::new(name, Status::Warn, found, &meaning).set(setting)
            }
            _ if ports < USUAL_PORTS => {
                let meaning = format!(
                    "at most {ports} sessions to one address of a service; a narrow range makes \
                     each connect search longer"
                );
                Check::new(name, Status::Warn, found, &meaning).set(setting)
            }
            _ => {
                let meaning = format!("at most {ports} sessions to one address of a service");
                Check::new(name, Status::Ok, found, &meaning)
            }
        }
    })
}

/// What may hold a local port. Clients' connections are among them, and hold none of their own.
fn taken(facts: &Facts) -> u64 {
    let sockets = facts.sockets.unwrap_or_default();
    sockets.in_use.unwrap_or(0) + sockets.time_wait.unwrap_or(0)
}

fn time_wait(facts: &Facts) -> Check {
    let name = "time_wait";
    let now = facts.sockets.unwrap_or_default().time_wait;
    let both = now.zip(facts.limits.max_time_wait);
    of(
        name,
        "TIME_WAIT or tcp_max_tw_buckets",
        both,
        |(now, limit)| {
            let found = format!("{now} of {limit}");
            if now <= limit / 5 * 4 {
                let meaning = "connections that ended a minute ago at most, of the whole namespace";
                return Check::new(name, Status::Ok, found, meaning);
            }
            let meaning = "at the limit the kernel forgets ended connections at once: late segments \
                       of an old one may meet a new one, which answers with RST";
            let setting = format!("sysctl -w net.ipv4.tcp_max_tw_buckets={}", limit * 2);
            Check::new(name, Status::Warn, found, meaning).set(setting)
        },
    )
}

fn processors(facts: &Facts, demands: &Demands) -> Check {
    let (name, workers) = ("cpu_quota", demands.workers);
    let Some(millis) = facts.limits.cpu_quota_millis else {
        let found = format!("none seen, {workers} workers");
        return Check::new(name, Status::Ok, found, "no worker is stopped by a quota");
    };
    let found = format!(
        "{}.{:03} processors, {workers} workers",
        millis / 1000,
        millis % 1000
    );
    let fitting = millis.div_ceil(1000);
    if workers <= fitting {
        let meaning = "the workers fit into the quota";
        return Check::new(name, Status::Ok, found, meaning);
    }
    let meaning = "busy workers use up the quota together and are then all stopped for the rest \
                   of its period (100 ms as a rule): every session pauses, verdicts are as late";
    Check::new(name, Status::Warn, found, meaning).set(format!(
        "--workers {}, or a larger CPU limit",
        fitting.max(1)
    ))
}

fn memory(facts: &Facts, demands: &Demands) -> Check {
    let name = "memory_limit";
    let group = facts.limits.memory_bytes;
    let (limit, found, need) = match (demands.memory, group) {
        (Memory::Process(limit), Some(group)) if limit > group => {
            let found = format!(
                "{} for the process, control group {}",
                mebibytes(limit),
                mebibytes(group)
            );
            let meaning = "the kernel kills the process before anything is shed";
            let setting = "limits.memory auto, or a size below the control group's".to_owned();
            return Check::new(name, Status::Warn, found, meaning).set(setting);
        }
        (Memory::Process(limit), _) => {
            let found = format!("{} for the process", mebibytes(limit));
            (limit, found, OF_THE_PROCESS)
        }
        (_, Some(group)) => (group, mebibytes(group), OF_THE_GROUP),
        (_, None) => {
            let meaning = "bounded by the host only: nothing is shed for memory";
            return Check::new(name, Status::Ok, "none seen".to_owned(), meaning);
        }
    };
    let room = limit.saturating_sub(need.base) / need.session;
    let then = match demands.memory {
        Memory::Unwatched => "at the limit the kernel kills the process, and all sessions with it",
        _ => "from 95 % of it on sessions are shed and newcomers wait",
    };
    match demands.sessions {
        Some(sessions) if sessions > room => {
            let needed = mebibytes(need.base + sessions.saturating_mul(need.session));
            let meaning = format!(
                "room for about {room} idle sessions, and max_connections add up to {sessions}: \
                 {then}"
            );
            let setting = format!("a memory limit above {needed}, or lower max_connections");
            Check::new(name, Status::Fail, found, &meaning).set(setting)
        }
        _ => {
            let kib = need.session >> 10;
            let meaning = format!("room for about {room} idle sessions ({kib} KiB each); {then}");
            Check::new(name, Status::Ok, found, &meaning)
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Of the whole host, and hidden in most containers.
fn tcp_memory(facts: &Facts) -> Check {
    let name = "tcp_mem";
    let pages = facts.sockets.unwrap_or_default().memory_pages;
    let both = pages.zip(facts.limits.tcp_memory_pages);
    of(name, name, both, |(now, (_, pressure, limit))| {
        let found = format!("{now} pages now, pressure from {pressure}, limit {limit}");
        if now < pressure {
            let meaning = "the kernel has memory for socket buffers";
            return Check::new(name, Status::Ok, found, meaning);
        }
        let meaning = "the kernel shrinks windows and, at the limit, drops segments and ends \
                       connections (TCPAbortOnMemory)";
        let setting = format!(
            "sysctl -w net.ipv4.tcp_mem='{pressure} {} {}'",
            limit,
            limit * 2
        );
        Check::new(name, Status::Warn, found, meaning).set(setting)
    })
}

/// Bulk transfers go through pipes of the kernel where there are enough of them.
fn pipes(facts: &Facts) -> Check {
    let name = "pipes";
    let both = facts.limits.pipe_user_pages.zip(facts.limits.pipe_max_size);
    of(name, "fs.pipe-*", both, |(pages, size)| {
        let found = format!("pipe-user-pages-soft {pages}, pipe-max-size {size}");
        if size < PIPE_BYTES {
            let meaning = "bulk transfers move in small steps and cost more processor time";
            let setting = "sysctl -w fs.pipe-max-size=1048576".to_owned();
            return Check::new(name, Status::Warn, found, meaning).set(setting);
        }
        if pages != 0 && pages / PIPE_PAGES < FEW_PIPES {
            let meaning = "too little for bulk transfers through the kernel: they are copied";
            let setting = "sysctl -w fs.pipe-user-pages-soft=16384".to_owned();
            return Check::new(name, Status::Warn, found, meaning).set(setting);
        }
        let meaning = "enough for bulk transfers through the kernel; beyond, they are copied";
        Check::new(name, Status::Ok, found, meaning)
    })
}
