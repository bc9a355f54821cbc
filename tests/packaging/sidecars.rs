//! Sidecars without Helm: plain manifests, Kustomize, `pulsegate kube inject`.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_yaml::Value;

use super::manifests::{KUBERNETES, containers, items, workloads};
use super::tools::{Case, documents, read, repo, run, scratch, tool};

pub const CASES: &[Case] = &[
    Case::new(
        "configurations_of_sidecars_fit_the_hook_that_is_shipped",
        &[],
        configurations_of_sidecars_fit_the_hook_that_is_shipped,
    ),
    Case::new(
        "the_flags_of_the_sidecars_are_accepted",
        &[],
        the_flags_of_the_sidecars_are_accepted,
    ),
    Case::new(
        "inject_makes_the_plain_manifest",
        &[],
        inject_makes_the_plain_manifest,
    ),
    Case::new(
        "what_inject_writes_follows_the_schema",
        &["kubernetes-validate"],
        what_inject_writes_follows_the_schema,
    ),
    Case::new(
        "inject_says_what_is_wrong_and_prints_nothing",
        &[],
        inject_says_what_is_wrong_and_prints_nothing,
    ),
    Case::new(
        "kustomize_adds_the_sidecar_to_labelled_workloads",
        &["kubectl", "kubernetes-validate"],
        kustomize_adds_the_sidecar_to_labelled_workloads,
    ),
];

const NATIVE: &str = "deploy/kubernetes/sidecar-native.yaml";
const CLASSIC: &str = "deploy/kubernetes/sidecar-classic.yaml";

fn sidecar(workload: &Value) -> Option<&Value> {
    let pod = &workload["spec"]["template"]["spec"];
    containers(pod)
        .into_iter()
        .find(|c| c["name"] == "pulsegate")
}

fn words(list: &Value) -> Vec<&str> {
    items(list)
        .into_iter()
        .map(|word| word.as_str().unwrap())
        .collect()
}

/// The flags of the plain manifests are flags that the binary has.
fn the_flags_of_the_sidecars_are_accepted() {
    let check = |args: &[&str]| {
        run(Command::new(env!("CARGO_BIN_EXE_pulsegate"))
            .arg("check")
            .args(args))
    };
    for path in [NATIVE, CLASSIC] {
        let all = documents(&read(path));
        let args = words(&sidecar(workloads(&all)[0]).unwrap()["args"]);
        assert_eq!(args[0], "run");
        check(&args[1..]).unwrap();
    }
    assert!(
        check(&["--detect-within=10"]).is_err(),
        "`check` accepts a number without a unit"
    );
}

/// Else the drain would not begin before the application is gone.
fn configurations_of_sidecars_fit_the_hook_that_is_shipped() {
    let component = documents(&read("deploy/kustomize/components/sidecar/sidecar.yaml"));
    let hook = &sidecar(&component[0]).unwrap()["lifecycle"]["preStop"]["exec"]["command"];
    for path in [
        "config/sidecar.yaml",
        "deploy/kustomize/examples/legacy-app/pulsegate.yaml",
    ] {
        let config = &documents(&read(path))[0];
        let control = &config["admin"]["control"];
        assert!(
            words(hook).contains(&control.as_str().unwrap_or("none")),
            "{path}"
        );
        // Three seconds more than the drain.
        assert_eq!(config["drain"]["delay"], "5s", "{path}");
        assert_eq!(config["drain"]["timeout"], "25s", "{path}");
        assert!(words(hook).contains(&"33s"));
    }
}

/// Standard output, and what was said beside it.
fn inject(manifests: &str, words: &[&str]) -> Result<(String, String), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(["kube", "inject", "-f", "-"]).args(words);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(manifests.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, said) = (text(output.stdout), text(output.stderr));
    if output.status.success() {
        return Ok((out, said));
    }
    assert_eq!(
        (output.status.code(), out.as_str()),
        (Some(2), ""),
        "{said}"
    );
    Err(said)
}

