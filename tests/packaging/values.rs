//! The chart's values: which are refused, and what the others lead to.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_yaml::Value;

use super::manifests::{helm3, helm4, helm4_python};
use super::tools::{Case, read, run, scratch, tool};

pub const CASES: &[Case] = &[
    Case::new(
        "wrong_values_are_refused_by_both_helms",
        &["helm3", "helm4-python"],
        wrong_values_are_refused_by_both_helms,
    ),
    Case::new(
        "the_grace_period_covers_the_drain",
        &["helm4-python"],
        the_grace_period_covers_the_drain,
    ),
    Case::new(
        "only_the_configuration_changes_the_checksum",
        &["helm4-python"],
        only_the_configuration_changes_the_checksum,
    ),
    Case::new(
        "secrets_are_where_the_configuration_finds_them",
        &["helm4-python"],
        secrets_are_where_the_configuration_finds_them,
    ),
    Case::new(
        "values_schema_and_readme_name_the_same_keys",
        &[],
        values_schema_and_readme_name_the_same_keys,
    ),
    Case::new(
        "the_schema_follows_the_configuration_file",
        &[],
        the_schema_follows_the_configuration_file,
    ),
    Case::new(
        "the_chart_has_the_version_of_the_crate",
        &[],
        the_chart_has_the_version_of_the_crate,
    ),
];

const LISTENER: &str = "{name: a, port: 9000, upstream: {address: 'db:1'}}";
const ONE: &str =
    "{name: a, port: 9000, upstream: {address: 'db:1'}, limits: {max_connections: 1}}";

/// Values, and a word of the message that refuses them.
const REFUSED: &[(&str, &str)] = &[
    ("{}", "at least one is needed"),
    ("{listeners: [LISTENER], lisseners: []}", "lisseners"),
    ("{listeners: [{name: a, port: 9000}]}", "upstream"),
    (
        "{listeners: [{name: a, port: 900, upstream: {address: 'db:1'}}]}",
        "port",
    ),
    (
        "{listeners: [{name: admin, port: 9000, upstream: {address: 'db:1'}}]}",
        "name",
    ),
    (
        "{listeners: [{name: a, port: 9000, upstream: {address: db}}]}",
        "address",
    ),
    (
        "{listeners: [{name: a, port: 9000, upstream: {address: 'db:1'}, liveness: {detect: 9s}}]}",
        "detect",
    ),
    (
        "{listeners: [{name: a, port: 9000, upstream: {address: 'db:1'}, liveness: {idle_timeout: 9}}]}",
        "idle_timeout",
    ),
    ("{listeners: [LISTENER, LISTENER]}", "used twice"),
    (
        "{listeners: [LISTENER], admin: {port: 9000}}",
        "taken by admin.port",
    ),
    (
        "{listeners: [LISTENER], config: {admin: {address: 'x:1'}}}",
        "admin",
    ),
    (
        "{listeners: [LISTENER], config: {drain: {timeout: 1h30m}}}",
        "timeout",
    ),
    (
        "{listeners: [LISTENER], terminationGracePeriodSeconds: 30}",
        "too small",
    ),
    (
        "{listeners: [LISTENER], config: {drain: {timeout: 26s}}, terminationGracePeriodSeconds: 31}",
        "too small",
    ),
    (
        "{listeners: [LISTENER], image: {digest: 'sha256:1'}}",
        "digest",
    ),
    (
        "{listeners: [ONE]}",
        "max_connections of \"a\" is 1, and each Pod would take one client to db:1",
    ),
    (
        "{listeners: [ONE], replicaCount: 1}",
        "strategy: {type: Recreate}",
    ),
    (
        "{listeners: [ONE], strategy: {type: Recreate}}",
        "replicaCount: 1",
    ),
    (
        "{listeners: [LISTENER], config: {defaults: {limits: {max_connections: 1}}}}",
        "each Pod would take one client",
    ),
    (
        "{listeners: [LISTENER], config: {limits: {memory: true}}}",
        "memory",
    ),
    (
        "{listeners: [LISTENER], readinessProbe: {tcpSocket: {port: a}}}",
        "tcpSocket",
    ),
];

