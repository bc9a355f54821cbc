//! The library chart, in the example that wraps a chart with it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_yaml::Value;

use super::manifests::{
    KUBERNETES, Sets, by_name, configurations, containers, helm3_of, helm4_of, items, named,
    objects_of, value_files_of, workloads,
};
use super::tools::{Case, Running, free_address, read, repo, run, scratch, tool};

pub const CASES: &[Case] = &[
    Case::new(
        "both_helms_wrap_a_chart_in_the_same_way",
        &["helm3", "helm4-python"],
        both_helms_wrap_a_chart_in_the_same_way,
    ),
    Case::new(
        "the_application_outlives_the_drain",
        &["helm3", "helm4-python"],
        the_application_outlives_the_drain,
    ),
    Case::new(
        "no_client_of_a_pod_that_ends_is_cut_before_its_time",
        &["helm3", "helm4-python"],
        no_client_of_a_pod_that_ends_is_cut_before_its_time,
    ),
    Case::new(
        "a_wrong_sidecar_is_refused",
        &["helm3", "helm4-python"],
        a_wrong_sidecar_is_refused,
    ),
    Case::new(
        "the_library_knows_the_keys_of_the_configuration_file",
        &[],
        the_library_knows_the_keys_of_the_configuration_file,
    ),
    Case::new(
        "a_chart_that_follows_the_readme_is_wrapped",
        &["helm3", "helm4-python", "kubernetes-validate"],
        a_chart_that_follows_the_readme_is_wrapped,
    ),
    Case::new(
        "a_chart_with_volumes_and_a_hook_of_its_own_is_wrapped",
        &["helm3", "helm4-python"],
        a_chart_with_volumes_and_a_hook_of_its_own_is_wrapped,
    ),
    Case::new(
        "notes_say_which_way_clients_go",
        &["helm3", "helm4-python"],
        notes_say_which_way_clients_go,
    ),
    Case::new(
        "charts_do_not_take_each_others_names",
        &[],
        charts_do_not_take_each_others_names,
    ),
];

const EXAMPLE: &str = "charts/examples/legacy-app";

/// A copy of the example in which its dependency was built.
fn example() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let marker = scratch("library", "marker", "");
        let dir = marker.parent().unwrap();
        run(Command::new("rm").arg("-rf").arg(dir.join("charts"))).unwrap();
        run(Command::new("cp").arg("-r").arg(repo("charts")).arg(dir)).unwrap();
        let chart = dir.join(EXAMPLE);
        let mut helm = Command::new(tool("helm3"));
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(home, dir.join("home"));
        }
        run(helm.args(["dependency", "build"]).arg(&chart)).unwrap();
        chart
    };
    BUILT.get_or_init(build).clone()
}

/// The example with each of its value files.
pub fn wrapped() -> &'static Sets {
    static SETS: OnceLock<Sets> = OnceLock::new();
    SETS.get_or_init(|| {
        let files = value_files_of(EXAMPLE);
        let rendered = helm4_of(&example(), &files).into_iter();
        let objects = rendered.map(|manifests| Ok(objects_of(&manifests?)));
        named(&files, objects.collect())
    })
}

/// The example with values of this test.
pub fn wrapped_with(test: &str, values: &str) -> Vec<Value> {
    let values = scratch(test, "values.yaml", values);
    objects_of(&helm4_of(&example(), &[values]).remove(0).unwrap())
}

fn both_helms_wrap_a_chart_in_the_same_way() {
    let helm = tool("helm3");
    for ((name, new), values) in wrapped().iter().zip(value_files_of(EXAMPLE)) {
        let old = helm3_of(&helm, &example(), &values).unwrap();
        assert_eq!(by_name(&old), by_name(new), "{name}");
    }
}

