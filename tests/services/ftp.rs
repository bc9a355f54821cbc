//! FTP: vsftpd and tnftp, which aborts a transfer by an urgent ABOR. The control connection and
//! the passive data connections go through pulsegate, or both go direct.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::Case;
use crate::bytes::{expect_file, write_file};
use crate::process::{Folder, Process, free_address, tool};
use crate::pulsegate::Pulsegate;
use crate::support::{eventually, ms};

pub const CASES: &[Case] = &[
    Case::new(
        "ftp_transfers_are_byte_exact",
        TOOLS,
        ftp_transfers_are_byte_exact,
    ),
    Case::new(
        "ftp_aborts_as_it_does_directly",
        TOOLS,
        ftp_aborts_as_it_does_directly,
    ),
    Case::new(
        "ftp_transfers_that_are_killed_have_failed",
        TOOLS,
        ftp_transfers_that_are_killed_have_failed,
    ),
    Case::new(
        "ftp_transfers_cut_by_the_drain_have_failed",
        TOOLS,
        ftp_transfers_cut_by_the_drain_have_failed,
    ),
];

/// What [`Site`] and [`Client`] need.
pub const TOOLS: &[&str] = &["vsftpd", "tnftp", "stdbuf"];

const SMALL: usize = 100_000;
/// Takes some 7 s at [`RATE`].
const LARGE: usize = 20_000_000;
/// Bytes a second at which the server sends and receives in the slow cases.
const RATE: usize = 3_000_000;

/// An FTP server of the test's own, and pulsegate in front of it.
///
/// The server hands out one passive port, on the host of pulsegate: there a second listener passes
/// data connections on to the same port on the server's own host.
pub struct Site {
    pub proxy: Pulsegate,
    _server: Process,
    /// Everything else; the server's files are in `files`.
    folder: Folder,
    /// The server's control port without pulsegate.
    direct: SocketAddr,
}

impl Site {
    /// Starts both; `rate` in bytes a second, 0 for none. `liveness` are YAML lines of the key of
    /// this name, each indented by four.
    pub fn start(rate: usize, liveness: &str) -> Self {
        let folder = Folder::new();
        fs::create_dir(folder.join("files")).expect("make a folder");
        let (direct, data) = (free_address(), free_address());
        // The host that the clients know.
        let front = |address: SocketAddr| SocketAddr::from(([127, 0, 0, 2], address.port()));
        let settings = folder.join("vsftpd.conf");
        fs::write(&settings, settings_of(&folder, direct, data.port(), rate)).expect("write");
        let mut server = Process::start(tool("vsftpd").arg(&settings));
        server.wait_until(|_| TcpStream::connect(direct).is_ok());
        let (config, admin) = (folder.join("pulsegate.yaml"), free_address());
        let listener = |name: &str, to: SocketAddr| {
            format!(
                "- name: {name}\n  address: {}\n  upstream: {{ address: \"{to}\" }}\n",
                front(to)
            )
        };
        let text = format!(
            "admin: {{ address: \"{admin}\" }}\ndefaults:\n  liveness:\n{}\nlisteners:\n{}{}",
            liveness,
            listener("control", direct),
            listener("data", data),
        );
        fs::write(&config, text).expect("write");
        Self {
            proxy: Pulsegate::start_config(&config, front(direct), admin),
            _server: server,
            folder,
            direct,
        }
    }

    /// A file of the server's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join("files").join(name)
    }

    /// A file on the clients' side.
    pub fn local(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// How the server says that its transfers of a file ended: `OK UPLOAD`, `FAIL DOWNLOAD`.
    pub fn verdicts(&self, name: &str) -> Vec<String> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let file = self.file(name).display().to_string();
        let lines = log.lines().filter(|line| line.contains(&file));
        let verdict = |line: &str| {
            let mut words = line.split(": Client").next()?.rsplit(' ');
            let (what, how) = (words.next()?, words.next()?);
            (["UPLOAD", "DOWNLOAD"].contains(&what)).then(|| format!("{how} {what}"))
        };
        lines.filter_map(verdict).collect()
    }

    /// Logs in through pulsegate.
    pub fn client(&self) -> Client {
        Client::log_in(self.proxy.address)
    }
}

fn settings_of(folder: &Folder, address: SocketAddr, data: u16, rate: usize) -> String {
    let here = folder.path().display();
    format!(
        "listen=YES\nlisten_address={}\nlisten_port={}\nbackground=NO\nrun_as_launching_user=YES
anonymous_enable=YES\nno_anon_password=YES\nanon_root={here}/files\nanon_umask=022
write_enable=YES\nanon_upload_enable=YES\nanon_other_write_enable=YES
anon_world_readable_only=NO\nanon_max_rate={rate}\nasync_abor_enable=YES
pasv_address=127.0.0.2\npasv_min_port={data}\npasv_max_port={data}\nconnect_from_port_20=NO
xferlog_enable=YES\nxferlog_std_format=NO\nlog_ftp_protocol=YES\nvsftpd_log_file={here}/log
no_log_lock=YES\nsecure_chroot_dir={here}/files\nseccomp_sandbox=NO\nisolate=NO
isolate_network=NO\n",
        address.ip(),
        address.port(),
    )
}

/// tnftp, logged in. It is told what to do line by line.
pub struct Client(Process);

impl Client {
    /// Logs in and sets binary mode.
    pub fn log_in(to: SocketAddr) -> Self {
        let mut command = tool("stdbuf");
        // Else its output stays in a buffer, because it is no terminal.
        command.args(["-o0", "tnftp", "-n", "-i", "-v"]);
        let mut client = Self(Process::start(&mut command));
        client.say(&format!("open {} {}", to.ip(), to.port()));
        client.say("user anonymous x");
        client.say("binary");
        client.expect("Switching to Binary mode");
        client
    }

