//! What watches pulsegate: alerts, dashboard, the scrape of the compose demonstration.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use pulsegate::liveness::CloseReason;
use serde_json::Value as Json;
use serde_yaml::Value;
use strum::VariantArray;

use super::tools::{Case, documents, read, repo, run, scratch, tool};

pub const CASES: &[Case] = &[
    Case::new(
        "every_alert_fires_in_a_test",
        &["promtool"],
        every_alert_fires_in_a_test,
    ),
    Case::new("alerts_say_what_to_do", &[], alerts_say_what_to_do),
    Case::new(
        "reasons_are_in_the_runbook",
        &[],
        reasons_are_in_the_runbook,
    ),
    Case::new(
        "the_dashboard_is_promql",
        &["promtool"],
        the_dashboard_is_promql,
    ),
    Case::new(
        "only_metrics_that_exist_are_watched",
        &[],
        only_metrics_that_exist_are_watched,
    ),
    Case::new(
        "the_chart_has_the_same_files",
        &[],
        the_chart_has_the_same_files,
    ),
    Case::new(
        "the_demonstration_holds_together",
        &[],
        the_demonstration_holds_together,
    ),
    Case::new(
        "the_demonstration_finds_its_files",
        &[],
        the_demonstration_finds_its_files,
    ),
    Case::new(
        "prometheus_scrapes_and_loads_the_alerts",
        &["prometheus", "curl", "unshare", "ip", "timeout"],
        prometheus_scrapes_and_loads_the_alerts,
    )
    .that_mounts(),
];

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const DASHBOARD: &str = "deploy/grafana/dashboard.json";
const RUNBOOK: &str = "docs/RUNBOOK.md";

fn one(path: &str) -> Value {
    documents(&read(path)).remove(0)
}

fn alerts() -> Vec<Value> {
    let file = one(ALERTS);
    let groups = file["groups"].as_sequence().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_sequence().unwrap());
    rules.cloned().collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().unwrap()
}

fn every_alert_fires_in_a_test() {
    let promtool = tool("promtool");
    let in_place = |check: &[&str]| {
        let mut command = Command::new(&promtool);
        let command = command.args(check).current_dir(repo("deploy/prometheus"));
        run(command).unwrap();
    };
    in_place(&["check", "rules", "alerts.yml"]);
    in_place(&["test", "rules", "alerts_test.yml"]);
    let tests = read("deploy/prometheus/alerts_test.yml");
    for alert in alerts() {
        let fires = format!(
            "ALERTS{{alertname=\"{}\", alertstate=\"firing\"",
            name(&alert)
        );
        assert!(tests.contains(&fires), "no test has {} fire", name(&alert));
    }
}

/// The headings of the runbook, as GitHub makes anchors of them.
fn anchors() -> BTreeSet<String> {
    let text = read(RUNBOOK);
    let titles = text.lines().filter_map(|line| line.strip_prefix("### "));
    let anchor = |title: &str| title.replace('`', "").to_lowercase();
    titles
        .flat_map(|title| title.split(", ").map(anchor).collect::<Vec<_>>())
        .collect()
}

fn alerts_say_what_to_do() {
    let anchors = anchors();
    for alert in alerts() {
        let text = |key: &str| alert["annotations"][key].as_str().unwrap_or_default();
        let name = name(&alert);
        assert!(
            text("summary").len() > 10 && text("description").len() > 30,
            "{name}"
        );
        let (page, anchor) = text("runbook_url").split_once('#').unwrap();
        assert!(page.ends_with(RUNBOOK), "{name}: {page}");
        assert_eq!(anchor, name.to_lowercase());
        assert!(anchors.contains(anchor), "{RUNBOOK} has no `### {name}`");
    }
}

fn reasons_are_in_the_runbook() {
    let anchors = anchors();
    let reasons = CloseReason::VARIANTS.iter().map(ToString::to_string);
    let alerts = alerts();
    let alerts = alerts.iter().map(|alert| name(alert).to_lowercase());
    let known: BTreeSet<_> = reasons.chain(alerts).collect();
    assert_eq!(anchors, known, "left: the headings of {RUNBOOK}");
}

