//! The chart in the current and in the oldest Helm, and what it renders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_yaml::Value;

use super::library::wrapped;
use super::tools::{
    Case, Running, before, documents, free_address, read, repo, run, scratch, tool,
};

pub const CASES: &[Case] = &[
    Case::new(
        "both_helms_render_the_same_objects",
        &["helm3", "helm4-python"],
        both_helms_render_the_same_objects,
    ),
    Case::new(
        "objects_follow_the_kubernetes_schema",
        &["helm3", "helm4-python", "kubernetes-validate"],
        objects_follow_the_kubernetes_schema,
    ),
    Case::new(
        "alerts_find_the_jobs_of_the_monitors",
        &["helm4-python"],
        alerts_find_the_jobs_of_the_monitors,
    ),
    Case::new(
        "no_list_has_a_key_twice",
        &["helm3", "helm4-python"],
        no_list_has_a_key_twice,
    ),
    Case::new(
        "every_pod_is_restricted",
        &["helm3", "helm4-python"],
        every_pod_is_restricted,
    ),
    Case::new(
        "checkov_finds_nothing_new",
        &["checkov", "helm3", "helm4-python"],
        checkov_finds_nothing_new,
    ),
    Case::new(
        "probes_ask_the_admin_port",
        &["helm3", "helm4-python"],
        probes_ask_the_admin_port,
    ),
    Case::new(
        "services_lead_to_ports_that_exist",
        &["helm3", "helm4-python"],
        services_lead_to_ports_that_exist,
    ),
    Case::new(
        "the_rendered_configuration_is_accepted",
        &["helm3", "helm4-python"],
        the_rendered_configuration_is_accepted,
    ),
    Case::new(
        "the_test_pod_of_the_chart_succeeds",
        &["helm4-python"],
        the_test_pod_of_the_chart_succeeds,
    ),
];

/// The oldest and the newest Kubernetes whose API the manifests are held against.
pub const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

/// Kinds that are no part of Kubernetes. `tests/packaging/crds.json` has what we know of them.
const FOREIGN: [&str; 5] = [
    "Certificate",
    "PodMonitor",
    "PrometheusRule",
    "ServiceMonitor",
    "TCPRoute",
];

/// Values the chart is known to work with.
pub fn value_files() -> Vec<PathBuf> {
    value_files_of("charts/pulsegate")
}

pub fn value_files_of(chart: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(repo(chart).join("ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with("-values.yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    files
}

/// Lints and renders the gateway chart in Helm 3.6.2.
pub fn helm3(helm: &Path, values: &Path) -> Result<Vec<Value>, String> {
    helm3_of(helm, &repo("charts/pulsegate"), values)
}

pub fn helm3_of(helm: &Path, chart: &Path, values: &Path) -> Result<Vec<Value>, String> {
    run(Command::new(helm)
        .args(["lint", "--strict"])
        .arg(chart)
        .arg("-f")
        .arg(values))?;
    let names = ["template", "rel", "--namespace", "ns"];
    let text = run(Command::new(helm)
        .args(names)
        .args(["--kube-version", "1.34.0"])
        .arg(chart)
        .arg("-f")
        .arg(values))?;
    Ok(documents(&text))
}

/// Lints and renders the gateway chart in Helm 4, with each of these values, in one process.
pub fn helm4(values: &[PathBuf]) -> Vec<Result<Vec<Value>, String>> {
    let chart = repo("charts/pulsegate");
    let reports = helm4_of(&chart, values).into_iter();
    let objects = |report: Result<Manifests, String>| {
        let manifests = report?;
        let notes = &manifests["pulsegate/templates/NOTES.txt"];
        assert!(notes.starts_with("pulsegate stands before:"), "{notes}");
        Ok(objects_of(&manifests))
    };
    reports.map(objects).collect()
}

pub type Manifests = BTreeMap<String, String>;

pub fn helm4_of(chart: &Path, values: &[PathBuf]) -> Vec<Result<Manifests, String>> {
    let script = repo("tests/packaging/helm4.py");
    let mut python = Command::new(tool("helm4-python"));
    let text = run(python.arg(script).arg(chart).args(values)).unwrap();
    let reports: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(reports.len(), values.len());
    let manifests = |(report, file): (serde_json::Value, &PathBuf)| {
        if let Some(why) = report["refused"].as_str() {
            return Err(why.to_owned());
        }
        assert_eq!(report["lint"], serde_json::json!([]), "{}", file.display());
        Ok(serde_json::from_value(report["manifests"].clone()).unwrap())
    };
    reports.into_iter().zip(values).map(manifests).collect()
}

pub fn objects_of(manifests: &Manifests) -> Vec<Value> {
    let yaml = manifests.iter().filter(|(name, _)| name.ends_with(".yaml"));
    yaml.flat_map(|(_, text)| documents(text)).collect()
}

/// Objects under the name of where they come from.
pub type Sets = Vec<(String, Vec<Value>)>;

/// The gateway chart with each of its value files.
fn gateways() -> &'static Sets {
    static SETS: OnceLock<Sets> = OnceLock::new();
    SETS.get_or_init(|| named(&value_files(), helm4(&value_files())))
}

pub fn named(files: &[PathBuf], rendered: Vec<Result<Vec<Value>, String>>) -> Sets {
    let name = |file: &PathBuf| file.display().to_string();
    let set = |(file, objects): (&PathBuf, Result<_, String>)| {
        let objects = objects.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (name(file), objects)
    };
    files.iter().zip(rendered).map(set).collect()
}

/// Every set of objects that we ship: the charts with each value file, and the plain manifests.
fn shipped() -> Sets {
    let mut all = [gateways().clone(), wrapped().clone()].concat();
    for path in PLAIN {
        all.push(((*path).to_owned(), documents(&read(path))));
    }
    all
}

/// Manifests that need no tool.
const PLAIN: &[&str] = &[
    "deploy/kubernetes/gateway.yaml",
    "deploy/kubernetes/guard.yaml",
    "deploy/kubernetes/sidecar-classic.yaml",
    "deploy/kubernetes/sidecar-native.yaml",
];

fn objects<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|object| object["kind"] == kind).collect()
}

