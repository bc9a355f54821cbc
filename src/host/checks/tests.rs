use super::*;

/// A host on which nothing is wrong.
fn good() -> (Facts, Demands) {
    let limits = Limits {
        somaxconn: Some(4096),
        syncookies: Some(1),
        synack_retries: Some(5),
        max_syn_backlog: Some(512),
        port_range: Some((32_768, 60_999)),
        max_time_wait: Some(131_072),
        tcp_memory_pages: Some((100, 200, 300)),
        congestion_control: Some("cubic".to_owned()),
        retries2: Some(15),
        orphan_retries: Some(0),
        keepalive_time: Some(7200),
        pipe_user_pages: Some(16_384),
        pipe_max_size: Some(1 << 20),
        descriptors: 20_000,
        cpu_quota_millis: Some(2000),
        memory_bytes: Some(1 << 30),
    };
    let facts = Facts {
        limits,
        counters: Some(Counters {
            listen_drops: Some(0),
            ..Counters::default()
        }),
        sockets: Some(Sockets {
            in_use: Some(20),
            time_wait: Some(5),
            orphans: Some(0),
            memory_pages: Some(199),
        }),
        abilities: Abilities {
            rto_max: Some(true),
            window: Some(true),
            user_timeout: Some(true),
            keepalive: Some(true),
            probe_on_demand: Some(true),
        },
        handshakes: Some(0),
    };
    let upstream = Upstream {
        name: "127.0.0.1:8080".to_owned(),
        sessions: Some(9000),
        queue: Some(AcceptQueue {
            length: 1,
            limit: 1,
        }),
    };
    let demands = Demands {
        backlog: 4096,
        sessions: Some(9000),
        reserved_descriptors: 96,
        workers: 2,
        upstreams: vec![upstream],
        memory: Memory::Group,
    };
    (facts, demands)
}

fn line(check: &Check) -> String {
    let set = check
        .setting
        .iter()
        .map(|setting| format!(" set: {setting}"));
    format!(
        "{}: {}{}",
        check.found,
        check.meaning,
        set.collect::<String>()
    )
}

/// How the check of that name ends after a change to the good host, and its line.
fn after(name: &str, change: impl FnOnce(&mut Facts, &mut Demands)) -> (Status, String) {
    let (mut facts, mut demands) = good();
    change(&mut facts, &mut demands);
    let checks = all(&facts, &demands);
    let check = checks.iter().find(|check| check.name == name);
    let check = check.unwrap_or_else(|| panic!("no check {name}"));
    (check.status, line(check))
}

#[track_caller]
fn expect(name: &str, status: Status, part: &str, change: impl FnOnce(&mut Facts, &mut Demands)) {
    let (found, line) = after(name, change);
    assert_eq!(found, status, "{line}");
    assert!(line.contains(part), "{line}");
    let bad = found >= Status::Warn;
    let curable = bad
        && !matches!(
            name,
            "keepalive" | "user_timeout" | "rto_max" | "window" | "on_demand_probe"
        );
    assert_eq!(
        line.contains("set: "),
        curable || (found == Status::Info && name == "congestion_control"),
        "{line}"
    );
}

#[test]
fn a_good_host_has_nothing_to_change() {
    let (facts, demands) = good();
    for check in all(&facts, &demands) {
        assert!(check.status <= Status::Info, "{check:?}");
        assert_eq!(check.setting, None, "{check:?}");
    }
}

#[test]
fn a_host_that_hides_everything_fails_nothing() {
    let facts = Facts {
        limits: Limits {
            descriptors: u64::MAX,
            ..Limits::default()
        },
        ..Facts::default()
    };
    let (_, demands) = good();
    let checks = all(&facts, &demands);
    assert!(checks.iter().all(|c| c.status <= Status::Unknown));
    let unknown = checks.iter().filter(|c| c.status == Status::Unknown);
    assert_eq!(unknown.count(), checks.len() - 4, "{checks:#?}");
}

