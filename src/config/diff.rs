//! What changes from one configuration to the next, key by key, and what that does to a process that
//! runs.

use serde_yaml::Value as Yaml;

use super::section::Section;
use super::setting::join;
use super::{Config, Log};

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// With the name of the listener: `listeners[orders].limits.max_connections`. A listener that is
    /// added or removed is `listeners[orders]`.
    pub path: String,
    /// What becomes of it.
    pub effect: Effect,
}

/// What a change does while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is in force.
    Applied,
    /// It is in force for sessions that begin from now on.
    NewSessions,
    /// Nothing, until the process is started again.
    Restart,
}

/// The longest path that a key begins with decides. Restart: [`Config::within_reach`] keeps the value.
const EFFECTS: &[(&str, Effect)] = &[
    ("listeners", Effect::Applied),
    ("listeners[]", Effect::NewSessions),
    ("listeners[].name", Effect::Applied),
    ("listeners[].address", Effect::Applied),
    ("listeners[].backlog", Effect::Applied),
    // What a client meets before it is a session.
    ("listeners[].access", Effect::Applied),
    ("listeners[].upstream.check", Effect::Applied),
    ("listeners[].upstream.when_down", Effect::Applied),
    ("listeners[].limits.max_connections", Effect::Applied),
    (
        "listeners[].limits.max_connections_per_source",
        Effect::Applied,
    ),
    ("listeners[].limits.on_full", Effect::Applied),
    ("listeners[].limits.rate_per_source", Effect::Applied),
    ("listeners[].limits.burst_per_source", Effect::Applied),
    ("listeners[].limits.source_prefix_ipv4", Effect::Applied),
    ("listeners[].limits.source_prefix_ipv6", Effect::Applied),
    ("admin", Effect::Restart),
    ("limits", Effect::Restart),
    ("drain", Effect::Applied),
    ("log", Effect::Applied),
    ("log.format", Effect::Restart),
    ("relay", Effect::NewSessions),
    ("workers", Effect::Restart),
    ("reload", Effect::Applied),
];

impl Effect {
    /// Of a change of a key, in the notation of the key table. One that nobody has thought of is left
    /// to the next start.
    #[must_use]
    pub fn of(key: &str) -> Self {
        let leads = |path: &str| {
            let rest = key.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let rules = EFFECTS.iter().filter(|(path, _)| leads(path));
        let longest = rules.max_by_key(|(path, _)| path.len());
        longest.map_or(Self::Restart, |(_, effect)| *effect)
    }
}

impl Config {
    /// This configuration, as far as a process that runs with `self` can follow it.
    #[must_use]
    pub fn within_reach(&self, wanted: &Self) -> Self {
        Self {
            admin: self.admin.clone(),
            limits: self.limits.clone(),
            workers: self.workers,
            log: Log {
                format: self.log.format,
                ..wanted.log.clone()
            },
            ..wanted.clone()
        }
    }
}

/// The keys that have another value, in their order in `after`. Listeners are known by their names.
#[must_use]
pub fn diff(before: &Config, after: &Config) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&before.show(), &after.show(), ["", ""], &mut found);
    found
}

/// Compares what stands at a path, which is given with names and as the key table has it.
fn compare(before: &Yaml, after: &Yaml, [path, key]: [&str; 2], found: &mut Vec<Difference>) {
    let none = Yaml::Null;
    let differs = |path, key: &str| Difference {
        path,
        effect: Effect::of(key),
    };
    match (before, after) {
        _ if before == after => {}
        (Yaml::Mapping(old), Yaml::Mapping(new)) => {
            let gone = old.keys().filter(|name| !new.contains_key(*name));
            for name in new.keys().chain(gone) {
                let [a, b] = [old, new].map(|keys| keys.get(name).unwrap_or(&none));
                let name = name.as_str().unwrap_or_default();
                compare(a, b, [&join(path, name), &join(key, name)], found);
            }
        }
        (Yaml::Sequence(old), Yaml::Sequence(new)) if all_named(old) && all_named(new) => {
            let gone = old.iter().filter(|item| find(new, name(item)).is_none());
            for item in new.iter().chain(gone) {
                let path = format!("{path}[{}]", name(item).unwrap_or_default());
                match (find(old, name(item)), find(new, name(item))) {
                    (Some(a), Some(b)) => compare(a, b, [&path, &format!("{key}[]")], found),
                    _ => found.push(differs(path, key)),
                }
            }
        }
        _ => found.push(differs(path.to_owned(), key)),
    }
}