/// What keeps Pods running.
pub fn workloads(all: &[Value]) -> Vec<&Value> {
    [objects(all, "Deployment"), objects(all, "DaemonSet")].concat()
}

fn pod_specs(all: &[Value]) -> Vec<&Value> {
    let templates = workloads(all)
        .into_iter()
        .map(|d| &d["spec"]["template"]["spec"]);
    templates
        .chain(objects(all, "Pod").into_iter().map(|pod| &pod["spec"]))
        .collect()
}

pub fn containers(pod: &Value) -> Vec<&Value> {
    [items(&pod["initContainers"]), items(&pod["containers"])].concat()
}

pub fn items(list: &Value) -> Vec<&Value> {
    list.as_sequence().into_iter().flatten().collect()
}

/// The configuration files among the objects.
pub fn configurations(all: &[Value]) -> Vec<&str> {
    let texts = objects(all, "ConfigMap").into_iter();
    texts
        .filter_map(|map| map["data"]["pulsegate.yaml"].as_str())
        .collect()
}

fn both_helms_render_the_same_objects() {
    let helm = tool("helm3");
    for ((name, new), values) in gateways().iter().zip(value_files()) {
        assert_eq!(
            by_name(&helm3(&helm, &values).unwrap()),
            by_name(new),
            "{name}"
        );
    }
}

pub fn by_name(objects: &[Value]) -> BTreeMap<String, &Value> {
    let name = |o: &Value| format!("{:?}/{:?}", o["kind"], o["metadata"]["name"]);
    let map: BTreeMap<_, _> = objects
        .iter()
        .map(|object| (name(object), object))
        .collect();
    assert!(map.len() >= 3 && map.len() == objects.len(), "{map:?}");
    map
}

