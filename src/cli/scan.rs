//! `pulsegate scan`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Output, remote, write_out};
use crate::admin::client::Format;
use crate::exit::{self, Exit};
use crate::lifecycle::EndSignals;
use crate::scan::{self, Matching, Outcome, Processes, Purpose, Refusal, Row, Seen, Survey, Word};
use crate::sys::netns::Namespace;
use crate::sys::sock_diag::SockDiag;

pub(super) const ABOUT: &str = "\
Looks at the TCP connections of all processes of this network namespace. It needs no privilege, changes \
nothing and asks nobody. docs/SCAN.md says what each word means.

unprotected: quiet, and no timer runs: nobody will ever notice if the peer is gone. late: the kernel asks, \
but not within --detect-within. suspect: questions of the kernel are unanswered. stalled: the peer takes no \
data. leaked: the peer has said FIN, and the process does not close.

--verify asks every quiet peer (2,000 a second) with keepalive probes on a copy of the socket, and puts \
every option back. It needs the right to trace the process: the same user, or CAP_SYS_PTRACE.
--end dead ends those that left three questions unanswered: their application reads ETIMEDOUT.

Exit codes: 0 nothing found; 1 failed; 2 wrong flags; 9 an unprotected or suspect connection was found.
With --verify: 4 a peer did not answer, could not be asked, or is suspect or unprotected and busy; else 0.";

/// `pulsegate scan`.
#[derive(Args)]
pub(super) struct Scan {
    /// Connections with this port at either end
    #[arg(long)]
    port: Option<u16>,
    /// Connections to this address or network
    #[arg(long, value_name = "IP|CIDR", value_parser = scan::network)]
    peer: Option<IpNet>,
    /// Connections of the processes of this name
    #[arg(long, value_name = "NAME", conflicts_with = "pid")]
    process: Option<String>,
    /// Connections of this process, in its network namespace
    #[arg(long)]
    pid: Option<u32>,
    /// Look at this network namespace
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "pid")]
    netns: Option<PathBuf>,
    /// How soon a peer that is gone has to be noticed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = scan::detect_within)]
    detect_within: Duration,
    /// Ask the quiet peers now whether they live
    #[arg(long)]
    verify: bool,
    /// End those that are proven dead, or one connection by its ends: 10.0.0.1:50000-10.0.0.2:6379
    #[arg(long, value_name = "dead|LOCAL-PEER", value_parser = Target::parse)]
    end: Option<Target>,
    /// Why the one connection is ended, for the output
    #[arg(long, value_name = "TEXT", requires = "end")]
    reason: Option<String>,
    /// List every connection that is not fine
    #[arg(long)]
    sockets: bool,
    #[command(flatten)]
    output: Output,
}

/// What to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Dead,
    One { local: SocketAddr, peer: SocketAddr },
}

impl Target {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "dead" {
            return Ok(Self::Dead);
        }
        // As the ends of connections are shown.
        let end = |text: &str| {
            let end: SocketAddr = text.parse().ok()?;
            Some(SocketAddr::new(end.ip().to_canonical(), end.port()))
        };
        let ends = text.split_once('-').and_then(|(local, peer)| {
            Some(Self::One {
                local: end(local)?,
                peer: end(peer)?,
            })
        });
        ends.ok_or_else(|| {
            "write dead, or LOCAL-PEER such as 10.0.0.1:5000-10.0.0.2:6379".to_owned()
        })
    }
}

/// What no rule of clap can say.
fn misuse(args: &Scan) -> Option<&'static str> {
    match args.end {
        Some(Target::Dead) if args.reason.is_some() => Some("--reason goes with --end LOCAL-PEER"),
        Some(Target::One { .. }) if args.verify => {
            Some("--end LOCAL-PEER asks nobody: it does not go with --verify")
        }
        Some(Target::One { .. }) if args.sockets => {
            Some("--end LOCAL-PEER lists nothing: it does not go with --sockets")
        }
        _ => None,
    }
}

