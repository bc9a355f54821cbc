//! The admin endpoint by HTTPS: curl, the subcommands, and whoever speaks something else.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

use ::pulsegate::sys::netns::Namespace;

use crate::Case;
use crate::many;
use crate::papers::Papers;
use crate::process::{Folder, free_address, tool};
use crate::pulsegate::{Pulsegate, binary, connect};
use crate::support::certificates::Subject;
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new("https_for_curl", &["curl"], https_for_curl),
    Case::new("https_for_the_subcommands", &[], https_for_the_subcommands).isolated(),
    Case::new("https_and_other_clients", &[], https_and_other_clients),
    Case::new(
        "https_with_new_certificates",
        &["curl"],
        https_with_new_certificates,
    ),
    Case::new(
        "https_with_files_that_do_not_fit",
        &[],
        https_with_files_that_do_not_fit,
    ),
];

/// What a pulsegate needs whose admin endpoint speaks HTTPS. A control address does not.
struct Setup {
    papers: Papers,
    folder: Folder,
    address: SocketAddr,
    admin: SocketAddr,
    control: SocketAddr,
}

impl Setup {
    fn new(runtime: &tokio::runtime::Runtime) -> Self {
        let setup = Self {
            papers: Papers::new(),
            folder: Folder::new(),
            address: free_address(),
            admin: free_address(),
            control: free_address(),
        };
        setup.issue(Subject::named(&["localhost", "127.0.0.1"]));
        setup.write(
            &format!("control: \"{}\",", setup.control),
            &many::echo(runtime).to_string(),
        );
        setup
    }

    fn write(&self, keys: &str, upstream: &str) {
        let text = format!(
            "listeners: [{{ address: \"{}\", upstream: {{ address: \"{upstream}\" }} }}]
admin: {{ address: \"{}\", {keys} tls: {{ certificate: \"{}\", key: \"{}\" }} }}
",
            self.address,
            self.admin,
            self.papers.named("admin.pem"),
            self.papers.named("admin.key"),
        );
        fs::write(self.file(), text).expect("write");
    }

    fn issue(&self, subject: Subject) {
        self.papers.issue("admin", subject);
    }

    fn file(&self) -> PathBuf {
        self.folder.join("pulsegate.yaml")
    }

    fn start(&self) -> Pulsegate {
        Pulsegate::start_config(&self.file(), self.address, self.control)
    }

    fn curl(&self, host: &str, path: &str, flags: &[&str]) -> Output {
        let url = format!("https://{host}:{}{path}", self.admin.port());
        let ca = self.papers.named("ca.pem");
        let mut command = tool("curl");
        command.args(["-sS", "-m", "20", "--cacert", &ca, &url]);
        command.args(flags).output().expect("run curl")
    }
}

fn ask(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(arguments).output().expect("run it")
}

fn says(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes))
        .concat()
}

fn https_for_curl() {
    let runtime = many::runtime();
    let setup = Setup::new(&runtime);
    let proxy = setup.start();
    for host in ["localhost", "127.0.0.1"] {
        let metrics = setup.curl(host, "/metrics", &[]);
        assert!(
            says(&metrics).contains("pulsegate_connections_active"),
            "{metrics:?}"
        );
    }
    let _client = connect(setup.address);
    proxy.expect_active(1);
    // A page of its own origin may change something, another one may not.
    let origin = |scheme: &str| format!("Origin: {scheme}://localhost:{}", setup.admin.port());
    for (scheme, status) in [("http", "403"), ("https", "202")] {
        let flags = ["-X", "DELETE", "-H", &origin(scheme), "-w", "%{http_code}"];
        let killed = setup.curl("localhost", "/connections?all=true", &flags);
        assert!(says(&killed).ends_with(status), "{killed:?}");
    }
    proxy.expect_active(0);
    let many = setup.curl("localhost", "/livez?[1-200]", &[]);
    assert_eq!(says(&many).matches("ok").count(), 200, "{many:?}");
    // Old versions are refused, and nothing is sent early.
    let old = setup.curl("localhost", "/livez", &["--tls-max", "1.1"]);
    assert!(!old.status.success(), "{old:?}");
}

