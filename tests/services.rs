//! pulsegate in front of real services, used by their real clients: Redis, PostgreSQL, nginx,
//! FTP, telnet; then many sessions, many bytes and bad input. Each test starts what it needs on
//! free ports of the loopback, judges by bytes and by metrics, and leaves nothing behind.
//!
//! `cargo test --test services -- --list` shows the cases. A tool that is missing fails them
//! where `CI` is set, and skips them loudly elsewhere. On Debian:
//! `apt-get install redis-server postgresql nginx-light wrk curl vsftpd tnftp inetutils-telnet
//! inetutils-telnetd openssl stunnel4 haproxy memcached mosquitto mosquitto-clients mariadb-server-core
//! mariadb-client-core openssh-server openssh-client python3 strace`. About 1 GB of the folder for temporary
//! files is used for a while.
#![allow(clippy::disallowed_methods, reason = "measures real time")]

mod support;

#[path = "services/admission.rs"]
mod admission;
#[path = "services/bad_input.rs"]
mod bad_input;
#[path = "services/bytes.rs"]
mod bytes;
#[path = "services/checks.rs"]
mod checks;
#[path = "services/control.rs"]
mod control;
#[path = "services/ftp.rs"]
mod ftp;
#[path = "services/heartbeat_bytes.rs"]
mod heartbeat_bytes;
#[path = "services/heartbeats.rs"]
mod heartbeats;
#[path = "services/http.rs"]
mod http;
#[path = "services/https.rs"]
mod https;
#[path = "services/many.rs"]
mod many;
#[path = "services/mariadb.rs"]
mod mariadb;
#[path = "services/papers.rs"]
mod papers;
#[path = "services/postgres.rs"]
mod postgres;
#[path = "services/probe.rs"]
mod probe;
#[path = "services/process.rs"]
mod process;
#[path = "services/proxy_protocol.rs"]
mod proxy_protocol;
#[path = "services/pulsegate.rs"]
mod pulsegate;
#[path = "services/redis.rs"]
mod redis;
#[path = "services/scan.rs"]
mod scan;
#[path = "services/scan_services.rs"]
mod scan_services;
#[path = "services/telnet.rs"]
mod telnet;
#[path = "services/tls.rs"]
mod tls;
#[path = "services/tls_bytes.rs"]
mod tls_bytes;
#[path = "services/tls_faults.rs"]
mod tls_faults;
#[path = "services/tls_keys.rs"]
mod tls_keys;
#[path = "services/tls_peers.rs"]
mod tls_peers;
#[path = "services/upstreams.rs"]
mod upstreams;

use std::process::ExitCode;

use ::pulsegate::sys::netns;
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Some of these tests wait and some compute.
const THREADS: usize = 4;
/// Asked for, and had where this process may raise its hard limit; the tests do with less.
const DESCRIPTORS: u64 = 65_536;

/// A test and what the machine must have for it.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    tools: &'static [&'static str],
    namespaces: bool,
    root: bool,
    body: fn(),
}

impl Case {
    const fn new(name: &'static str, tools: &'static [&'static str], body: fn()) -> Self {
        Self {
            name,
            tools,
            namespaces: false,
            root: false,
            body,
        }
    }

    /// The same in private network namespaces.
    const fn isolated(mut self) -> Self {
        self.namespaces = true;
        self
    }

    /// The same with accounts other than the one that runs the tests.
    const fn as_root(mut self) -> Self {
        self.root = true;
        self
    }

    /// What the machine lacks.
    fn missing(&self, namespaces: &std::io::Result<()>) -> Option<String> {
        let tools = self.tools.iter().filter(|t| process::find(t).is_none());
        let mut missing: Vec<String> = tools.map(ToString::to_string).collect();
        if let (true, Err(error)) = (self.namespaces, namespaces) {
            missing.push(format!("network namespaces ({error})"));
        }
        if self.root && !rustix::process::geteuid().is_root() {
            missing.push("root".to_owned());
        }
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

fn trial(case: Case, missing: Option<String>) -> Trial {
    let Some(missing) = missing else {
        return Trial::test(case.name, move || {
            (case.body)();
            Ok(())
        });
    };
    if std::env::var_os("CI").is_some() {
        let why = format!("missing, and this is CI: {missing}");
        return Trial::test(case.name, || Err(why.into()));
    }
    eprintln!("SKIPPED: {}: missing: {missing}", case.name);
    Trial::test(case.name, || Ok(())).with_ignored_flag(true)
}

fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let wanted = maximum.map(|limit| limit.max(DESCRIPTORS));
    for limit in [wanted, maximum] {
        let raised = Rlimit {
            current: limit,
            maximum: limit,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return;
        }
    }
}

fn main() -> ExitCode {
    // To be asked for while the process has one thread.
    let namespaces = netns::prepare();
    raise_descriptor_limit();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let all = [
        many::CASES,
        postgres::CASES,
        http::CASES,
        ftp::CASES,
        telnet::CASES,
        redis::CASES,
        upstreams::CASES,
        admission::CASES,
        control::CASES,
        bad_input::CASES,
        proxy_protocol::CASES,
        checks::CASES,
        probe::CASES,
        https::CASES,
        tls::CASES,
        tls_bytes::CASES,
        tls_faults::CASES,
        tls_keys::CASES,
        tls_peers::CASES,
        heartbeats::CASES,
        heartbeat_bytes::CASES,
        scan::CASES,
        scan_services::CASES,
    ];
    let trials = all.concat().into_iter().map(|case| {
        let missing = case.missing(&namespaces);
        trial(case, missing)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
