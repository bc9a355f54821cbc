//! Subcommands that ask a running pulsegate through its admin endpoint.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::process::geteuid;
use strum::VariantNames;

use super::address::Place;
use super::{Output, write_out};
use crate::admin::Notice;
use crate::admin::client::{self, Health, Sort, Target, Which};
use crate::config::{self, Admin};
use crate::exit::{self, Exit};
use crate::liveness::Condition;
use crate::tls::{LoadError, first_certificate};
use crate::view::{OnSilent, Phase};

/// Where the endpoint is. The address of admin.control comes before admin.address.
#[derive(Args)]
pub(super) struct Endpoint {
    /// Admin or control address: HOST:PORT, https://HOST:PORT or unix:/PATH [default: that of the only pulsegate that runs here, else 127.0.0.1:9900]
    #[arg(long, value_name = "ADDR", value_parser = Place::parse)]
    admin: Option<Place>,
    /// Who may have issued the certificate of https://HOST:PORT: a file (PEM) [default: those that this host trusts]
    #[arg(long, value_name = "FILE", requires = "admin")]
    admin_ca: Option<PathBuf>,
    /// Ask where this configuration file says
    #[arg(short, long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
    /// Ask the pulsegate with this process id where it says that it listens: 1 in a container
    #[arg(long, value_name = "PID", conflicts_with_all = ["admin", "config"])]
    pid: Option<u32>,
    /// Send the token of this file
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Endpoint {
    /// Where it is; `None` where it is off.
    fn find(&self) -> Result<Option<Target>, String> {
        let notice = match (&self.admin, &self.config, self.pid) {
            (Some(place), ..) => {
                let target = place.target(self.admin_ca.as_deref())?;
                return self.with_token(target).map(Some);
            }
            (None, Some(file), _) => {
                let config = config::load_file(file).map_err(|errors| errors.to_string())?;
                let is_https = config.admin.as_ref().is_some_and(|it| it.tls.is_some());
                let notice = config.admin.map(notice).transpose()?.unwrap_or_default();
                let target = Target::of(notice);
                let target = match is_https {
                    true => target.map(with_certificates_in_force),
                    false => target,
                };
                return target.map(|target| self.with_token(target)).transpose();
            }
            (None, None, Some(pid)) => Notice::of(pid)?,
            (None, None, None) => {
                let default = || SocketAddr::from(([127, 0, 0, 1], 9900)).into();
                let found = the_one_that_runs().unwrap_or_else(default);
                return self.with_token(found).map(Some);
            }
        };
        let target = Target::of(notice);
        target.map(|target| self.with_token(target)).transpose()
    }

    /// Where it must be.
    pub(super) fn reach(&self) -> Result<Target, String> {
        self.find()?
            .ok_or_else(|| "admin is off there: nobody to ask".to_owned())
    }

    fn with_token(&self, target: Target) -> Result<Target, String> {
        match &self.token_file {
            Some(file) => {
                let target = target.with_token(file);
                target.map_err(|why| format!("--token-file: {why}"))
            }
            None => Ok(target),
        }
    }
}

/// What a process would say that has this configuration.
fn notice(admin: Admin) -> Result<Notice, String> {
    let tls = admin.tls.as_ref();
    let certificate = tls
        .map(|tls| first_certificate(&tls.certificate))
        .transpose();
    let wrong = |error: LoadError| error.lines("admin.tls").map(|(_, line)| line).collect();
    let certificate: Result<_, String> = certificate.map_err(wrong);
    Ok(Notice::new(admin, certificate?))
}

/// Where each pulsegate answers that runs in this network, with the user that it runs as.
fn running() -> impl Iterator<Item = (u32, Target)> {
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let here = network("self");
    let found = move |process: fs::DirEntry| {
        let pid = process.file_name().into_string().ok()?;
        let id = pid.parse().ok()?;
        if here.is_none() || network(&pid) != here {
            return None;
        }
        let user = process.metadata().ok()?.uid();
        Some((user, Target::of(Notice::of(id).ok()?)?))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(found)
}

/// Where the pulsegate answers that runs in this network, if there is one and no other: two that follow
/// each other have the same address.
fn the_one_that_runs() -> Option<Target> {
    let mut found = running().map(|(_, target)| target);
    let first = found.next()?;
    found.try_fold(first, Target::joined)
}

/// The file may be newer than the certificate in force, which a process of this user, or of root, tells as well.
fn with_certificates_in_force(target: Target) -> Target {
    let trusted = [0, geteuid().as_raw()];
    let ours = running().filter(|(user, _)| trusted.contains(user));
    ours.fold(target, |target, (_, running)| {
        target.clone().joined(running).unwrap_or(target)
    })
}

/// `pulsegate healthcheck`.
#[derive(Args)]
pub(super) struct Healthcheck {
    #[command(flatten)]
    endpoint: Endpoint,
    /// How long the answer may take
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = config::duration)]
    timeout: Duration,
    /// Ask whether it takes new clients, too
    #[arg(long)]
    ready: bool,
}

