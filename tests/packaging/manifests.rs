//! The chart in the current and in the oldest Helm, and what it renders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml::Value;

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
        &["helm4-python", "kubernetes-validate"],
        objects_follow_the_kubernetes_schema,
    ),
    Case::new(
        "every_pod_is_restricted",
        &["helm4-python"],
        every_pod_is_restricted,
    ),
    Case::new(
        "probes_ask_the_admin_port",
        &["helm4-python"],
        probes_ask_the_admin_port,
    ),
    Case::new(
        "services_lead_to_ports_that_exist",
        &["helm4-python"],
        services_lead_to_ports_that_exist,
    ),
    Case::new(
        "the_rendered_configuration_is_accepted",
        &["helm4-python"],
        the_rendered_configuration_is_accepted,
    ),
    Case::new(
        "the_test_pod_of_the_chart_succeeds",
        &["helm4-python"],
        the_test_pod_of_the_chart_succeeds,
    ),
    Case::new(
        "the_flags_of_the_sidecar_are_accepted",
        &[],
        the_flags_of_the_sidecar_are_accepted,
    ),
];

/// The oldest and the newest Kubernetes whose API the manifests are held against.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

/// Values the chart is known to work with.
pub fn value_files() -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(repo("charts/pulsegate/ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with("-values.yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    files
}

/// Lints and renders in Helm 3.6.2.
pub fn helm3(helm: &Path, values: &Path) -> Result<Vec<Value>, String> {
    let chart = repo("charts/pulsegate");
    run(Command::new(helm)
        .args(["lint", "--strict"])
        .arg(&chart)
        .arg("-f")
        .arg(values))?;
    let text = run(Command::new(helm)
        .args([
            "template",
            "rel",
            "--namespace",
            "ns",
            "--kube-version",
            "1.34.0",
        ])
        .arg(&chart)
        .arg("-f")
        .arg(values))?;
    Ok(documents(&text))
}

/// Lints and renders in Helm 4.
pub fn helm4(python: &Path, values: &Path) -> Result<Vec<Value>, String> {
    let script = repo("tests/packaging/helm4.py");
    let chart = repo("charts/pulsegate");
    let text = run(Command::new(python).arg(script).arg(chart).arg(values))?;
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        report["lint"],
        serde_json::json!([]),
        "{}",
        values.display()
    );
    let manifests = report["manifests"].as_object().unwrap();
    let notes = manifests["pulsegate/templates/NOTES.txt"].as_str().unwrap();
    assert!(notes.starts_with("pulsegate stands before:"), "{notes}");
    let yaml = manifests.iter().filter(|(name, _)| name.ends_with(".yaml"));
    Ok(yaml
        .flat_map(|(_, text)| documents(text.as_str().unwrap()))
        .collect())
}

/// Every set of objects that we ship: the chart with each value file, and the plain manifest.
fn shipped() -> Vec<(String, Vec<Value>)> {
    let python = helm4_python();
    let mut all = vec![(
        "deploy/kubernetes/sidecar.yaml".to_owned(),
        documents(&read("deploy/kubernetes/sidecar.yaml")),
    )];
    for values in value_files() {
        all.push((
            values.display().to_string(),
            helm4(&python, &values).unwrap(),
        ));
    }
    all
}

/// The interpreter that has the Helm 4 library. Not any `python3`: the search must end at ours.
pub fn helm4_python() -> PathBuf {
    tool("helm4-python")
}

fn objects<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|object| object["kind"] == kind).collect()
}

fn pod_specs(all: &[Value]) -> Vec<&Value> {
    let templates = objects(all, "Deployment")
        .into_iter()
        .map(|d| &d["spec"]["template"]["spec"]);
    templates
        .chain(objects(all, "Pod").into_iter().map(|pod| &pod["spec"]))
        .collect()
}

fn containers(pod: &Value) -> Vec<&Value> {
    let list = |key: &str| pod[key].as_sequence().into_iter().flatten();
    list("initContainers").chain(list("containers")).collect()
}

fn both_helms_render_the_same_objects() {
    let (helm, python) = (tool("helm3"), helm4_python());
    let by_name = |objects: Vec<Value>| -> BTreeMap<String, Value> {
        let name = |o: &Value| format!("{:?}/{:?}", o["kind"], o["metadata"]["name"]);
        objects
            .into_iter()
            .map(|object| (name(&object), object))
            .collect()
    };
    for values in value_files() {
        let new = by_name(helm4(&python, &values).unwrap());
        assert!(new.len() >= 4, "{new:?}");
        assert_eq!(
            by_name(helm3(&helm, &values).unwrap()),
            new,
            "{}",
            values.display()
        );
    }
}

