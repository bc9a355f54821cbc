//! What `pulsegate doctor` says, of a host on which pulsegate is to run, and of one on which it does.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::resources::{default_workers, reserved_descriptors};
use super::{App, TlsFiles};
use crate::config::keys::{Default, KEYS};
use crate::config::{self, Config, ConfigErrors, MemoryLimit, UpstreamAddress};
use crate::host::Abilities;
use crate::host::checks::{self, Check, Demands, Facts, Memory, Status, Upstream};
use crate::metrics::wall_clock;
use crate::tls::{Chain, Concern};

/// Judges this host by a configuration, which may be from a file, else by the defaults. Takes 1.1 s.
#[must_use]
pub fn of_host(config: Option<&Config>, file: Option<&Path>) -> Vec<Check> {
    let mut checks = checks::all(&Facts::of(Abilities::find()), &demands(config));
    let files = config.map(|config| TlsFiles::read(config, file));
    checks.extend(files.into_iter().flat_map(certificates));
    checks
}

impl App {
    /// Judges the host by what is in force. What takes long was tried at the start.
    pub(super) fn checks(&self) -> Vec<Check> {
        let abilities = Abilities::but(self.probes_on_demand.get().copied());
        let mut checks = checks::all(&Facts::of(abilities), &demands(Some(&self.running())));
        let files = TlsFiles::in_force(&self.registry.serving(), self.board.tls());
        checks.extend(certificates(Ok(files)));
        checks
    }
}

fn demands(config: Option<&Config>) -> Demands {
    let listeners = config.map_or(&[][..], |config| &config.listeners);
    let backlog = listeners.iter().map(|l| u64::from(l.backlog)).max();
    let limits = listeners.iter().map(|l| l.limits.max_connections);
    let configured = config.and_then(|config| config.workers);
    let workers = configured.map_or_else(default_workers, usize::from);
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let admin = config.and_then(|config| config.admin.as_ref());
    Demands {
        backlog: backlog.unwrap_or_else(default_backlog),
        // Without a configuration there is nothing to add up, and no limit.
        sessions: limits
            .map(|limit| limit.map(u64::from))
            .sum::<Option<u64>>()
            .filter(|_| !listeners.is_empty()),
        reserved_descriptors: reserved_descriptors(limit, workers, listeners, admin),
        workers: workers as u64,
        upstreams: upstreams(listeners),
        memory: memory(config.map_or(MemoryLimit::Auto, |config| config.limits.memory)),
    }
}

/// What becomes of the certificates and keys; nothing where there are none.
fn certificates(files: Result<TlsFiles, ConfigErrors>) -> Vec<Check> {
    let check = |status, found, meaning: &str, setting: Option<&str>| Check {
        name: "certificates",
        status,
        found,
        meaning: meaning.to_owned(),
        setting: setting.map(str::to_owned),
    };
    let TlsFiles { chains, concerns } = match files {
        Ok(files) => files,
        Err(errors) => {
            let found = errors.lines().join(" | ");
            let failed = check(Status::Fail, found, "pulsegate does not start", None);
            // A token may be among them.
            return vec![Check {
                name: "files",
                ..failed
            }];
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
