//! What is changed in a workload, and in the Services that lead to it.

use serde_yaml::{Mapping, Value};

use super::drain_time;

const TEMPLATE: &str = include_str!("sidecar.yaml");
const NAME: &str = "pulsegate";
const LABEL: &str = "pulsegate.io/sidecar";
const PREFIX: &str = "pulsegate.io/";
const ANNOTATIONS: [&str; 3] = [
    "pulsegate.io/flags",
    "pulsegate.io/inject",
    "pulsegate.io/port",
];
const ADMIN: u64 = 9900;
const CONTROL: u64 = 9901;
/// How long an application may take to stop when its hook is over.
const APP_STOP: u64 = 12;
/// What Kubernetes gives a Pod that says nothing.
const DEFAULT_GRACE: u64 = 30;

/// What every sidecar has, unless annotations say otherwise.
pub(super) struct Sidecar<'a> {
    pub image: &'a str,
    /// `PORT:APP`.
    pub port: Option<&'a str>,
    pub flags: &'a [String],
}

/// The manifests, and what a person has to know about them.
#[derive(Debug)]
pub(super) struct Injected {
    pub documents: Vec<Value>,
    pub notes: Vec<String>,
}

/// The Pods of a workload: what Services select.
struct Pods {
    name: String,
    namespace: Value,
    labels: Mapping,
}

/// A workload that has its sidecar: what leads Services to it.
struct Target {
    pods: Pods,
    ports: Ports,
    before: Before,
    is_reached: bool,
}

