use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use strum::VariantArray;

use super::*;

const DOCS: &str = include_str!("../../docs/METRICS.md");

/// Whether the line `series value` is served.
fn has(metrics: &Metrics, line: &str) -> bool {
    metrics.render().lines().any(|l| l == line)
}

#[test]
fn every_series_exists_at_zero() {
    let metrics = Metrics::new();
    let _listener = metrics.listener("db");
    for reason in CloseReason::VARIANTS {
        let labels = format!(
            "initiator=\"{}\",listener=\"db\",reason=\"{reason}\"",
            reason.initiator()
        );
        let line = format!("pulsegate_connections_closed_total{{{labels}}} 0");
        assert!(has(&metrics, &line), "{line}");
    }
    for (leg, evidence) in LEGS
        .iter()
        .flat_map(|l| Evidence::VARIANTS.iter().map(move |e| (l, e)))
    {
        let labels = format!("evidence=\"{evidence}\",leg=\"{leg}\",listener=\"db\"");
        let line = format!("pulsegate_half_open_detected_total{{{labels}}} 0");
        assert!(has(&metrics, &line), "{line}");
    }
}

#[test]
fn events_reach_their_series() {
    let metrics = Metrics::new();
    let db = metrics.listener("db");
    db.accepted();
    db.rejected(RejectReason::Descriptors);
    db.shed(Shortage::Memory);
    let moved = Traffic {
        received: [10, 0],
        sent: [20, 0],
    };
    db.closed(CloseReason::UpstreamDead, Duration::from_secs(90), &moved);
    db.half_open_found(
        Leg::Upstream,
        Evidence::Retransmit,
        Duration::from_millis(29_900),
    );
    db.set_bytes(&db.settled());
    db.connect_failed(ConnectFailure::Refused);
    db.accept_error(AcceptErrorClass::Memory);
    db.socket_option_failed();
    db.moved();
    metrics.set_workers_in_use(2);
    db.set_listen_queue(3, 128);
    db.reset_sent(Leg::Downstream);
    db.probe_sent(Leg::Upstream);
    db.connected(Duration::from_millis(3));
    db.handshake_made(Leg::Downstream, TlsVersion::V13, Duration::from_millis(2));
    db.handshake_failed(Leg::Upstream, HandshakeFailure::UnknownCa);
    (0..7).for_each(|_| db.observed());
    metrics.set_usage(Duration::from_millis(2500), Some(4096));
    // The clock of the process went back.
    metrics.set_usage(Duration::from_millis(2400), Some(4096));
    db.half_open_found_late(Leg::Upstream);
    db.set_settings(Duration::from_millis(2500), Some(8));
    metrics.set_draining();
    metrics.set_descriptors(Some(12), u64::MAX);
    // Unknown for once: the last number stays.
    metrics.set_descriptors(None, u64::MAX);
    for line in [
        "pulsegate_connections_accepted_total{listener=\"db\"} 1",
        "pulsegate_connections_rejected_total{listener=\"db\",reason=\"descriptors\"} 1",
        "pulsegate_shed_total{cause=\"memory\",listener=\"db\"} 1",
        "pulsegate_connections_closed_total{initiator=\"upstream\",listener=\"db\",reason=\"upstream_dead\"} 1",
        "pulsegate_half_open_detected_total{evidence=\"retransmit\",leg=\"upstream\",listener=\"db\"} 1",
        "pulsegate_half_open_detection_delay_seconds_bucket{leg=\"upstream\",listener=\"db\",le=\"20\"} 0",
        "pulsegate_half_open_detection_delay_seconds_bucket{leg=\"upstream\",listener=\"db\",le=\"30\"} 1",
        "pulsegate_connection_duration_seconds_sum{listener=\"db\"} 90",
        "pulsegate_received_bytes_total{leg=\"downstream\",listener=\"db\"} 10",
        "pulsegate_sent_bytes_total{leg=\"downstream\",listener=\"db\"} 20",
        "pulsegate_sent_bytes_total{leg=\"upstream\",listener=\"db\"} 0",
        "pulsegate_upstream_connect_failures_total{listener=\"db\",reason=\"refused\"} 1",
        "pulsegate_accept_errors_total{class=\"memory\",listener=\"db\"} 1",
        "pulsegate_socket_option_errors_total{listener=\"db\"} 1",
        "pulsegate_listen_queue_length{listener=\"db\"} 3",
        "pulsegate_listen_queue_limit{listener=\"db\"} 128",
        // The client that was rejected, and another.
        "pulsegate_resets_sent_total{leg=\"downstream\",listener=\"db\"} 2",
        "pulsegate_probes_sent_total{leg=\"upstream\",listener=\"db\"} 1",
        "pulsegate_upstream_connect_duration_seconds_count{listener=\"db\"} 1",
        "pulsegate_tls_handshakes_total{leg=\"downstream\",listener=\"db\",version=\"TLSv1.3\"} 1",
        "pulsegate_tls_handshakes_total{leg=\"upstream\",listener=\"db\",version=\"TLSv1.2\"} 0",
        "pulsegate_tls_handshake_failures_total{leg=\"upstream\",listener=\"db\",reason=\"unknown_ca\"} 1",
        "pulsegate_tls_handshake_duration_seconds_count{leg=\"downstream\",listener=\"db\"} 1",
        "pulsegate_liveness_looks_total 7",
        "pulsegate_draining 1",
        "process_open_fds 12",
        "process_cpu_seconds_total 2.5",
        "process_resident_memory_bytes 4096",
        "pulsegate_half_open_found_late_total{leg=\"upstream\",listener=\"db\"} 1",
        "pulsegate_detect_within_seconds{listener=\"db\"} 2.5",
        "pulsegate_connections_limit{listener=\"db\"} 8",
        "pulsegate_connections_moved_total{listener=\"db\"} 1",
        "pulsegate_workers_in_use 2",
    ] {
        assert!(has(&metrics, line), "{line}\n{}", metrics.render());
    }
}

