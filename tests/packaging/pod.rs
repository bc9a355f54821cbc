//! A Pod as Kubernetes makes one, without Kubernetes: the chart that wraps an application, around Redis and the image.
//!
//! podman runs what Helm renders, with the rights of the restricted Pod Security Standard. It knows neither native
//! sidecars, so the sidecar is a classic one, nor hooks and probes, so the test does what the kubelet does with them.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_yaml::{Value, from_str, to_string};
use socket2::{Domain, Socket, Type};

use super::image;
use super::library::wrapped_with;
use super::manifests::{containers, items, workloads};
use super::podman::{Container, PATIENT, Storage, ping};
use super::tools::{Case, run, scratch, tool, tools};

pub const CASES: &[Case] = &[Case::new(
    "a_rendered_pod_finds_a_client_that_is_cut_and_ends_in_order",
    &["buildah", "helm3", "helm4-python", "nft", "podman", "runc"],
    a_rendered_pod_finds_a_client_that_is_cut_and_ends_in_order,
)
.that_runs_containers()];

const CLIENTS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7000);

const VALUES: &str = "\
image: localhost/redis
command: [redis-server, --bind, 127.0.0.1, --port, '6379', --save, '']
pulsegate:
  image: { registry: localhost, repository: built, tag: latest }
  sidecar: { native: false }
  listeners: [{ name: redis, port: 7000, appPort: 6379, liveness: { detect_within: 2s } }]
  config: { drain: { delay: 1s, timeout: 8s } }
  appPreStop: exec
";
/// What a session at rest has at least: it may be ended in the second half of the drain only.
const BUDGET: Duration = Duration::from_secs(1 + 4);

fn a_rendered_pod_finds_a_client_that_is_cut_and_ends_in_order() {
    let pod = Pod::start(image::built());
    pod.has_the_rights_of_its_manifest();
    pod.finds_a_client_that_is_cut();
    pod.ends_in_order();
}

struct Pod {
    application: Container,
    pulsegate: Container,
    /// Of the Deployment.
    spec: Value,
    // Last: it is dropped when they are gone.
    _played: Played,
}

/// What podman has made of a file.
struct Played {
    storage: Storage,
    file: PathBuf,
}

impl Played {
    fn play(&self, words: &[&str]) -> Result<String, String> {
        let words = [&["play", "kube"], words, &[self.file.to_str().unwrap()]].concat();
        self.storage.ask(&words)
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        let _gone = self.play(&["--down"]);
    }
}

