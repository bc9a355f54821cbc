//! `pulsegate doctor`.

use std::collections::BTreeMap;
use std::io::stdout;
use std::iter;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Resource, getrlimit};
use rustix::termios::tcgetwinsize;
use serde_json::json;

use super::{Output, RunArgs, refuse, write_out};
use crate::admin::client::Format;
use crate::app::{self, TlsFiles};
use crate::config::keys::{Default, KEYS};
use crate::config::{self, Config, MemoryLimit, UpstreamAddress};
use crate::exit::Exit;
use crate::host::checks::{self, Check, Demands, Facts, Memory, Status, Upstream};
use crate::metrics::wall_clock;
use crate::telemetry::{Colours, colours_of};
use crate::tls::{Chain, Concern};

pub(super) const MORE: &str = "\
Without a configuration the host is judged by the defaults.
These are the most used flags: --help shows every flag, and the exit codes.";

pub(super) const ABOUT: &str = "\
With a configuration (--config, or the flags of run) the host is judged by it, else by the \
defaults. Each check: ok, info, unknown, warn or fail; its name; what was read; what it means; the \
setting to change. The worst come last, and the last line counts them. unknown: a container or sandbox \
hides it. Takes about a second, because a test connection must become quiet.

Run it where pulsegate runs: same container, same user, same limits.

Exit codes:
  0  nothing fails; there may be warnings
  1  the promise, or what the configuration asks for, cannot be kept on this host
  2  flags or configuration are wrong";

/// `pulsegate doctor`.
#[derive(Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn doctor(args: &Doctor) -> ExitCode {
    let given = (!args.run.is_empty()).then(|| args.run.load());
    let config = match given.transpose() {
        Ok(config) => config,
        Err(errors) => return refuse(&errors),
    };
    let mut checks = checks::all(&Facts::find(), &demands(config.as_ref()));
    checks.extend(config.iter().flat_map(certificates));
    let worst = checks.iter().map(|check| check.status).max();
    let worst = worst.unwrap_or(Status::Ok);
    let printed = write_out(&match args.output.format() {
        Format::Json => format!("{:#}\n", json!({ "worst": worst, "checks": checks })),
        Format::Text => text(checks, terminal_width(), colours_of(&stdout())),
    });
    if worst == Status::Fail {
        return Exit::Failure.into();
    }
    printed
}

/// Width of the terminal, or what fits everywhere.
fn terminal_width() -> usize {
    let size = tcgetwinsize(stdout()).ok();
    let columns = size.map(|size| usize::from(size.ws_col));
    columns.filter(|columns| *columns > 0).unwrap_or(80)
}

/// Columns of the status and of the name of a check.
const STATUS: usize = 8;
const NAME: usize = 20;

/// The worst come last, where a terminal shows them, and are counted below.
fn text(mut checks: Vec<Check>, width: usize, colours: Colours) -> String {
    checks.sort_by_key(|check| check.status);
    let lines: String = checks.iter().map(|c| of_check(c, width, colours)).collect();
    lines + &summary(&checks) + "\n"
}

fn of_check(check: &Check, width: usize, colours: Colours) -> String {
    let room = width.saturating_sub(STATUS + NAME).max(20);
    let mut lines = wrapped(&format!("{}: {}", check.found, check.meaning), room);
    if let Some(setting) = &check.setting {
        lines.extend(wrapped(&format!("set: {setting}"), room));
    }
    let status = painted(check.status, colours);
    let head = format!("{status}{:<NAME$}", check.name);
    let below = " ".repeat(STATUS + NAME);
    let heads = iter::once(&head).chain(iter::repeat(&below));
    let lines = heads
        .zip(&lines)
        .map(|(head, line)| format!("{head}{line}\n"));
    lines.collect()
}

fn painted(status: Status, colours: Colours) -> String {
    let word = format!("{status:<STATUS$}");
    let colour = match status {
        _ if colours == Colours::Plain => return word,
        Status::Ok => 32,
        Status::Info | Status::Unknown => return word,
        Status::Warn => 33,
        Status::Fail => 31,
    };
    format!("\x1b[{colour}m{word}\x1b[0m")
}

