//! Flags and subcommands.

mod address;
mod args;
mod doctor;
mod guard;
mod kube;
mod probe;
mod remote;
mod scan;
mod top;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::admin::client::Format;
use crate::app::{Succession, explain};
use crate::config::{ConfigErrors, schema};
use crate::exit::{self, Exit};
use crate::sys;

pub use args::RunArgs;
use doctor::Doctor;
use guard::Guard;
use kube::Kube;
use probe::Probe;
use remote::{Conns, Drain, Healthcheck, Kill, OfListener, Reload, Verify};
use scan::Scan;

const EXIT_CODES: &str = "\
Exit codes:
  0  done as asked
  1  failed while running, or named a listener that is not there
  2  flags, filters or configuration are wrong
  3  an address could not be listened on
  4  verify: a peer did not answer, or could not be asked enough to tell
  5  probe: nobody could be connected to
  6  probe: the handshake of TLS failed
  7  probe: the certificate is not to be trusted
  8  probe: the server ended the connection before it said anything
  9  scan: an unprotected or suspect connection was found";

const MORE: &str = "pulsegate COMMAND -h shows the most used flags, --help every flag.\nExit codes: pulsegate --help";

const MORE_FLAGS: &str = "\
Either --config, or --listen and --upstream with any of the other flags. \
These are the most used ones: --help shows every flag.";

const ABOUT_SETTINGS: &str = "\
Either --config, or --listen and --upstream with any of the other flags. \
Durations are a whole number and a unit: 500ms, 10s, 5m, 1h; 0s is off.";

const ABOUT_EXPLAIN: &str = "\
Either --config, or --listen and --upstream with any of the other flags. \
Durations are a whole number and a unit: 500ms, 10s, 5m, 1h; 0s is off. \
Files with certificates and keys are not read: pulsegate check does that.";

const ABOUT_RUN: &str = "\
Either --config, or --listen and --upstream with any of the other flags. \
Durations are a whole number and a unit: 500ms, 10s, 5m, 1h; 0s is off.

SIGTERM and SIGINT drain; the second one ends every session. The first one after `pulsegate drain` changes nothing. \
SIGHUP reads the --config file again.
SIGUSR1 and SIGUSR2 are ignored with one line in the log.

--takeover: once this instance is ready, the running instance of the same user, network namespace and \
admin address hands over its listening sockets and drains. No client is refused. A listener with \
max_connections waits until the other instance has no session on it; clients wait meanwhile. Without a \
running instance the flag has no effect.";

const ABOUT_RELOAD: &str = "\
Prints what became of each key that differs: applied, in force for new sessions only, or not before a \
restart. Where the file is wrong, nothing changes, and everything that is wrong is printed.

Exit codes: 0 reloaded; 1 failed, or there is no file; 2 the file is wrong, or an address cannot be had.";

const ABOUT_VERIFY: &str = "\
Nothing is written into a connection. A live peer answers in a round trip. A silent peer is proven \
so in 0.8 to 2.2 s; with data in flight or a closed window it takes six retransmissions or window \
probes, a second apart. A peer that was heard within the last second is not asked. Without --quick \
nothing is ended. --quick may end a live peer whose link is down for that long; behind 10 % loss each \
way it ends fewer than 1 in 10,000 live peers.

Exit codes: 0 every peer answered; 1 failed, or no such session; 2 wrong flags; 4 a peer did not answer, or could \
not be asked enough to tell.";

#[derive(Parser)]
#[command(name = "pulsegate", version, about, after_help = MORE, after_long_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    #[command(after_help = MORE_FLAGS, after_long_help = ABOUT_RUN)]
    Run(Run),
    /// Check a configuration and print what follows from it
    #[command(after_help = MORE_FLAGS, after_long_help = ABOUT_SETTINGS)]
    Check(RunArgs),
    /// Print which fault is found how, and after what time at the latest
    #[command(after_help = MORE_FLAGS, after_long_help = ABOUT_EXPLAIN)]
    Explain(RunArgs),
    /// Judge this host: what bounds the promise here, and what to change
    #[command(after_help = doctor::MORE, after_long_help = doctor::ABOUT)]
    Doctor(Doctor),
    /// Say what a client would meet at a server: connect, TLS handshake, certificate, first byte
    #[command(after_help = probe::ABOUT)]
    Probe(Probe),
    /// Find connections of any process of this host whose peers may be gone unnoticed
    #[command(after_help = scan::ABOUT)]
    Scan(Scan),
    /// Have the kernel find vanished peers of other processes, with no proxy in their path
    #[command(after_help = guard::ABOUT)]
    Guard(Guard),
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Ask a running pulsegate whether it lives
    Healthcheck(Healthcheck),
    /// Have a running pulsegate read its configuration file again
    #[command(after_help = ABOUT_RELOAD)]
    Reload(Reload),
    /// Have a running pulsegate drain and end
    Drain(Drain),
    /// Print the sessions of a running pulsegate
    Conns(Conns),
    /// Print the endpoints of the services, and how they stand
    Upstreams(OfListener),
    /// Print the last sessions that ended because a peer was gone or hung, and how often each peer was
    Found(OfListener),
    /// Watch listeners and sessions of a running pulsegate, and act on them
    #[command(after_help = top::ABOUT)]
    Top(top::Top),
    /// Ask the peers of sessions now whether they live
    #[command(after_help = ABOUT_VERIFY)]
    Verify(Verify),
    /// End sessions: RST to both peers after what was received was delivered (on_end: close: FIN)
    Kill(Kill),
    /// Work on manifests of Kubernetes
    #[command(subcommand)]
    Kube(Kube),
    /// Print the version
    Version,
    /// Watch a client vanish and be found: everything in one process, nothing to set up
    Demo(crate::demo::Options),
}