/// `pulsegate drain`.
#[derive(Args)]
pub(super) struct Drain {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Return only when the process has drained and ends
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = config::duration)]
    timeout: Duration,
}

/// `pulsegate reload`.
#[derive(Args)]
pub(super) struct Reload {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    output: Output,
}

/// `pulsegate conns`.
#[derive(Args)]
pub(super) struct Conns {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    filters: Filters,
    /// Everything that is known of each session, in lines of more than 200 columns
    #[arg(long, conflicts_with = "json")]
    wide: bool,
}

/// `pulsegate upstreams`, `pulsegate found`.
#[derive(Args)]
pub(super) struct OfListener {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    output: Output,
    /// Only those of this listener
    #[arg(long)]
    listener: Option<String>,
}

/// `pulsegate verify`.
#[derive(Args)]
pub(super) struct Verify {
    #[command(flatten)]
    named: Named,
    /// End a session at once if one of its peers is proven gone
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    output: Output,
}

/// `pulsegate kill`.
#[derive(Args)]
pub(super) struct Kill {
    #[command(flatten)]
    named: Named,
    /// Why, for the log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// Which sessions are asked, or ended.
#[derive(Args)]
struct Named {
    /// Sessions by the number that `conns` prints
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<u64>,
    /// All sessions, or those that the filters leave
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filters: Filters,
}

impl Named {
    /// The filters. A slip must not name more sessions than was meant.
    fn filters(&self) -> Result<Vec<(&str, &str)>, String> {
        let filters = self.filters.query();
        match (self.all, filters.is_empty(), self.ids.is_empty()) {
            (false, false, _) => Err("filters go with --all".to_owned()),
            (false, true, true) => {
                Err("name sessions: by ID, or --all, with filters or without".to_owned())
            }
            _ => client::check(&filters).map(|()| filters),
        }
    }
}

/// Which sessions, and in which order.
#[derive(Args)]
struct Filters {
    /// Only this listener's sessions
    #[arg(long)]
    listener: Option<String>,
    #[arg(long, help = listing::<Condition>("Only sessions with a leg in this condition"))]
    condition: Option<String>,
    #[arg(long, help = listing::<Phase>("Only sessions in this phase"))]
    phase: Option<String>,
    /// Only sessions with this address (IP or IP:PORT) at either end
    #[arg(long)]
    peer: Option<String>,
    /// Only sessions that have moved no byte for this long
    #[arg(long, value_name = "DURATION")]
    min_idle: Option<String>,
    #[arg(long, help = listing::<Sort>("Order"))]
    sort: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N")]
    limit: Option<String>,
}

fn listing<T: VariantNames>(what: &str) -> String {
    format!("{what}: {}", T::VARIANTS.join(", "))
}

pub(super) fn healthcheck(args: &Healthcheck) -> ExitCode {
    let health = if args.ready {
        Health::Ready
    } else {
        Health::Live
    };
    let asked = args.endpoint.find().and_then(|target| match target {
        Some(target) => client::healthcheck(&target, args.timeout, health).map(|()| "ok\n"),
        None => Ok("admin is off: nobody to ask\n"),
    });
    report(asked.map(str::to_owned))
}

pub(super) fn drain(args: &Drain) -> ExitCode {
    let wait = args.wait.then_some(args.timeout);
    let drain = |target: Target| client::drain(&target, wait);
    report(args.endpoint.reach().and_then(drain))
}

pub(super) fn reload(args: &Reload) -> ExitCode {
    let reload = |target: Target| client::reload(&target, args.output.format());
    match args.endpoint.reach().and_then(reload) {
        Ok(Ok(report)) => write_out(&report),
        Ok(Err(lines)) => {
            exit::complain(lines.trim_end());
            misused("not reloaded: nothing has changed")
        }
        Err(why) => report(Err(why)),
    }
}

impl Filters {
    /// Those that are given, as the endpoint names them.
    fn query(&self) -> Vec<(&'static str, &str)> {
        let given = [
            ("listener", &self.listener),
            ("condition", &self.condition),
            ("phase", &self.phase),
            ("peer", &self.peer),
            ("min_idle", &self.min_idle),
            ("sort", &self.sort),
            ("limit", &self.limit),
        ];
        let given = given.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect()
    }
}

pub(super) fn conns(args: &Conns) -> ExitCode {
    let query = args.filters.query();
    if let Err(why) = client::check(&query) {
        return misused(&why);
    }
    let wide = args.wide.then_some(("wide", "true"));
    let query: Vec<_> = query.into_iter().chain(wide).collect();
    let connections = |target: Target| client::connections(&target, &query, args.output.format());
    report(args.endpoint.reach().and_then(connections))
}

pub(super) fn upstreams(args: &OfListener) -> ExitCode {
    let upstreams =
        |target: Target| client::upstreams(&target, &args.query(), args.output.format());
    report(args.endpoint.reach().and_then(upstreams))
}

pub(super) fn found(args: &OfListener) -> ExitCode {
    let found = |target: Target| client::found(&target, &args.query(), args.output.format());
    report(args.endpoint.reach().and_then(found))
}

impl OfListener {
    fn query(&self) -> Vec<(&'static str, &str)> {
        let listener = self.listener.as_deref();
        listener
            .map(|name| ("listener", name))
            .into_iter()
            .collect()
    }
}

pub(super) fn verify(args: &Verify) -> ExitCode {
    let filters = match args.named.filters() {
        Ok(filters) => filters,
        Err(why) => return misused(&why),
    };
    let which = if args.named.all {
        Which::All(&filters)
    } else {
        Which::Ids(&args.named.ids)
    };
    let on_silent = if args.quick {
        OnSilent::End
    } else {
        OnSilent::Report
    };
    let verify = |target: Target| client::verify(&target, which, on_silent, args.output.format());
    let found = match args.endpoint.reach().and_then(verify) {
        Ok(found) => found,
        Err(error) => return report(Err(error)),
    };
    let written = write_out(&found.text);
    found.errors.iter().for_each(|error| complain(error));
    if !found.errors.is_empty() {
        Exit::Failure.into()
    } else if !found.answered {
        Exit::Unanswered.into()
    } else {
        written
    }
}

pub(super) fn kill(args: &Kill) -> ExitCode {
    let mut query = match args.named.filters() {
        Ok(filters) => filters,
        Err(why) => return misused(&why),
    };
    query.extend(args.reason.as_deref().map(|reason| ("reason", reason)));
    let target = match args.endpoint.reach() {
        Ok(target) => target,
        Err(why) => return report(Err(why)),
    };
    if args.named.all {
        return report(client::kill_all(&target, &query));
    }
    let mut exit = Exit::Ok.into();
    for id in &args.named.ids {
        match client::kill(&target, *id, &query) {
            Ok(text) => drop(write_out(&text)),
            Err(error) => exit = report(Err(error)),
        }
    }
    exit
}

pub(super) fn report(answer: Result<String, String>) -> ExitCode {
    match answer {
        Ok(text) => write_out(&text),
        Err(error) => {
            complain(&error);
            Exit::Failure.into()
        }
    }
}

/// Before anything was asked.
pub(super) fn misused(why: &str) -> ExitCode {
    complain(why);
    Exit::Usage.into()
}

fn complain(error: &str) {
    exit::complain(&format!("pulsegate: {error}"));
}