/// Lines of no more columns, but where a word is longer: it may be a setting to copy.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How many checks ended how, the worst first.
fn summary(checks: &[Check]) -> String {
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let warnings = match count(Status::Warn) {
        1 => "1 warning".to_owned(),
        n => format!("{n} warnings"),
    };
    let others = [(Status::Unknown, "unknown"), (Status::Info, "info")];
    let others = others.map(|(status, word)| (count(status), word));
    let others = others.into_iter().filter(|(n, _)| *n > 0);
    let others = others.map(|(n, word)| format!("{n} {word}"));
    let first = [format!("{} failed", count(Status::Fail)), warnings];
    let last = [format!("{} ok", count(Status::Ok))];
    let all: Vec<_> = first.into_iter().chain(others).chain(last).collect();
    all.join(", ")
}

fn demands(config: Option<&Config>) -> Demands {
    let listeners = config.map_or(&[][..], |config| &config.listeners);
    let backlog = listeners.iter().map(|l| u64::from(l.backlog)).max();
    let limits = listeners.iter().map(|l| l.limits.max_connections);
    let configured = config.and_then(|config| config.workers);
    let workers = configured.map_or_else(app::default_workers, usize::from);
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let admin = config.and_then(|config| config.admin.as_ref());
    Demands {
        backlog: backlog.unwrap_or_else(default_backlog),
        // Without a configuration there is nothing to add up, and no limit.
        sessions: limits
            .map(|limit| limit.map(u64::from))
            .sum::<Option<u64>>()
            .filter(|_| !listeners.is_empty()),
        reserved_descriptors: app::reserved_descriptors(limit, workers, listeners, admin),
        workers: workers as u64,
        upstreams: upstreams(listeners),
        memory: memory(config.map_or(MemoryLimit::Auto, |config| config.limits.memory)),
    }
}

/// What becomes of the certificates and keys; nothing where there are none.
fn certificates(config: &Config) -> Vec<Check> {
    let check = |status, found, meaning: &str, setting: Option<&str>| Check {
        name: "certificates",
        status,
        found,
        meaning: meaning.to_owned(),
        setting: setting.map(str::to_owned),
    };
    let TlsFiles { chains, concerns } = match TlsFiles::read(config) {
        Ok(files) => files,
        Err(errors) => {
            let found = errors.lines().join(" | ");
            return vec![check(Status::Fail, found, "pulsegate does not start", None)];
        }
    };
    let ends = |chain: &&Chain| chain.ends_first.not_after.seconds;
    let dates = chains.iter().min_by_key(ends).map(|first| {
        let validity = first.ends_first.validity(wall_clock());
        let (n, file, whose) = (chains.len(), first.file.display(), first.whose_end());
        let found = format!("{n} in use; the first to end, {file}{whose}, {validity}");
        match validity.needs_renewal() {
            true => {
                let meaning = "peers refuse it without notice";
                check(Status::Warn, found, meaning, Some("a new one"))
            }
            false => check(Status::Ok, found, "they are good", None),
        }
    });
    let warned = |concern: Concern| {
        let Concern {
            found,
            meaning,
            remedy,
        } = concern;
        check(Status::Warn, found, meaning, Some(remedy))
    };
    let concerns = concerns.into_iter().map(warned);
    dates.into_iter().chain(concerns).collect()
}

fn memory(limit: MemoryLimit) -> Memory {
    match limit {
        MemoryLimit::Auto => Memory::Group,
        MemoryLimit::Off => Memory::Unwatched,
        MemoryLimit::Bytes(bytes) => Memory::Process(bytes),
    }
}

/// As the key table has it.
fn default_backlog() -> u64 {
    let key = KEYS.iter().find(|key| key.path == "listeners[].backlog");
    match key.map(|key| key.default) {
        Some(Default::Value(text)) => text.parse().unwrap_or_default(),
        _ => 0,
    }
}