/// Sidecar and application have their preStop hooks at once; what the kubelet stops first must wait longer.
fn the_application_outlives_the_drain() {
    let mut natives = Vec::new();
    for (name, all) in wrapped() {
        let pod = &workloads(all)[0]["spec"]["template"]["spec"];
        let sidecars = containers(pod).into_iter();
        let sidecar = sidecars.filter(|c| c["name"] == "pulsegate");
        let [sidecar] = sidecar.collect::<Vec<_>>()[..] else {
            panic!("{name}: not one sidecar");
        };
        let is_native = items(&pod["initContainers"]).contains(&sidecar);
        let restarts = (&sidecar["restartPolicy"] == "Always", is_native);
        assert_eq!(restarts.0, restarts.1, "{name}");
        natives.push(is_native);
        let seconds = |value: &Value| value.as_str().unwrap().trim_end_matches('s').parse::<u64>();
        let waits = seconds(&sidecar["lifecycle"]["preStop"]["exec"]["command"][4]).unwrap();
        let hook = &pod["containers"][0]["lifecycle"]["preStop"];
        let sleeps = hook["sleep"]["seconds"].as_u64();
        let sleeps = sleeps.unwrap_or_else(|| seconds(&hook["exec"]["command"][1]).unwrap());
        assert!(sleeps >= waits, "{name}: {sleeps} < {waits}");
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace >= sleeps + 10, "{name}: {grace}");
    }
    natives.sort_unstable();
    assert_eq!(natives, [false, true]);
    // Kubernetes 1.29 has native sidecars, and does not sleep by itself.
    let mut helm = Command::new(tool("helm3"));
    let words = ["template", "rel", "--kube-version", "1.29.0"];
    let text = run(helm.args(words).arg(example())).unwrap();
    assert!(text.contains(r#"command: ["sleep", "33"]"#), "{text}");
}

/// A rendered Pod as processes, ended in the order of the kubelet: all hooks at once, SIGTERM to the application when its
/// own is over, and to the sidecar after that.
fn no_client_of_a_pod_that_ends_is_cut_before_its_time() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let app = application.local_addr().unwrap();
    let (clients, admin) = (free_address(), free_address());
    let text = format!(
        "pulsegate: {{ listeners: [{{ name: a, port: {}, appPort: {} }}], admin: {{ port: {} }},\n  \
         config: {{ drain: {{ delay: 1s, timeout: 4s }} }} }}\n",
        clients.port(),
        app.port(),
        admin.port()
    );
    let objects = wrapped_with("ending", &text);
    let socket = std::env::temp_dir().join(format!("pulsegate-{}.sock", std::process::id()));
    let here = |text: &str| {
        let text = text.replace("0.0.0.0", "127.0.0.1");
        text.replace("/run/pulsegate/control.sock", socket.to_str().unwrap())
    };
    let config = scratch(
        "library",
        "ending-config.yaml",
        &here(configurations(&objects)[0]),
    );
    let pod = &workloads(&objects)[0]["spec"]["template"]["spec"];
    let hook = items(&pod["initContainers"][0]["lifecycle"]["preStop"]["exec"]["command"]);
    let hook: Vec<_> = hook
        .iter()
        .map(|word| here(word.as_str().unwrap()))
        .collect();
    let sleeps = &pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
    let sleeps = Duration::from_secs(sleeps.as_u64().unwrap());

    thread::spawn(move || application.incoming().flatten().for_each(echo));
    let mut sidecar = Running::start(&["--config".to_owned(), config.display().to_string()]);
    sidecar.wait_for(admin);
    let mut idle = TcpStream::connect(clients).unwrap();
    ask(&mut idle).unwrap();
    let mut busy = TcpStream::connect(clients).unwrap();

    let ends = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let mut hook = command.args(&hook[1..]).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    // The endpoint has not left every node.
    let mut late = TcpStream::connect(clients).unwrap();
    ask(&mut late).unwrap();
    drop(late);
    while ends.elapsed() < Duration::from_millis(2500) {
        ask(&mut busy).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    drop(busy);
    // drain.delay, and the half of drain.timeout in which nobody is ended.
    let _reset = idle.read(&mut [0]);
    assert!(
        ends.elapsed() >= Duration::from_secs(3),
        "{:?}",
        ends.elapsed()
    );
    assert!(hook.wait().unwrap().success());
    assert!(
        ends.elapsed() < sleeps,
        "{:?}: the application has gone",
        ends.elapsed()
    );
    // SIGTERM would find nobody.
    assert_eq!(sidecar.0.wait().unwrap().code(), Some(0));
}

fn echo(mut client: TcpStream) {
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            let _gone = client.write_all(&buffer[..n]);
        }
    });
}

