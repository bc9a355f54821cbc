//! A changed configuration under live sessions (docs/RELOAD.md).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::rig::{
    PATIENT, PROMPT, Ports, Proxy, Service, Temporary, ask, eventually, free_address, kept,
    pulsegate, text,
};

/// A folder of the test's own with the file in it, and what runs with that.
pub struct Rig {
    folder: Temporary,
    service: Service,
    pub admin: SocketAddr,
    pub log: File,
    pub proxy: Option<Proxy>,
}

/// A listener of the file.
#[derive(Clone, Copy)]
struct Spec<'a> {
    name: &'a str,
    address: SocketAddr,
    more: &'a str,
}

impl<'a> Spec<'a> {
    fn new(name: &'a str) -> Self {
        let (address, more) = (free_address(), "");
        Self {
            name,
            address,
            more,
        }
    }
}

impl Rig {
    pub fn new() -> Self {
        let folder = Temporary::new("d");
        fs::create_dir(&folder.0).expect("a folder");
        Self {
            folder,
            service: Service::start(),
            admin: free_address(),
            log: kept().0,
            proxy: None,
        }
    }

    /// With a file of these listeners, ready.
    fn start(listeners: &[Spec<'_>], more: &str) -> Self {
        let mut rig = Self::new();
        fs::write(rig.file(), rig.yaml(listeners, more)).expect("written");
        rig.run(&[]);
        rig
    }

    pub fn run(&mut self, flags: &[&str]) {
        let (log, stdio) = kept();
        self.log = log;
        let ports = Ports {
            clients: self.admin,
            admin: self.admin,
        };
        let mut command = pulsegate(&["run", "--config"]);
        let command = command.arg(self.file()).args(flags).stdout(stdio);
        self.proxy = Some(Proxy::of(command, ports));
        let ready = || matches!(self.proxy().get("/readyz"), Ok(page) if page.contains(" 200 "));
        assert!(eventually(PATIENT, ready), "{}", text(&self.log));
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it runs")
    }

    pub fn file(&self) -> PathBuf {
        self.folder.0.join("pulsegate.yaml")
    }

    fn yaml(&self, listeners: &[Spec<'_>], more: &str) -> String {
        let (service, admin) = (self.service.address, self.admin);
        let mut yaml = format!("admin: {{ address: '{admin}' }}\n{more}\nlisteners:\n");
        for Spec {
            name,
            address,
            more,
        } in listeners
        {
            let upstream = format!("upstream: {{ address: '{service}' }}");
            let keys = format!("name: {name}, address: '{address}', {upstream}, {more}");
            writeln!(yaml, "  - {{ {keys} }}").expect("text");
        }
        yaml
    }

    fn write(&self, listeners: &[Spec<'_>], more: &str) {
        fs::write(self.file(), self.yaml(listeners, more)).expect("written");
    }

    /// Status and body.
    pub fn reload(&self) -> (u16, String) {
        let answer = self.proxy().ask("POST", "/reload").expect("answered");
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        (status.expect("a status"), body.to_owned())
    }

    #[track_caller]
    pub fn reloaded(&self) -> Value {
        let (status, body) = self.reload();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    fn config(&self) -> String {
        let answer = self.proxy().get("/config").expect("answered");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        body.to_owned()
    }

    fn reloads(&self, outcome: &str) -> f64 {
        let name = format!("pulsegate_config_reloads_total{{outcome=\"{outcome}\"}}");
        self.proxy().metric(&name)
    }

    fn history(&self) -> Value {
        self.proxy().json("/reloads")
    }

    fn last_reload_successful(&self) -> f64 {
        self.proxy()
            .metric("pulsegate_config_last_reload_successful")
    }
}

pub fn session(to: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(to).expect("connected");
    ask(&mut client).expect("served");
    client
}

pub fn refuses(address: SocketAddr) -> bool {
    let refused = TcpStream::connect(address).err().map(|error| error.kind());
    refused == Some(ErrorKind::ConnectionRefused)
}

pub const UNWATCHED: &str = "reload: { watch: false }";

#[test]
fn listeners_come_change_and_go_under_live_sessions() {
    let [stays, changes, goes] = ["stays", "changes", "goes"].map(Spec::new);
    let rig = Rig::start(&[stays, changes, goes], UNWATCHED);
    let mut clients = [stays, changes, goes].map(|spec| session(spec.address));
    let changed = Spec {
        more: "liveness: { idle_timeout: 2h }, limits: { max_connections: 1, on_full: replace }",
        ..changes
    };
    let comes = Spec::new("comes");
    let more =
        "reload: { watch: false }\ndrain: { timeout: 2s }\nworkers: 1\nlog: { level: error }";
    rig.write(&[stays, changed, comes], more);
    assert_eq!(
        rig.reloaded(),
        json!({
            "applied": [
                "listeners[changes].limits.max_connections",
                "listeners[changes].limits.on_full",
                "listeners[comes]",
                "listeners[goes]",
                "drain.timeout",
                "log.level",
            ],
            "new_sessions_only": ["listeners[changes].liveness.idle_timeout"],
            "needs_restart": ["workers"],
        })
    );
    for client in &mut clients {
        ask(client).expect("goes on");
    }
    session(stays.address);
    session(comes.address);
    assert!(eventually(PROMPT, || refuses(goes.address)));
    let config = rig.config();
    assert!(config.contains("idle_timeout: 2h") && config.contains("workers: auto"));
    assert_eq!(rig.reloads("success"), 1.0);

    // The place is held by a session from before.
    session(changes.address);
    let ended = clients[1].read(&mut [0]).expect_err("replaced");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    // The one whose listener has gone had drain.timeout.
    let ended = clients[2].read(&mut [0]).expect_err("drained");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    let access = || text(&rig.log).contains("listener=\"goes\" reason=\"drain\"");
    assert!(eventually(PROMPT, access), "{}", text(&rig.log));
    ask(&mut clients[0]).expect("goes on");
    // Then nothing is left of it.
    let forgotten = || {
        let page = rig.proxy().get("/metrics").expect("a scrape");
        !page.contains("listener=\"goes\"")
    };
    assert!(eventually(PROMPT, forgotten));

    // What needs a restart is said again; the log has become quiet.
    rig.proxy().signal(Signal::USR1);
    assert_eq!(rig.reloaded()["needs_restart"], json!(["workers"]));
    assert!(!text(&rig.log).contains("SIGUSR1"), "{}", text(&rig.log));
}

#[test]
fn a_bad_file_changes_nothing() {
    let only = Spec::new("only");
    let rig = Rig::start(&[only], UNWATCHED);
    let mut client = session(only.address);
    let before = rig.config();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = Spec {
        name: "taken",
        address: taken.local_addr().expect("bound"),
        more: "",
    };
    let new = Spec::new("new");
    let many = Spec {
        more: "limits: { max_connections: 4000000000 }",
        ..only
    };
    let changed = Spec {
        more: "limits: { max_connections: 1 }",
        ..only
    };
    let good = rig.yaml(&[only], UNWATCHED);
    let (file, write) = (rig.file(), |text: &str| {
        fs::write(rig.file(), text).expect("written");
    });
    let bad: [(&dyn Fn(), &[&str]); 8] = [
        (&|| write("listeners: ["), &["pulsegate.yaml:1:"]),
        (
            &|| write(&format!("{good}workers: none\nno_key: 1\n")),
            &["workers: \"none\"", "no_key: unknown key"],
        ),
        (&|| write(""), &["is empty"]),
        (&|| write(&good[..good.len() - 30]), &["pulsegate.yaml"]),
        (
            &|| rig.write(&[new, changed, taken], UNWATCHED),
            &["listener `taken`: cannot listen"],
        ),
        (&|| rig.write(&[many], UNWATCHED), &["descriptor limit"]),
        (
            &|| {
                fs::remove_file(&file).expect("removed");
                fs::create_dir(&file).expect("a folder");
            },
            &["is not a regular file"],
        ),
        (
            &|| fs::remove_dir(&file).expect("removed"),
            &["cannot be read"],
        ),
    ];
    for (n, (damage, words)) in bad.iter().enumerate() {
        damage();
        let (status, body) = rig.reload();
        assert_eq!(status, 422, "{words:?}: {body}");
        for word in *words {
            assert!(body.contains(word), "{word}: {body}");
            let said = || text(&rig.log).replace('\\', "").contains(word);
            assert!(eventually(PROMPT, said), "{word}: {}", text(&rig.log));
        }
        assert_eq!(rig.reloads("failure"), n as f64 + 1.0);
        assert_eq!(rig.last_reload_successful(), 0.0);
        assert_eq!(rig.config(), before, "{words:?}");
        ask(&mut client).expect("goes on");
        session(only.address);
        assert!(refuses(new.address), "{words:?}");
    }
    let output = command(&rig, "reload");
    assert_eq!(output.0, Some(2), "{output:?}");
    assert!(output.2.contains("cannot be read"), "{output:?}");
    rig.write(&[only], UNWATCHED);
    assert_eq!(rig.reloads("success"), 0.0);
    assert_eq!(
        command(&rig, "reload"),
        (Some(0), "nothing differs\n".into(), String::new())
    );
    assert_eq!(
        (rig.reloads("success"), rig.last_reload_successful()),
        (1.0, 1.0)
    );
}

#[test]
fn the_last_reloads_are_remembered() {
    let only = Spec::new("only");
    let rig = Rig::start(&[only], "");
    assert_eq!(rig.history(), json!([]));
    let changed = Spec {
        more: "limits: { max_connections: 7 }, liveness: { idle_timeout: 10m }",
        ..only
    };
    rig.write(&[changed], "workers: 7");
    assert!(eventually(PATIENT, || rig.reloads("success") == 1.0));
    rig.proxy().signal(Signal::HUP);
    assert!(eventually(PROMPT, || rig.reloads("success") == 2.0));
    rig.write(&[changed], UNWATCHED);
    rig.reloaded();
    fs::write(rig.file(), "").expect("written");
    assert_eq!(rig.reload().0, 422);
    let history = rig.history();
    let words = |key: &str| {
        let all = history.as_array().expect("a list").iter();
        all.map(|r| r[key].as_str().unwrap_or("?").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(words("asked_by"), ["admin", "admin", "sighup", "watch"]);
    assert_eq!(
        words("outcome"),
        ["failure", "success", "success", "success"]
    );
    assert!(
        history[0]["errors"][0]
            .as_str()
            .is_some_and(|e| e.contains("is empty"))
    );
    let first = &history[3];
    assert_eq!(
        first["applied"],
        json!(["listeners[only].limits.max_connections"])
    );
    assert_eq!(
        first["new_sessions_only"],
        json!(["listeners[only].liveness.idle_timeout"])
    );
    assert_eq!(first["needs_restart"], json!(["workers"]));
    assert!(first["at"].as_i64() <= history[0]["at"].as_i64());
    // What is in force is what is explained.
    let explained = rig.proxy().get("/explain").expect("an answer");
    assert!(explained.contains("at most 7 sessions"), "{explained}");
}

/// What a subcommand returns and prints.
fn command(rig: &Rig, name: &str) -> (Option<i32>, String, String) {
    let admin = rig.admin.to_string();
    let output = pulsegate(&[name, "--admin", &admin]).output();
    let output = output.expect("run it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, errors)
}

#[test]
fn without_a_file_there_is_nothing_to_reload() {
    let rig = Rig::new();
    let (ports, service) = (Ports::free(), rig.service.address);
    let proxy = Proxy::start(ports, service, Stdio::null(), &[]);
    let answer = proxy.ask("POST", "/reload").expect("answered");
    assert!(
        answer.contains(" 409 ") && answer.contains("flags"),
        "{answer}"
    );
    let rig = Rig {
        admin: ports.admin,
        ..rig
    };
    assert_eq!(command(&rig, "reload").0, Some(1));
}

/// As the kubelet changes a ConfigMap that is mounted: the file is a link through a link to a folder.
#[test]
fn a_mounted_config_map_is_followed() {
    let first = Spec::new("first");
    let mut rig = Rig::new();
    let folder = rig.folder.0.clone();
    let swap = |version: &str, text: &str| {
        fs::create_dir(folder.join(version)).expect("a folder");
        fs::write(folder.join(version).join("pulsegate.yaml"), text).expect("written");
        symlink(version, folder.join("..data_tmp")).expect("a link");
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("swapped");
    };
    swap("..1", &rig.yaml(&[first], ""));
    symlink("..data/pulsegate.yaml", rig.file()).expect("a link");
    rig.run(&[]);
    let mut client = session(first.address);
    let second = Spec::new("second");
    swap("..2", &rig.yaml(&[first, second], ""));
    fs::remove_dir_all(folder.join("..1")).expect("removed");
    assert!(eventually(PATIENT, || rig.reloads("success") == 1.0));
    session(second.address);
    ask(&mut client).expect("goes on");
    // SIGHUP does not wait for a look.
    swap("..3", &rig.yaml(&[first], "log: { level: debug }"));
    rig.proxy().signal(Signal::HUP);
    assert!(eventually(PATIENT, || rig.reloads("success") == 2.0));
    assert!(eventually(PROMPT, || refuses(second.address)));
}

#[test]
fn a_half_written_file_is_tried_again_and_reported_once() {
    let only = Spec::new("only");
    let rig = Rig::start(&[only], "");
    let good = rig.yaml(&[only], "log: { level: debug }");
    // An editor that has written one part of it stops for long.
    fs::write(rig.file(), &good[..good.len() - 40]).expect("written");
    assert!(eventually(PATIENT, || rig.reloads("failure") == 1.0));
    // Several looks later nothing more is said.
    thread::sleep(Duration::from_secs(7));
    assert_eq!((rig.reloads("failure"), rig.reloads("success")), (1.0, 0.0));
    let said = text(&rig.log).matches("nothing has changed").count();
    assert_eq!(said, 1, "{}", text(&rig.log));
    fs::write(rig.file(), &good).expect("written");
    assert!(eventually(PATIENT, || rig.reloads("success") == 1.0));
    assert_eq!(rig.last_reload_successful(), 1.0);
}

#[test]
fn an_instance_that_was_reloaded_is_taken_over() {
    let [old, new] = ["old", "new"].map(Spec::new);
    let mut rig = Rig::start(&[old], UNWATCHED);
    let mut client = session(old.address);
    let limited = Spec {
        more: "limits: { max_connections: 2 }",
        ..old
    };
    let more = "reload: { watch: false }\ndrain: { timeout: 60s }";
    rig.write(&[limited, new], more);
    rig.reloaded();
    let over = AtomicBool::new(false);
    let mut before = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                session(new.address);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let before = rig.proxy.take().expect("it runs");
        rig.run(&["--takeover"]);
        let done = eventually(PATIENT, || text(&rig.log).contains("took over"));
        // The successor is reloaded while it waits for the device.
        let other = Spec {
            more: "limits: { max_connections: 1 }",
            ..old
        };
        rig.write(&[other, new], more);
        rig.reloaded();
        over.store(true, Ordering::Relaxed);
        assert!(done, "{}", text(&rig.log));
        before
    });
    let mut waits = TcpStream::connect(old.address).expect("waits in the kernel");
    ask(&mut client).expect("the old one drains");
    assert_eq!(rig.service.most.load(Ordering::Relaxed), 2);
    assert!(before.child.try_wait().expect("asked").is_none());
    drop(client);
    assert_eq!(before.wait().code(), Some(0));
    ask(&mut waits).expect("served at last");
}

// --- The example of the documentation ---------------------------------------------------------

/// The block that follows a mark of docs/RELOAD.md, without its fence.
fn example(mark: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/RELOAD.md");
    let document = fs::read_to_string(path).expect("it is there");
    let (_, rest) = document
        .split_once(&format!("<!-- example: {mark} -->\n```"))
        .expect(mark);
    let (_, block) = rest.split_once('\n').expect("a block");
    let (block, _) = block.split_once("```").expect("a block");
    block.to_owned()
}

#[test]
fn the_example_of_the_documentation_works() {
    let mut rig = Rig::new();
    let listeners = [free_address(), free_address(), free_address()];
    let on_this_host = |text: String| {
        let ports = ["127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:9002"];
        let replaced = ports
            .iter()
            .zip(listeners)
            .fold(text, |text, (port, free)| {
                text.replace(port, &free.to_string())
            });
        format!("{replaced}admin: {{ address: '{}' }}\n", rig.admin)
    };
    let [before, after] = ["pulsegate.yaml", "changed"].map(|mark| on_this_host(example(mark)));
    fs::write(rig.file(), before).expect("written");
    rig.run(&[]);
    fs::write(rig.file(), after).expect("written");
    let (code, out, errors) = command(&rig, "reload");
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(format!("$ pulsegate reload\n{out}"), example("output"));
}

// --- Load -------------------------------------------------------------------------------------

/// A reload each 100 ms beside clients that come and go, and sessions that stay.
/// `PULSEGATE_RELOAD_SECONDS=60` has it take a minute.
#[test]
fn reloads_under_load_lose_nothing_and_leave_nothing() {
    let seconds = std::env::var("PULSEGATE_RELOAD_SECONDS");
    let seconds = seconds.map_or(4, |n| n.parse().expect("a number"));
    let [first, second, other] = ["first", "second", "other"].map(Spec::new);
    let rig = Rig::start(&[first, second], UNWATCHED);
    let mut live: Vec<_> = (0..50).map(|_| session(first.address)).collect();
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let mut reloads = 0;
    let mut memory = Vec::new();
    thread::scope(|scope| {
        let (over, served) = (&over, &served);
        for to in [first.address, second.address] {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut client = TcpStream::connect(to).expect("not refused");
                    (0..3).for_each(|_| ask(&mut client).expect("not reset"));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let reloading = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end {
                let limits = ["", "limits: { max_connections: 1000 }"][reloads % 2];
                let liveness = ["liveness: { detect_within: 20s }", ""][reloads % 2];
                let changed = Spec {
                    more: limits,
                    ..first
                };
                let also = Spec {
                    more: liveness,
                    ..second
                };
                let all = [changed, also, other];
                rig.write(&all[..2 + reloads % 2], UNWATCHED);
                rig.reloaded();
                reloads += 1;
                thread::sleep(Duration::from_millis(100));
                for client in &mut live {
                    ask(client).expect("not lost");
                }
                memory.push(resident(&rig));
            }
        }));
        over.store(true, Ordering::Relaxed);
        reloading.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(served.load(Ordering::Relaxed) > 20);
    rig.write(&[first, second], UNWATCHED);
    rig.reloaded();
    drop(live);
    let idle = || {
        rig.proxy()
            .metric("pulsegate_connections_active{listener=\"first\"}")
            == 0.0
    };
    assert!(eventually(PROMPT, idle));
    let before = descriptors(&rig);
    let quiet = Rig::start(&["first", "second"].map(Spec::new), UNWATCHED);
    let settled = eventually(PROMPT, || descriptors(&rig) <= descriptors(&quiet) + 2);
    assert!(settled, "{before} descriptors");
    let (half, last) = (memory[memory.len() / 2], memory[memory.len() - 1]);
    println!(
        "{reloads} reloads; resident: {} KiB, {half}, {last}",
        memory[0]
    );
    assert!(last < half + 4096, "{memory:?}");
}

fn descriptors(rig: &Rig) -> usize {
    let folder = format!("/proc/{}/fd", rig.proxy().child.id());
    fs::read_dir(folder).expect("it runs").count()
}

/// KiB.
fn resident(rig: &Rig) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", rig.proxy().child.id()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}