pub(super) fn scan(args: &Scan) -> ExitCode {
    if let Some(why) = misuse(args) {
        return remote::misused(why);
    }
    match run(args) {
        Ok((text, exit)) => match write_out(&text) {
            written if exit == Exit::Ok => written,
            _ => exit.into(),
        },
        Err(why) => {
            exit::complain(&why);
            Exit::Failure.into()
        }
    }
}

fn run(args: &Scan) -> Result<(String, Exit), String> {
    enter(args)?;
    let cannot = |error: io::Error| format!("cannot read the connections by sock_diag(7): {error}");
    let mut diag = SockDiag::open().map_err(cannot)?;
    let matching = [Matching {
        port: args.port,
        peer: args.peer,
        process: args.process.clone(),
        pid: args.pid,
        ..Matching::default()
    }];
    let policy = scan::policy(args.detect_within);
    let survey = scan::survey(&mut diag, &matching, &policy, Processes::default());
    let survey = survey.map_err(cannot)?;
    if survey.connections.is_empty() && matching[0].asks_for_process() && !survey.hidden.is_empty()
    {
        let hidden = survey.hidden.iter();
        let hidden: Vec<String> = hidden.map(|(why, n)| format!("{n}: {why}")).collect();
        let hidden = hidden.join("; ");
        return Err(format!(
            "cannot look into processes that are meant: {hidden}"
        ));
    }
    if survey.connections.is_empty()
        && let Some(name) = &args.process
        && !scan::has_holder(&matching[0]).map_err(cannot)?
    {
        return Err(format!("there is no process called {name}"));
    }
    if let Some(Target::One { local, peer }) = args.end {
        return end_one(&mut diag, &survey, (local, peer), args);
    }
    let outcomes = match (args.end, args.verify) {
        (None, false) => None,
        (None, true) => Some(ask(&mut diag, &survey, Purpose::Tell).map_err(cannot)?),
        (Some(_), _) => Some(ask(&mut diag, &survey, Purpose::End).map_err(cannot)?),
    };
    let report = Report {
        survey: &survey,
        outcomes: outcomes.as_deref(),
        sockets: args.sockets,
    };
    let text = match args.output.format() {
        Format::Json => format!("{:#}\n", report.json()),
        Format::Text => report.text(),
    };
    Ok((text, report.exit()))
}

/// Goes into the namespace that is meant, if it is another one.
fn enter(args: &Scan) -> Result<(), String> {
    let path = match (&args.netns, args.pid) {
        (Some(name), _) if name.components().count() == 1 => PathBuf::from("/run/netns").join(name),
        (Some(path), _) => path.clone(),
        (None, Some(pid)) => {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            match (fs::read_link("/proc/self/ns/net"), fs::read_link(&path)) {
                (Ok(own), Ok(other)) if own != other => path,
                (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(format!("there is no process {pid}"));
                }
                (_, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let why = Refusal::to_read(pid);
                    return Err(format!("cannot look into process {pid}: {why}"));
                }
                _ => return Ok(()),
            }
        }
        (None, None) => return Ok(()),
    };
    let cannot = |grant: &str, error: io::Error| {
        let path = path.display();
        let grant = match error.kind() {
            io::ErrorKind::PermissionDenied => format!(": grant {grant}, or run it in there"),
            _ => String::new(),
        };
        format!("cannot enter the network namespace {path}: {error}{grant}")
    };
    // That of a process is open to those who may trace it.
    let namespace = Namespace::at(&path).map_err(|error| cannot("CAP_SYS_PTRACE", error))?;
    let entered = namespace.enter();
    entered.map_err(|error| cannot("CAP_SYS_ADMIN", error))
}

/// Until it is done, or a signal comes.
fn ask(diag: &mut SockDiag, survey: &Survey, purpose: Purpose) -> io::Result<Vec<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = EndSignals::install()?;
        scan::ask(diag, &survey.connections, purpose, signals.next()).await
    })
}