#[test]
fn what_cannot_be_kept_fails() {
    use Status::Fail;
    expect("descriptors", Fail, "LimitNOFILE=18096", |f, _| {
        f.limits.descriptors = 18_095;
    });
    expect("ip_local_port_range", Fail, "10240 65535", |f, _| {
        f.limits.port_range = Some((50_000, 58_998));
    });
    expect("memory_limit", Fail, "104 MiB", |f, _| {
        f.limits.memory_bytes = Some(64 << 20);
    });
    expect("memory_limit", Fail, "the kernel kills", |f, d| {
        f.limits.memory_bytes = Some(64 << 20);
        d.memory = Memory::Unwatched;
    });
    expect("memory_limit", Fail, "26 MiB", |_, d| {
        d.memory = Memory::Process(16 << 20);
    });
    expect("keepalive", Fail, "never found", |f, _| {
        f.abilities.keepalive = Some(false);
    });
    expect("user_timeout", Fail, "own rules", |f, _| {
        f.abilities.user_timeout = Some(false);
    });
}

#[test]
fn what_bounds_the_promise_warns() {
    use Status::Warn;
    expect("somaxconn", Warn, "net.core.somaxconn=4096", |f, _| {
        f.limits.somaxconn = Some(128);
    });
    expect("tcp_syncookies", Warn, "tcp_syncookies=1", |f, _| {
        f.limits.syncookies = Some(0);
    });
    expect("tcp_max_syn_backlog", Warn, "backlog=4096", |f, _| {
        f.limits.syncookies = Some(0);
    });
    expect("tcp_retries2", Warn, "after 8 unanswered", |f, _| {
        f.limits.retries2 = Some(8);
    });
    expect("tcp_synack_retries", Warn, "held for 127 s", |f, _| {
        f.limits.synack_retries = Some(6);
    });
    expect("descriptors", Warn, "room for 464 sessions", |f, d| {
        f.limits.descriptors = 1024;
        d.sessions = None;
    });
    expect("ip_local_port_range", Warn, "at most 9999", |f, _| {
        f.limits.port_range = Some((50_000, 59_998));
    });
    expect("ip_local_port_range", Warn, "28232 ports", |f, _| {
        let sockets = f.sockets.as_mut().expect("known");
        (sockets.in_use, sockets.time_wait) = (Some(2_000), Some(22_000));
    });
    expect("memory_limit", Warn, "before anything is shed", |_, d| {
        d.memory = Memory::Process(2 << 30);
    });
    expect("time_wait", Warn, "tw_buckets=262144", |f, _| {
        f.sockets = Some(Sockets {
            time_wait: Some(110_000),
            ..Sockets::default()
        });
    });
    expect("cpu_quota", Warn, "--workers 1", |f, _| {
        f.limits.cpu_quota_millis = Some(500);
    });
    expect("tcp_mem", Warn, "'150 300 600'", |f, _| {
        f.limits.tcp_memory_pages = Some((100, 150, 300));
    });
    expect("pipes", Warn, "pipe-max-size=1048576", |f, _| {
        f.limits.pipe_max_size = Some(4096);
    });
    expect("pipes", Warn, "pages-soft=16384", |f, _| {
        f.limits.pipe_user_pages = Some(64);
    });
    expect(
        "upstream_queue",
        Warn,
        "2 of 1 at 127.0.0.1:8080",
        |_, d| {
            d.upstreams[0].queue = Some(AcceptQueue {
                length: 2,
                limit: 1,
            });
        },
    );
    expect("window", Warn, "5.4", |f, _| {
        f.abilities.window = Some(false);
    });
    expect("rto_max", Warn, "6.15", |f, _| {
        f.abilities.rto_max = Some(false);
    });
    expect("on_demand_probe", Warn, "timer only", |f, _| {
        f.abilities.probe_on_demand = Some(false);
    });
}

#[test]
fn the_rest_is_said() {
    expect("tcp_synack_retries", Status::Ok, "held for 63 s", |_, _| {});
    expect("congestion_control", Status::Info, "cubic", |f, _| {
        f.limits.congestion_control = Some("bbr".to_owned());
    });
    expect(
        "listen_drops",
        Status::Info,
        "9, of it 4 by full",
        |f, _| {
            f.counters = Some(Counters {
                listen_drops: Some(9),
                listen_overflows: Some(4),
                ..Counters::default()
            });
        },
    );
    expect("pipes", Status::Ok, "soft 0", |f, _| {
        f.limits.pipe_user_pages = Some(0);
    });
    expect("descriptors", Status::Ok, "unlimited", |f, _| {
        f.limits.descriptors = u64::MAX;
    });
}