fn objects_follow_the_kubernetes_schema() {
    let (validate, shipped) = (tool("kubernetes-validate"), shipped());
    let mut files = Vec::new();
    let mut foreign = Vec::new();
    for (index, (_, all)) in shipped.iter().enumerate() {
        let is_foreign = |object: &&Value| FOREIGN.iter().any(|kind| object["kind"] == *kind);
        let (others, known): (Vec<_>, Vec<_>) = all.iter().partition(is_foreign);
        foreign.extend(others);
        let text: Vec<_> = known
            .iter()
            .map(|object| serde_yaml::to_string(object).unwrap())
            .collect();
        let name = format!("{index}.yaml");
        files.push(scratch("kubernetes", &name, &text.join("---\n")));
    }
    for version in KUBERNETES {
        run(Command::new(&validate)
            .args(["--strict", "-k", version])
            .args(&files))
        .unwrap();
    }
    let kinds: BTreeSet<_> = foreign
        .iter()
        .map(|o| o["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        BTreeSet::from(FOREIGN),
        "each is rendered by a value file"
    );
    let text = serde_json::to_string(&foreign).unwrap();
    let instances = scratch("kubernetes", "foreign.json", &text);
    let script = repo("tests/packaging/crds.py");
    run(Command::new(tool("helm4-python"))
        .arg(script)
        .arg(instances))
    .unwrap();
}

/// By the name of the job: PulsegateDown fires where there is none.
fn alerts_find_the_jobs_of_the_monitors() {
    let mut seen = 0;
    for (name, all) in gateways() {
        for kind in ["PodMonitor", "ServiceMonitor"] {
            for monitor in objects(all, kind) {
                let spec = &monitor["spec"];
                let endpoints = [&spec["podMetricsEndpoints"], &spec["endpoints"]];
                for endpoint in endpoints.into_iter().flat_map(items) {
                    let first = &endpoint["relabelings"][0];
                    assert_eq!(first["targetLabel"], "job", "{name}");
                    let job = first["replacement"].as_str().unwrap();
                    assert!(job.contains("pulsegate"), "{name}: {job}");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 4, "{seen}");
}

/// Server-side apply, Helm 4's default, refuses a list in which a key is there twice.
fn no_list_has_a_key_twice() {
    for (name, all) in shipped() {
        let unique = |list: &Value, key: &str, of: &str| {
            let keys: Vec<_> = items(list).into_iter().map(|item| &item[key]).collect();
            let keys: Vec<_> = keys.into_iter().filter(|key| !key.is_null()).collect();
            for (n, key) in keys.iter().enumerate() {
                assert!(
                    !keys[..n].contains(key),
                    "{name}: {of}: {key:?} is there twice"
                );
            }
        };
        for pod in pod_specs(&all) {
            let all: Vec<_> = containers(pod).into_iter().cloned().collect();
            unique(&Value::Sequence(all), "name", "containers");
            unique(&pod["volumes"], "name", "volumes");
            for container in containers(pod) {
                unique(&container["env"], "name", "env");
                unique(&container["ports"], "name", "ports");
                unique(&container["ports"], "containerPort", "ports");
                unique(&container["volumeMounts"], "mountPath", "volumeMounts");
            }
        }
        for service in objects(&all, "Service") {
            unique(&service["spec"]["ports"], "name", "ports");
            unique(&service["spec"]["ports"], "port", "ports");
        }
    }
}

/// The "restricted" Pod Security Standard, written out.
fn every_pod_is_restricted() {
    let shipped = shipped();
    for (name, all) in shipped {
        assert!(!pod_specs(&all).is_empty(), "{name}");
        for pod in pod_specs(&all) {
            for key in ["hostNetwork", "hostPID", "hostIPC"] {
                // The one thing that "restricted" forbids and a value allows.
                let is_allowed = key == "hostNetwork" && name.contains("host-network");
                assert!(pod[key].is_null() || is_allowed, "{name}: {key}");
            }
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert!(
                pod["securityContext"]["runAsUser"].as_u64().unwrap() > 0,
                "{name}"
            );
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"],
                "RuntimeDefault"
            );
            for volume in pod["volumes"].as_sequence().into_iter().flatten() {
                let is_of = |kind: &&str| volume[*kind].is_mapping();
                assert!(
                    ["configMap", "emptyDir", "secret"].iter().any(is_of),
                    "{name}: {volume:?}"
                );
            }
            for container in containers(pod) {
                let context = &container["securityContext"];
                assert_eq!(
                    context["allowPrivilegeEscalation"], false,
                    "{name}: {container:?}"
                );
                assert_eq!(
                    context["capabilities"]["drop"][0], "ALL",
                    "{name}: {container:?}"
                );
                assert!(
                    context["capabilities"]["add"].is_null(),
                    "{name}: {container:?}"
                );
                assert!(context["privileged"].is_null(), "{name}: {container:?}");
                if container["name"] == "pulsegate" {
                    assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                }
                for port in container["ports"].as_sequence().into_iter().flatten() {
                    assert!(port["hostPort"].is_null(), "{name}: {port:?}");
                }
            }
        }
    }
}

/// What checkov finds and is no fault: the check, where, and why.
const ACCEPTED: [(&str, &str, &str); 8] = [
    ("CKV_K8S_11", "", "a limit of CPU delays the verdicts"),
    ("CKV_K8S_19", "DaemonSet.", "where hostNetwork asks for it"),
    ("CKV_K8S_15", "", "a released tag does not move"),
    ("CKV_K8S_21", "", "who applies it names the namespace"),
    ("CKV_K8S_43", "", "image.digest is for the user to set"),
    (
        "CKV2_K8S_6",
        "",
        "the NetworkPolicy knows the clients: the user's",
    ),
    ("CKV_K8S_8", "Pod.", "that of `helm test` ends by itself"),
    ("CKV_K8S_9", "Pod.", "so"),
];

fn checkov_finds_nothing_new() {
    let mut files = Vec::new();
    for (index, (_, all)) in shipped().iter_mut().enumerate() {
        let ours = all.iter_mut().map(without_the_application);
        let text: Vec<_> = ours.map(|o| serde_yaml::to_string(o).unwrap()).collect();
        files.push(scratch(
            "checkov",
            &format!("{index}.yaml"),
            &text.join("---\n"),
        ));
    }
    let mut checkov = Command::new(tool("checkov"));
    checkov.args(["--framework", "kubernetes", "--skip-download"]);
    checkov.args(["--soft-fail", "--quiet", "--compact", "--output", "json"]);
    let said = run(checkov.arg("--file").args(files)).unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["summary"]["parsing_errors"], 0);
    let mut found = BTreeSet::new();
    for failed in said["results"]["failed_checks"].as_array().unwrap() {
        let text = |key: &str| failed[key].as_str().unwrap();
        let (check, of) = (text("check_id"), text("resource"));
        let accepted = ACCEPTED
            .iter()
            .any(|(id, prefix, _)| *id == check && of.starts_with(prefix));
        let name = text("check_name");
        assert!(accepted, "{check}: {name}: {of} {}", text("file_path"));
        found.insert(check.to_owned());
    }
    let ids = ACCEPTED.map(|(id, ..)| id.to_owned());
    assert_eq!(found, BTreeSet::from(ids), "what is accepted is found");
}

/// The application is not ours. A native sidecar is checked as what runs on, not as what ends.
fn without_the_application(object: &mut Value) -> &Value {
    if !object["spec"]["template"]["spec"].is_null() {
        let pod = object["spec"]["template"]["spec"].as_mapping_mut().unwrap();
        let lists = ["initContainers", "containers"].map(|key| pod.remove(key));
        let all = lists.into_iter().flatten();
        let all = all.flat_map(|list| items(&list).into_iter().cloned().collect::<Vec<_>>());
        let ours = all.filter(|container| container["name"] == "pulsegate");
        pod.insert("containers".into(), Value::Sequence(ours.collect()));
    }
    object
}

/// A probe on a data port would open a connection to the legacy service.
fn probes_ask_the_admin_port() {
    let shipped = shipped();
    for (name, all) in shipped {
        let deployments = workloads(&all);
        for deployment in &deployments {
            let containers = containers(&deployment["spec"]["template"]["spec"]);
            let pulsegate = containers
                .iter()
                .find(|c| c["name"] == "pulsegate")
                .unwrap();
            let ports = items(&pulsegate["ports"]).into_iter();
            let admin = ports.map(|port| &port["name"]).find(|port| {
                let name = port.as_str();
                name.is_some_and(|name| name.ends_with("admin"))
            });
            for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
                let port = &pulsegate[probe]["httpGet"]["port"];
                assert_eq!(Some(port), admin, "{name}: {probe}");
                assert_eq!(pulsegate[probe]["httpGet"]["path"], path, "{name}: {probe}");
                let is_https = pulsegate[probe]["httpGet"]["scheme"] == "HTTPS";
                assert_eq!(is_https, has_admin_tls(&all), "{name}: {probe}");
            }
        }
        assert_eq!(deployments.len(), 1, "{name}");
    }
}

fn has_admin_tls(all: &[Value]) -> bool {
    let files = configurations(all).into_iter();
    let mut files = files.map(|text| serde_yaml::from_str::<Value>(text).unwrap());
    files.any(|file| !file["admin"]["tls"].is_null())
}

/// Each Service port leads to a port that a container of the same set has, by name or number.
fn services_lead_to_ports_that_exist() {
    for (name, all) in shipped() {
        let pod = &workloads(&all)[0]["spec"]["template"];
        let containers = containers(&pod["spec"]).into_iter();
        let ports: Vec<_> = containers.flat_map(|c| items(&c["ports"])).collect();
        for service in objects(&all, "Service") {
            for (key, value) in service["spec"]["selector"].as_mapping().unwrap() {
                assert_eq!(&pod["metadata"]["labels"][key], value, "{name}");
            }
            for port in items(&service["spec"]["ports"]) {
                let target = &port["targetPort"];
                let is_it =
                    |port: &&Value| [&port["name"], &port["containerPort"]].contains(&target);
                assert!(ports.iter().any(is_it), "{name}: {port:?}");
            }
        }
    }
}

/// What the charts write is what the binary reads.
fn the_rendered_configuration_is_accepted() {
    let mut checked = 0;
    for (name, all) in shipped() {
        for text in configurations(&all) {
            let file = scratch("check", &format!("{checked}.yaml"), &with_secrets(text));
            check(&file).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
            checked += 1;
        }
    }
    assert!(checked >= value_files().len() - 1);
    let wrong = scratch("check", "wrong.yaml", "listeners: []\n");
    assert!(
        check(&wrong).is_err(),
        "`check` accepts a file without listeners"
    );
}

fn check(config: &Path) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    run(command.args(["check", "-c"]).arg(config))
}