#[test]
fn gauges_follow_what_is_known() {
    let metrics = Metrics::new();
    let db = metrics.listener("db");
    let moved = |leg, was, is| db.condition_changed(leg, was, is);
    moved(Leg::Upstream, Condition::Quiet, Condition::Suspect);
    moved(Leg::Downstream, Condition::Alive, Condition::Stalled);
    db.half_closed_changed(1);
    db.set_active(1);
    let lines = |n: u8| {
        [
            format!("pulsegate_connections_active{{listener=\"db\"}} {n}"),
            format!("pulsegate_half_closed_connections{{listener=\"db\"}} {n}"),
            format!("pulsegate_half_open_connections{{leg=\"upstream\",listener=\"db\"}} {n}"),
            format!("pulsegate_stalled_connections{{leg=\"downstream\",listener=\"db\"}} {n}"),
        ]
    };
    lines(1)
        .iter()
        .for_each(|l| assert!(has(&metrics, l), "{l}"));
    moved(Leg::Upstream, Condition::Suspect, Condition::Alive);
    moved(Leg::Downstream, Condition::Stalled, Condition::Quiet);
    db.half_closed_changed(-1);
    db.set_active(0);
    lines(0)
        .iter()
        .for_each(|l| assert!(has(&metrics, l), "{l}"));
}

#[test]
fn the_same_name_gives_the_same_series() {
    let metrics = Metrics::new();
    metrics.listener("db").accepted();
    metrics.listener("db").accepted();
    assert!(has(
        &metrics,
        "pulsegate_connections_accepted_total{listener=\"db\"} 2"
    ));
}

#[test]
fn a_listener_that_was_removed_leaves_no_series() {
    let metrics = Metrics::new();
    let removed = metrics.listener("db");
    metrics.listener("web").accepted();
    removed.accepted();
    metrics.remove_listener("db");
    metrics.remove_listener("db");
    // A session that outlives its listener still counts.
    removed.accepted();
    assert!(!metrics.render().contains("listener=\"db\""));
    let line = |name| format!("pulsegate_connections_accepted_total{{listener=\"{name}\"}}");
    assert!(has(&metrics, &format!("{} 1", line("web"))));
    let _added = metrics.listener("db");
    assert!(has(&metrics, &format!("{} 0", line("db"))));
}

#[test]
fn dropped_log_lines_only_grow() {
    let metrics = Metrics::new();
    for total in [3, 5, 4] {
        metrics.set_log_lines_dropped(total);
    }
    assert!(has(&metrics, "pulsegate_log_lines_dropped_total 5"));
}

/// Of the endpoint 192.0.2.1, on a port; each has one session and was connected twice.
fn figures(port: u16) -> EndpointFigures {
    EndpointFigures {
        endpoint: format!("192.0.2.1:{port}"),
        active: 1,
        connects: [2, 0],
        ejections: 0,
        up: true,
    }
}

