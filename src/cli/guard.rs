//! `pulsegate guard`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::config::LogFormat;
use crate::guard::{self, AtTheEnd, Mode, Orders};
use crate::scan::{self, Matching};

pub(super) const ABOUT: &str = "\
Looks at the connections of all processes of this network namespace every fifth of --detect-within, and \
gives those that match, and that would be noticed later, keepalive options by which the kernel ends a peer \
that vanished. No byte passes through it. Each change is logged with the options as they were. A connection \
whose application asks for as much is left alone.

--match takes KEY=VALUE, several with commas, all of which must hold; give it several times for more. Keys: \
port (either end), local-port, peer-port, peer (IP or CIDR), process (name), pid, cgroup (or one above).

It needs the right to trace the processes: the same user, or CAP_SYS_PTRACE. docs/SCAN.md says what it \
cannot do that the proxy can.";

/// `pulsegate guard`.
#[derive(Args)]
pub(super) struct Guard {
    /// Which connections
    #[arg(long = "match", value_name = "KEY=VALUE,...", required = true)]
    matching: Vec<Matching>,
    /// How soon a peer that is gone is to be noticed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = scan::detect_within)]
    detect_within: Duration,
    /// Change nothing: log what would be changed
    #[arg(long)]
    dry_run: bool,
    /// At the end, put back the options as they were
    #[arg(long)]
    restore_on_exit: bool,
    /// Serve metrics, /livez and /readyz here: 127.0.0.1:9901
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
    /// Log JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn guard(args: Guard) -> ExitCode {
    let exit = guard::run(Orders {
        matching: args.matching,
        detect_within: args.detect_within,
        mode: match args.dry_run {
            true => Mode::DryRun,
            false => Mode::Act,
        },
        at_the_end: match args.restore_on_exit {
            true => AtTheEnd::Restore,
            false => AtTheEnd::Leave,
        },
        admin: args.admin,
        log: match args.json {
            true => LogFormat::Json,
            false => LogFormat::Text,
        },
    });
    exit.into()
}