/// The configuration with files that are there in place of those of mounted Secrets.
fn with_secrets(config: &str) -> String {
    static FILES: OnceLock<PathBuf> = OnceLock::new();
    let dir = FILES.get_or_init(|| {
        let names = vec!["orders.example.com".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        scratch("secrets", "ca.crt", &certificate);
        scratch("secrets", "tls.crt", &certificate);
        let path = scratch("secrets", "tls.key", &key);
        path.parent().unwrap().to_owned()
    });
    let mut parts = config.split("/etc/pulsegate-tls/");
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        let (_secret, file) = part.split_once('/').unwrap();
        text += &format!("{}/{file}", dir.display());
    }
    text
}

/// What `helm test` runs, against the binary: on the rendered configuration, and on a process that
/// answers at a name, as the Service of the admin port is one.
fn the_test_pod_of_the_chart_succeeds() {
    let mut asked = BTreeMap::<String, usize>::new();
    for (name, all) in gateways() {
        let configs = configurations(all);
        // That of existingConfigMap is the user's.
        let Some(config) = configs.first() else {
            continue;
        };
        let config = with_secrets(config);
        let config = scratch("helm-test", "pulsegate.yaml", &config);
        let config = config.to_str().unwrap();
        let admin = free_address();
        let running = Running::start(&before(&["--admin", &admin.to_string()]));
        running.wait_for(admin);
        let here = format!("localhost:{}", admin.port());
        let services = objects(all, "Service").into_iter();
        let services: Vec<_> = services
            .filter(|service| service["spec"]["ports"][0]["targetPort"] == "admin")
            .map(|service| {
                let port = service["spec"]["ports"][0]["port"].as_u64().unwrap();
                format!("{}:{port}", service["metadata"]["name"].as_str().unwrap())
            })
            .collect();
        for container in pod_containers(all) {
            let args = items(&container["args"]).into_iter();
            let args: Vec<_> = args
                .map(|arg| match arg.as_str().unwrap() {
                    "/etc/pulsegate/pulsegate.yaml" => config,
                    arg if services.iter().any(|service| service == arg) => &here,
                    arg => arg,
                })
                .collect();
            let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
            run(command.args(&args)).unwrap_or_else(|error| panic!("{name}: {args:?}: {error}"));
            *asked.entry(args[0].to_owned()).or_default() += 1;
        }
    }
    assert_eq!(asked["check"], gateways().len() - 1);
    assert!(asked["healthcheck"] >= 2, "{asked:?}");
}

fn pod_containers(all: &[Value]) -> Vec<&Value> {
    let pods = objects(all, "Pod");
    pods.into_iter()
        .flat_map(|pod| containers(&pod["spec"]))
        .collect()
}