/// Each service once, with the sessions of all listeners that lead there.
fn upstreams(listeners: &[config::ListenerConfig]) -> Vec<Upstream> {
    let mut upstreams = BTreeMap::new();
    let places = listeners.iter().flat_map(|listener| {
        let addresses = listener.upstream.addresses();
        addresses.map(move |address| (listener, address))
    });
    for (listener, address) in places {
        let sessions = listener.limits.max_connections.map(u64::from);
        upstreams
            .entry(address.to_string())
            .and_modify(|known: &mut Upstream| {
                known.sessions = known.sessions.zip(sessions).map(|(a, b)| a + b);
            })
            .or_insert_with_key(|name| Upstream {
                name: name.clone(),
                sessions,
                queue: match address {
                    UpstreamAddress::Socket(address) => checks::visible_queue(Some(*address)),
                    UpstreamAddress::Unix(_) | UpstreamAddress::Name { .. } => None,
                },
            });
    }
    upstreams.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demands_of(yaml: &str) -> Demands {
        demands(Some(&config::load("f", yaml.as_bytes()).expect("valid")))
    }

    #[test]
    fn the_worst_come_last_and_lines_fit() {
        let check = |name, status, setting: Option<&str>| Check {
            name,
            status,
            found: "1024".to_owned(),
            meaning: "room for 456 sessions, which is fewer than the limits add up to".to_owned(),
            setting: setting.map(str::to_owned),
        };
        let checks = vec![
            check("descriptors", Status::Fail, Some("ulimit -n 4112")),
            check("window", Status::Ok, None),
            check("time_wait", Status::Warn, None),
            check("tcp_mem", Status::Unknown, None),
        ];
        let expected = "\
ok      window              1024: room for 456 sessions,
                            which is fewer than the limits
                            add up to
unknown tcp_mem             1024: room for 456 sessions,
                            which is fewer than the limits
                            add up to
warn    time_wait           1024: room for 456 sessions,
                            which is fewer than the limits
                            add up to
fail    descriptors         1024: room for 456 sessions,
                            which is fewer than the limits
                            add up to
                            set: ulimit -n 4112
1 failed, 1 warning, 1 unknown, 1 ok
";
        let plain = text(checks.clone(), 60, Colours::Plain);
        assert_eq!(plain, expected, "\n{plain}");
        let coloured = text(checks, 60, Colours::Shown);
        assert!(coloured.contains("\n\x1b[31mfail    \x1b[0mdescriptors"));
        assert_eq!(summary(&[]), "0 failed, 0 warnings, 0 ok");
    }

    #[test]
    fn sessions_are_added_up_where_all_are_limited() {
        let yaml = "\
listeners:
  - {name: a, address: '127.0.0.1:9001', backlog: 7, upstream: {address: 'db:1'}, limits: {max_connections: 10}}
  - {name: b, address: '127.0.0.1:9002', backlog: 9, upstream: {address: 'db:1'}, limits: {max_connections: 5}}
  - {name: c, address: '127.0.0.1:9003', backlog: 8, upstream: {address: 'db:2'}}
";
        let demands = demands_of(yaml);
        assert_eq!((demands.backlog, demands.sessions), (9, None));
        let found: Vec<_> = demands.upstreams.iter().map(|u| u.sessions).collect();
        assert_eq!(found, [Some(15), None]);
        let two = yaml.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(demands_of(&two).sessions, Some(15));
    }

    #[test]
    fn without_a_configuration_the_defaults_are_judged() {
        let demands = demands(None);
        assert_eq!((demands.backlog, demands.sessions), (4096, None));
        assert!(demands.upstreams.is_empty() && demands.workers > 0);
        assert_eq!(demands.memory, Memory::Group);
    }

    #[test]
    fn the_memory_limit_is_the_configured_one() {
        let yaml = "listeners: [{address: '127.0.0.1:9001', upstream: {address: 'db:1'}}]\n";
        let of = |memory: &str| demands_of(&format!("{yaml}limits: {{memory: {memory}}}\n")).memory;
        assert_eq!(of("64MiB"), Memory::Process(64 << 20));
        assert_eq!((of("auto"), of("off")), (Memory::Group, Memory::Unwatched));
    }
}