/// Drain settings, and the grace period that follows.
const GRACE: &[(&str, u64)] = &[
    ("{listeners: [LISTENER]}", 35),
    (
        "{listeners: [LISTENER], config: {drain: {delay: 0s, timeout: 1ms}}}",
        6,
    ),
    (
        "{listeners: [LISTENER], config: {drain: {delay: 1500ms, timeout: 2m}}}",
        127,
    ),
    (
        "{listeners: [LISTENER], config: {drain: {delay: 0s, timeout: 1h}}}",
        3605,
    ),
    (
        "{listeners: [LISTENER], terminationGracePeriodSeconds: 31}",
        31,
    ),
];

fn values(test: &str, text: &str) -> std::path::PathBuf {
    scratch(
        test,
        "values.yaml",
        &text.replace("LISTENER", LISTENER).replace("ONE", ONE),
    )
}

fn deployment(python: &Path, test: &str, text: &str) -> Value {
    let objects = helm4(python, &values(test, text)).unwrap_or_else(|e| panic!("{text}: {e}"));
    objects
        .into_iter()
        .find(|object| object["kind"] == "Deployment")
        .unwrap()
}

fn wrong_values_are_refused_by_both_helms() {
    let (helm, python) = (tool("helm3"), helm4_python());
    for (text, word) in REFUSED {
        let file = values("refused", text);
        for (which, result) in [("3", helm3(&helm, &file)), ("4", helm4(&python, &file))] {
            let message = result.expect_err(text);
            assert!(message.contains(word), "Helm {which}, {text}: {message}");
        }
    }
}