/// What a workload had before.
struct Before {
    /// Names that containers give to the application's port.
    names: Vec<String>,
    /// Where a former sidecar listens.
    listen: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
struct Ports {
    listen: u64,
    app: u64,
}

/// # Errors
/// In one line: what cannot be done, and in which object.
pub(super) fn inject(mut documents: Vec<Value>, sidecar: &Sidecar<'_>) -> Result<Injected, String> {
    let mut notes = Vec::new();
    let (mut targets, mut others) = (Vec::new(), Vec::new());
    for object in objects(&mut documents) {
        let name = title(object);
        let target = workload(object, sidecar, &mut notes);
        match target.map_err(|why| format!("{name}: {why}"))? {
            Some(target) => targets.push(target),
            None => others.extend(Pods::of(object)),
        }
    }
    if targets.is_empty() {
        let why = match sidecar.port {
            None => "no workload has the annotation pulsegate.io/port, and there is no --port",
            Some(_) => {
                "there is no Deployment, StatefulSet, DaemonSet, Pod, Job or CronJob, or each has \
                 pulsegate.io/inject: \"false\""
            }
        };
        return Err(format!("{why}: nothing to do"));
    }
    for object in objects(&mut documents) {
        if object["kind"] == "Service" {
            lead(object, &mut targets, &others, &mut notes);
        } else if object["kind"] == "NetworkPolicy" {
            compare(object, &targets, &mut notes);
        }
    }
    for target in targets.iter().filter(|target| !target.is_reached) {
        notes.push(format!(
            "{}: no Service here leads to port {}; where one does, set its targetPort to {}",
            target.pods.name, target.ports.app, target.ports.listen
        ));
    }
    Ok(Injected { documents, notes })
}

/// The objects, those of a List too.
fn objects(documents: &mut [Value]) -> Vec<&mut Value> {
    let inside = |document: &mut Value| document["kind"] == "List";
    let mut all = Vec::new();
    for document in documents {
        if inside(document) {
            all.extend(document["items"].as_sequence_mut().into_iter().flatten());
        } else {
            all.push(document);
        }
    }
    all
}

fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!(
        "{}/{}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

/// Where an object has the Pod.
fn pod_of(object: &mut Value) -> Option<&mut Value> {
    let path: &[&str] = match object["kind"].as_str()? {
        "Pod" => &[],
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => &["spec", "template"],
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    };
    path.iter()
        .try_fold(object, |value, key| value.get_mut(*key))
}

/// Whether annotations that are for us are ones that there are.
fn known(annotations: &Value) -> Result<(), String> {
    let keys = annotations.as_mapping().into_iter().flat_map(Mapping::keys);
    let mut ours = keys
        .filter_map(Value::as_str)
        .filter(|key| key.starts_with(PREFIX));
    match ours.find(|key| !ANNOTATIONS.contains(key)) {
        Some(key) => Err(format!(
            "unknown annotation {key}; there are {}",
            ANNOTATIONS.join(", ")
        )),
        None => Ok(()),
    }
}

fn workload(
    object: &mut Value,
    sidecar: &Sidecar<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<Target>, String> {
    let name = title(object);
    let own = object["metadata"]["annotations"].clone();
    let Some(pod) = pod_of(object) else {
        return Ok(None);
    };
    let annotation = |key: &str| {
        let places = [&pod["metadata"]["annotations"][key], &own[key]];
        places.into_iter().find(|value| !value.is_null()).cloned()
    };
    let text = |key: &str| match annotation(key) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("annotation {key}: quote its value")),
        None => Ok(None),
    };
    [&pod["metadata"]["annotations"], &own]
        .map(known)
        .into_iter()
        .collect::<Result<(), _>>()?;
    match text("pulsegate.io/inject")?.as_deref() {
        None | Some("true") => {}
        Some("false") => return Ok(None),
        Some(other) => {
            return Err(format!(
                "annotation pulsegate.io/inject: {other:?} is neither \"true\" nor \"false\""
            ));
        }
    }
    let Some(port) = text("pulsegate.io/port")?.or(sidecar.port.map(str::to_owned)) else {
        return Ok(None);
    };
    let ports = Ports::parse(&port)?;
    let flags = text("pulsegate.io/flags")?.unwrap_or_default();
    let flags = flags.split_whitespace().map(str::to_owned);
    let flags = run_flags(ports, sidecar.flags.iter().cloned().chain(flags).collect());
    need_no_files(&flags)?;
    let drain = drain_time(&flags[1..])?.as_millis().div_ceil(1000);
    // Sessions that drain.timeout ends have two more seconds.
    let wait = u64::try_from(drain).map_err(|_| "the drain has no end")? + 3;

    let before = add(pod, ports, &name, wait, notes, || {
        container(sidecar.image, ports, &flags, wait)
    })?;
    let labels = entry(entry(pod, "metadata"), "labels");
    labels[LABEL] = "true".into();
    Ok(Pods::of(object).map(|pods| Target {
        pods,
        ports,
        before,
        is_reached: false,
    }))
}

/// A list of flags brings no files.
fn need_no_files(flags: &[String]) -> Result<(), String> {
    let of_files = [
        "--tls-",
        "--upstream-tls-",
        "--admin-tls-",
        "--admin-token-file",
    ];
    let is_of_files = |flag: &&String| of_files.iter().any(|start| flag.starts_with(start));
    if let Some(flag) = flags.iter().find(is_of_files) {
        return Err(format!(
            "{flag}: a sidecar of flags has no certificates, keys or token; use a configuration file (the library \
             chart, or the Kustomize component)"
        ));
    }
    Ok(())
}

impl Pods {
    fn of(object: &mut Value) -> Option<Self> {
        let (name, namespace) = (title(object), object["metadata"]["namespace"].clone());
        let labels = &pod_of(object)?["metadata"]["labels"];
        Some(Self {
            name,
            namespace,
            labels: labels.as_mapping().cloned().unwrap_or_default(),
        })
    }

    fn are_selected(&self, by: &Value, selector: &Mapping) -> bool {
        let mut pairs = selector.iter();
        self.namespace == by["metadata"]["namespace"]
            && pairs.all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

impl Target {
    /// Whether the port is that of the application, by number or name.
    fn has_app_at(&self, port: &Value) -> bool {
        let mut names = self.before.names.iter();
        *port == self.ports.app || names.any(|name| port == name.as_str())
    }

    fn is_at(&self, port: &Value) -> bool {
        let own = [Some(self.ports.listen), self.before.listen];
        self.has_app_at(port) || own.into_iter().flatten().any(|own| *port == own)
    }
}

impl Ports {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "port {text}: give PORT:APP, such as 9000:8080; several ports need a configuration file \
                 (the library chart, or the Kustomize component)"
            )
        };
        let (listen, app) = text.split_once(':').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0).map(u64::from);
        let (listen, app) = number(listen).zip(number(app)).ok_or_else(wrong)?;
        if listen < 1024 {
            return Err(format!(
                "port {text}: pulsegate has no privilege to listen below 1024; clients keep the port of the Service"
            ));
        }
        if [app, ADMIN, CONTROL].contains(&listen) {
            return Err(format!(
                "port {text}: {listen} is taken by the application, or by pulsegate's admin ports {ADMIN} and {CONTROL}"
            ));
        }
        Ok(Self { listen, app })
    }
}

