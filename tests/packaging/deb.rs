//! The Debian package, as `apt` meets it and under the systemd of a container.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::podman::{Container, PATIENT, Storage, ping, rootfs};
use super::tools::{Case, host_lines, repo, run, scratch, tool};
use crate::pages;

pub const CASES: &[Case] = &[
    Case::new(
        "lintian_takes_the_package",
        &["cargo-deb", "dpkg-shlibdeps", "lintian"],
        lintian_takes_the_package,
    ),
    Case::new(
        "systemd_runs_the_package",
        &["cargo-deb", "dpkg-shlibdeps", "podman", "runc"],
        systemd_runs_the_package,
    )
    .that_runs_containers(),
];

const FIRST: &str = "0.1.0-1";
const SECOND: &str = "0.1.1-1";

/// Where cargo-deb finds the binary under test and the pages, as after a release build; it puts packages
/// there, too. Made once.
fn target() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let target = scratch("deb", "marker", "").with_file_name("target");
        let _none = fs::remove_dir_all(&target);
        fs::create_dir_all(target.join("release")).unwrap();
        pages::write(&repo("target/manual")).unwrap();
        let binary = env!("CARGO_BIN_EXE_pulsegate");
        fs::copy(binary, target.join("release/pulsegate")).unwrap();
        target
    })
}

fn package(version: &str) -> PathBuf {
    // They share the stripped binary.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let package = target().join(format!("pulsegate_{version}_amd64.deb"));
    let mut command = Command::new(tool("cargo-deb"));
    command
        .args(["--no-build", "--strip", "--fast", "--offline", "--locked"])
        .args(["--deb-version", version, "--output"])
        .arg(&package)
        .env("CARGO_TARGET_DIR", target())
        .current_dir(repo(""));
    run(&mut command).unwrap();
    package
}

fn lintian_takes_the_package() {
    let mut command = Command::new(tool("lintian"));
    command.args(["--allow-root", "--fail-on=error,warning", "--no-cfg"]);
    run(command.arg(package("0.1.0-1~lintian"))).unwrap();
}

/// Three listeners in front of a real service: one on a port of its own, one on a port of systemd, one with a
/// key that only root may read.
const CONFIG: &str = "\
listeners:
  - { name: own, address: 127.0.0.1:7000, upstream: { address: 127.0.0.1:6379 } }
  - { name: kept, address: fd:443, upstream: { address: 127.0.0.1:6379 } }
  - name: secret
    address: 127.0.0.1:7443
    upstream: { address: 127.0.0.1:6379 }
    tls:
      certificates:
        - certificate: /etc/ssl/orders.crt
          key: /run/credentials/pulsegate.service/orders.key
admin: { address: 127.0.0.1:9900, control: unix:/run/pulsegate/control.sock }
drain: { timeout: 8s }
reload: { watch: false }
";

const DROP_IN: &str = "\
[Service]
WatchdogSec=2s
TimeoutStopSec=3s
";

const CONFIG_FILE: &str = "/etc/pulsegate/pulsegate.yaml";
const KEY: &str = "/etc/ssl/private/orders.key";
const GUARD: &str = "pulsegate-guard";

fn systemd_runs_the_package() {
    let host = Host::boot();
    host.follow(("docs/INSTALL.md", "install"));
    host.starts_when_it_is_told();
    host.configure();
    host.serves();
    host.reloads();
    host.restarts_without_a_refusal();
    host.is_restarted_when_it_hangs();
    host.guards();
    host.upgrades();
    host.removes();
    host.takes_the_archive();
    host.renews_a_key_of_a_group();
}

/// A machine with systemd, Redis and what the package brings.
struct Host(Container);