fn the_grace_period_covers_the_drain() {
    let python = helm4_python();
    for (text, seconds) in GRACE {
        let pod = &deployment(&python, "grace", text)["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], *seconds, "{text}");
    }
}

/// A changed configuration is rolled out; anything else of the chart leaves sessions alone.
fn only_the_configuration_changes_the_checksum() {
    let python = helm4_python();
    let checksum = |text: &str| {
        let template = deployment(&python, "checksum", text)["spec"]["template"].clone();
        template["metadata"]["annotations"]["checksum/config"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let base = checksum("{listeners: [LISTENER]}");
    assert_eq!(
        base,
        checksum("{listeners: [LISTENER], replicaCount: 7, service: {type: NodePort}}")
    );
    assert_ne!(
        base,
        checksum("{listeners: [LISTENER], config: {log: {level: debug}}}")
    );
}

/// The example of the README.
fn secrets_are_where_the_configuration_finds_them() {
    let readme = read("charts/pulsegate/README.md");
    let (_, example) = readme.split_once("  tlsSecrets:").unwrap();
    let (example, _) = example.split_once("  ```").unwrap();
    let text = format!("tlsSecrets:{}", example.replace("\n  ", "\n"));
    let objects = helm4(&helm4_python(), &values("secrets", &text));
    let objects = objects.unwrap_or_else(|error| panic!("{text}: {error}"));
    let specs = ["Deployment", "Pod"].map(|kind| {
        let object = objects.iter().find(|object| object["kind"] == kind);
        let spec = &object.unwrap()["spec"];
        spec.get("template")
            .map_or(spec, |template| &template["spec"])
    });
    let has = |list: &Value, item: &str| {
        let item: Value = serde_yaml::from_str(item).unwrap();
        list.as_sequence().unwrap().contains(&item)
    };
    let mount = "{ name: tls-0, mountPath: /etc/pulsegate-tls/orders-tls, readOnly: true }";
    for spec in specs {
        let volumes = &spec["volumes"];
        assert!(
            has(
                volumes,
                "{ name: tls-0, secret: { secretName: orders-tls } }"
            ),
            "{volumes:?}"
        );
        let mounts = &spec["containers"][0]["volumeMounts"];
        assert!(has(mounts, mount), "{mounts:?}");
    }
    let config = objects.iter().find(|object| object["kind"] == "ConfigMap");
    let config = config.unwrap()["data"]["pulsegate.yaml"].as_str().unwrap();
    let config = scratch("secrets", "pulsegate.yaml", config);
    // The files are not there; all else is right.
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let said = run(command.args(["check", "-c"]).arg(config)).unwrap_err();
    assert_eq!(
        said.matches("/etc/pulsegate-tls/orders-tls/tls.").count(),
        2,
        "{said}"
    );
    assert_eq!(said.matches("cannot be read").count(), 2, "{said}");
}

fn values_schema_and_readme_name_the_same_keys() {
    let values: Value = serde_yaml::from_str(&read("charts/pulsegate/values.yaml")).unwrap();
    let in_values: BTreeSet<String> = values
        .as_mapping()
        .unwrap()
        .keys()
        .map(|key| key.as_str().unwrap().to_owned())
        .collect();

    let schema: serde_json::Value =
        serde_json::from_str(&read("charts/pulsegate/values.schema.json")).unwrap();
    let mut in_schema: BTreeSet<String> = schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    // Helm itself adds it when the chart is a dependency.
    assert!(in_schema.remove("global"));
    assert_eq!(in_values, in_schema);

    let readme = read("charts/pulsegate/README.md");
    for key in in_values {
        let row = readme
            .lines()
            .any(|line| line.starts_with('|') && line.contains(&format!("`{key}`")));
        assert!(row, "charts/pulsegate/README.md has no row for {key}");
    }
}

/// The chart's schema has every key of the configuration file that is not made from other values.
fn the_schema_follows_the_configuration_file() {
    let text = run(Command::new(env!("CARGO_BIN_EXE_pulsegate")).arg("schema")).unwrap();
    let binary: serde_json::Value = serde_json::from_str(&text).unwrap();
    let text = read("charts/pulsegate/values.schema.json");
    let chart: serde_json::Value = serde_json::from_str(&text).unwrap();

    let root = "/properties";
    let listener = "/properties/listeners/items/properties";
    let own = "/definitions/listener/properties";
    let config = "/properties/config/properties";
    let pairs = [
        (
            root.to_owned(),
            config.to_owned(),
            &["listeners", "admin"][..],
            &[][..],
        ),
        (
            listener.to_owned(),
            own.to_owned(),
            &["address"],
            &["port", "servicePort", "nodePort"],
        ),
        (
            format!("{listener}/upstream"),
            format!("{own}/upstream"),
            &[],
            &[],
        ),
        (
            format!("{listener}/liveness"),
            "/definitions/liveness".to_owned(),
            &[],
            &[],
        ),
        (
            format!("{listener}/limits"),
            "/definitions/limits".to_owned(),
            &[],
            &[],
        ),
        (
            format!("{root}/defaults"),
            format!("{config}/defaults"),
            &[],
            &[],
        ),
        (
            format!("{root}/limits"),
            format!("{config}/limits"),
            &[],
            &[],
        ),
        (format!("{root}/drain"), format!("{config}/drain"), &[], &[]),
        (format!("{root}/log"), format!("{config}/log"), &[], &[]),
    ];
    for (in_binary, in_chart, made, added) in pairs {
        let mut expected = keys(&binary, &in_binary);
        expected.retain(|key| !made.contains(&key.as_str()));
        expected.extend(added.iter().map(|key| (*key).to_owned()));
        assert_eq!(keys(&chart, &in_chart), expected, "{in_chart}");
    }
}

/// The properties that a JSON Schema has at a place (which may be the map of them itself).
fn keys(schema: &serde_json::Value, pointer: &str) -> BTreeSet<String> {
    let found = schema
        .pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer}"));
    let map = if pointer.ends_with("/properties") {
        found
    } else {
        &found["properties"]
    };
    map.as_object()
        .unwrap_or_else(|| panic!("{pointer}: no properties"))
        .keys()
        .cloned()
        .collect()
}

fn the_chart_has_the_version_of_the_crate() {
    let chart: Value = serde_yaml::from_str(&read("charts/pulsegate/Chart.yaml")).unwrap();
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}