fn ask(client: &mut TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    client.write_all(b"?")?;
    client.read_exact(&mut [0])
}

const WRONG: &[(&str, &str)] = &[
    ("{listners: []}", "unknown key listners; there are admin,"),
    (
        "{listeners: []}",
        "at least one is needed, such as {name: orders",
    ),
    (
        "{sidecar: {native: 'no'}}",
        "sidecar.native is true or false",
    ),
    ("{appPreStop: never}", "it is auto, sleep or exec"),
    (
        "{listeners: [{name: Orders, port: 9000, appPort: 1}]}",
        "lower-case letters",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 1}, {name: a, port: 9001, appPort: 2}]}",
        "used twice",
    ),
    (
        "{listeners: [{name: a, port: 80, appPort: 8080}]}",
        "Clients use servicePort",
    ),
    (
        "{listeners: [{name: a, port: 9000}]}",
        "where the application listens",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 9000}]}",
        "the containers of a Pod share their ports",
    ),
    (
        "{listeners: [{name: a, port: 9900, appPort: 1}]}",
        "is taken by admin.port",
    ),
    ("{image: {tag: 0.1}}", "image.tag: 0.1 is no text; quote it"),
    (
        "{image: {repository: registry.example/pulsegate}}",
        "set image.registry: registry.example, or \"\"",
    ),
    (
        "{image: {repository: 'pulsegate/pulsegate:1'}}",
        "has a tag; set image.tag",
    ),
    (
        "{image: {pullPolicy: always}}",
        "it is Always, IfNotPresent or Never",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 8080, servicePort: http}]}",
        "servicePort of \"a\" is http; it is a number",
    ),
    (
        "{listeners: [{name: a, port: 9000.5, appPort: 8080}]}",
        "port of \"a\" is 9000.5; it is a number",
    ),
    (
        "{image: {tags: a}}",
        "unknown key image.tags; there are digest,",
    ),
    (
        "{admin: 9901}",
        "admin is 9901; it has keys of its own: port",
    ),
    ("{admin: {port: 80}}", "admin.port is 80"),
    ("{tlsSecrets: [a, a]}", "tlsSecrets: one is there twice"),
    (
        "{listeners: [{name: 12, port: 9000, appPort: 1}]}",
        "the name 12 is no text",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 70000}]}",
        "appPort and servicePort are from 1 to 65535",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 9900}]}",
        "appPort 9900 of \"a\" is taken by admin.port",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 1}, {name: b, port: 9001, appPort: 1}]}",
        "the Service has port 1 of \"a\" already",
    ),
    (
        "{config: {drain: {timeout: 25}}}",
        "25 is no duration; write",
    ),
    (
        "{listeners: {name: a, port: 9000, appPort: 1}}",
        "listeners is a list",
    ),
    ("{listeners: [orders]}", "listeners[0] is orders"),
    ("{listeners: [null]}", "listeners[0] is null"),
    (
        "{listeners: [{name: a, prot: 9000, appPort: 1}]}",
        "unknown key listeners[0].prot; there are access,",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 1, upstream: 'db:1'}]}",
        "listeners[0].upstream is db:1; it has keys of its own: address,",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 1, liveness: {detect: 9s}}]}",
        "unknown key listeners[0].liveness.detect;",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 1, tls: {certificates: [{cert: a}]}}]}",
        "unknown key listeners[0].tls.certificates[0].cert; there are certificate, key",
    ),
    (
        "{listeners: [{name: a, port: 9000, appPort: 1, liveness: off}]}",
        "listeners[0].liveness is false",
    ),
    (
        "{config: {defaults: {livness: {}}}}",
        "unknown key config.defaults.livness;",
    ),
    (
        "{config: {admin: {address: '0.0.0.0:1'}}}",
        "unknown key config.admin.address;",
    ),
    (
        "{config: {drain: {timout: 9s}}}",
        "unknown key config.drain.timout; there are delay, timeout",
    ),
    ("{config: [a]}", "config[0] is a"),
    ("{config: []}", "config is no list"),
    (
        "{resources: {limit: {memory: 1Gi}}}",
        "unknown key resources.limit; there are claims, limits, requests",
    ),
    (
        "{securityContext: {runAsRoot: true}}",
        "unknown key securityContext.runAsRoot;",
    ),
    ("{sidecar: false}", "sidecar is false"),
    ("{tlsSecrets: a}", "tlsSecrets is a list"),
    ("{name: My_Name}", "My_Name is no name of a ConfigMap"),
    (
        "{appStopSeconds: 10s}",
        "appStopSeconds: 10s; it is a whole",
    ),
];