impl Pod {
    fn start(storage: Storage) -> Self {
        build_redis(&storage);
        let objects = wrapped_with("pod", VALUES);
        let template = &workloads(&objects)[0]["spec"]["template"];
        let config = objects.iter().find(|object| object["kind"] == "ConfigMap");
        let text = to_string(config.unwrap()).unwrap() + "---\n" + &manifest(template);
        let file = scratch("pod", "pod.yaml", &text);
        let played = Played { storage, file };
        played.play(&["--network=none", "--replace"]).unwrap();
        let container = |name| Container::of(&played.storage, name);
        let pod = Self {
            application: container("legacy-legacy-app"),
            pulsegate: container("legacy-pulsegate"),
            spec: template["spec"].clone(),
            _played: played,
        };
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            eventually(probe, || {
                pod.probe(probe).is_ok_and(|status| status == "200")
            });
        }
        pod
    }

    fn container(&self, name: &str) -> &Value {
        let all = containers(&self.spec);
        all.into_iter().find(|one| one["name"] == name).unwrap()
    }

    /// The HTTP status that the kubelet would get.
    fn probe(&self, name: &str) -> io::Result<String> {
        let container = self.container("pulsegate");
        let get = &container[name]["httpGet"];
        let ports = items(&container["ports"]);
        let port = ports.into_iter().find(|port| port["name"] == get["port"]);
        let port = port.unwrap()["containerPort"].as_u64().unwrap();
        let mut stream = self
            .pulsegate
            .inside(|| TcpStream::connect(format!("127.0.0.1:{port}")))?;
        stream.set_read_timeout(Some(PATIENT))?;
        let path = get["path"].as_str().unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1).unwrap_or_default().to_owned())
    }

    fn has_the_rights_of_its_manifest(&self) {
        for container in [&self.application, &self.pulsegate] {
            let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
            let field = |name: &str| {
                let mut lines = status.lines();
                let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
                value.unwrap().trim().to_owned()
            };
            assert_eq!(field("Uid"), "65532\t65532\t65532\t65532");
            assert_eq!(field("Gid"), "65532\t65532\t65532\t65532");
            for set in ["CapBnd", "CapPrm", "CapEff", "CapInh"] {
                assert_eq!(field(set), "0".repeat(16), "{set}");
            }
            assert_eq!(field("NoNewPrivs"), "1");
            assert_eq!(field("Seccomp"), "2", "a filter");
        }
        let read_only = self.pulsegate.inspect("{{.HostConfig.ReadonlyRootfs}}");
        assert_eq!(read_only, "true");
    }

    /// A client of its own address.
    fn connect(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        self.pulsegate.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((from, 0)).into())?;
            socket.connect(&CLIENTS.into())?;
            Ok(socket.into())
        })
    }

    /// Its packets vanish, both ways; the others' do not.
    fn finds_a_client_that_is_cut(&self) {
        let (lost, here) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
        let mut lost = (lost, self.connect(lost).unwrap());
        let mut here = self.connect(here).unwrap();
        ping(&mut lost.1).unwrap();
        ping(&mut here).unwrap();
        let rules = format!(
            "table ip cut {{ chain out {{ type filter hook output priority 0; \
             ip saddr {0} drop; ip daddr {0} drop; }}; }}",
            lost.0
        );
        let rules = scratch("pod-rules", "cut.nft", &rules);
        let mut nft = Command::new(tool("nft"));
        self.pulsegate
            .inside(|| run(nft.arg("-f").arg(rules)))
            .unwrap();
        eventually("the client that is cut is found", || {
            self.pulsegate.logs().contains("downstream_dead")
        });
        ping(&mut here).expect("the other one is served");
    }

    /// The kubelet runs the preStop of all containers at once. When that of a container is over, it gets SIGTERM.
    fn ends_in_order(&self) {
        let mut busy = self.connect(Ipv4Addr::new(127, 0, 0, 4)).unwrap();
        let mut quiet = self.connect(Ipv4Addr::new(127, 0, 0, 5)).unwrap();
        ping(&mut quiet).unwrap();
        let since = Instant::now();
        thread::scope(|scope| {
            let application = scope.spawn(|| self.end(&self.application, "legacy-app"));
            let drain = scope.spawn(|| self.end(&self.pulsegate, "pulsegate"));
            let ends = scope.spawn(|| ended(&mut quiet, since));
            // A client that is busy is served until the drain is over.
            let mut served = Duration::ZERO;
            while ping(&mut busy).is_ok() {
                served = since.elapsed();
                thread::sleep(Duration::from_millis(200));
            }
            assert!(served > Duration::from_secs(8), "cut after {served:?}");
            let quiet_for = ends.join().unwrap();
            assert!(quiet_for >= BUDGET, "ended after {quiet_for:?}");
            drain.join().unwrap().unwrap();
            application.join().unwrap().unwrap();
        });
        let (after, grace) = (since.elapsed(), self.grace_period());
        assert!(after < Duration::from_secs(grace), "{after:?}");
        // The process has ended by the drain: SIGTERM finds nobody, and the exit code says that all is well.
        assert_eq!(self.pulsegate.inspect("{{.State.ExitCode}}"), "0");
    }

    /// What its hook says.
    fn end(&self, container: &Container, name: &str) -> Result<String, String> {
        let hook = &self.container(name)["lifecycle"]["preStop"]["exec"]["command"];
        let words = items(hook).into_iter().map(|word| word.as_str().unwrap());
        let said = container.exec(&words.collect::<Vec<_>>());
        container.stop(self.grace_period());
        said
    }

    fn grace_period(&self) -> u64 {
        let seconds = &self.spec["terminationGracePeriodSeconds"];
        seconds.as_u64().unwrap()
    }
}

/// The Pod that a controller makes of its template, as far as podman goes.
fn manifest(template: &Value) -> String {
    let mut pod: Value = from_str("{ apiVersion: v1, kind: Pod }").unwrap();
    pod["metadata"] = template["metadata"].clone();
    pod["metadata"]["name"] = "legacy".into();
    pod["spec"] = template["spec"].clone();
    // podman does not know that a Pod ends, and would start again what has ended.
    pod["spec"]["restartPolicy"] = "Never".into();
    let containers = pod["spec"]["containers"].as_sequence_mut().unwrap();
    for container in containers {
        let container = container.as_mapping_mut().unwrap();
        // It would publish the ports on this machine, and run curl in the container.
        for key in ["ports", "livenessProbe"] {
            container.remove(key);
        }
    }
    to_string(&pod).unwrap()
}

/// The image of the application.
fn build_redis(storage: &Storage) {
    let file = scratch("pod", "Dockerfile", "FROM scratch\nCOPY . /\n");
    let leave_out = scratch("pod", "ignored", "usr/share\nvar\n");
    let mut buildah = storage.command("buildah");
    buildah.args(["bud", "--isolation", "chroot", "--tag", "redis"]);
    buildah.arg("--file").arg(file);
    buildah.arg("--ignorefile").arg(leave_out);
    run(buildah.arg(tools().join("rootfs"))).unwrap();
}

/// When the other end ends a session, counted from a moment.
fn ended(stream: &mut TcpStream, since: Instant) -> Duration {
    stream.set_read_timeout(Some(PATIENT)).unwrap();
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    since.elapsed()
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENT;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}
