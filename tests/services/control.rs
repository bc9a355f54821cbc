//! Who may change something, and where: the control address, the token, and how the subcommands find them.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use ::pulsegate::sys::netns::Namespace;
use rustix::process::Signal;

use crate::Case;
use crate::many;
use crate::process::{Folder, free_address};
use crate::pulsegate::{Pulsegate, binary, connect};
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new(
        "changes_go_by_the_control_socket",
        &[],
        changes_go_by_the_control_socket,
    ),
    Case::new("changes_go_by_the_token", &[], changes_go_by_the_token),
    Case::new(
        "a_changed_file_hides_nobody",
        &[],
        a_changed_file_hides_nobody,
    )
    .isolated(),
    Case::new("a_control_address_of_tcp", &[], a_control_address_of_tcp),
    Case::new(
        "a_takeover_hands_the_control_socket_over",
        &[],
        a_takeover_hands_the_control_socket_over,
    ),
    Case::new(
        "only_a_left_socket_is_replaced",
        &[],
        only_a_left_socket_is_replaced,
    ),
];

/// What a running pulsegate needs, in a folder of its own.
struct Setup {
    folder: Folder,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Setup {
    /// With an admin address that other hosts reach, and further keys of `admin`.
    fn new(runtime: &tokio::runtime::Runtime, keys: impl FnOnce(&Folder) -> String) -> Self {
        let (folder, address, admin) = (Folder::new(), free_address(), free_address());
        let text = format!(
            "listeners: [{{ address: \"{address}\", upstream: {{ address: \"{}\" }} }}]
admin: {{ address: \"0.0.0.0:{}\", {} }}
",
            many::echo(runtime),
            admin.port(),
            keys(&folder)
        );
        let setup = Self {
            folder,
            address,
            admin,
        };
        fs::write(setup.file(), text).expect("write");
        setup
    }

    fn file(&self) -> PathBuf {
        self.folder.join("pulsegate.yaml")
    }

    fn start(&self) -> Pulsegate {
        Pulsegate::start_config(&self.file(), self.address, self.admin)
    }

    /// Asks for the end of all sessions.
    fn kill(&self, how: &[&str]) -> Output {
        ask(&[&["kill", "--all"], how].concat())
    }

    fn is_refused(&self, how: &[&str], why: &str) {
        let output = self.kill(how);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{how:?} {output:?}");
        assert!(said.contains(why), "{said}");
    }

    fn is_done(&self, how: &[&str]) {
        let output = self.kill(how);
        assert!(output.status.success(), "{how:?} {output:?}");
    }
}

fn ask(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(arguments).output().expect("run it")
}

fn changes_go_by_the_control_socket() {
    let runtime = many::runtime();
    let keys = |folder: &Folder| format!("control: \"unix:{}\"", folder.join("c.sock").display());
    let setup = Setup::new(&runtime, keys);
    let proxy = setup.start();
    let socket = setup.folder.join("c.sock");
    let mode = fs::metadata(&socket).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else's");

    let (file, pid) = (setup.file(), proxy.pid().to_string());
    let (file, unix) = (file.to_string_lossy(), format!("unix:{}", socket.display()));
    let admin = setup.admin.to_string();
    setup.is_refused(&["--admin", &admin], "admin.control");
    for how in [["--admin", &unix], ["--config", &*file], ["--pid", &pid]] {
        let _client = connect(setup.address);
        proxy.expect_active(1);
        setup.is_done(&how);
        proxy.expect_active(0);
        let healthy = ask(&["healthcheck", "--ready", how[0], how[1]]);
        assert!(healthy.status.success(), "{healthy:?}");
    }
    // No browser reaches it: any name will do (curl --unix-socket).
    let mut asking = UnixStream::connect(&socket).expect("connected");
    let request = "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    asking.write_all(request.as_bytes()).expect("asked");
    let mut answer = String::new();
    asking.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // More than the endpoint takes.
    let held: Vec<_> = (0..80).map(|_| UnixStream::connect(&socket)).collect();
    setup.is_done(&["--pid", &pid]);
    drop(held);
    let drained = ask(&["drain", "--wait", "--pid", &pid]);
    assert!(drained.status.success(), "{drained:?}");
    assert!(
        eventually(ms(10_000), || !socket.exists()),
        "it is left behind"
    );
}

/// The file is read again for each change.
fn changes_go_by_the_token() {
    let runtime = many::runtime();
    let token = |folder: &Folder| folder.join("token");
    let keys = |folder: &Folder| {
        fs::write(token(folder), "a-long-enough-token\n").expect("write");
        format!("token_file: \"{}\"", token(folder).display())
    };
    let setup = Setup::new(&runtime, keys);
    let proxy = setup.start();
    let (admin, pid) = (setup.admin.to_string(), proxy.pid().to_string());
    let with = |file: &PathBuf| file.to_string_lossy().into_owned();
    let (right, wrong) = (token(&setup.folder), setup.folder.join("wrong"));
    fs::write(&wrong, "another-long-enough-token").expect("write");
    setup.is_refused(&["--admin", &admin], "token");
    setup.is_refused(&["--admin", &admin, "--token-file", &with(&wrong)], "token");
    setup.is_done(&["--admin", &admin, "--token-file", &with(&right)]);
    setup.is_done(&["--pid", &pid]);
    let piped = "cat $0 | $1 kill --all --admin $2 --token-file /dev/stdin";
    let mut shell = Command::new("sh");
    let binary_file = env!("CARGO_BIN_EXE_pulsegate");
    let shell = shell.args(["-c", piped, &with(&right), binary_file, &admin]);
    assert!(shell.status().expect("run it").success(), "by a pipe");
    fs::copy(&wrong, &right).expect("copied");
    setup.is_done(&["--admin", &admin, "--token-file", &with(&wrong)]);
    fs::write(&right, "short").expect("write");
    setup.is_refused(&["--admin", &admin, "--token-file", &with(&wrong)], "token");
    let is_logged = || proxy.log().contains("16 to 4096");
    assert!(eventually(ms(10_000), is_logged), "{}", proxy.log());

    // A wrong file is found at the start.
    let mut command = binary();
    command.arg("--config").arg(setup.file());
    let output = command.output().expect("run it");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("token: must hold a token"), "{said}");
}

/// In a network of its own: there is no other one to be found.
fn a_changed_file_hides_nobody() {
    let network = Namespace::new().expect("a network");
    let tried = network.run(|| {
        let runtime = many::runtime();
        let keys =
            |folder: &Folder| format!("control: \"unix:{}\"", folder.join("c.sock").display());
        let setup = Setup::new(&runtime, keys);
        let file = fs::read_to_string(setup.file()).expect("read");
        let file = file.replace("0.0.0.0", "127.0.0.1");
        fs::write(setup.file(), &file).expect("write");
        let proxy = setup.start();
        let pid = proxy.pid().to_string();
        let reloads = |code: i32, says: &str| {
            for how in [&["--pid", &*pid][..], &[]] {
                for command in [&["healthcheck", "--ready"][..], &["conns"]] {
                    let output = ask(&[command, how].concat());
                    assert!(output.status.success(), "{command:?} {how:?} {output:?}");
                }
                let output = ask(&[&["reload"], how].concat());
                assert_eq!(output.status.code(), Some(code), "{how:?} {output:?}");
                let said = [&*output.stdout, &*output.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                assert!(said.contains(says), "{said}");
            }
        };
        reloads(0, "");
        fs::write(setup.file(), format!("{file}nonsense: 1\n")).expect("write");
        reloads(2, "nonsense");
        let elsewhere = file.replace(&setup.admin.to_string(), "127.0.0.1:1");
        fs::write(setup.file(), elsewhere).expect("write");
        reloads(0, "admin.address");
        fs::remove_file(setup.file()).expect("removed");
        reloads(2, "pulsegate.yaml");
        fs::write(setup.file(), &file).expect("write");
        fs::remove_file(setup.folder.join("c.sock")).expect("removed");
        reloads(0, "");
    });
    tried.expect("entered");
}

fn a_control_address_of_tcp() {
    let runtime = many::runtime();
    let control = free_address().to_string();
    let setup = Setup::new(&runtime, |_| format!("control: \"{control}\""));
    let proxy = setup.start();
    setup.is_refused(&["--admin", &setup.admin.to_string()], "admin.control");
    setup.is_done(&["--admin", &control]);
    setup.is_done(&["--pid", &proxy.pid().to_string()]);
}

/// Whoever asks meanwhile is answered, by one or the other.
fn a_takeover_hands_the_control_socket_over() {
    let runtime = many::runtime();
    let keys = |folder: &Folder| format!("control: \"unix:{}\"", folder.join("c.sock").display());
    let setup = Setup::new(&runtime, keys);
    let socket = setup.folder.join("c.sock");
    let address = format!("unix:{}", socket.display());
    let mut running = setup.start();
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let connected = UnixStream::connect(&socket);
                assert!(connected.is_ok(), "{connected:?}");
                let healthy = ask(&["healthcheck", "--admin", &address]);
                assert!(healthy.status.success(), "{healthy:?}");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            let mut command = binary();
            command.arg("--takeover").arg("--config").arg(setup.file());
            let next = Pulsegate::started(command, setup.address, setup.admin);
            let mut before = std::mem::replace(&mut running, next);
            before.wait();
            let so_far = asked.load(Ordering::Relaxed);
            let goes_on = || asking.is_finished() || asked.load(Ordering::Relaxed) > so_far + 2;
            assert!(eventually(ms(30_000), goes_on));
        }
        over.store(true, Ordering::Relaxed);
        asking.join().expect("nobody was refused");
    });
    assert!(socket.exists());
    running.signal(Signal::TERM);
    assert!(
        eventually(ms(30_000), || !socket.exists()),
        "it is left behind"
    );
}

fn only_a_left_socket_is_replaced() {
    let runtime = many::runtime();
    let keys = |folder: &Folder| format!("control: \"unix:{}\"", folder.join("c.sock").display());
    let setup = Setup::new(&runtime, keys);
    let socket = setup.folder.join("c.sock");
    let fails = || {
        let mut command = binary();
        command.arg("--config").arg(setup.file());
        let output = command.output().expect("run it");
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("admin.control: cannot listen on unix:"),
            "{said}"
        );
    };
    fs::write(&socket, "not a socket").expect("write");
    fails();
    fs::remove_file(&socket).expect("removed");
    let other = UnixListener::bind(&socket).expect("bound");
    fails();
    // Its file stays.
    drop(other);
    assert!(socket.exists());
    let proxy = setup.start();
    setup.is_done(&["--config", &setup.file().to_string_lossy()]);
    drop(proxy);
}