/// In a network of its own: there is no other one to be found.
fn https_for_the_subcommands() {
    let network = Namespace::new().expect("a network");
    let tried = network.run(|| {
        let runtime = many::runtime();
        let setup = Setup::new(&runtime);
        let proxy = setup.start();
        let (pid, file) = (proxy.pid().to_string(), setup.file());
        let (ca, file) = (
            setup.papers.named("ca.pem"),
            file.to_string_lossy().into_owned(),
        );
        let by_name = format!("https://localhost:{}", setup.admin.port());
        let by_address = format!("https://{}/", setup.admin);
        for how in [
            &["--admin", &by_name, "--admin-ca", &ca][..],
            &["--admin", &by_address, "--admin-ca", &ca],
            &["--pid", &pid],
            &["--config", &file],
            &[],
        ] {
            let _client = connect(setup.address);
            proxy.expect_active(1);
            for command in [
                &["healthcheck", "--ready"][..],
                &["conns", "--json"],
                &["upstreams"],
                &["verify", "--all"],
                &["reload"],
                &["kill", "--all"],
            ] {
                let output = ask(&[command, how].concat());
                assert!(output.status.success(), "{command:?} {how:?} {output:?}");
            }
            proxy.expect_active(0);
        }
        for (how, why) in [
            (&["--admin", &by_name][..], "--admin-ca"),
            (&["--admin", &by_name, "--admin-ca", "/nowhere"], "/nowhere"),
            (&["--admin", &setup.admin.to_string()], "https://"),
            (
                &[
                    "--admin",
                    &format!("https://{}", setup.control),
                    "--admin-ca",
                    &ca,
                ],
                "TLS",
            ),
            (
                &["--admin", &setup.control.to_string(), "--admin-ca", &ca],
                "--admin-ca",
            ),
        ] {
            let refused = ask(&[&["conns"], how].concat());
            assert_eq!(refused.status.code(), Some(1), "{how:?} {refused:?}");
            assert!(says(&refused).contains(why), "{how:?} {refused:?}");
        }
        // Another name, and one that is over: known by the process itself, not known to others.
        let other = Subject::named(&["other.example"]);
        for subject in [other, Subject::named(&["localhost"]).expired()] {
            setup.issue(subject);
            let reloaded = ask(&["reload", "--pid", &pid]);
            assert!(reloaded.status.success(), "{reloaded:?}");
            let how = ["conns", "--admin", &by_name, "--admin-ca", &ca];
            assert_eq!(ask(&how).status.code(), Some(1));
        }
        // Where there is no control address, the process shows its certificate.
        drop(proxy);
        setup.write("", &many::echo(&runtime).to_string());
        let mut command = binary();
        let child = command.arg("--config").arg(setup.file()).spawn();
        let mut child = child.expect("it starts");
        let pid = child.id().to_string();
        let healthy = |how: &[&str]| ask(&[&["healthcheck"], how].concat()).status.success();
        assert!(eventually(ms(30_000), || healthy(&["--pid", &pid])));
        assert!(healthy(&[]));
        setup.issue(Subject::named(&["localhost"]));
        // The file has another one than the process, then both have the new one.
        assert!(healthy(&["--pid", &pid]));
        let reloaded = ask(&["reload", "--pid", &pid]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        assert!(healthy(&["--pid", &pid]) && healthy(&["--config", &file]));
        // The next instance has the address and a new certificate; this one has its session yet.
        let held = connect(setup.address);
        let holds = || says(&ask(&["conns", "--pid", &pid])).contains("1 in all");
        assert!(eventually(ms(10_000), holds));
        setup.issue(Subject::named(&["localhost"]));
        let mut command = binary();
        let next = command
            .arg("--takeover")
            .arg("--config")
            .arg(setup.file())
            .spawn();
        let mut next = next.expect("it starts");
        let ready = ["healthcheck", "--ready", "--pid", &next.id().to_string()];
        assert!(eventually(ms(30_000), || ask(&ready).status.success()));
        assert!(ask(&["healthcheck", "--ready"]).status.success());
        drop(held);
        assert!(child.wait().expect("it ends").success());
        let drained = ask(&["drain", "--wait"]);
        assert!(drained.status.success(), "{drained:?}");
        assert!(next.wait().expect("it ends").success());
    });
    tried.expect("in the network");
}

fn https_and_other_clients() {
    let runtime = many::runtime();
    let setup = Setup::new(&runtime);
    let proxy = setup.start();
    let trusting = [
        "healthcheck",
        "--admin",
        &format!("https://{}", setup.admin),
    ];
    let ca = setup.papers.named("ca.pem");
    let is_healthy = || {
        ask(&[&trusting[..], &["--admin-ca", &ca]].concat())
            .status
            .success()
    };
    let said = |bytes: &[u8]| {
        let mut stream = connect(setup.admin);
        stream.write_all(bytes).expect("written");
        let mut answer = Vec::new();
        let _cut = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = said(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("speaks HTTPS"), "{answer}");
    assert!(!answer.contains("pulsegate_"), "{answer}");
    let plain = says(&ask(&["conns", "--admin", &setup.admin.to_string()]));
    assert!(plain.contains("use https://"), "{plain}");
    // Others only see the end, and a check of the port leaves no line.
    said(b"\0\x01garbage");
    drop(TcpStream::connect(setup.admin).expect("connected"));
    assert!(is_healthy());
    let log = proxy.log();
    assert_eq!(log.matches("the TLS handshake failed").count(), 1, "{log}");
    assert!(log.contains("plain text"), "{log}");

    // Places are few: who says nothing, and who stops in the middle of a handshake.
    let held: Vec<_> = (0..200)
        .map(|i| {
            let mut stream = TcpStream::connect(setup.admin).expect("connected");
            if i % 2 == 0 {
                let _given_up = stream.write_all(b"\x16\x03\x01\x02\x00\x01");
            }
            stream
        })
        .collect();
    assert!(is_healthy());
    let start = Instant::now();
    let mut last = held.into_iter().last().expect("many");
    // Whatever it was told, it is left.
    let _told = last.read(&mut [0; 16]);
    assert!(start.elapsed() < ms(30_000), "{:?}", start.elapsed());
    assert!(is_healthy());
}

fn https_with_new_certificates() {
    let runtime = many::runtime();
    let setup = Setup::new(&runtime);
    let proxy = setup.start();
    let shown = || says(&setup.curl("localhost", "/livez", &["-w", "%{certs}", "-v"]));
    assert!(shown().contains("ok"), "{}", shown());
    // A key that does not fit changes nothing.
    let key = fs::read(setup.papers.path("admin.key")).expect("read");
    setup.issue(Subject::named(&["localhost"]));
    let fits = fs::read(setup.papers.path("admin.key")).expect("read");
    fs::write(setup.papers.path("admin.key"), key).expect("write");
    let (status, why) = proxy.post("/reload").expect("an answer");
    assert_eq!(status, 422, "{why}");
    assert!(setup.curl("127.0.0.1", "/livez", &[]).status.success());
    fs::write(setup.papers.path("admin.key"), fits).expect("write");
    let (status, why) = proxy.post("/reload").expect("an answer");
    assert_eq!(status, 200, "{why}");
    assert!(shown().contains("ok"), "{}", shown());
    // It is for the name alone now.
    assert!(!setup.curl("127.0.0.1", "/livez", &[]).status.success());
}

fn https_with_files_that_do_not_fit() {
    let runtime = many::runtime();
    let setup = Setup::new(&runtime);
    fs::write(setup.papers.path("admin.key"), "nothing").expect("write");
    let mut command = binary();
    let output = command.arg("--config").arg(setup.file()).output();
    let output = output.expect("run it");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(says(&output).contains("admin.key"), "{output:?}");
}