fn end_one(
    diag: &mut SockDiag,
    survey: &Survey,
    (local, peer): (SocketAddr, SocketAddr),
    args: &Scan,
) -> Result<(String, Exit), String> {
    let is_it = |seen: &&Seen| (seen.id.local(), seen.id.peer()) == (local, peer);
    let seen = survey.connections.iter().find(is_it);
    let seen = seen.ok_or_else(|| format!("no process here holds {local}-{peer}"))?;
    let how = scan::end(diag, seen).map_err(|why| format!("cannot end {local}-{peer}: {why}"))?;
    let text = match args.output.format() {
        Format::Json => {
            let ended = json!({
                "local": local,
                "peer": peer,
                "process": survey.process(seen),
                "pid": seen.owner.map(|owner| owner.pid),
                "reason": args.reason,
                "by": how,
            });
            format!("{:#}\n", json!({ "ended": ended }))
        }
        Format::Text => {
            let process = holder(survey, seen);
            let reason = args.reason.as_ref();
            let reason = reason.map_or(String::new(), |text| format!(" ({text})"));
            format!("ended {local}-{peer} of {process}{reason} by {how}\n")
        }
    };
    Ok((text, Exit::Ok))
}

/// The process and its number.
fn holder(survey: &Survey, seen: &Seen) -> String {
    let name = survey.process(seen);
    seen.owner
        .map_or_else(|| name.to_owned(), |owner| format!("{name} {}", owner.pid))
}

/// What is printed.
struct Report<'a> {
    survey: &'a Survey,
    /// In the order of the connections.
    outcomes: Option<&'a [Outcome]>,
    sockets: bool,
}

/// The outcomes as columns.
const OUTCOMES: [&str; 5] = ["answered", "silent", "ended", "busy", "not_asked"];

const fn column(outcome: &Outcome) -> Option<usize> {
    match outcome {
        Outcome::Answered => Some(0),
        Outcome::Silent => Some(1),
        Outcome::Ended => Some(2),
        Outcome::Busy => Some(3),
        Outcome::Refused(_) | Outcome::NotAsked => Some(4),
        Outcome::Over => None,
    }
}