/// `run` and its flags: those given, and ours where they are not.
fn run_flags(ports: Ports, given: Vec<String>) -> Vec<String> {
    let ours = [
        ("--listen", format!("0.0.0.0:{}", ports.listen)),
        ("--upstream", format!("127.0.0.1:{}", ports.app)),
        ("--drain-delay", "5s".to_owned()),
        ("--log-format", "json".to_owned()),
        // Read by the kubelet and Prometheus; changed by the hook, from within the Pod.
        ("--admin", format!("0.0.0.0:{ADMIN}")),
        ("--admin-control", format!("127.0.0.1:{CONTROL}")),
    ];
    let is_given = |flag: &str| {
        let mut names = given.iter().map(|word| word.split('=').next());
        ["--drain-delay", "--log-format"].contains(&flag) && names.any(|name| name == Some(flag))
    };
    let mut flags = vec!["run".to_owned()];
    let ours = ours.into_iter().filter(|(flag, _)| !is_given(flag));
    flags.extend(ours.map(|(flag, value)| format!("{flag}={value}")));
    flags.extend(given);
    flags
}

fn container(image: &str, ports: Ports, flags: &[String], wait: u64) -> Result<Value, String> {
    let mut container: Value = serde_yaml::from_str(TEMPLATE).map_err(|error| error.to_string())?;
    container["image"] = image.into();
    container["args"] = flags.to_vec().into();
    container["ports"][0]["containerPort"] = ports.listen.into();
    let control = format!("127.0.0.1:{CONTROL}");
    let wait = format!("{wait}s");
    let hook = [
        "/pulsegate",
        "drain",
        "--wait",
        "--timeout",
        &wait,
        "--admin",
        &control,
    ];
    container["lifecycle"]["preStop"]["exec"]["command"] = hook.map(str::to_owned).to_vec().into();
    Ok(container)
}

/// Puts the sidecar first into the Pod, and has the application outlive its drain.
fn add(
    pod: &mut Value,
    ports: Ports,
    name: &str,
    wait: u64,
    notes: &mut Vec<String>,
    container: impl FnOnce() -> Result<Value, String>,
) -> Result<Before, String> {
    let was_ours = pod["metadata"]["labels"][LABEL] == "true";
    let spec = entry(pod, "spec");
    if spec["hostNetwork"] == true {
        return Err("hostNetwork: pulsegate's ports would be those of the node".to_owned());
    }
    let inits = spec["initContainers"].as_sequence().cloned();
    let (old, mut inits): (Vec<_>, Vec<_>) = inits
        .into_iter()
        .flatten()
        .partition(|init| init["name"] == NAME);
    let Some(apps) = spec["containers"].as_sequence_mut() else {
        return Err("it has no containers".to_owned());
    };
    let taken = |c: &Value| c["name"] == NAME;
    // That of the library chart, or of the Kustomize component, has more than flags could say.
    let has_flags = |c: &Value| args_of(c).any(|arg| arg.starts_with("--listen="));
    let is_injected = was_ours && old.iter().all(has_flags);
    if apps.iter().any(taken) || (!old.is_empty() && !is_injected) {
        return Err(format!(
            "a container has the name {NAME}, and `kube inject` did not make it: rename it, take it away, or leave the \
             workload alone by the annotation pulsegate.io/inject: \"false\""
        ));
    }
    for other in apps.iter().chain(&inits) {
        let used = other["ports"].as_sequence().into_iter().flatten();
        for port in used.filter_map(|port| port["containerPort"].as_u64()) {
            if [ports.listen, ADMIN, CONTROL].contains(&port) {
                return Err(format!(
                    "port {port} is that of the container {}; the containers of a Pod share their ports",
                    other["name"].as_str().unwrap_or("?")
                ));
            }
        }
    }
    let app = application(apps, ports.app, name, notes).ok_or("it has no containers")?;
    outlive(app, wait, was_ours, name, notes);
    let named = ports_of(app).filter(|port| port["containerPort"] == ports.app);
    let names = named.filter_map(|port| port["name"].as_str().map(str::to_owned));
    let names = names.collect();
    let listen = old
        .first()
        .and_then(|old| old["ports"][0]["containerPort"].as_u64());

    inits.insert(0, container()?);
    spec["initContainers"] = inits.into();
    let grace = spec["terminationGracePeriodSeconds"].as_u64();
    let needed = grace.unwrap_or(DEFAULT_GRACE).max(wait + APP_STOP);
    spec["terminationGracePeriodSeconds"] = needed.into();
    Ok(Before { names, listen })
}

