//! `pulsegate doctor`.

use std::io::stdout;
use std::iter;
use std::process::ExitCode;

use clap::Args;
use rustix::termios::tcgetwinsize;
use serde_json::json;

use super::{Output, RunArgs, refuse, write_out};
use crate::admin::client::Format;
use crate::app;
use crate::exit::Exit;
use crate::host::checks::{Check, Checks, Status};
use crate::telemetry::{Colours, colours_of};

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
    let found = Checks::of(app::doctor::of_host(config.as_ref(), args.run.file()));
    let worst = found.worst;
    let printed = write_out(&match args.output.format() {
        Format::Json => format!("{:#}\n", json!(found)),
        Format::Text => text(found.checks, terminal_width(), colours_of(&stdout())),
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