impl Report<'_> {
    fn exit(&self) -> Exit {
        match self.outcomes {
            None if self
                .survey
                .connections
                .iter()
                .any(|seen| seen.word.is_found()) =>
            {
                Exit::Found
            }
            None => Exit::Ok,
            Some(_) => {
                let lives = |(seen, outcome): (&Seen, &Outcome)| match outcome {
                    Outcome::Answered | Outcome::Over => true,
                    Outcome::Busy => !seen.word.is_found(),
                    _ => false,
                };
                match self.asked().all(lives) {
                    true => Exit::Ok,
                    false => Exit::Unanswered,
                }
            }
        }
    }

    fn asked(&self) -> impl Iterator<Item = (&Seen, &Outcome)> {
        let outcomes = self.outcomes.unwrap_or_default();
        self.survey.connections.iter().zip(outcomes)
    }

    /// By process.
    fn verified(&self) -> BTreeMap<&str, [u64; OUTCOMES.len()]> {
        let mut rows: BTreeMap<&str, [u64; OUTCOMES.len()]> = BTreeMap::new();
        for (seen, outcome) in self.asked() {
            if let Some(column) = column(outcome) {
                rows.entry(self.survey.process(seen)).or_default()[column] += 1;
            }
        }
        rows
    }

    /// Why some could not be asked: process and reason, with how many.
    fn refusals(&self) -> BTreeMap<(&str, String), u64> {
        let mut refusals = BTreeMap::new();
        for (seen, outcome) in self.asked() {
            let why = match outcome {
                Outcome::Refused(refusal) => refusal.to_string(),
                Outcome::NotAsked => "a signal came before its turn".to_owned(),
                _ => continue,
            };
            *refusals
                .entry((self.survey.process(seen), why))
                .or_default() += 1;
        }
        refusals
    }

    /// Those that are not fine, or did not answer.
    fn bad(&self) -> impl Iterator<Item = (&Seen, Option<&Outcome>)> {
        let outcome = |at: usize| self.outcomes.and_then(|outcomes| outcomes.get(at));
        let all = self.survey.connections.iter().enumerate();
        all.map(move |(at, seen)| (seen, outcome(at)))
            .filter(|(seen, outcome)| {
                let fine = seen.word.is_fine() || matches!(outcome, Some(Outcome::Answered));
                !fine || matches!(outcome, Some(Outcome::Silent | Outcome::Ended))
            })
    }

    fn json(&self) -> Value {
        let sockets = self.bad().map(|(seen, outcome)| {
            json!({
                "local": seen.id.local(),
                "peer": seen.id.peer(),
                "process": self.survey.process(seen),
                "pid": seen.owner.map(|owner| owner.pid),
                "is": seen.word,
                "silent_seconds": Duration::from(seen.silent).as_secs(),
                "verified": outcome.map(word),
            })
        });
        let verified = self.verified().into_iter().map(|(process, counts)| {
            let counts: serde_json::Map<_, _> = OUTCOMES
                .iter()
                .zip(counts)
                .map(|(name, n)| ((*name).to_owned(), n.into()))
                .collect();
            json!({ "process": process, "peers": counts })
        });
        let refusals = self
            .refusals()
            .into_iter()
            .map(|((process, why), n)| json!({ "process": process, "connections": n, "why": why }));
        let hidden = self.survey.hidden.iter();
        let hidden = hidden.map(|(why, n)| json!({ "processes": n, "why": why }));
        json!({
            "total": self.survey.total(),
            "processes": self.survey.rows(),
            "accept_queues": self.survey.queues,
            "unreadable_processes": hidden.collect::<Vec<_>>(),
            "verified": self.outcomes.map(|_| verified.collect::<Vec<_>>()),
            "not_asked": self.outcomes.map(|_| refusals.collect::<Vec<_>>()),
            "sockets": self.sockets.then(|| sockets.collect::<Vec<_>>()),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.write_table(&mut text);
        for queue in &self.survey.queues {
            let (address, process) = (queue.address, &queue.process);
            let (length, limit) = (queue.length, queue.limit);
            line(
                &mut text,
                &format!("accept queue of {address} ({process}): {length} of {limit}"),
            );
        }
        if self.sockets {
            for (seen, outcome) in self.bad() {
                let what = match outcome {
                    None | Some(Outcome::Busy) => seen.word.into(),
                    Some(outcome) => word(outcome),
                };
                let (local, peer) = (seen.id.local(), seen.id.peer());
                let silent = short(Duration::from(seen.silent).as_secs());
                let process = holder(self.survey, seen);
                line(
                    &mut text,
                    &format!("{what:<12} {local}-{peer}  silent {silent}  {process}"),
                );
            }
        }
        for (why, n) in &self.survey.hidden {
            line(&mut text, &format!("not looked into: {n} processes: {why}"));
        }
        if self.outcomes.is_some() {
            self.write_verified(&mut text);
        }
        line(&mut text, &self.summary());
        text
    }

    fn write_table(&self, text: &mut String) {
        let rows = self.survey.rows();
        if rows.is_empty() {
            return;
        }
        let heads = [
            "CONNS",
            "UNPROTECTED",
            "LATE",
            "OLDEST",
            "SUSPECT",
            "STALLED",
            "LEAKED",
        ];
        let cells = heads.map(str::to_owned);
        line(text, &row("PROCESS", &cells));
        for found in &rows {
            line(text, &row(&name(found), &cells_of(found)));
        }
    }

    fn write_verified(&self, text: &mut String) {
        let verified = self.verified();
        if verified.is_empty() {
            return;
        }
        let heads = OUTCOMES.map(|name| name.replace('_', " ").to_uppercase());
        line(text, &row("\nASKED", &heads));
        for (process, counts) in verified {
            line(text, &row(process, &counts.map(|n| n.to_string())));
        }
        for ((process, why), n) in self.refusals() {
            line(text, &format!("not asked: {n} of {process}: {why}"));
        }
    }

    fn summary(&self) -> String {
        let total = self.survey.total();
        let n = total.connections;
        let said = match n {
            1 => "1 connection".to_owned(),
            n => format!("{n} connections"),
        };
        if self.outcomes.is_some() {
            let counts = self
                .verified()
                .into_values()
                .fold([0; OUTCOMES.len()], |sum, row| {
                    std::array::from_fn(|at| sum[at] + row[at])
                });
            let parts = OUTCOMES.iter().zip(counts).filter(|(_, n)| *n > 0);
            let parts: Vec<String> = parts
                .map(|(name, n)| format!("{n} {}", name.replace('_', " ")))
                .collect();
            let parts = parts.join(", ");
            return match parts.is_empty() {
                true => said + ".",
                false => format!("{said}: {parts}."),
            };
        }
        let (unprotected, suspect) = (total.of(Word::Unprotected), total.of(Word::Suspect));
        if unprotected + suspect == 0 {
            return said + ": none is unprotected or suspect.";
        }
        let oldest = short(total.oldest_silence_seconds);
        format!(
            "{said}: {unprotected} unprotected, {suspect} suspect. The oldest silence is {oldest}.\n\
             Nobody would notice if the peer of an unprotected one is gone. --verify asks."
        )
    }
}

fn word(outcome: &Outcome) -> &'static str {
    column(outcome).map_or("over", |column| OUTCOMES[column])
}