fn a_wrong_sidecar_is_refused() {
    let helm = tool("helm3");
    let file = |(n, (text, _)): (usize, &(&str, &str))| {
        let text = format!("pulsegate: {text}\n");
        scratch("library", &format!("{n}.yaml"), &text)
    };
    let files: Vec<_> = WRONG.iter().enumerate().map(file).collect();
    let chart = example();
    let new = helm4_of(&chart, &files).into_iter();
    for ((file, new), (text, word)) in files.iter().zip(new).zip(WRONG) {
        let old = helm3_of(&helm, &chart, file).map(drop);
        for (which, result) in [("3", old), ("4", new.map(drop))] {
            let message = result.expect_err(text);
            assert!(message.contains(word), "Helm {which}, {text}: {message}");
        }
    }
}

/// All keys of a schema as a tree.
fn tree(schema: &serde_json::Value) -> Value {
    let mut keys = serde_yaml::Mapping::new();
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        keys.insert(key.as_str().into(), tree(inner));
    }
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    for inner in alternatives.chain(schema.get("items")) {
        if let Value::Mapping(more) = tree(inner) {
            keys.extend(more);
        }
    }
    if keys.is_empty() {
        return Value::Null;
    }
    Value::Mapping(keys)
}

fn the_library_knows_the_keys_of_the_configuration_file() {
    let schema = run(Command::new(env!("CARGO_BIN_EXE_pulsegate")).arg("schema")).unwrap();
    let Value::Mapping(mut config) = tree(&serde_json::from_str(&schema).unwrap()) else {
        panic!("{schema}");
    };
    let mut listener = config.remove("listeners").unwrap();
    // Of those the library makes the addresses.
    listener.as_mapping_mut().unwrap().remove("address");
    let admin = config["admin"].as_mapping_mut().unwrap();
    admin.remove("address");
    admin.remove("control");
    // Those of a listener.
    config.remove("defaults");
    let text = read("charts/pulsegate-lib/templates/_keys.tpl");
    let (_, text) = text.split_once("configKeys\" -}}\n").unwrap();
    let (text, _) = text.split_once("{{- end").unwrap();
    let known: Value = serde_yaml::from_str(text).unwrap();
    assert_eq!(known["listener"], listener);
    assert_eq!(known["config"], Value::Mapping(config));
}

/// The lines of a block of the README that begins with the name of this file, without that line.
fn block(file: &str) -> Vec<String> {
    let readme = read("charts/pulsegate-lib/README.md");
    let (_, after) = readme.split_once(&format!("   # {file}\n")).expect(file);
    let (lines, _) = after.split_once("   ```").unwrap();
    let lines = lines.lines();
    lines
        .map(|line| line.strip_prefix("   ").unwrap_or(line).to_owned() + "\n")
        .collect()
}