/// The container that names the port, else the first.
fn application<'a>(
    apps: &'a mut [Value],
    port: u64,
    name: &str,
    notes: &mut Vec<String>,
) -> Option<&'a mut Value> {
    let listens = |c: &Value| ports_of(c).any(|at| at["containerPort"] == port);
    let found = apps.iter().position(listens);
    let names_any = |c: &Value| ports_of(c).next().is_some();
    let is_guessed = found.is_none() && (apps.len() > 1 || apps.iter().any(names_any));
    let app = apps.get_mut(found.unwrap_or(0))?;
    if is_guessed {
        notes.push(format!(
            "{name}: no container names port {port}; {} was taken for the application, which outlives the drain. Name the \
             port in the container that listens on it",
            app["name"].as_str().unwrap_or("?")
        ));
    }
    Some(app)
}

fn args_of(container: &Value) -> impl Iterator<Item = &str> {
    let args = container["args"].as_sequence();
    args.into_iter().flatten().filter_map(Value::as_str)
}

fn ports_of(container: &Value) -> impl Iterator<Item = &Value> {
    container["ports"].as_sequence().into_iter().flatten()
}

/// The kubelet stops a native sidecar after the application, so that has to wait for the end of sessions.
fn outlive(app: &mut Value, wait: u64, was_ours: bool, name: &str, notes: &mut Vec<String>) {
    let hook = &app["lifecycle"]["preStop"];
    let is_ours = was_ours && hook["sleep"].is_mapping();
    if hook.is_null() || is_ours {
        let hook = entry(entry(app, "lifecycle"), "preStop");
        entry(hook, "sleep")["seconds"] = wait.into();
    } else {
        notes.push(format!(
            "{name}: the container {} has a preStop hook of its own; it must take {wait} s, or sessions are cut while they drain",
            app["name"].as_str().unwrap_or("?")
        ));
    }
}

/// The mapping at a key, made if there is none.
fn entry<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    if value[key].is_null() {
        value[key] = Mapping::new().into();
    }
    &mut value[key]
}

/// Ports of a Service that lead to the application lead to pulsegate now, if all of its Pods have it there.
fn lead(service: &mut Value, targets: &mut [Target], others: &[Pods], notes: &mut Vec<String>) {
    let name = title(service);
    let selector = service["spec"]["selector"].as_mapping().cloned();
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
        return;
    };
    let selected = targets.iter_mut();
    let selected = selected.filter(|target| target.pods.are_selected(service, &selector));
    let mut selected: Vec<_> = selected.collect();
    let Some(Ports { listen, app }) = selected.first().map(|target| target.ports) else {
        return;
    };
    let differs = selected
        .iter()
        .find(|target| target.ports != Ports { listen, app });
    let other = others
        .iter()
        .find(|pods| pods.are_selected(service, &selector));
    let other = other
        .or(differs.map(|target| &target.pods))
        .map(|pods| pods.name.clone());
    let is_headless = service["spec"]["clusterIP"] == "None";
    let ports = service["spec"]["ports"].as_sequence_mut();
    for port in ports.into_iter().flatten() {
        let leads_to = if port["targetPort"].is_null() {
            port["port"].clone()
        } else {
            port["targetPort"].clone()
        };
        if !selected.iter().any(|target| target.is_at(&leads_to)) {
            continue;
        }
        for target in &mut selected {
            target.is_reached = true;
        }
        if let Some(other) = other {
            notes.push(format!(
                "{name} is unchanged: it selects {} and {other}, which have no port of pulsegate in common; \
                 give each a Service of its own, or all the same ports",
                selected[0].pods.name
            ));
            return;
        }
        port["targetPort"] = listen.into();
    }
    if is_headless && selected[0].is_reached {
        notes.push(format!(
            "{name} is headless: its clients use the port that they know; they must use {listen} in place of {app}"
        ));
    }
}