fn name(row: &Row) -> String {
    match row.pids[..] {
        [] => row.process.clone(),
        [pid] => format!("{} {pid}", row.process),
        _ => format!("{} x{}", row.process, row.pids.len()),
    }
}

fn cells_of(row: &Row) -> [String; 7] {
    let stalled = [Word::Stalled, Word::Undelivered, Word::Phantom];
    let stalled: u64 = stalled.map(|word| row.of(word)).iter().sum();
    [
        row.connections.to_string(),
        row.of(Word::Unprotected).to_string(),
        row.of(Word::Late).to_string(),
        short(row.oldest_silence_seconds),
        row.of(Word::Suspect).to_string(),
        stalled.to_string(),
        row.of(Word::HalfClosed).to_string(),
    ]
}

/// At most 80 columns wide.
fn row<const N: usize>(process: &str, cells: &[String; N]) -> String {
    const WIDTHS: [usize; 7] = [6, 12, 6, 8, 9, 9, 8];
    let mut line = format!("{process:<20}");
    for (cell, width) in cells
        .iter()
        .zip(WIDTHS.map(|width| if N == 7 { width } else { 11 }))
    {
        let _infallible = write!(line, "{cell:>width$}");
    }
    line
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// In the two largest units: 3d4h.
fn short(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{}m", minutes % 60),
        (days, hours, _) => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read() {
        assert_eq!(Target::parse("dead"), Ok(Target::Dead));
        let one = Target::parse("10.0.0.1:5-[fe80::1]:6").expect("valid");
        let local = "10.0.0.1:5".parse().expect("an address");
        let peer = "[fe80::1]:6".parse().expect("an address");
        assert_eq!(one, Target::One { local, peer });
        let mapped = Target::parse("[::ffff:10.0.0.1]:5-[fe80::1]:6");
        assert_eq!(mapped, Ok(one));
        for text in ["", "alive", "10.0.0.1:5", "10.0.0.1-10.0.0.2", "a:1-b:2"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_row_fits_a_terminal() {
        let cells = ["999999"; 7].map(str::to_owned);
        assert!(row("fifteen-letters 4194304", &cells).len() <= 81);
        let cells = ["999999"; 5].map(str::to_owned);
        assert!(row("fifteen-letters", &cells).len() <= 80);
        for (seconds, text) in [(7, "7s"), (67, "1m7s"), (7500, "2h5m"), (273_600, "3d4h")] {
            assert_eq!(short(seconds), text);
        }
    }
}
