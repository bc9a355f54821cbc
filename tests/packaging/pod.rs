//! A Pod as Kubernetes makes one, without Kubernetes: an old service and the image beside it, which share a
//! network, with the rights of the restricted Pod Security Standard. podman runs it; the order of the end is that
//! of the kubelet.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::image;
use super::podman::{Container, PATIENT, Storage, ping, rootfs};
use super::tools::{Case, run, scratch, tool};

pub const CASES: &[Case] = &[Case::new(
    "a_pod_finds_a_client_that_is_cut_and_ends_in_order",
    &["buildah", "nft", "podman", "runc"],
    a_pod_finds_a_client_that_is_cut_and_ends_in_order,
)
.that_runs_containers()];

const POD: &str = "pulsegate-pod";
const CLIENTS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7000);

/// As in a Pod: probes come from the network, the operator by loopback.
const CONFIG: &str = "\
listeners:
  - name: redis
    address: 0.0.0.0:7000
    upstream: { address: 127.0.0.1:6379 }
    liveness: { detect_within: 2s }
admin: { address: 0.0.0.0:9900, control: 127.0.0.1:9901 }
drain: { delay: 1s, timeout: 8s }
";
/// What a session at rest has at least: it may be ended in the second half of the drain only.
const BUDGET: Duration = Duration::from_secs(1 + 4);

fn a_pod_finds_a_client_that_is_cut_and_ends_in_order() {
    let pod = Pod::start(image::built());
    pod.finds_a_client_that_is_cut();
    pod.ends_in_order();
}

struct Pod {
    service: Container,
    pulsegate: Container,
    // Last: it is dropped when they are gone.
    network: Network,
}

/// What the containers of the Pod share.
struct Network(Storage);

impl Drop for Network {
    fn drop(&mut self) {
        let _gone = self.0.ask(&["pod", "rm", "--force", "--time=0", POD]);
    }
}

impl Pod {
    fn start(storage: Storage) -> Self {
        let folder = scratch("pod", "pulsegate.yaml", CONFIG).with_file_name("");
        // Of a run that was killed.
        drop(Network(storage.clone()));
        let network = Network(storage.clone());
        let words = ["pod", "create", "--network=none", "--name", POD];
        storage.ask(&words).unwrap();
        let root = rootfs();
        let redis = ["redis-server", "--bind", "127.0.0.1", "--save", ""];
        let service = ["--pod", POD, "--rootfs", &root];
        let service = [&service[..], &redis].concat();
        let service = Container::run(&storage, "pulsegate-service", &service);
        let volume = format!("--volume={}:/etc/pulsegate:ro", folder.display());
        let words = [
            "--pod",
            POD,
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            &volume,
            "localhost/built",
        ];
        let pulsegate = Container::run(&storage, "pulsegate-sidecar", &words);
        let pod = Self {
            service,
            pulsegate,
            network,
        };
        eventually("it is ready", || {
            let check = ["/pulsegate", "healthcheck", "--ready", "--pid", "1"];
            pod.pulsegate.exec(&check).is_ok()
        });
        pod
    }

    /// A client of its own address.
    fn connect(&self, from: Ipv4Addr) -> std::io::Result<TcpStream> {
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
        let log = || self.network.0.ask(&["logs", "pulsegate-sidecar"]).unwrap();
        eventually("the client that is cut is found", || {
            log().contains("downstream_dead")
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
            let stops = scope.spawn(|| {
                // Longer than the drain: `pulsegate.appLifecycle` of the chart.
                self.service.exec(&["sleep", "11"]).unwrap();
                self.stop("pulsegate-service");
            });
            let drains = scope.spawn(|| {
                let words = [
                    "/pulsegate",
                    "drain",
                    "--wait",
                    "--timeout",
                    "30s",
                    "--pid",
                    "1",
                ];
                self.pulsegate.exec(&words)
            });
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
            // The kernel ends it with the first process of the container, perhaps before it has said so.
            let drained = drains.join().unwrap();
            let went_along = |why: &String| why.starts_with("exit status: 137");
            assert!(
                drained.as_ref().map_or_else(went_along, |_| true),
                "{drained:?}"
            );
            stops.join().unwrap();
        });
        let after = since.elapsed();
        assert!(after < Duration::from_secs(25), "{after:?}");
        // The process has ended by the drain: SIGTERM finds nobody, and the exit code says that all is well.
        self.stop("pulsegate-sidecar");
        assert_eq!(self.pulsegate.inspect("{{.State.ExitCode}}"), "0");
    }

    fn stop(&self, name: &str) {
        self.network.0.ask(&["stop", "--time=5", name]).unwrap();
    }
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