/// The expressions of the dashboard, and the queries of its variables.
fn expressions() -> (Vec<String>, Vec<String>) {
    let dashboard: Json = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let all = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let queries = variables.filter_map(|variable| variable["definition"].as_str());
    (all.collect(), queries.map(str::to_owned).collect())
}

fn the_dashboard_is_promql() {
    let (all, _) = expressions();
    assert!(all.len() > 50, "{all:?}");
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (n, expression) in all.iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "5m");
        let quoted = Json::from(expression);
        writeln!(rules, "      - {{record: dashboard:{n}, expr: {quoted}}}").unwrap();
    }
    let file = scratch("dashboard", "rules.yml", &rules);
    let check = ["check", "rules"];
    run(Command::new(tool("promtool")).args(check).arg(file)).unwrap();
}

/// The names that the documents have, as Prometheus stores them. Unit tests of the metrics hold these tables to what
/// is served.
fn series() -> BTreeSet<String> {
    let text = read("docs/METRICS.md") + &read("docs/SCAN.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut all = BTreeSet::new();
    for row in rows {
        let (name, rest) = row.split_once('`').unwrap();
        if rest.starts_with(" | histogram |") {
            all.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            all.insert(name.to_owned());
        }
    }
    all
}

fn only_metrics_that_exist_are_watched() {
    let known = series();
    let (panels, variables) = expressions();
    let alerts = alerts();
    let alerts = alerts
        .iter()
        .map(|alert| alert["expr"].as_str().unwrap().to_owned());
    let mut watched = BTreeSet::new();
    for expression in panels.into_iter().chain(variables).chain(alerts) {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics = words.filter(|w| w.starts_with("pulsegate_") || w.starts_with("process_"));
        watched.extend(metrics.map(str::to_owned));
    }
    let unknown: Vec<_> = watched.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(watched.len() > 40, "{watched:?}");
}

fn the_chart_has_the_same_files() {
    for (ours, name) in [(ALERTS, "alerts.yml"), (DASHBOARD, "dashboard.json")] {
        let copy = format!("charts/pulsegate/files/{name}");
        assert!(read(ours) == read(&copy), "cp {ours} {copy}");
    }
}

fn the_demonstration_holds_together() {
    let folder = repo("deploy/compose");
    let compose = one("deploy/compose/compose.yaml");
    let names = |of: &Value| -> Vec<String> {
        let keys = of.as_mapping().unwrap().keys();
        keys.map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    let (services, networks) = (names(&compose["services"]), names(&compose["networks"]));
    for service in &services {
        let of = &compose["services"][service.as_str()];
        for mount in words(&of["volumes"]) {
            let (source, _) = mount.split_once(':').unwrap();
            assert!(folder.join(source).exists(), "{service}: {source}");
        }
        assert!(
            words(&of["networks"]).iter().all(|n| networks.contains(n)),
            "{service}"
        );
        assert!(
            words(&of["depends_on"])
                .iter()
                .all(|s| services.contains(s)),
            "{service}"
        );
        let build = &of["build"];
        if let Some(context) = build["context"].as_str() {
            let dockerfile = build["dockerfile"].as_str().unwrap();
            assert!(folder.join(context).join(dockerfile).is_file(), "{service}");
        }
    }
}

fn words(of: &Value) -> Vec<String> {
    let all = of.as_sequence().into_iter().flatten();
    all.map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Where Grafana and Prometheus look for them.
fn the_demonstration_finds_its_files() {
    let compose = one("deploy/compose/compose.yaml");
    let mounts = |service: &str| words(&compose["services"][service]["volumes"]);
    let source = one("deploy/compose/grafana/datasources/prometheus.yaml");
    assert_eq!(source["apiVersion"], 1);
    assert_eq!(source["datasources"][0]["url"], "http://prometheus:9090");
    assert!(!mounts("prometheus").is_empty());
    let shown = one("deploy/compose/grafana/dashboards/pulsegate.yaml");
    assert_eq!(shown["apiVersion"], 1);
    assert_eq!(shown["providers"][0]["type"], "file");
    let path = shown["providers"][0]["options"]["path"].as_str().unwrap();
    // Grafana looks for what to set up in folders of these names.
    for mount in [
        &format!("../grafana/dashboard.json:{path}/pulsegate.json:ro"),
        "./grafana/datasources:/etc/grafana/provisioning/datasources:ro",
        "./grafana/dashboards:/etc/grafana/provisioning/dashboards:ro",
    ] {
        assert!(mounts("grafana").iter().any(|m| m == mount), "{mount}");
    }
    // Rules are looked for beside the file that names them, and the dashboard is where the comment says.
    let scrape = one("deploy/compose/prometheus.yml");
    for rules in words(&scrape["rule_files"]) {
        let mount = format!("../prometheus/{rules}:/etc/prometheus/{rules}:ro");
        assert!(mounts("prometheus").contains(&mount), "{mount}");
    }
    let proxy = one("deploy/compose/pulsegate.yaml");
    let (_, port) = proxy["admin"]["address"]
        .as_str()
        .unwrap()
        .split_once(':')
        .unwrap();
    let targets = &scrape["scrape_configs"][0]["static_configs"][0]["targets"];
    assert_eq!(words(targets), [format!("pulsegate:{port}")]);
    let dashboard: Json = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let place = format!(
        "http://127.0.0.1:3000/d/{}",
        dashboard["uid"].as_str().unwrap()
    );
    assert!(
        read("deploy/compose/compose.yaml").contains(&place),
        "{place}"
    );
}

/// The names of the demonstration lead to the loopback; everything else is as it is shipped.
const SCRAPE: &str = r#"
ip link set lo up
mount --bind hosts /etc/hosts
"$PULSEGATE" run --config pulsegate.yaml >/dev/null &
prometheus --config.file prometheus.yml --storage.tsdb.path data --web.listen-address 127.0.0.1:9090 2>log &
ask() { curl -sfG "http://127.0.0.1:9090/api/v1/query" --data-urlencode "query=$1"; }
until ask 'pulsegate_connections_active{job="pulsegate"}' | grep -q '"listener":"redis"'; do sleep 0.2; done
ask 'up{job="pulsegate"}' | grep -q ',"1"\]'
curl -sf http://127.0.0.1:9090/api/v1/rules
"#;

fn prometheus_scrapes_and_loads_the_alerts() {
    let dir = scratch("scrape", "script", SCRAPE);
    let dir = dir.parent().unwrap();
    let _ = fs::remove_dir_all(dir.join("data"));
    fs::write(dir.join("hosts"), "127.0.0.1 localhost legacy pulsegate\n").unwrap();
    for shipped in [
        "compose/pulsegate.yaml",
        "compose/prometheus.yml",
        "prometheus/alerts.yml",
    ] {
        let from = repo("deploy").join(shipped);
        fs::copy(&from, dir.join(Path::new(shipped).file_name().unwrap())).unwrap();
    }
    let path = tool("prometheus").parent().unwrap().display().to_string();
    let search = std::env::var("PATH").unwrap();
    let rules = run(Command::new("timeout")
        .args(["60", "unshare", "-Urnmpf", "--mount-proc", "--kill-child"])
        .args(["sh", "-eu", "script"])
        .env("PULSEGATE", env!("CARGO_BIN_EXE_pulsegate"))
        .env("PATH", format!("{path}:{search}"))
        .current_dir(dir));
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    let rules = rules.unwrap_or_else(|error| panic!("{error}\n{log}"));
    let rules: Json = serde_json::from_str(&rules).unwrap();
    let loaded = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(loaded.len(), alerts().len(), "{rules}");
}
