//! nginx: downloads, uploads, ranges, slow and kept-alive clients, and load.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::Case;
use crate::bytes::{Stream, expect_end, expect_file, write_file};
use crate::process::{Folder, Process, free_address, run, tool};
use crate::pulsegate::{Pulsegate, closed};
use crate::support::certificates::Certified;

pub const CASES: &[Case] = &[
    Case::new(
        "nginx_downloads_and_uploads_are_byte_exact",
        &["nginx", "curl"],
        nginx_downloads_and_uploads_are_byte_exact,
    ),
    Case::new(
        "nginx_serves_slow_ranged_and_kept_alive_requests",
        &["nginx", "curl"],
        nginx_serves_slow_ranged_and_kept_alive_requests,
    ),
    Case::new("wrk_sees_no_error", &["nginx", "wrk"], wrk_sees_no_error),
];

const SMALL: usize = 1_000;
const MIDDLE: usize = 10_000_000;
const LARGE: usize = 200_000_000;

/// An nginx of the test's own: it serves `www` and stores what is PUT there.
pub struct Nginx {
    _process: Process,
    pub folder: Folder,
    pub address: SocketAddr,
}

impl Nginx {
    /// Starts it with files of these sizes, which are their names and their seeds, too.
    fn start(files: &[usize]) -> Self {
        Self::start_with(files, "")
    }

    /// The same with a certificate.
    pub fn start_tls(files: &[usize], own: &Certified) -> Self {
        let (chain, key) = (own.chain.display(), own.key.display());
        let ssl = format!(" ssl; ssl_certificate {chain}; ssl_certificate_key {key}");
        Self::start_with(files, &ssl)
    }

    /// Further words behind its address.
    pub fn start_with(files: &[usize], more: &str) -> Self {
        let (folder, address) = (Folder::new(), free_address());
        let www = folder.join("www");
        fs::create_dir(&www).expect("make a folder");
        for size in files {
            write_file(&www.join(size.to_string()), *size as u64, *size);
        }
        let settings = folder.join("nginx.conf");
        fs::write(&settings, settings_of(&folder, address, more)).expect("write the settings");
        let mut command = tool("nginx");
        command
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&settings);
        command.args(["-e", "stderr"]);
        let mut process = Process::start(&mut command);
        process.wait_until(|_| TcpStream::connect(address).is_ok());
        Self {
            _process: process,
            folder,
            address,
        }
    }
}

fn settings_of(folder: &Folder, address: SocketAddr, more: &str) -> String {
    let here = folder.path().display();
    // Only root may, and must, name the user who is to read the folder.
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
        .concat();
    format!(
        "daemon off; worker_processes 2; {user}
pid {here}/pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
{temporary}
access_log off; sendfile on; keepalive_requests 1000000; client_max_body_size 0;
server {{ listen {address}{more}; root {here}/www; location / {{ dav_methods PUT; }} }}
}}
"
    )
}

/// curl that fails when the server refuses, and says only why.
pub fn curl() -> Command {
    let mut command = tool("curl");
    command.args(["-q", "-sS", "--fail", "--noproxy", "*", "--max-time", "100"]);
    command
}

fn nginx_downloads_and_uploads_are_byte_exact() {
    let nginx = Nginx::start(&[SMALL, MIDDLE, LARGE]);
    let proxy = Pulsegate::start(nginx.address, &["--detect-within", "5s"]);
    let url = |name: &str| format!("http://{}/{name}", proxy.address);
    let got = nginx.folder.join("got");
    for size in [SMALL, MIDDLE, LARGE] {
        run(curl().arg("-o").arg(&got).arg(url(&size.to_string())));
        expect_file(&got, size as u64, size);
    }
    let file = nginx.folder.join("www").join(LARGE.to_string());
    run(curl().arg("-T").arg(&file).arg(url("put")));
    expect_file(&nginx.folder.join("www/put"), LARGE as u64, LARGE);
    proxy.expect_all_closed("finished", 4);
}

fn nginx_serves_slow_ranged_and_kept_alive_requests() {
    let nginx = Nginx::start(&[SMALL, MIDDLE]);
    let proxy = Pulsegate::start(nginx.address, &["--detect-within", "2s"]);
    let url = |size: usize| format!("http://{}/{size}", proxy.address);
    let got = nginx.folder.join("got");

    // Slow for twice as long as detect_within.
    run(curl()
        .args(["--limit-rate", "2500k", "-o"])
        .arg(&got)
        .arg(url(MIDDLE)));
    expect_file(&got, MIDDLE as u64, MIDDLE);

    run(curl()
        .args(["-r", "5000000-7999999", "-o"])
        .arg(&got)
        .arg(url(MIDDLE)));
    let part = fs::read(&got).expect("read a file");
    let mut from = part.as_slice();
    let mut stream = Stream::new(MIDDLE as u64);
    stream
        .send(&mut std::io::sink(), 5_000_000)
        .expect("skipped");
    stream.receive(&mut from, 3_000_000).expect("the range");
    expect_end(&mut from).expect("only the range");

    let mut kept_alive = curl();
    kept_alive.args(["-w", "%{num_connects} %{size_download}\\n"]);
    for size in [SMALL, MIDDLE, SMALL, SMALL] {
        kept_alive.args(["-o", "/dev/null", &url(size)]);
    }
    let lines = run(&mut kept_alive);
    assert_eq!(
        lines,
        format!("1 {SMALL}\n0 {MIDDLE}\n0 {SMALL}\n0 {SMALL}\n")
    );
    proxy.expect_all_closed("finished", 3);
}

fn wrk_sees_no_error() {
    let nginx = Nginx::start(&[SMALL]);
    let proxy = Pulsegate::start(nginx.address, &["--detect-within", "3s"]);
    let mut wrk = tool("wrk");
    wrk.args(["-t2", "-c64", "-d3s", "--timeout", "20s"]);
    let report = run(wrk.arg(format!("http://{}/{SMALL}", proxy.address)));
    assert!(report.contains("requests in"), "{report}");
    for bad in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(bad), "{report}");
    }
    let metrics = proxy.expect_settled();
    let ends = metrics.excerpt("pulsegate_connections_closed_total");
    // It leaves when its time is over, with answers on their way.
    let ended = closed(&metrics, "finished") + closed(&metrics, "downstream_reset");
    assert_eq!(
        ended,
        metrics.value("pulsegate_connections_closed_total", &[]),
        "{ends}"
    );
    assert!(ended >= 64.0, "{ends}");
}
