//! The chart's values: which are refused, and what the others lead to.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_yaml::Value;

use super::manifests::{helm3, helm4, workloads};
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
        "config.limits.memory: true is no size: write auto, off",
    ),
    (
        "{listeners: [{name: a, port: 9000, upstream: {connect_timeout: 1s}}]}",
        "upstream of \"a\" needs address, or endpoints",
    ),
    (
        "{listeners: [ONE], kind: DaemonSet}",
        "use kind: Deployment with replicaCount: 1",
    ),
    (
        "{listeners: [ONE], autoscaling: {enabled: true}}",
        "without autoscaling",
    ),
    (
        "{listeners: [LISTENER], kind: DaemonSet, autoscaling: {enabled: true}}",
        "a DaemonSet has one Pod on each node",
    ),
    (
        "{listeners: [LISTENER], kind: DaemonSet, podDisruptionBudget: {enabled: true}}",
        "no budget of a DaemonSet",
    ),
    (
        "{listeners: [LISTENER], autoscaling: {enabled: true, minReplicas: 9}}",
        "maxReplicas 5 is below minReplicas 9",
    ),
    (
        "{listeners: [LISTENER], reload: {mode: hot}, config: {reload: {watch: false}}}",
        "reload.mode: hot needs config.reload.watch: true",
    ),
    (
        "{listeners: [LISTENER], gateway: {tcpRoute: {enabled: true}}}",
        "parentRefs: name the Gateway",
    ),
    (
        "{listeners: [LISTENER], tls: {certManager: {enabled: true}}}",
        "issuerRef.name: name the Issuer",
    ),
    (
        "{listeners: [LISTENER], tls: {existingSecret: a, certManager: {enabled: true}}}",
        "two sources of one certificate",
    ),
    (
        "{listeners: [LISTENER], podMonitor: {enabled: true}, serviceMonitor: {enabled: true}}",
        "scraped twice",
    ),
    (
        "{listeners: [LISTENER], serviceMonitor: {enabled: true}}",
        "needs admin.service.enabled: true",
    ),
    (
        "{listeners: [LISTENER], env: [{name: A, value: b}, {name: A, value: c}]}",
        "env: \"A\" is there twice",
    ),
    (
        "{listeners: [LISTENER], extraVolumes: [{name: run, emptyDir: {}}]}",
        "extraVolumes: the name \"run\" is taken",
    ),
    (
        "{listeners: [LISTENER], extraVolumeMounts: [{name: b, mountPath: /b}]}",
        "there is no volume \"b\"",
    ),
    (
        "{listeners: [LISTENER], tlsSecrets: [a], extraVolumeMounts: [{name: run, mountPath: /run/pulsegate}]}",
        "something is mounted at /run/pulsegate already",
    ),
    (
        "{listeners: [LISTENER], commonLabels: {app.kubernetes.io/name: a}}",
        "commonLabels: the chart itself, or commonLabels, sets app.kubernetes.io/name",
    ),
    (
        "{listeners: [LISTENER], commonLabels: {team: a}, podLabels: {team: b}}",
        "podLabels: the chart itself, or commonLabels, sets team",
    ),
    (
        "{listeners: [LISTENER], extraContainers: [{name: pulsegate, image: a}]}",
        "extraContainers: the name \"pulsegate\" is taken",
    ),
    (
        "{listeners: [LISTENER], service: {externalTrafficPolicy: Local}}",
        "externalTrafficPolicy needs service.type NodePort",
    ),
    (
        "{listeners: [LISTENER], service: {type: NodePort, loadBalancerClass: a}}",
        "need service.type: LoadBalancer",
    ),
    (
        "{listeners: [LISTENER], strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}}",
        "maxSurge and maxUnavailable are both 0",
    ),
    (
        "{listeners: [LISTENER], livenessProbe: {successThreshold: 2}}",
        "successThreshold: Kubernetes takes 1 only",
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

fn values(test: &str, name: &str, text: &str) -> PathBuf {
    let text = text.replace("LISTENER", LISTENER).replace("ONE", ONE);
    scratch(test, &format!("{name}.yaml"), &text)
}

/// What Helm 4 renders with each of these values.
fn rendered(test: &str, texts: &[&str]) -> Vec<Vec<Value>> {
    let files = texts.iter().enumerate();
    let files: Vec<_> = files
        .map(|(n, text)| values(test, &n.to_string(), text))
        .collect();
    let all = helm4(&files).into_iter().zip(texts);
    all.map(|(objects, text)| objects.unwrap_or_else(|error| panic!("{text}: {error}")))
        .collect()
}

fn wrong_values_are_refused_by_both_helms() {
    let helm = tool("helm3");
    let files = REFUSED.iter().enumerate();
    let files: Vec<_> = files
        .map(|(n, (text, _))| values("refused", &n.to_string(), text))
        .collect();
    for ((file, new), (text, word)) in files.iter().zip(helm4(&files)).zip(REFUSED) {
        for (which, result) in [("3", helm3(&helm, file)), ("4", new)] {
            let message = result.expect_err(text);
            assert!(message.contains(word), "Helm {which}, {text}: {message}");
        }
    }
}

fn the_grace_period_covers_the_drain() {
    let texts: Vec<_> = GRACE.iter().map(|(text, _)| *text).collect();
    for (objects, (text, seconds)) in rendered("grace", &texts).iter().zip(GRACE) {
        let pod = &workloads(objects)[0]["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], *seconds, "{text}");
        let hook = &pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
        let hook: Vec<_> = hook
            .as_sequence()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        assert_eq!(hook[..4], ["/pulsegate", "drain", "--wait", "--timeout"]);
        let waits: u64 = hook[4].strip_suffix('s').unwrap().parse().unwrap();
        assert!(
            waits + 3 >= *seconds.min(&33) && waits <= seconds + 2,
            "{text}: {hook:?}"
        );
    }
}

/// A changed configuration is rolled out, unless it is to be taken up by the Pods that run; anything else of the chart
/// leaves sessions alone.
fn only_the_configuration_changes_the_checksum() {
    let texts = [
        "{listeners: [LISTENER]}",
        "{listeners: [LISTENER], replicaCount: 7, service: {type: NodePort}}",
        "{listeners: [LISTENER], config: {log: {level: debug}}}",
        "{listeners: [LISTENER], reload: {mode: hot}}",
    ];
    let rendered = rendered("checksum", &texts);
    let checksums = rendered.iter().map(|objects| {
        let template = &workloads(objects)[0]["spec"]["template"];
        template["metadata"]["annotations"]["checksum/config"].as_str()
    });
    let checksums: Vec<_> = checksums.collect();
    assert_eq!(checksums[0], checksums[1]);
    assert!(checksums[0].is_some() && checksums[2].is_some());
    assert_ne!(checksums[0], checksums[2]);
    assert_eq!(checksums[3], None);
}

/// The example of the README.
fn secrets_are_where_the_configuration_finds_them() {
    let readme = read("charts/pulsegate/README.md");
    let (_, example) = readme.split_once("  tlsSecrets:").unwrap();
    let (example, _) = example.split_once("  ```").unwrap();
    let text = format!("tlsSecrets:{}", example.replace("\n  ", "\n"));
    let objects = rendered("readme", &[&text]).remove(0);
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

/// The table of the README: a row for each value, and its default where that is one word.
fn values_schema_and_readme_name_the_same_keys() {
    let values: Value = serde_yaml::from_str(&read("charts/pulsegate/values.yaml")).unwrap();
    let mapping = values.as_mapping().unwrap();
    let in_values: BTreeSet<_> = mapping.keys().map(|key| key.as_str().unwrap()).collect();

    let schema: serde_json::Value =
        serde_json::from_str(&read("charts/pulsegate/values.schema.json")).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    let mut in_schema: BTreeSet<_> = properties.keys().map(String::as_str).collect();
    // Helm itself adds it when the chart is a dependency.
    assert!(in_schema.remove("global"));
    assert_eq!(in_values, in_schema);

    let readme = read("charts/pulsegate/README.md");
    let mut rows = BTreeSet::new();
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split(" | ").collect();
        let quoted = |cell: &str| {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let (keys, defaults): (Vec<String>, Vec<String>) = (quoted(cells[0]), quoted(cells[1]));
        for (n, key) in keys.iter().enumerate() {
            let found = key
                .split('.')
                .try_fold(&values, |value, key| value.get(key));
            let found = found.unwrap_or_else(|| panic!("README: {key} is no value"));
            if let Some(default) = defaults.get(n) {
                let default: Value = serde_yaml::from_str(default).unwrap();
                assert_eq!(found, &default, "README: the default of {key}");
            }
            rows.insert(key.split('.').next().unwrap().to_owned());
        }
    }
    assert_eq!(
        rows.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        in_values
    );
}

/// The chart's schema is that of the configuration file, for what is not made from other values.
fn the_schema_follows_the_configuration_file() {
    use serde_json::{Value, json};

    let text = run(Command::new(env!("CARGO_BIN_EXE_pulsegate")).arg("schema")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let mut chart: Value =
        serde_json::from_str(&read("charts/pulsegate/values.schema.json")).unwrap();

    strip(&mut config);
    let root = config["properties"].as_object_mut().unwrap();
    let mut listener = root.remove("listeners").unwrap()["items"].take();
    let admin = root.remove("admin").unwrap()["anyOf"][0].take();
    let own = listener["properties"].as_object_mut().unwrap();
    own.remove("address");
    for key in ["name", "port", "servicePort", "nodePort"] {
        own.insert(
            key.to_owned(),
            chart["definitions"]["listener"]["properties"][key].clone(),
        );
    }
    listener["required"] = json!(["name", "port", "upstream"]);
    // The certificates may be those of `tls.existingSecret`.
    own_certificates(&mut listener);
    own_certificates(root.get_mut("defaults").unwrap());
    // `true` gets a sentence.
    let memory = &mut root["limits"]["properties"]["memory"]["anyOf"];
    memory
        .as_array_mut()
        .unwrap()
        .push(json!({ "const": true }));
    let wanted = [
        ("/definitions/listener", listener),
        ("/properties/config/properties", Value::Object(root.clone())),
        (
            "/properties/admin/properties/ready",
            admin["properties"]["ready"].clone(),
        ),
        (
            "/properties/admin/properties/token_file",
            admin["properties"]["token_file"].clone(),
        ),
    ];
    let mut differs = false;
    for (place, part) in wanted {
        let found = chart.pointer_mut(place).unwrap();
        differs |= *found != part;
        *found = part;
    }
    if differs {
        let text = format!("{chart:#}\n");
        let right = scratch("schema", "values.schema.json", &text);
        panic!(
            "charts/pulsegate/values.schema.json is not that of the binary; take {}",
            right.display()
        );
    }
}

/// Without what explains: it may change without the chart.
fn strip(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(map) => {
            // A key may have such a name; then it is a schema itself.
            map.retain(|key, value| {
                value.is_object() || !["default", "description"].contains(&key.as_str())
            });
            map.values_mut().for_each(strip);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn own_certificates(listener: &mut serde_json::Value) {
    let tls = &mut listener["properties"]["tls"]["anyOf"][0];
    tls.as_object_mut().unwrap().remove("required");
}

/// So do the images of everything that has no appVersion.
fn the_chart_has_the_version_of_the_crate() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = |path: &str| -> Value { serde_yaml::from_str(&read(path)).unwrap() };
    let gateway = chart("charts/pulsegate/Chart.yaml");
    assert_eq!(gateway["version"], version);
    assert_eq!(gateway["appVersion"], version);
    assert_eq!(chart("charts/pulsegate-lib/Chart.yaml")["version"], version);
    let example = chart("charts/examples/legacy-app/Chart.yaml");
    assert_eq!(example["dependencies"][0]["version"], version);
    let defaults = read("charts/pulsegate-lib/templates/_values.tpl");
    assert!(defaults.contains(&format!("tag: \"{version}\"")));
    for path in [
        "deploy/kubernetes/gateway.yaml",
        "deploy/kubernetes/sidecar-classic.yaml",
        "deploy/kubernetes/sidecar-native.yaml",
        "deploy/kustomize/components/sidecar/sidecar.yaml",
    ] {
        let image = format!("image: ghcr.io/pulsegate/pulsegate:{version}\n");
        assert!(read(path).contains(&image), "{path}");
    }
}