/// For people or for programs.
#[derive(Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Output {
    fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::Text
        }
    }
}

/// `pulsegate run`.
#[derive(Args)]
struct Run {
    /// Take over from the instance with the same admin address
    #[arg(long)]
    takeover: bool,
    #[command(flatten)]
    args: RunArgs,
}

/// The flags and subcommands, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // To parse takes milliseconds.
    sys::hold_end_signals();
    let parsed = Cli::try_parse();
    if !matches!(&parsed, Ok(cli) if matches!(cli.command, Command::Run(_))) {
        sys::release_end_signals();
    }
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let error = advised(error);
            // Help goes to standard output, errors to standard error; a closed one is no failure.
            let usage = error.use_stderr();
            if !usage || exit::can_complain() {
                let _ = error.print();
            }
            return if usage { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    match cli.command {
        Command::Run(Run { takeover, args }) => {
            let succession = if takeover {
                Succession::Takeover
            } else {
                Succession::Restart
            };
            let file = args.file().map(Path::to_owned);
            crate::app::run(move || args.load(), file, succession)
        }
        Command::Check(args) => check(&args),
        Command::Explain(args) => print(args.load().map(|config| explain::explain(&config))),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Probe(args) => probe::probe(&args),
        Command::Scan(args) => scan::scan(&args),
        Command::Guard(args) => guard::guard(args),
        Command::Schema => write_out(&format!("{:#}\n", schema::json())),
        Command::Version => write_out(concat!("pulsegate ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Healthcheck(args) => remote::healthcheck(&args),
        Command::Reload(args) => remote::reload(&args),
        Command::Drain(args) => remote::drain(&args),
        Command::Conns(args) => remote::conns(&args),
        Command::Upstreams(args) => remote::upstreams(&args),
        Command::Found(args) => remote::found(&args),
        Command::Top(args) => top::top(&args),
        Command::Verify(args) => remote::verify(&args),
        Command::Kill(args) => remote::kill(&args),
        Command::Kube(command) => kube::kube(&command),
        Command::Demo(options) => crate::demo::run(&options),
    }
}

/// Whoever gives the configuration file as a bare word is told of its flag.
fn advised(mut error: clap::Error) -> clap::Error {
    let name = std::env::args_os().nth(1).unwrap_or_default();
    let name = name.to_string_lossy();
    let takes_file = ["run", "check", "explain", "doctor"].contains(&&*name);
    let word = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    if let Some(word) = word.filter(|word| takes_file && !word.starts_with('-')) {
        let advice = format!("for a configuration file: pulsegate {name} -c {word}");
        let advice = ContextValue::StyledStrs(vec![advice.into()]);
        error.insert(ContextKind::Suggested, advice);
    }
    error
}

/// The files that the configuration names, too.
fn check(args: &RunArgs) -> ExitCode {
    let text = args.load().and_then(|config| {
        let files = crate::app::TlsFiles::read(&config, args.file())?;
        Ok(explain::summary(&args.source(), &config) + &explain::files(&files))
    });
    print(text)
}

fn print(text: Result<String, ConfigErrors>) -> ExitCode {
    match text {
        Ok(text) => write_out(&text),
        Err(errors) => refuse(&errors),
    }
}

fn refuse(errors: &ConfigErrors) -> ExitCode {
    exit::complain(&errors.to_string());
    Exit::Usage.into()
}

/// A reader that has seen enough (`pulsegate schema | head`) is no failure.
fn write_out(text: &str) -> ExitCode {
    exit_of(&put_out(text))
}

fn put_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// A reader that has left has seen enough.
fn exit_of(written: &io::Result<()>) -> ExitCode {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            exit::complain(&format!("cannot write to standard output: {error}"));
            Exit::Failure.into()
        }
        _ => Exit::Ok.into(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_flags_are_consistent() {
        super::command().debug_assert();
    }

    /// Whoever types `-h` wants to see the beginning without scrolling back.
    #[test]
    fn the_short_help_fits_a_screen() {
        let help_of = |arguments: &[&str]| {
            let command = super::command().term_width(80);
            let found = command.try_get_matches_from(arguments);
            found.expect_err("help").to_string()
        };
        let short = help_of(&["pulsegate", "-h"]);
        assert!(short.lines().count() <= 40, "{short}");
        for name in ["run", "check", "explain", "doctor"] {
            let short = help_of(&["pulsegate", name, "-h"]);
            let lines = short.lines().count();
            assert!((15..=40).contains(&lines), "{lines} lines: {short}");
            let long = help_of(&["pulsegate", name, "--help"]);
            for (flag, heading) in [
                ("--listen ", "Listener and upstream:"),
                ("--detect-within ", "Liveness:"),
                ("--source-prefix-ipv6 ", "Limits:"),
                ("--tls-sni ", "TLS:"),
                ("--upstream-tls-ca ", "TLS:"),
                ("--heartbeat-leg ", "Heartbeats:"),
                ("--check-rise ", "Checks of the service:"),
                ("--upstream-proxy-protocol ", "PROXY protocol:"),
                ("--access-log ", "Log:"),
                ("--admin-ready ", "Admin endpoint:"),
                ("--workers ", "Process:"),
            ] {
                let at = long
                    .find(flag)
                    .unwrap_or_else(|| panic!("{flag} in {long}"));
                let mut headings = long[..at]
                    .lines()
                    .filter(|l| !l.starts_with(' ') && l.ends_with(':'));
                assert_eq!(headings.next_back(), Some(heading), "{flag}");
            }
        }
    }
}