/// What `helm create` makes, changed by the README of the library.
fn a_chart_that_follows_the_readme_is_wrapped() {
    let dir = example().join("../../../stranger");
    run(Command::new("rm").arg("-rf").arg(&dir)).unwrap();
    fs::create_dir(&dir).unwrap();
    let helm = || {
        let mut helm = Command::new(tool("helm3"));
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(home, dir.join("home"));
        }
        helm
    };
    let chart = dir.join("shop");
    run(helm().arg("create").arg(&chart)).unwrap();
    let change = |file: &str, change: &dyn Fn(String) -> String| {
        let text = fs::read_to_string(chart.join(file)).unwrap_or_default();
        fs::write(chart.join(file), change(text)).unwrap();
    };
    let insert = |text: &str, before: &str, lines: &[String]| {
        assert_eq!(text.matches(before).count(), 1, "{before}: {text}");
        text.replace(before, &(lines.concat() + before))
    };
    change("Chart.yaml", &|text| {
        let ours = format!("file://{}", repo("charts/pulsegate-lib").display());
        text + &block("Chart.yaml")
            .concat()
            .replace("oci://ghcr.io/pulsegate/charts", &ours)
    });
    change("values.yaml", &|text| text + &block("values.yaml").concat());
    change("templates/pulsegate.yaml", &|_| {
        block("templates/pulsegate.yaml").concat()
    });
    change("templates/service.yaml", &|text| {
        let (before, after) = text.split_once("    - port:").unwrap();
        let (_, after) = after.split_once("  selector:").unwrap();
        let include = &block("templates/service.yaml")[2];
        format!("{before}{include}  selector:{after}")
    });
    change("templates/deployment.yaml", &|text| {
        let lines = block("templates/deployment.yaml");
        let at = |start: &str| {
            lines
                .iter()
                .position(|line| line.trim() == start)
                .expect(start)
        };
        let text = insert(&text, "apiVersion:", &lines[..1]);
        let label = &lines[at("labels:") + 1..=at("labels:") + 1];
        let text = insert(&text, "    spec:\n", label);
        let text = insert(
            &text,
            "      containers:\n",
            &lines[at("labels:") + 3..at("containers:")],
        );
        let hook = &lines[at("lifecycle:")..at("volumes:")];
        let text = insert(&text, "          ports:\n", hook);
        text + &lines[at("volumes:")..].concat()
    });
    run(helm().args(["dependency", "update"]).arg(&chart)).unwrap();
    let values = scratch("stranger", "values.yaml", "replicaCount: 2\n");
    let old = helm3_of(&tool("helm3"), &chart, &values).unwrap();
    let objects = objects_of(
        &helm4_of(&chart, std::slice::from_ref(&values))
            .remove(0)
            .unwrap(),
    );
    assert_eq!(by_name(&old), by_name(&objects));
    let text: Vec<_> = objects
        .iter()
        .map(|object| serde_yaml::to_string(object).unwrap())
        .collect();
    let file = scratch("stranger", "all.yaml", &text.join("---\n"));
    for version in KUBERNETES {
        let mut validate = Command::new(tool("kubernetes-validate"));
        run(validate.args(["--strict", "-k", version]).arg(&file)).unwrap();
    }
    let template = &workloads(&objects)[0]["spec"]["template"];
    assert_eq!(
        template["metadata"]["labels"]["pulsegate.io/sidecar"],
        "true"
    );
    let pod = &template["spec"];
    assert_eq!(pod["initContainers"][0]["name"], "pulsegate");
    assert_eq!(
        pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"],
        33
    );
    assert_eq!(pod["terminationGracePeriodSeconds"], 45);
    let service = objects
        .iter()
        .find(|object| object["kind"] == "Service")
        .unwrap();
    let port = &service["spec"]["ports"][0];
    assert_eq!(
        (&port["port"], &port["targetPort"]),
        (&80.into(), &9000.into())
    );
    let config = scratch("stranger", "pulsegate.yaml", configurations(&objects)[0]);
    let mut check = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    run(check.args(["check", "-c"]).arg(config)).unwrap();
}