#[test]
fn endpoints_beyond_the_first_are_added_up() {
    let metrics = Metrics::new();
    let db = metrics.listener("db");
    let mut all: Vec<_> = (0..70).map(figures).collect();
    db.set_endpoints(&all);
    let active = |endpoint: &str, value: &str| {
        let labels = format!("{{endpoint=\"{endpoint}\",listener=\"db\"}}");
        has(
            &metrics,
            &format!("pulsegate_endpoint_active_connections{labels} {value}"),
        )
    };
    let connects = |endpoint: &str, outcome: &str, value: &str| {
        let labels = format!("endpoint=\"{endpoint}\",listener=\"db\",outcome=\"{outcome}\"");
        has(
            &metrics,
            &format!("pulsegate_endpoint_connects_total{{{labels}}} {value}"),
        )
    };
    assert!(
        active("192.0.2.1:63", "1") && active("other", "6"),
        "{}",
        metrics.render()
    );
    assert!(connects("192.0.2.1:63", "connected", "2") && connects("other", "connected", "12"));

    all[69].connects = [2, 5];
    // One of those that are added up goes, and one with series of its own.
    all.remove(68);
    all.remove(0);
    db.set_endpoints(&all);
    assert!(
        !metrics.render().contains("192.0.2.1:0\""),
        "{}",
        metrics.render()
    );
    assert!(active("other", "5") && connects("other", "connected", "12"));
    assert!(
        connects("other", "failed", "5"),
        "what was counted does not fall"
    );
    all.truncate(3);
    all[0].up = false;
    db.set_endpoints(&all);
    let text = metrics.render();
    assert!(
        !text.contains("active_connections{endpoint=\"other\""),
        "{text}"
    );
    assert!(text.contains("pulsegate_endpoint_up{endpoint=\"192.0.2.1:1\",listener=\"db\"} 0"));
}

/// With every series that is absent while its value is unknown.
fn complete() -> Metrics {
    let metrics = Metrics::new();
    metrics.listener("db").set_upstream_queue(Some((2, 1)));
    metrics.listener("db").set_endpoints(&[figures(0)]);
    metrics
        .listener("db")
        .set_settings(Duration::from_secs(30), Some(8));
    metrics.set_usage(Duration::ZERO, Some(4096));
    let host = metrics.host();
    let counters = [
        &host.listen_overflows,
        &host.listen_drops,
        &host.syncookies_sent,
        &host.syncookies_received,
        &host.full_cookies,
    ];
    (1..)
        .zip(counters)
        .for_each(|(n, counter)| counter.raise(Some(n)));
    let gauges = [&host.syn_recv, &host.time_wait, &host.orphans];
    (1..).zip(gauges).for_each(|(n, gauge)| gauge.set(Some(n)));
    host.on_demand_probe.set(Some(1));
    host.memory_used.set(Some(96));
    host.memory_limit.set(Some(100));
    let certificates = ["downstream", "upstream"].map(|leg| CertificateFigure {
        leg: leg.to_owned(),
        ..certificate("db", "/a.crt", 7)
    });
    metrics.set_certificates(certificates.into());
    metrics
}

fn certificate(listener: &str, file: &str, not_after: i64) -> CertificateFigure {
    CertificateFigure {
        listener: listener.to_owned(),
        leg: "downstream".to_owned(),
        file: file.to_owned(),
        not_after,
    }
}

#[test]
fn certificates_have_series_while_they_are_in_force() {
    let metrics = Metrics::new();
    let name = "pulsegate_certificate_not_after_seconds";
    let line = |listener: &str, file: &str, n: i64| {
        format!("{name}{{certificate=\"{file}\",leg=\"downstream\",listener=\"{listener}\"}} {n}")
    };
    metrics.set_certificates(vec![certificate("a", "/a", 1), certificate("b", "/a", 2)]);
    assert!(has(&metrics, &line("a", "/a", 1)) && has(&metrics, &line("b", "/a", 2)));
    metrics.set_certificates(vec![certificate("a", "/a", 3), certificate("a", "/b", 4)]);
    assert!(has(&metrics, &line("a", "/a", 3)) && has(&metrics, &line("a", "/b", 4)));
    assert_eq!(
        metrics.render().matches(name).count(),
        4,
        "{}",
        metrics.render()
    );
}