fn inject_makes_the_plain_manifest() {
    let made = documents(&read(NATIVE));
    let mut before = made.clone();
    let pod = &mut before[0]["spec"]["template"];
    let labels = pod["metadata"]["labels"].as_mapping_mut().unwrap();
    labels.remove("pulsegate.io/sidecar").unwrap();
    let spec = pod["spec"].as_mapping_mut().unwrap();
    spec.remove("initContainers").unwrap();
    spec.remove("terminationGracePeriodSeconds").unwrap();
    let app = spec["containers"][0].as_mapping_mut().unwrap();
    app.remove("lifecycle").unwrap();
    before[1]["spec"]["ports"][0]["targetPort"] = "legacy".into();
    let text: Vec<_> = before
        .iter()
        .map(|object| serde_yaml::to_string(object).unwrap())
        .collect();
    let flags = ["--port", "9000:8080", "--", "--detect-within=10s"];
    let (out, said) = inject(&text.join("---\n"), &flags).unwrap();
    assert_eq!(said, "");
    assert_eq!(documents(&out), made);
    // Upon its own output it changes nothing.
    assert_eq!(inject(&out, &flags).unwrap(), (out, said));
}

fn what_inject_writes_follows_the_schema() {
    let template = "{ metadata: { labels: { a: b } }, spec: { restartPolicy: Never, containers: [{ name: app, image: 'a:1' }] } }";
    let always = template.replace("restartPolicy: Never, ", "");
    let mut text = String::new();
    for (kind, version, spec) in [
        (
            "Pod",
            "v1",
            "{ containers: [{ name: app, image: 'a:1' }] }".to_owned(),
        ),
        ("Job", "batch/v1", format!("{{ template: {template} }}")),
        (
            "CronJob",
            "batch/v1",
            format!(
                "{{ schedule: '@daily', jobTemplate: {{ spec: {{ template: {template} }} }} }}"
            ),
        ),
        (
            "DaemonSet",
            "apps/v1",
            format!("{{ selector: {{ matchLabels: {{ a: b }} }}, template: {always} }}"),
        ),
        (
            "StatefulSet",
            "apps/v1",
            format!(
                "{{ serviceName: a, selector: {{ matchLabels: {{ a: b }} }}, template: {always} }}"
            ),
        ),
    ] {
        text += &format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{ name: app }}\nspec: {spec}\n"
        );
    }
    let (out, _notes) = inject(&text, &["--port", "9000:8080"]).unwrap();
    assert_eq!(out.matches("restartPolicy: Always").count(), 5, "{out}");
    let file = scratch("inject", "all.yaml", &out);
    for version in KUBERNETES {
        let mut validate = Command::new(tool("kubernetes-validate"));
        run(validate.args(["--strict", "-k", version]).arg(&file)).unwrap();
    }
}

fn inject_says_what_is_wrong_and_prints_nothing() {
    let app = "kind: Pod\nmetadata: { name: app }\nspec: { containers: [{ name: app }] }\n";
    for (text, flags, why) in [
        (app, &[][..], "nothing to do"),
        (
            app,
            &["--port", "9000"],
            "Pod/app: port 9000: give PORT:APP",
        ),
        (
            "a: yes\n",
            &["--port", "9000:1"],
            "line 1: yes is true or false to Kubernetes",
        ),
        (
            app,
            &["--port", "9000:1", "--", "--detect-within", "9"],
            "has no unit",
        ),
    ] {
        let said = inject(text, flags).expect_err(why);
        assert!(said.contains(why), "{said}");
    }
}

fn kustomize_adds_the_sidecar_to_labelled_workloads() {
    let example = repo("deploy/kustomize/examples/legacy-app");
    let text = run(Command::new(tool("kubectl")).arg("kustomize").arg(example)).unwrap();
    let all = documents(&text);
    let workloads = workloads(&all);
    let with: Vec<_> = workloads.iter().filter_map(|one| sidecar(one)).collect();
    assert_eq!((workloads.len(), with.len()), (2, 1));
    // The same container as that of `inject`, but for where its configuration is.
    let mut plain = sidecar(&documents(&read(NATIVE))[0]).unwrap().clone();
    let mut own = with[0].clone();
    for container in [&mut plain, &mut own] {
        container["lifecycle"]["preStop"]["exec"]["command"][6] = Value::Null;
        let container = container.as_mapping_mut().unwrap();
        container.remove("args");
        container.remove("volumeMounts");
    }
    assert_eq!(own, plain);
    let config = all
        .iter()
        .find(|object| object["kind"] == "ConfigMap")
        .unwrap();
    let config = scratch(
        "kustomize",
        "pulsegate.yaml",
        config["data"]["pulsegate.yaml"].as_str().unwrap(),
    );
    let mut check = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    run(check.args(["check", "-c"]).arg(config)).unwrap();
    let file = scratch("kustomize", "all.yaml", &text);
    for version in KUBERNETES {
        let mut validate = Command::new(tool("kubernetes-validate"));
        run(validate.args(["--strict", "-k", version]).arg(&file)).unwrap();
    }
}