impl Host {
    fn boot() -> Self {
        package(FIRST);
        package(SECOND);
        let root = rootfs();
        let words = [
            "--privileged",
            "--systemd=always",
            "--network=none",
            &format!("--volume={}:/packages:ro", target().display()),
            &format!("--volume={}:/systemd:ro", repo("deploy/systemd").display()),
            "--rootfs",
            &root,
            "/lib/systemd/systemd",
        ];
        let host = Self(Container::run(
            &Storage::of("deb-host"),
            "pulsegate-deb",
            &words,
        ));
        host.eventually("it boots", || {
            host.systemctl("is-system-running").contains("running")
        });
        // As the kernel has it for a systemd outside of containers: what is mounted for a unit is seen there.
        host.sh("mount --make-rshared /");
        host
    }

    #[track_caller]
    fn eventually(&self, what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + PATIENT;
        while !condition() {
            assert!(
                Instant::now() < until,
                "not in time: {what}\n{}",
                self.journal()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs what a document says, where the packages are.
    #[track_caller]
    fn follow(&self, place: (&str, &str)) {
        self.follow_in("/packages", place);
    }

    #[track_caller]
    fn follow_in(&self, folder: &str, (document, name): (&str, &str)) {
        let lines = host_lines(document, name);
        self.sh(&format!("cd {folder}\n{lines}"));
    }

    /// Runs lines of the shell, which must succeed.
    #[track_caller]
    fn sh(&self, lines: &str) -> String {
        let done = self.0.exec(&["sh", "-ec", lines]);
        done.unwrap_or_else(|why| panic!("{lines}: {why}\n{}", self.journal()))
    }

    /// What it says, whether or not it succeeds.
    fn systemctl(&self, words: &str) -> String {
        let line = format!("systemctl {words} 2>&1");
        self.0.exec(&["sh", "-c", &line]).unwrap_or_else(|why| why)
    }

    fn show(&self, property: &str) -> String {
        self.show_of("pulsegate", property)
    }

    fn show_of(&self, unit: &str, property: &str) -> String {
        self.systemctl(&format!("show --value --property={property} {unit}"))
    }

    fn journal(&self) -> String {
        let units = "--unit=pulsegate*";
        let words = ["journalctl", "--no-pager", "--lines=40", units];
        self.0.exec(&words).unwrap_or_else(|why| why)
    }

    fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        self.0.inside(|| TcpStream::connect(address))
    }

    fn write(&self, path: &str, text: &str) {
        let line = format!("mkdir -p $(dirname {path}); cat >{path} <<'END'\n{text}END");
        self.sh(&line);
    }

    fn is_version(&self, version: &str) {
        let installed = self.sh("dpkg-query --show -f '${Version}' pulsegate");
        assert_eq!(installed, version);
    }

    /// Not before: it has no service to protect yet. Its example is right.
    fn starts_when_it_is_told(&self) {
        self.is_version(FIRST);
        for unit in ["pulsegate", GUARD] {
            assert_eq!(self.show_of(unit, "ActiveState"), "inactive");
            assert_eq!(self.show_of(unit, "UnitFileState"), "disabled");
        }
        self.sh(&format!("pulsegate check -c {CONFIG_FILE}"));
        self.sh("test -s /usr/share/man/man1/pulsegate-run.1.gz");
        self.sh("grep -q '^rustls ' /usr/share/doc/pulsegate/THIRD-PARTY-LICENSES");
        let words = self.sh("cat /usr/share/bash-completion/completions/pulsegate");
        assert!(words.contains("--takeover"), "{words}");
        self.follow(("docs/INSTALL.md", "start"));
        assert_eq!(self.show("ActiveState"), "active");
    }

    fn configure(&self) {
        self.make_certificate();
        self.sh(&format!("chmod 0600 {KEY}"));
        self.write(CONFIG_FILE, CONFIG);
        self.write("/etc/systemd/system/pulsegate.service.d/test.conf", DROP_IN);
        self.follow(("docs/INSTALL.md", "credential"));
        self.follow(("docs/INSTALL.md", "socket"));
        self.sh("systemctl start pulsegate");
    }

    /// When `systemctl start` returns, as a user that nobody else is, without any right.
    fn serves(&self) {
        for port in [7000, 443] {
            ping(&mut self.connect(port).expect("clients are accepted")).unwrap();
        }
        self.speaks_tls();
        let status = self.sh(&format!("cat /proc/{}/status", self.show("MainPID")));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let words = line.unwrap_or_else(|| panic!("{name} in {status}"));
            words
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let user: u32 = field("Uid:").parse().unwrap();
        assert!((61184..65520).contains(&user), "{user}");
        assert_eq!(field("CapBnd:"), "0000000000000000");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
    }

    /// By `systemctl reload`, which says whether it worked; no session ends.
    fn reloads(&self) {
        let mut session = self.connect(7000).unwrap();
        ping(&mut session).unwrap();
        self.write(CONFIG_FILE, &CONFIG.replace(":7000", ":7001"));
        self.follow(("docs/INSTALL.md", "reload"));
        ping(&mut self.connect(7001).unwrap()).unwrap();
        let refused = self.connect(7000).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        self.write(CONFIG_FILE, &CONFIG.replace("own", "kept"));
        let said = self
            .0
            .exec(&["systemctl", "reload", "pulsegate"])
            .unwrap_err();
        assert!(said.contains("Job for pulsegate.service failed"), "{said}");
        let journal = self.journal();
        assert!(journal.contains("nothing has changed"), "{journal}");
        assert_eq!(self.show("ActiveState"), "active");
        ping(&mut self.connect(7001).unwrap()).unwrap();

        self.write(CONFIG_FILE, CONFIG);
        self.follow(("docs/INSTALL.md", "reload"));
        // Of a listener that was removed meanwhile, and is there again.
        ping(&mut session).unwrap();
    }

    /// Clients of systemd's socket wait; sessions have what `drain` gives them, whatever `TimeoutStopSec` says.
    fn restarts_without_a_refusal(&self) {
        let mut session = self.connect(7000).unwrap();
        ping(&mut session).unwrap();
        let before = self.show("MainPID");
        let mut waits = thread::scope(|scope| {
            scope.spawn(|| self.follow(("docs/UPGRADE.md", "restart")));
            self.eventually("it drains", || self.show("ActiveState") == "deactivating");
            let since = Instant::now();
            let waits = self.connect(443).expect("it is not refused");
            while since.elapsed() < Duration::from_secs(5) {
                ping(&mut session).expect("no session is cut before its time");
                thread::sleep(Duration::from_millis(200));
            }
            waits
        });
        ping(&mut waits).expect("the next instance serves it");
        assert_ne!(self.show("MainPID"), before);
        let journal = self.journal();
        assert!(!journal.contains("timed out"), "{journal}");
    }

    fn is_restarted_when_it_hangs(&self) {
        let before = self.show("MainPID");
        self.sh(&format!("kill -STOP {before}"));
        let mut waits = self.connect(443).expect("it is not refused");
        ping(&mut waits).expect("the next instance serves it");
        assert_ne!(self.show("MainPID"), before);
        let journal = self.journal();
        assert!(journal.contains("Watchdog timeout"), "{journal}");
    }

    /// A connection of another user's process, with the flags as they are shipped and nothing but its one capability.
    fn guards(&self) {
        let _client = self.connect(6379).unwrap();
        self.follow(("docs/SCAN.md", "guard"));
        self.eventually("a connection of Redis is guarded", || {
            let metrics = self.guard_metrics().unwrap_or_default();
            let served = "\npulsegate_guard_protected_total ";
            let count = metrics.split_once(served).map(|(_, rest)| rest.lines());
            count.is_some_and(|mut lines| lines.next() != Some("0"))
        });
        let journal = self.journal();
        assert!(journal.contains(r#"process="redis-server""#), "{journal}");
        let pid = self.show_of(GUARD, "MainPID");
        let bound = self.sh(&format!("grep CapBnd: /proc/{pid}/status"));
        assert!(bound.ends_with("\t0000000000080000"), "{bound}");

        self.write("/etc/default/pulsegate-guard", "ARGS=\n");
        self.systemctl("restart pulsegate-guard");
        self.eventually("no flags: it is not tried again", || {
            self.show_of(GUARD, "ActiveState") == "failed"
        });
        assert_eq!(self.show_of(GUARD, "ExecMainStatus"), "2");
        self.write(
            "/etc/default/pulsegate-guard",
            "ARGS='--match local-port=6379'\n",
        );
        self.sh("systemctl start pulsegate-guard; systemctl stop pulsegate-guard");
        assert_eq!(self.show_of(GUARD, "Result"), "success");
        self.sh("systemctl start pulsegate-guard");
    }

    fn guard_metrics(&self) -> io::Result<String> {
        let mut admin = self.connect(9901)?;
        admin.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        io::read_to_string(admin)
    }

    /// With the configuration as it was left, and restarted.
    fn upgrades(&self) {
        self.follow(("docs/UPGRADE.md", "check"));
        let pids = || ["pulsegate", GUARD].map(|unit| self.show_of(unit, "MainPID"));
        let before = pids();
        self.follow(("docs/UPGRADE.md", "upgrade"));
        self.is_version(SECOND);
        let after = pids();
        assert!(before[0] != after[0] && before[1] != after[1], "{after:?}");
        assert!(!after.contains(&"0".to_owned()), "{after:?}");
        ping(&mut self.connect(7000).unwrap()).unwrap();
        assert_eq!(self.sh(&format!("cat {CONFIG_FILE}")), CONFIG.trim());
        assert_eq!(self.show("UnitFileState"), "enabled");
        self.follow(("docs/UPGRADE.md", "downgrade"));
        self.is_version(FIRST);
        ping(&mut self.connect(7000).unwrap()).unwrap();
    }

    /// All but the configuration, and that too when it is purged.
    fn removes(&self) {
        self.sh("dpkg --remove pulsegate");
        self.sh(&format!(
            "test ! -e /usr/bin/pulsegate; test -e {CONFIG_FILE}"
        ));
        for port in [7000, 443] {
            let refused = self.connect(port).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{port}");
        }
        assert_eq!(self.show_of(GUARD, "ActiveState"), "inactive");
        self.sh(&format!("dpkg --purge pulsegate; test ! -e {CONFIG_FILE}"));
        let left = "find /etc/default /etc/systemd/system /lib/systemd/system -name 'pulsegate*'";
        assert_eq!(self.sh(left), "/etc/systemd/system/pulsegate.service.d");
    }

    fn takes_the_archive(&self) {
        let line = "mkdir /archive; cp -r /packages/release/pulsegate /systemd /archive";
        self.sh(line);
        let config = CONFIG.replace("fd:443", "127.0.0.1:7002");
        self.write("/archive/pulsegate.yaml", &config);
        self.follow_in("/archive", ("docs/INSTALL.md", "archive"));
        ping(&mut self.connect(7002).unwrap()).unwrap();
    }

    /// Without a restart, and without the credential of systemd.
    fn renews_a_key_of_a_group(&self) {
        self.sh("groupadd --system ssl-cert");
        let file = self.sh(&format!("cat {CONFIG_FILE}"));
        let credential = "/run/credentials/pulsegate.service/orders.key";
        assert!(file.contains(credential), "{file}");
        self.write(CONFIG_FILE, &(file.replace(credential, KEY) + "\n"));
        self.follow(("docs/INSTALL.md", "group"));
        self.speaks_tls();
        let before = self.show("MainPID");
        self.make_certificate();
        self.follow(("docs/INSTALL.md", "reload"));
        // The client trusts the new one only.
        self.speaks_tls();
        assert_eq!(self.show("MainPID"), before);
    }

    /// Its key keeps the owner and the rights that it has.
    fn make_certificate(&self) {
        let made = rcgen::generate_simple_self_signed(vec!["orders.example".to_owned()]).unwrap();
        self.write("/etc/ssl/orders.crt", &made.cert.pem());
        self.write(KEY, &made.signing_key.serialize_pem());
    }

    #[track_caller]
    fn speaks_tls(&self) {
        let probe = "pulsegate probe --tls --ca /etc/ssl/orders.crt --server-name orders.example";
        self.sh(&format!("{probe} 127.0.0.1:7443"));
    }
}