fn a_chart_with_volumes_and_a_hook_of_its_own_is_wrapped() {
    let chart = scratch("hooked", "marker", "").with_file_name("chart");
    run(Command::new("rm").arg("-rf").arg(&chart)).unwrap();
    run(Command::new("cp").arg("-r").arg(example()).arg(&chart)).unwrap();
    let template = chart.join("templates/deployment.yaml");
    let text = fs::read_to_string(&template).unwrap();
    let (before, after) = text.split_once("          lifecycle:\n").unwrap();
    let (_, after) = after.split_once("            {{- include").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    let (after, _) = after.split_once("      volumes:\n").unwrap();
    let block = |what: &str| block(&format!("templates/deployment.yaml, {what}")).concat();
    let hook = block("a hook of the application");
    let volumes = block("a list that may be empty");
    let checksum = block("new Pods for a new file");
    let before = before.replacen("    metadata:\n", &format!("    metadata:\n{checksum}"), 1);
    fs::write(template, format!("{before}{hook}{after}{volumes}")).unwrap();
    let mut checksums = BTreeSet::new();
    for (values, volumes) in [
        ("{pulsegate: {config: {drain: {timeout: 60s}}}}", 2),
        (
            "{volumes: [{name: own, emptyDir: {}}], pulsegate: {config: {drain: {timeout: 60s}, log: {format: text}}}}",
            3,
        ),
    ] {
        let values = scratch("hooked", "values.yaml", values);
        let old = helm3_of(&tool("helm3"), &chart, &values).unwrap();
        let new = objects_of(&helm4_of(&chart, &[values]).remove(0).unwrap());
        assert_eq!(by_name(&old), by_name(&new));
        let template = &workloads(&new)[0]["spec"]["template"];
        let annotations = &template["metadata"]["annotations"];
        checksums.insert(
            annotations["checksum/pulsegate"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
        let pod = &template["spec"];
        assert_eq!(items(&pod["volumes"]).len(), volumes);
        let lifecycle = &pod["containers"][0]["lifecycle"];
        assert_eq!(
            lifecycle["preStop"]["exec"]["command"][2],
            "sleep 68; stop-orders"
        );
        assert_eq!(pod["terminationGracePeriodSeconds"], 80);
    }
    assert_eq!(checksums.len(), 2, "another file, other Pods");
}

fn notes_say_which_way_clients_go() {
    let files = value_files_of(EXAMPLE);
    let notes: Vec<_> = helm4_of(&example(), &files)
        .into_iter()
        .map(|manifests| manifests.unwrap()["legacy-app/templates/NOTES.txt"].clone())
        .collect();
    let [classic, native] = &notes[..] else {
        panic!("{files:?}");
    };
    let ways = [
        (
            native,
            "port 8080 of the Service -> 9000 (pulsegate) -> 127.0.0.1:8080 (orders)",
        ),
        (
            classic,
            "port 80 of the Service -> 9000 (pulsegate) -> 127.0.0.1:8080 (orders)",
        ),
        (
            classic,
            "port 9001 of the Service -> 9001 (pulsegate) -> its upstream (files)",
        ),
        (classic, "WARNING: sidecar.native is false"),
        (native, "kubectl -n ns logs POD -c pulsegate"),
    ];
    for (notes, way) in ways {
        assert!(notes.contains(way), "{way}: {notes}");
    }
    assert!(!native.contains("WARNING"), "{native}");
}

/// Names of templates are those of all charts of a release: an umbrella chart may have the gateway and the library.
fn charts_do_not_take_each_others_names() {
    let names = |files: &[&str]| -> Vec<String> {
        let texts = files.iter().map(|file| read(&format!("charts/{file}")));
        let lines = texts.flat_map(|text| {
            let names = text
                .split("define \"")
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().to_owned());
            names.collect::<Vec<_>>()
        });
        lines.collect()
    };
    let gateway = names(&["pulsegate/templates/_helpers.tpl"]);
    let library = names(&[
        "pulsegate-lib/templates/_keys.tpl",
        "pulsegate-lib/templates/_sidecar.tpl",
        "pulsegate-lib/templates/_values.tpl",
    ]);
    assert!(
        gateway
            .iter()
            .all(|name| name.starts_with("pulsegate-gateway.")),
        "{gateway:?}"
    );
    assert!(
        library.iter().all(|name| name.starts_with("pulsegate.")),
        "{library:?}"
    );
}
