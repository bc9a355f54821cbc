//! The chart's values: which are refused, and what the others lead to.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_yaml::Value;

use super::manifests::{by_name, configurations, helm3, helm4, helm4_of, workloads};
use super::tools::{Case, read, repo, run, scratch, tool};

pub const CASES: &[Case] = &[
    Case::new(
        "wrong_values_are_refused_by_both_helms",
        &["helm3", "helm4-python"],
        wrong_values_are_refused_by_both_helms,
    ),
    Case::new(
        "values_at_the_edge_are_taken_by_both_helms",
        &["helm3", "helm4-python"],
        values_at_the_edge_are_taken_by_both_helms,
    ),
    Case::new(
        "notes_say_what_a_person_has_to_know",
        &["helm4-python"],
        notes_say_what_a_person_has_to_know,
    ),
    Case::new(
        "a_config_map_of_the_user_takes_the_place_of_ours",
        &["helm4-python"],
        a_config_map_of_the_user_takes_the_place_of_ours,
    ),
    Case::new(
        "a_pod_in_the_network_of_its_node_asks_the_dns_of_the_cluster",
        &["helm4-python"],
        a_pod_in_the_network_of_its_node_asks_the_dns_of_the_cluster,
    ),
    Case::new(
        "the_annotations_of_the_charts_parse",
        &[],
        the_annotations_of_the_charts_parse,
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
    (
        "{listeners: [{name: a, port: 9000}]}",
        "upstream of \"a\" needs address, or endpoints",
    ),
    (
        "{listeners: [{name: a, port: 900, upstream: {address: 'db:1'}}]}",
        "it is from 1024 to 65535. pulsegate has no privilege for less",
    ),
    (
        "{listeners: [{name: admin, port: 9000, upstream: {address: 'db:1'}}]}",
        "\"admin\" is that of another port",
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
        "{listeners: [LISTENER], image: {repository: 'registry.example:5000/pulsegate'}}",
        "set image.registry: registry.example:5000, or \"\"",
    ),
    (
        "{listeners: [LISTENER], image: {repository: 'pulsegate/pulsegate:0.1.0'}}",
        "has a tag; set image.tag",
    ),
    (
        "{listeners: [LISTENER], env: [{name: RETRIES, value: 3}]}",
        "the value of RETRIES is 3: Kubernetes takes text only; quote it",
    ),
    (
        "{listeners: [LISTENER], env: [{name: RETRIES, values: a}]}",
        "values",
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
        "{listeners: [LISTENER], tls: {certManager: {enabled: true, issuerRef: {name: a, kind: clusterissuer}}}}",
        "cert-manager has Issuer and ClusterIssuer",
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
    (
        "{listeners: [LISTENER], resources: {requests: {memory: 1Gi}, limits: {memory: 1000M}}}",
        "limits.memory (1000M) is below requests.memory (1Gi)",
    ),
    (
        "{listeners: [LISTENER], resources: {requests: {cpu: 0.3}, limits: {cpu: 250m}}}",
        "limits.cpu (250m) is below requests.cpu (0.3)",
    ),
    (
        "{listeners: [LISTENER], resources: {limit: {memory: 1Gi}}}",
        "limit",
    ),
    (
        "{listeners: [LISTENER], resources: {limits: {memory: 256MB}}}",
        "limits",
    ),
    (
        "{listeners: [LISTENER], config: {limits: {memory: 1GiB}}}",
        "config.limits.memory (1GiB) is above resources.limits.memory (256Mi)",
    ),
    (
        "{listeners: [{name: a, port: 9000, servicePort: 0, upstream: {address: 'db:1'}}]}",
        "servicePort of \"a\" is 0; it is from 1 to 65535",
    ),
    (
        "{listeners: [{name: a, port: 9000, servicePort: 65536, upstream: {address: 'db:1'}}]}",
        "servicePort of \"a\" is 65536",
    ),
    (
        "{listeners: [{name: a, port: 9000, nodePort: 65536, upstream: {address: 'db:1'}}], service: {type: NodePort}}",
        "nodePort of \"a\" is 65536; it is from 1 to 65535",
    ),
    (
        "{listeners: [{name: a, port: 9000, nodePort: 31000, upstream: {address: 'db:1'}}, {name: b, port: 9001, nodePort: 31000, upstream: {address: 'db:1'}}], service: {type: NodePort}}",
        "nodePort 31000 of \"b\" is taken by a",
    ),
    (
        "{listeners: [LISTENER, {name: b, port: 9001, servicePort: 9000, upstream: {address: 'db:1'}}]}",
        "service port 9000 of \"b\" is taken by a",
    ),
    (
        "{listeners: [LISTENER, {name: b, port: 9000, upstream: {address: 'db:1'}}]}",
        "port 9000 of \"b\" is taken by a",
    ),
    (
        "{listeners: [{name: Orders_1, port: 9000, upstream: {address: 'db:1'}}]}",
        "the name \"Orders_1\" is the name of a port",
    ),
    (
        "{listeners: [{name: sixteen-letters1, port: 9000, upstream: {address: 'db:1'}}]}",
        "at most 15",
    ),
    (
        "{listeners: [{name: a--b, port: 9000, upstream: {address: 'db:1'}}]}",
        "in no name of a port",
    ),
    (
        "{listeners: [LISTENER], fullnameOverride: Orders_Gate}",
        "the name of all objects would be \"Orders_Gate\"",
    ),
    (
        "{listeners: [LISTENER], fullnameOverride: edge, nameOverride: an edge}",
        "nameOverride: \"an edge\" is a label",
    ),
    (
        "{listeners: [LISTENER], commonLabels: {team: two words}}",
        "team",
    ),
    (
        "{listeners: [LISTENER], podDisruptionBudget: {enabled: true, minAvailable: 2}}",
        "set podDisruptionBudget.maxUnavailable",
    ),
    (
        "{listeners: [LISTENER], podDisruptionBudget: {enabled: true, maxUnavailable: 0}}",
        "no node could ever be drained",
    ),
    (
        "{listeners: [LISTENER], autoscaling: {enabled: true}, resources: {requests: null}}",
        "set resources.requests.cpu, or autoscaling.metrics",
    ),
    (
        "{listeners: [LISTENER], podDisruptionBudget: {enabled: 'false'}}",
        "enabled",
    ),
    (
        "{listeners: [LISTENER], podMonitor: {enable: true}}",
        "enable",
    ),
    (
        "{listeners: [LISTENER], podMonitor: {enabled: true, interval: 30 s}}",
        "interval",
    ),
    ("{listeners: [LISTENER], replicaCount: '3'}", "replicaCount"),
    (
        "{listeners: [LISTENER], strategy: {type: recreate}}",
        "Recreate",
    ),
    (
        "{listeners: [LISTENER], strategy: {rolling: {maxSurge: 2}}}",
        "rolling",
    ),
    (
        "{listeners: [LISTENER], securityContext: {runAsRoot: true}}",
        "runAsRoot",
    ),
    (
        "{listeners: [LISTENER], podSecurityContext: {fsGroup: a}}",
        "fsGroup",
    ),
    (
        "{listeners: [LISTENER], imagePullSecrets: [registry]}",
        "imagePullSecrets",
    ),
    (
        "{listeners: [LISTENER], networkPolicy: {enabled: true, from: [{cidr: 10.0.0.0/8}]}}",
        "cidr",
    ),
    (
        "{listeners: [LISTENER], hostAliases: [{ip: 192.0.2.1, names: [a]}]}",
        "names",
    ),
    (
        "{listeners: [LISTENER], existingConfigMap: a}",
        "put upstream into the file in a",
    ),
    (
        "{listeners: [{name: a, port: 9000}], existingConfigMap: a, tls: {existingSecret: b}}",
        "config.defaults and tls go into a file that this chart makes",
    ),
    (
        "{listeners: [LISTENER], kind: DaemonSet, hostNetwork: true}",
        "two Pods of one node cannot have one port",
    ),
    ("{listeners: [LISTENER], service: null}", "service"),
    (
        "{listeners: [LISTENER], replicaCount: null}",
        "replicaCount",
    ),
    (
        "{listeners: [LISTENER], hostNetwork: true, networkPolicy: {enabled: true}}",
        "applies no policy to a Pod with hostNetwork",
    ),
];

/// Values at the edge of what is refused.
const TAKEN: &[&str] = &[
    "{listeners: [LISTENER], tls: {certManager: {enabled: true, issuerRef: {name: a, kind: StepIssuer, group: certmanager.step.sm}}}}",
    "{listeners: [LISTENER], image: {registry: '', repository: 'registry.example:5000/pulsegate'}}",
    "{listeners: [LISTENER], image: {registry: 'localhost:5000', repository: pulsegate}}",
    "{listeners: [LISTENER], env: [{name: A}, {name: B, value: null}, {name: C, valueFrom: {fieldRef: {fieldPath: a}}}]}",
    "{listeners: [{name: fifteen-letters, port: 1024, servicePort: 1, nodePort: 65535, upstream: {address: 'db:1'}}], service: {type: NodePort}}",
    "{listeners: [{name: a, port: 65535, servicePort: 65535, nodePort: 1, upstream: {address: 'db:1'}}], service: {type: LoadBalancer}}",
    "{listeners: [LISTENER], resources: {requests: {cpu: 0.1, memory: 1G}, limits: {cpu: 100m, memory: 1e+09}}}",
    "{listeners: [LISTENER], resources: {limits: {memory: 1.5Gi}}, config: {limits: {memory: 1GiB}}}",
    "{listeners: [LISTENER], config: {limits: {memory: 256MiB}}}",
    "{listeners: [LISTENER], hostNetwork: true, dnsPolicy: Default}",
    "{listeners: [{name: a, port: 9000, upstream: {address: 'db:1', connect_retry: off}, liveness: {stall_timeout: off, idle_timeout: 'off', receive_timeout: {upstream: 0s}}}]}",
    "{listeners: [LISTENER], kind: DaemonSet, hostNetwork: true, updateStrategy: {type: OnDelete}}",
    "{listeners: [LISTENER], podDisruptionBudget: {enabled: true, maxUnavailable: 50%}}",
    "{listeners: [LISTENER], autoscaling: {enabled: true, minReplicas: 5, metrics: [{type: Pods}]}, resources: {requests: null}}",
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

fn values_at_the_edge_are_taken_by_both_helms() {
    let helm = tool("helm3");
    for (objects, text) in rendered("taken", TAKEN).iter().zip(TAKEN) {
        let old = helm3(&helm, &values("taken-old", "values", text)).expect(text);
        assert_eq!(by_name(&old), by_name(objects), "{text}");
    }
}

/// What a person reads after the installation.
fn notes_say_what_a_person_has_to_know() {
    const NOTES: &[(&str, &[&str], &[&str])] = &[
        (
            "{listeners: [{name: a, port: 9000, servicePort: 1521, upstream: {address: 'db:1'}}]}",
            &[
                "  rel-pulsegate.ns.svc:1521 -> db:1 (a)\n",
                "drains for up to 30s and is killed after 35s",
                "port-forward deployment/rel-pulsegate 9900",
                "podDisruptionBudget is off",
            ],
            &["WARNING", "NOTE"],
        ),
        (
            "{listeners: [LISTENER], replicaCount: 1}",
            &["WARNING: there is one Pod."],
            &["podDisruptionBudget is off"],
        ),
        (
            "{listeners: [LISTENER], podDisruptionBudget: {enabled: true}, config: {drain: {timeout: 1m}}}",
            &["drains for up to 65s and is killed after 70s"],
            &["WARNING", "podDisruptionBudget is off"],
        ),
        (
            "{listeners: [{name: a, port: 9000, upstream: {endpoints: [{address: 'x:1'}, {address: 'y:1'}]}, limits: {max_connections: 500}}], replicaCount: 3}",
            &[
                "svc:9000 -> x:1, y:1 (a)",
                "NOTE: max_connections of a is each Pod's. 3 Pods take up to 1500 clients",
            ],
            &[],
        ),
        (
            "{listeners: [LISTENER], kind: DaemonSet, reload: {mode: hot}, admin: {tls: {certificate: a, key: b}}}",
            &[
                "port-forward daemonset/rel-pulsegate",
                "curl -k https://127.0.0.1:9900/connections",
                "taken up by running Pods within two minutes",
            ],
            &["WARNING"],
        ),
        (
            "{listeners: [{name: a, port: 9000}], existingConfigMap: mine, hostNetwork: true}",
            &[
                "svc:9000 -> as in mine (a)",
                "this chart cannot check it, `helm test` does",
                "WARNING: hostNetwork: the ports above and the admin port 9900 are open",
            ],
            &[],
        ),
        (
            "{listeners: [LISTENER], sidecarPodMonitor: {enabled: true}}",
            &["drops __meta_kubernetes_pod_container_init hides it"],
            &[],
        ),
    ];
    let files = NOTES.iter().enumerate();
    let files: Vec<_> = files
        .map(|(n, (text, ..))| values("notes", &n.to_string(), text))
        .collect();
    let all = helm4_of(&repo("charts/pulsegate"), &files).into_iter();
    for (manifests, (text, there, not_there)) in all.zip(NOTES) {
        let notes = &manifests.expect(text)["pulsegate/templates/NOTES.txt"];
        for words in *there {
            assert!(notes.contains(words), "{text}: no {words:?}: {notes}");
        }
        for words in *not_there {
            assert!(!notes.contains(words), "{text}: {words:?}: {notes}");
        }
    }
}

/// The file is the user's: nothing of it is made, checked or rolled out.
fn a_config_map_of_the_user_takes_the_place_of_ours() {
    let text = "{listeners: [{name: a, port: 9000, servicePort: 80}], existingConfigMap: mine}";
    let objects = rendered("existing", &[text]).remove(0);
    assert!(configurations(&objects).is_empty());
    let deployment = &workloads(&objects)[0]["spec"]["template"];
    assert!(deployment["metadata"]["annotations"]["checksum/config"].is_null());
    let test = objects.iter().find(|object| object["kind"] == "Pod");
    for pod in [&deployment["spec"], &test.unwrap()["spec"]] {
        assert_eq!(pod["volumes"][0]["configMap"]["name"], "mine");
    }
    assert_eq!(
        deployment["spec"]["containers"][0]["ports"][0]["containerPort"],
        9000
    );
}

/// Names of Services are known to the DNS of the cluster only.
fn a_pod_in_the_network_of_its_node_asks_the_dns_of_the_cluster() {
    let texts = [
        "{listeners: [LISTENER], hostNetwork: true}",
        "{listeners: [LISTENER], hostNetwork: true, dnsPolicy: Default}",
        "{listeners: [LISTENER]}",
    ];
    let rendered = rendered("host-network", &texts);
    let said = rendered.iter().map(|objects| {
        let pod = &workloads(objects)[0]["spec"]["template"]["spec"];
        (pod["hostNetwork"].as_bool(), pod["dnsPolicy"].as_str())
    });
    let wanted = [
        (Some(true), Some("ClusterFirstWithHostNet")),
        (Some(true), Some("Default")),
        (None, None),
    ];
    assert_eq!(said.collect::<Vec<_>>(), wanted);
}

/// What Artifact Hub reads.
fn the_annotations_of_the_charts_parse() {
    for path in [
        "charts/pulsegate/Chart.yaml",
        "charts/pulsegate-lib/Chart.yaml",
    ] {
        let chart: Value = serde_yaml::from_str(&read(path)).unwrap();
        let list = |name: &str| -> Vec<Value> {
            let text = &chart["annotations"][format!("artifacthub.io/{name}")];
            serde_yaml::from_str(text.as_str().unwrap()).unwrap()
        };
        let kinds = [
            "added",
            "changed",
            "deprecated",
            "removed",
            "fixed",
            "security",
        ];
        for change in list("changes") {
            assert!(kinds.contains(&change["kind"].as_str().unwrap()), "{path}");
            assert!(change["description"].is_string(), "{path}: {change:?}");
        }
        let image = format!("ghcr.io/pulsegate/pulsegate:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(list("images")[0]["image"], image.as_str(), "{path}");
        for link in list("links") {
            let (_, file) = link["url"]
                .as_str()
                .unwrap()
                .split_once("/blob/main/")
                .unwrap();
            assert!(repo(file).is_file(), "{path}: {file}");
        }
        for name in ["prerelease", "containsSecurityUpdates"] {
            let word = &chart["annotations"][format!("artifacthub.io/{name}")];
            assert!(
                ["true", "false"].contains(&word.as_str().unwrap()),
                "{path}"
            );
        }
    }
}

fn the_grace_period_covers_the_drain() {
    let texts: Vec<_> = GRACE.iter().map(|(text, _)| *text).collect();
    for (objects, (text, seconds)) in rendered("grace", &texts).iter().zip(GRACE) {
        let pod = &workloads(objects)[0]["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], *seconds, "{text}");
        // SIGTERM drains; a hook would only delay it.
        assert!(pod["containers"][0]["lifecycle"].is_null(), "{text}");
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
    // Where existingConfigMap has the rest, a listener has no upstream.
    listener["required"] = json!(["name", "port"]);
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