fn objects_follow_the_kubernetes_schema() {
    let (validate, shipped) = (tool("kubernetes-validate"), shipped());
    let mut files = Vec::new();
    for (index, (_, all)) in shipped.iter().enumerate() {
        // A PodMonitor is not part of Kubernetes; its schema is not at hand.
        let known = all.iter().filter(|object| object["kind"] != "PodMonitor");
        let text: Vec<_> = known
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
}

/// The "restricted" Pod Security Standard, written out.
fn every_pod_is_restricted() {
    let shipped = shipped();
    for (name, all) in shipped {
        assert!(!pod_specs(&all).is_empty(), "{name}");
        for pod in pod_specs(&all) {
            for key in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[key].is_null(), "{name}: {key}");
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
                let is_of = |kind: &str| volume[kind].is_mapping();
                assert!(
                    is_of("configMap") || is_of("emptyDir"),
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

/// A probe on a data port would open a connection to the legacy service.
fn probes_ask_the_admin_port() {
    let shipped = shipped();
    for (name, all) in shipped {
        let deployments = objects(&all, "Deployment");
        for deployment in &deployments {
            let containers = containers(&deployment["spec"]["template"]["spec"]);
            let pulsegate = containers
                .iter()
                .find(|c| c["name"] == "pulsegate")
                .unwrap();
            for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
                assert_eq!(
                    pulsegate[probe]["httpGet"]["port"], "admin",
                    "{name}: {probe}"
                );
                assert_eq!(pulsegate[probe]["httpGet"]["path"], path, "{name}: {probe}");
            }
        }
        assert_eq!(deployments.len(), 1, "{name}");
    }
}

/// Each Service port leads to a port that a container of the same set has.
fn services_lead_to_ports_that_exist() {
    let shipped = shipped();
    for (name, all) in shipped {
        let pod = &objects(&all, "Deployment")[0]["spec"]["template"];
        let ports: Vec<&Value> = containers(&pod["spec"])
            .into_iter()
            .flat_map(|container| container["ports"].as_sequence().into_iter().flatten())
            .map(|port| &port["name"])
            .collect();
        for service in objects(&all, "Service") {
            for (key, value) in service["spec"]["selector"].as_mapping().unwrap() {
                assert_eq!(&pod["metadata"]["labels"][key], value, "{name}");
            }
            for port in service["spec"]["ports"].as_sequence().unwrap() {
                assert!(ports.contains(&&port["targetPort"]), "{name}: {port:?}");
            }
        }
    }
}

/// What the chart writes is what the binary reads.
fn the_rendered_configuration_is_accepted() {
    let shipped = shipped();
    let check = |config: &Path| {
        run(Command::new(env!("CARGO_BIN_EXE_pulsegate"))
            .arg("check")
            .arg("-c")
            .arg(config))
    };
    let mut checked = 0;
    for (name, all) in shipped {
        for config_map in objects(&all, "ConfigMap") {
            let text = config_map["data"]["pulsegate.yaml"].as_str().unwrap();
            let file = scratch("check", &format!("{checked}.yaml"), text);
            check(&file).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
            checked += 1;
        }
    }
    assert_eq!(checked, value_files().len());
    let wrong = scratch("check", "wrong.yaml", "listeners: []\n");
    assert!(
        check(&wrong).is_err(),
        "`check` accepts a file without listeners"
    );
}

/// What `helm test` runs, against the binary: on the rendered configuration, and on a process that
/// answers at a name, as the Service of the admin port is one.
fn the_test_pod_of_the_chart_succeeds() {
    let mut asked = Vec::new();
    for values in value_files() {
        let all = helm4(&helm4_python(), &values).unwrap();
        let config = objects(&all, "ConfigMap")[0]["data"]["pulsegate.yaml"].as_str();
        let config = scratch("helm-test", "pulsegate.yaml", config.unwrap());
        let admin = free_address();
        let running = Running::start(&before(&["--admin", &admin.to_string()]));
        running.wait_for(admin);
        for container in pod_containers(&all) {
            let args = container["args"].as_sequence().unwrap();
            let args = args.iter().map(|arg| arg.as_str().unwrap());
            let args: Vec<String> = args
                .map(|arg| match arg.rsplit_once(':') {
                    Some((name, "9901")) => {
                        assert_eq!(name, "edge-admin");
                        format!("localhost:{}", admin.port())
                    }
                    _ => arg.replace("/etc/pulsegate/pulsegate.yaml", config.to_str().unwrap()),
                })
                .collect();
            let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
            run(command.args(&args)).unwrap_or_else(|error| panic!("{args:?}: {error}"));
            asked.push(args[0].clone());
        }
    }
    asked.sort();
    assert_eq!(asked, ["check", "check", "check", "healthcheck"]);
}

fn pod_containers(all: &[Value]) -> Vec<&Value> {
    let pods = objects(all, "Pod");
    pods.into_iter()
        .flat_map(|pod| containers(&pod["spec"]))
        .collect()
}

/// The flags of the plain manifest are flags that the binary has.
fn the_flags_of_the_sidecar_are_accepted() {
    let all = documents(&read("deploy/kubernetes/sidecar.yaml"));
    let pod = pod_specs(&all)[0];
    let args = pod["initContainers"][0]["args"].as_sequence().unwrap();
    let args: Vec<_> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
    assert_eq!(args[0], "run");
    let check = |args: &[&str]| {
        run(Command::new(env!("CARGO_BIN_EXE_pulsegate"))
            .arg("check")
            .args(args))
    };
    check(&args[1..]).unwrap();
    assert!(
        check(&["--detect-within=10"]).is_err(),
        "`check` accepts a number without a unit"
    );
}