#[test]
fn the_host_is_told_apart_by_name() {
    let metrics = complete();
    metrics.host().read_errors[HostSource::SockDiag].inc();
    for line in [
        "pulsegate_upstream_listen_queue_length{listener=\"db\"} 2",
        "pulsegate_upstream_listen_queue_limit{listener=\"db\"} 1",
        "pulsegate_netns_listen_overflows_total 1",
        "pulsegate_netns_listen_drops_total 2",
        "pulsegate_netns_syncookies_sent_total 3",
        "pulsegate_netns_syncookies_received_total 4",
        "pulsegate_netns_request_queue_full_cookies_total 5",
        "pulsegate_netns_syn_recv 1",
        "pulsegate_netns_time_wait 2",
        "pulsegate_netns_orphans 3",
        "pulsegate_host_read_errors_total{source=\"netstat\"} 0",
        "pulsegate_host_read_errors_total{source=\"sock_diag\"} 1",
        "pulsegate_on_demand_probe 1",
        "pulsegate_memory_used_bytes 96",
        "pulsegate_memory_limit_bytes 100",
    ] {
        assert!(has(&metrics, line), "{line}\n{}", metrics.render());
    }
}

#[test]
fn what_is_unknown_of_the_host_has_no_series() {
    let unknown = [
        "pulsegate_upstream_listen_queue",
        "pulsegate_netns_",
        "pulsegate_on_demand_probe",
        "pulsegate_memory_",
    ];
    let fresh = Metrics::new();
    let listener = fresh.listener("db");
    listener.set_upstream_queue(None);
    assert!(!unknown.iter().any(|name| fresh.render().contains(name)));
    let metrics = complete();
    metrics.listener("db").set_upstream_queue(None);
    metrics.host().syn_recv.set(None);
    metrics.host().memory_used.set(None);
    metrics.host().listen_drops.raise(Some(1));
    let text = metrics.render();
    assert!(!text.contains("upstream_listen_queue") && !text.contains("syn_recv"));
    assert!(!text.contains("memory_used") && text.contains("memory_limit"));
    assert!(has(&metrics, "pulsegate_netns_listen_drops_total 2"));
}

/// name -> (type, labels), as served.
fn served(metrics: &Metrics) -> BTreeMap<String, (String, BTreeSet<String>)> {
    metrics
        .registry
        .gather()
        .iter()
        .map(|family| {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let labels = family.get_metric()[0].get_label().iter();
            let labels = labels.map(|l| l.name().to_owned()).collect();
            (family.name().to_owned(), (kind, labels))
        })
        .collect()
}

/// The words in backquotes of one cell.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn docs_list_what_is_served() {
    let metrics = complete();
    let mut documented = BTreeMap::new();
    for line in DOCS
        .lines()
        .filter(|l| l.starts_with("| `pulsegate_") || l.starts_with("| `process_"))
    {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_owned();
        assert!(
            cells[4].len() > 5,
            "{name} has no meaning in docs/METRICS.md"
        );
        let row = (cells[2].to_owned(), quoted(cells[3]));
        assert!(documented.insert(name, row).is_none(), "twice: {line}");
    }
    assert_eq!(documented, served(&metrics));
}

#[test]
fn docs_list_every_label_value() {
    let metrics = complete();
    for family in metrics.registry.gather() {
        let labels = family
            .get_metric()
            .iter()
            .flat_map(prometheus::proto::Metric::get_label);
        let mut values: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for label in labels {
            let known = values.entry(label.name()).or_default();
            known.insert(label.value().to_owned());
        }
        values.retain(|label, _| !matches!(*label, "listener" | "endpoint" | "certificate"));
        if family.name() == "pulsegate_build_info" {
            continue;
        }
        for (label, values) in values {
            let plain = format!("| `{label}` |");
            let specific = format!("| `{label}` of `{}` |", family.name());
            let row = DOCS
                .lines()
                .find(|l| l.starts_with(&specific) || l.starts_with(&plain))
                .unwrap_or_else(|| panic!("no row for {label} of {}", family.name()));
            let documented = quoted(row.splitn(3, '|').last().unwrap_or_default());
            assert_eq!(documented, values, "{label} of {}", family.name());
        }
    }
}

#[test]
fn promtool_has_no_objection() {
    let metrics = complete();
    metrics.listener("db").closed(
        CloseReason::Finished,
        Duration::from_secs(1),
        &Traffic::default(),
    );
    let found = ["promtool", "/opt/promtool/promtool"].iter().find_map(|p| {
        let mut command = Command::new(p);
        command.args(["check", "metrics"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().ok()
    });
    let Some(mut promtool) = found else {
        assert!(std::env::var_os("CI").is_none(), "CI needs promtool");
        eprintln!("SKIPPED: promtool is not installed; the metrics were not linted");
        return;
    };
    let mut input = promtool.stdin.take().expect("piped");
    input
        .write_all(metrics.render().as_bytes())
        .expect("written");
    drop(input);
    let output = promtool.wait_with_output().expect("ended");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