fn name(item: &Yaml) -> Option<&str> {
    item.get("name")?.as_str()
}

fn all_named(items: &[Yaml]) -> bool {
    items.iter().all(|item| name(item).is_some())
}

fn find<'a>(items: &'a [Yaml], wanted: Option<&str>) -> Option<&'a Yaml> {
    items.iter().find(|item| name(item) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const BEFORE: &str = "
listeners:
  - { name: a, address: '127.0.0.1:1', upstream: { address: '127.0.0.1:9' } }
  - { name: b, address: '127.0.0.1:2', upstream: { address: '127.0.0.1:9' } }
";
    const AFTER: &str = "
listeners:
  - { name: c, address: '127.0.0.1:1', upstream: { address: '127.0.0.1:9' } }
  - name: b
    address: 127.0.0.1:3
    upstream: { address: 127.0.0.1:8 }
    liveness: { receive_timeout: { upstream: 9s } }
    limits: { max_connections: 7 }
admin: off
workers: 3
log: { level: warn, format: json }
relay: { low_water: false }
";

    fn load(text: &str) -> Config {
        config::load("f", text.as_bytes()).expect("valid")
    }

    #[test]
    fn every_difference_has_its_path_and_effect() {
        let (before, after) = (load(BEFORE), load(AFTER));
        let found = diff(&before, &after);
        let found: Vec<_> = found.iter().map(|d| (d.path.as_str(), d.effect)).collect();
        let expected = [
            ("listeners[c]", Effect::Applied),
            ("listeners[b].address", Effect::Applied),
            ("listeners[b].upstream.address", Effect::NewSessions),
            (
                "listeners[b].liveness.receive_timeout.upstream",
                Effect::NewSessions,
            ),
            ("listeners[b].limits.max_connections", Effect::Applied),
            ("listeners[a]", Effect::Applied),
            ("admin", Effect::Restart),
            ("log.level", Effect::Applied),
            ("log.format", Effect::Restart),
            ("relay.low_water", Effect::NewSessions),
            ("workers", Effect::Restart),
        ];
        assert_eq!(found, expected);
        assert_eq!(diff(&after, &after), []);
    }

    #[test]
    fn what_is_within_reach_is_what_needs_no_restart() {
        let (before, wanted) = (load(BEFORE), load(AFTER));
        let after = before.within_reach(&wanted);
        let restart = |found: &[Difference]| {
            let mut found = found.to_vec();
            found.retain(|d| d.effect == Effect::Restart);
            found
        };
        let left = diff(&after, &wanted);
        assert_eq!(left, restart(&diff(&before, &wanted)));
        assert_eq!(left, restart(&left));
        assert_eq!(restart(&diff(&before, &after)), []);
    }

    #[test]
    fn every_key_has_an_effect_that_somebody_has_thought_of() {
        for key in config::keys::KEYS.iter() {
            let top = key.path.split(['.', '[']).next().unwrap_or_default();
            let is_known = EFFECTS.iter().any(|(path, _)| *path == top);
            assert!(is_known || top == "defaults", "{}", key.path);
        }
        assert_eq!(Effect::of("listeners[].address"), Effect::Applied);
        assert_eq!(Effect::of("listeners[].address_x"), Effect::NewSessions);
    }
}