/// A policy that admits clients to the application has to admit them to pulsegate.
fn compare(policy: &Value, targets: &[Target], notes: &mut Vec<String>) {
    let spec = &policy["spec"];
    let selector = spec["podSelector"]["matchLabels"].as_mapping();
    let selector = selector.cloned().unwrap_or_default();
    let rules = spec["ingress"].as_sequence().into_iter().flatten();
    let ports: Vec<_> = rules.flat_map(ports_of).map(|port| &port["port"]).collect();
    for target in targets
        .iter()
        .filter(|target| target.pods.are_selected(policy, &selector))
    {
        let Ports { listen, app } = target.ports;
        let admits_app = ports.iter().any(|port| target.has_app_at(port));
        if admits_app && !ports.iter().any(|port| **port == listen) {
            notes.push(format!(
                "{} admits clients to port {app} of {}; they come to {listen} now: admit them there",
                title(policy),
                target.pods.name
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_yaml::Value;

    use super::{Injected, Sidecar, inject};

    const APP: &str = "
kind: Deployment
metadata: { name: app }
spec:
  template:
    metadata: { labels: { app: app } }
    spec:
      containers:
        - { name: app, ports: [{ name: web, containerPort: 8080 }] }
";
    const SERVICE: &str = "
kind: Service
metadata: { name: app }
spec:
  selector: { app: app }
  ports: [{ port: 80, targetPort: web }, { port: 81, targetPort: 8081 }]
";

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).expect("YAML")
    }

    fn with(documents: Vec<Value>, port: Option<&str>, flags: &[&str]) -> Result<Injected, String> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let image = "image:1";
        inject(
            documents,
            &Sidecar {
                image,
                port,
                flags: &flags,
            },
        )
    }

    fn refused(text: &str, port: &str, flags: &[&str]) -> String {
        with(vec![yaml(text)], Some(port), flags).expect_err(text)
    }

    #[test]
    fn a_workload_gets_a_sidecar_and_its_service_leads_there() {
        let all = vec![yaml(APP), yaml(SERVICE)];
        let flags = ["--detect-within=10s", "--drain-timeout=500ms"];
        let injected = with(all, Some("9000:8080"), &flags).expect("injected");
        assert_eq!(injected.notes, [""; 0]);
        let [app, service] = &injected.documents[..] else {
            panic!("{injected:?}")
        };
        let pod = &app["spec"]["template"];
        assert_eq!(pod["metadata"]["labels"]["pulsegate.io/sidecar"], "true");
        let sidecar = &pod["spec"]["initContainers"][0];
        assert_eq!(sidecar["restartPolicy"], "Always");
        assert_eq!(sidecar["image"], "image:1");
        let args = serde_yaml::to_string(&sidecar["args"]).expect("YAML");
        for arg in ["0.0.0.0:9000", "127.0.0.1:8080", "--detect-within=10s"] {
            assert!(args.contains(arg), "{args}");
        }
        // 5.5 s of drain.
        assert_eq!(sidecar["lifecycle"]["preStop"]["exec"]["command"][4], "9s");
        let app = &pod["spec"]["containers"][0];
        assert_eq!(app["lifecycle"]["preStop"]["sleep"]["seconds"], 9);
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 9000);
        assert_eq!(service["spec"]["ports"][1]["targetPort"], 8081);
    }

    #[test]
    fn what_was_injected_is_replaced() {
        let all = || vec![yaml(APP), yaml(SERVICE)];
        let once = with(all(), Some("9000:8080"), &[]).expect("injected");
        let twice = with(once.documents.clone(), Some("9000:8080"), &[]).expect("injected");
        assert_eq!(once.documents, twice.documents);
        assert_eq!(twice.notes, [""; 0]);
        let other = with(twice.documents, Some("9000:8080"), &["--drain-timeout=60s"]);
        let fresh = with(all(), Some("9000:8080"), &["--drain-timeout=60s"]);
        assert_eq!(
            other.expect("injected").documents,
            fresh.expect("injected").documents
        );
    }

    #[test]
    fn a_sidecar_with_a_configuration_file_is_left_alone() {
        let once = with(vec![yaml(APP)], Some("9000:8080"), &[]).expect("injected");
        let text = serde_yaml::to_string(&once.documents[0]).expect("YAML");
        let text = text.replace(
            "--listen=0.0.0.0:9000",
            "--config=/etc/pulsegate/pulsegate.yaml",
        );
        let said = refused(&text, "9000:8080", &[]);
        assert!(said.contains("`kube inject` did not make it"), "{said}");
    }

    /// A former sidecar's port is one that Services lead to.
    #[test]
    fn services_follow_to_another_port() {
        let all = vec![yaml(APP), yaml(SERVICE)];
        let once = with(all, Some("9000:8080"), &[]).expect("injected");
        let twice = with(once.documents, Some("9001:8080"), &[]).expect("injected");
        assert_eq!(twice.documents[1]["spec"]["ports"][0]["targetPort"], 9001);
        assert_eq!(twice.notes, [""; 0]);
    }

    #[test]
    fn a_service_of_workloads_with_different_ports_is_left_alone() {
        for other in ["inject: 'false'", "port: '9001:8080'"] {
            let labels = format!("labels: {{ app: app }}, annotations: {{ pulsegate.io/{other} }}");
            let other = APP.replace("labels: { app: app }", &labels);
            let all = vec![
                yaml(APP),
                yaml(&other.replace("name: app }", "name: b }")),
                yaml(SERVICE),
            ];
            let injected = with(all, Some("9000:8080"), &[]).expect("injected");
            assert_eq!(injected.documents[2], yaml(SERVICE));
            let [note] = &injected.notes[..] else {
                panic!("{:?}", injected.notes)
            };
            assert!(
                note.contains(
                    "Service/app is unchanged: it selects Deployment/app and Deployment/b"
                ),
                "{note}"
            );
        }
    }

    #[test]
    fn a_policy_that_keeps_clients_out_is_noted() {
        let policy = |ports: &str| {
            yaml(&format!(
                "{{ kind: NetworkPolicy, metadata: {{ name: p }}, spec: {{ podSelector: {{}}, ingress: [{{ ports: [{ports}] }}] }} }}"
            ))
        };
        for (ports, notes) in [
            ("{ port: web }", 1),
            ("{ port: 8080 }", 1),
            ("{ port: 8080 }, { port: 9000 }", 0),
            ("{ port: 53 }", 0),
        ] {
            let all = vec![yaml(APP), yaml(SERVICE), policy(ports)];
            let injected = with(all, Some("9000:8080"), &[]).expect("injected");
            let said = injected
                .notes
                .iter()
                .filter(|note| note.contains("NetworkPolicy/p admits"));
            assert_eq!(said.count(), notes, "{ports}: {:?}", injected.notes);
        }
    }

    #[test]
    fn every_kind_of_workload_has_its_pod_somewhere() {
        let pod = "{ containers: [{ name: app }] }";
        for (kind, spec) in [
            ("Pod", pod.to_owned()),
            ("StatefulSet", format!("{{ template: {{ spec: {pod} }} }}")),
            ("DaemonSet", format!("{{ template: {{ spec: {pod} }} }}")),
            ("Job", format!("{{ template: {{ spec: {pod} }} }}")),
            (
                "CronJob",
                format!("{{ jobTemplate: {{ spec: {{ template: {{ spec: {pod} }} }} }} }}"),
            ),
        ] {
            let object = format!("{{ kind: {kind}, metadata: {{ name: a }}, spec: {spec} }}");
            let list = format!("{{ kind: List, items: [{object}] }}");
            for text in [object, list] {
                let injected = with(vec![yaml(&text)], Some("9000:8080"), &[]).expect("injected");
                let text = serde_yaml::to_string(&injected.documents).expect("YAML");
                assert_eq!(text.matches("restartPolicy: Always").count(), 1, "{text}");
                // Nobody leads to it.
                assert_eq!(injected.notes.len(), 1);
            }
        }
    }

    #[test]
    fn annotations_say_which_workload_and_how() {
        let annotated = APP.replace(
            "labels: { app: app }",
            "annotations: { pulsegate.io/port: '7000:8080', pulsegate.io/flags: '--idle-timeout=9m' }",
        );
        let injected = with(vec![yaml(&annotated)], None, &[]).expect("injected");
        let text = serde_yaml::to_string(&injected.documents).expect("YAML");
        assert!(
            text.contains("--listen=0.0.0.0:7000") && text.contains("--idle-timeout=9m"),
            "{text}"
        );
        let off = annotated.replace(
            "annotations: {",
            "annotations: { pulsegate.io/inject: 'false',",
        );
        assert!(refused(&off, "9000:8080", &[]).contains("nothing to do"));
        let habit = off.replace("'false'", "disabled");
        assert!(refused(&habit, "9000:8080", &[]).contains("neither \"true\" nor \"false\""));
        let typo = annotated.replace("io/flags", "io/flag");
        assert!(refused(&typo, "9000:8080", &[]).contains("unknown annotation pulsegate.io/flag;"));
        let none = refused(SERVICE, "9000:8080", &[]);
        assert!(none.starts_with("there is no Deployment,"), "{none}");
        let number = annotated.replace("'7000:8080'", "7");
        assert!(refused(&number, "9000:8080", &[]).contains("quote its value"));
        assert!(with(vec![yaml(APP)], None, &[]).is_err());
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_a_reason() {
        for (from, to, port, flags, why) in [
            ("", "", "9000", &[][..], "give PORT:APP"),
            (
                "",
                "",
                "9000:1,9001:2",
                &[],
                "several ports need a configuration file",
            ),
            ("", "", "80:8080", &[], "no privilege to listen below 1024"),
            ("", "", "9900:8080", &[], "is taken"),
            ("", "", "9000:8080", &["--idle-timeout=9"], "has no unit"),
            ("", "", "9000:8080", &["--nonsense"], "unexpected argument"),
            (
                "",
                "",
                "9000:8080",
                &["--admin-tls-key=/key"],
                "--admin-tls-key=/key: a sidecar of flags has no certificates",
            ),
            (
                "",
                "",
                "9000:8080",
                &["--upstream=a:1"],
                "cannot be used multiple times",
            ),
            (
                "containerPort: 8080",
                "containerPort: 9000",
                "9000:8080",
                &[],
                "is that of the container app",
            ),
            (
                "name: app, ports",
                "name: pulsegate, ports",
                "9000:8080",
                &[],
                "rename it",
            ),
            (
                "      containers:",
                "      hostNetwork: true\n      containers:",
                "9000:8080",
                &[],
                "those of the node",
            ),
            (
                "containers:",
                "others:",
                "9000:8080",
                &[],
                "has no containers",
            ),
        ] {
            let said = refused(
                &APP.replacen(from, to, usize::from(!from.is_empty())),
                port,
                flags,
            );
            assert!(said.contains(why), "{to} {port} {flags:?}: {said}");
        }
    }

    #[test]
    fn which_of_several_containers_is_the_application_is_said_if_it_was_guessed() {
        let first = APP.replace("- { name: app,", "- { name: logs }\n        - { name: app,");
        let second = |text: &str| {
            let all = vec![yaml(text), yaml(SERVICE)];
            let injected = with(all, Some("9000:8080"), &[]).expect("injected");
            let pod = &injected.documents[0]["spec"]["template"]["spec"];
            let is_hooked = !pod["containers"][1]["lifecycle"].is_null();
            (is_hooked, injected.notes)
        };
        assert_eq!(second(&first), (true, vec![]));
        let (is_hooked, notes) = second(&first.replace("containerPort: 8080", "containerPort: 1"));
        assert!(!is_hooked);
        assert!(
            notes[0].contains("no container names port 8080; logs was taken"),
            "{notes:?}"
        );
        // `--port` is for all workloads, and this one may listen elsewhere.
        let (_, notes) = second(&APP.replace("containerPort: 8080", "containerPort: 8081"));
        assert!(notes[0].contains("app was taken"), "{notes:?}");
    }

    #[test]
    fn a_hook_of_the_application_is_left_alone() {
        let text = APP.replace(
            "name: app, ports",
            "name: app, lifecycle: { preStop: { exec: { command: [stop] } } }, ports",
        );
        let injected =
            with(vec![yaml(&text), yaml(SERVICE)], Some("9000:8080"), &[]).expect("injected");
        let app = &injected.documents[0]["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(app["lifecycle"]["preStop"]["exec"]["command"][0], "stop");
        assert!(
            injected.notes[0].contains("must take 33 s"),
            "{:?}",
            injected.notes
        );
        let headless = SERVICE.replace("spec:", "spec:\n  clusterIP: None");
        let injected =
            with(vec![yaml(APP), yaml(&headless)], Some("9000:8080"), &[]).expect("injected");
        assert!(
            injected.notes[0].contains("is headless"),
            "{:?}",
            injected.notes
        );
    }
}