    /// Gives it a command.
    pub fn say(&mut self, line: &str) {
        writeln!(self.0.input(), "{line}").expect("it lives");
    }

    /// Waits until it has printed this.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let said = eventually(ms(30_000), || self.printed().contains(text));
        assert!(said, "no \"{text}\" in: {}", self.printed());
    }

    /// What it has printed.
    pub fn printed(&self) -> String {
        self.0.output() + &self.0.errors()
    }

    /// Aborts the transfer that runs, as Ctrl-C does: ABOR by an urgent Telnet Synch.
    pub fn abort(&self) {
        self.0.signal(Signal::INT);
    }

    /// Ends it; returns the codes of the server's replies in order, and how transfers ended.
    pub fn quit(mut self) -> Vec<String> {
        self.say("quit");
        self.0.wait(ms(30_000));
        let printed = self.printed();
        let code = |line: &str| {
            let code = line.get(..3)?;
            let reply = code.bytes().all(|b| b.is_ascii_digit()) && line[3..].starts_with(' ');
            let abort = line.ends_with("abort.");
            (reply || abort).then(|| if reply { code } else { line }.to_owned())
        };
        printed.lines().filter_map(code).collect()
    }
}

fn ftp_transfers_are_byte_exact() {
    let site = Site::start(0, "    detect_within: 5s");
    let here = |name| site.local(name);
    write_file(&site.file("down"), 1, LARGE);
    write_file(&here("up"), 2, LARGE);
    let mut client = site.client();
    client.say(&format!("get down {}", here("got").display()));
    client.say(&format!("put {} up", here("up").display()));
    client.quit();
    expect_file(&here("got"), 1, LARGE);
    expect_file(&site.file("up"), 2, LARGE);
    assert_eq!(site.verdicts("down"), ["OK DOWNLOAD"]);
    assert_eq!(site.verdicts("up"), ["OK UPLOAD"]);
    site.proxy.expect_all_closed("finished", 3);
}

/// Both abort in the middle; the control connection goes on.
fn ftp_aborts_as_it_does_directly() {
    let site = Site::start(RATE, "    detect_within: 5s");
    write_file(&site.file("down"), 1, LARGE);
    write_file(&site.file("small"), 3, SMALL);
    write_file(&site.local("up"), 2, LARGE);
    let outcome = |to, name: &str| {
        let got = site.local(&format!("{name}-got"));
        let up = format!("{name}-up");
        let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
        let mut client = Client::log_in(to);
        client.say(&format!("get down {}", got.display()));
        assert!(eventually(ms(20_000), || size(&got) > SMALL as u64));
        client.abort();
        client.expect("bytes received");
        client.say(&format!("put {} {up}", site.local("up").display()));
        assert!(eventually(ms(20_000), || size(&site.file(&up)) > SMALL as u64));
        client.abort();
        client.expect("bytes sent");
        let small = site.local(&format!("{name}-small"));
        client.say(&format!("get small {}", small.display()));
        let replies = client.quit();
        expect_file(&small, 3, SMALL);
        assert!(size(&got) < LARGE as u64, "{name}: the download went on");
        let uploaded = size(&site.file(&up));
        assert!(uploaded < LARGE as u64, "{name}: the upload went on");
        (replies, site.verdicts(&up))
    };
    let direct = outcome(site.direct, "direct");
    let proxied = outcome(site.proxy.address, "proxied");
    assert_eq!(proxied, direct);
    assert_eq!(site.verdicts("down"), ["FAIL DOWNLOAD", "FAIL DOWNLOAD"]);
}

/// What the server says of an upload and of a download that were cut. A client that downloads knows
/// that its file is not whole.
fn verdicts_of_cut(more: &str, cut: impl Fn(&Site)) -> [Vec<String>; 2] {
    let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    let begun = |path: &Path| eventually(ms(20_000), || size(path) > SMALL as u64);
    let verdicts = |site: &Site| {
        eventually(ms(5000), || !site.verdicts("cut").is_empty());
        site.verdicts("cut")
    };
    let settings = format!("    detect_within: 5s\n{more}");

    let site = Site::start(RATE, &settings);
    write_file(&site.local("up"), 2, LARGE);
    let mut client = site.client();
    client.say(&format!("put {} cut", site.local("up").display()));
    assert!(begun(&site.file("cut")));
    cut(&site);
    let of_upload = verdicts(&site);

    let site = Site::start(RATE, &settings);
    write_file(&site.file("cut"), 1, LARGE);
    let mut client = site.client();
    client.say(&format!("get cut {}", site.local("got").display()));
    assert!(begun(&site.local("got")));
    cut(&site);
    client.expect("reset by peer");
    assert!(!client.printed().contains("226"), "{}", client.printed());
    [of_upload, verdicts(&site)]
}

fn ftp_transfers_that_are_killed_have_failed() {
    let verdicts = verdicts_of_cut("", |site| {
        let path = "/connections?listener=data&format=json";
        let (_, list) = site.proxy.get(path).expect("a list");
        let (_, id) = list.split_once("\"id\":").expect("a session");
        let end = id.find(',').expect("more");
        site.proxy.kill(&id[..end]);
    });
    assert_eq!(verdicts, [["FAIL UPLOAD"], ["FAIL DOWNLOAD"]]);
}

fn ftp_transfers_cut_by_the_drain_have_failed() {
    let timeout = "drain: { timeout: 500ms }";
    let verdicts = verdicts_of_cut(timeout, |site| site.proxy.signal(Signal::TERM));
    // The control connection goes as well, after which the server may say nothing at all.
    let whole = |verdict: &String| verdict.starts_with("OK");
    assert!(!verdicts.iter().flatten().any(whole), "{verdicts:?}");
}
