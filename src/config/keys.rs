//! The one table of keys. Parsing, the check for unknown keys, the flags, the JSON Schema and
//! the table in `docs/CONFIGURATION.md` are all made from it, so that they cannot drift apart.
//!
//! To add a key: a row here, a field in `types.rs`, a line in `build.rs`. To add a word to a
//! choice: a line in its `words!` enum.

use std::time::Duration;

use super::types::{Abandoned, LogFormat, LogLevel, MemoryLimit, OnDead, OnEnd, OnFull};

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// From the root; `[]` stands for the items of a list: `listeners[].liveness.stall_timeout`.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What applies when it is left out.
    pub default: Default,
    /// The flag of `pulsegate run` that sets it, without dashes.
    pub flag: Option<&'static str>,
    /// Whether it may also stand under `defaults`.
    pub inherited: bool,
    /// One line for the operator.
    pub doc: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A mapping of further keys.
    Section {
        /// A word accepted in place of the mapping.
        or: Option<&'static str>,
    },
    /// `defaults`: the inherited keys of a listener.
    Inherited,
    /// A list of mappings; at least one.
    List,
    /// Letters, digits, `-`, `_`, `.`; at most 63.
    Name,
    /// A local `IP:port`.
    Listen,
    /// `host:port` of a service.
    Dial,
    /// A whole number and a unit.
    Span {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
        /// The finest step.
        step: Duration,
        /// Whether `0s` switches it off.
        off: bool,
    },
    /// A whole number.
    Count {
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
        /// A word accepted in place of the number.
        or: Option<&'static str>,
    },
    /// A whole number and a unit of memory.
    Size {
        /// The least, in bytes.
        min: u64,
        /// The greatest, in bytes.
        max: u64,
        /// Words accepted in place of the size.
        or: &'static [&'static str],
    },
    /// One of these words.
    Words(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
}

/// What applies when a key is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// There is none: the key must be given.
    Required,
    /// This, written as in the file.
    Value(&'static str),
    /// Follows from other keys, in words.
    Derived(&'static str),
    /// A section: its keys have their own defaults.
    Keys,
}

/// Every key, in the order in which it is documented.
pub const KEYS: &[Key] = &[
    section(
        "listeners",
        Kind::List,
        "Where clients are accepted, and where they are taken.",
    ),
    key(
        "listeners[].name",
        Kind::Name,
        "Label of this listener in metrics and logs; unique.",
    )
    .derived("`default`; of several, `port-` and the port"),
    key(
        "listeners[].address",
        Kind::Listen,
        "Where clients connect. Port 0: the kernel chooses.",
    )
    .flag("listen"),
    key(
        "listeners[].backlog",
        count(1, 65_535),
        "Length of the accept queue; the kernel cuts it to net.core.somaxconn.",
    )
    .value("4096")
    .flag("backlog")
    .inherited(),
    section("listeners[].upstream", SECTION, "The legacy service.").inherited(),
    key(
        "listeners[].upstream.address",
        Kind::Dial,
        "Where the service is. Every address of a DNS name is tried.",
    )
    .flag("upstream"),
    key(
        "listeners[].upstream.connect_timeout",
        span(MS, secs(300)),
        "How long the service may take to accept a connection.",
    )
    .value("5s")
    .flag("connect-timeout")
    .inherited(),
    key(
        "listeners[].upstream.resolve_interval",
        span(secs(1), HOUR),
        "How often a DNS name is looked up; the last answer is used while DNS is out.",
    )
    .value("10s")
    .flag("resolve-interval")
    .inherited(),
    section(
        "listeners[].liveness",
        SECTION,
        "When a connection counts as dead, stalled or idle.",
    )
    .inherited(),
    key(
        "listeners[].liveness.detect_within",
        span(secs(2), DAY),
        "A vanished peer, on either leg, is found within this time.",
    )
    .value("30s")
    .flag("detect-within")
    .inherited(),
    key(
        "listeners[].liveness.probe_interval",
        whole_seconds(secs(1), secs(32_767)),
        "A quiet peer is asked this often; below detect_within.",
    )
    .derived("a fifth of detect_within in whole seconds, at least `1s`")
    .flag("probe-interval")
    .inherited(),
    section(
        "listeners[].liveness.probes",
        SECTION,
        "Whether keepalive probes ask quiet peers.",
    )
    .inherited(),
    key(
        "listeners[].liveness.probes.downstream",
        Kind::Switch,
        "Ask quiet clients; false where they, or the path, never answer a keepalive probe.",
    )
    .value("true")
    .flag("probes-downstream")
    .inherited(),
    key(
        "listeners[].liveness.probes.upstream",
        Kind::Switch,
        "Ask a quiet service; false where it, or the path, never answers a keepalive probe.",
    )
    .value("true")
    .flag("probes-upstream")
    .inherited(),
    key(
        "listeners[].liveness.idle_timeout",
        span_or_off(),
        "Ends a session on which no byte passed for this long.",
    )
    .value("1h")
    .flag("idle-timeout")
    .inherited(),
    key(
        "listeners[].liveness.half_close_timeout",
        span_or_off(),
        "Ends a session of which one side said FIN and no byte passed for this long; the time begins \
         when everything is delivered.",
    )
    .value("60s")
    .flag("half-close-timeout")
    .inherited(),
    key(
        "listeners[].liveness.stall_timeout",
        span_or_off(),
        "Ends a session whose live peer took no data for this long.",
    )
    .value("0s")
    .flag("stall-timeout")
    .inherited(),
    key(
        "listeners[].liveness.delivery_timeout",
        span_or_off(),
        "Ends a session whose peer is heard, and acknowledged nothing of what was sent to its open window for this long.",
    )
    .value("2m")
    .flag("delivery-timeout")
    .inherited(),
    key(
        "listeners[].liveness.first_response_timeout",
        span_or_off(),
        "Ends a session whose service got a request and sent no byte for this long.",
    )
    .value("0s")
    .flag("first-response-timeout")
    .inherited(),
    key(
        "listeners[].liveness.max_connection_duration",
        span_or_off(),
        "Ends a session so long after both its legs came up.",
    )
    .value("0s")
    .flag("max-connection-duration")
    .inherited(),
    key(
        "listeners[].liveness.on_dead",
        Kind::Words(OnDead::WORDS),
        "How the live leg is ended when the other was found dead: RST, or FIN.",
    )
    .value("reset")
    .flag("on-dead")
    .inherited(),
    key(
        "listeners[].liveness.on_end",
        Kind::Words(OnEnd::WORDS),
        "How both legs are ended when pulsegate ends the session by itself (a limit, the drain, an \
         operator, a newcomer): RST after what was received was delivered (bounded: 1 s without progress, 30 s in all), or FIN.",
    )
    .value("reset")
    .flag("on-end")
    .inherited(),
    section("listeners[].limits", SECTION, "Admission.").inherited(),
    key(
        "listeners[].limits.max_connections",
        count_or(1, u32::MAX, "none"),
        "Sessions at once on this listener.",
    )
    .value("none")
    .flag("max-connections")
    .inherited(),
    key(
        "listeners[].limits.on_full",
        Kind::Words(OnFull::WORDS),
        "What a newcomer meets when max_connections is reached.",
    )
    .value("reject")
    .flag("on-full")
    .inherited(),
    key(
        "listeners[].limits.queue_timeout",
        span_or_off(),
        "How long a newcomer may wait for a place (on_full: queue, verify, replace); 0s: for ever.",
    )
    .value("30s")
    .flag("queue-timeout")
    .inherited(),
    key(
        "listeners[].limits.abandoned",
        Kind::Words(Abandoned::WORDS),
        "Whether what a client sent is delivered although it said FIN while it waited for a place.",
    )
    .value("serve")
    .flag("abandoned")
    .inherited(),
    key(
        "listeners[].limits.reconnect_delay",
        span(Duration::ZERO, secs(300)),
        "Pause between the end of a session and the next one in its place.",
    )
    .value("0s")
    .flag("reconnect-delay")
    .inherited(),
    section(
        "defaults",
        Kind::Inherited,
        "Keys of a listener that apply where the listener does not set them.",
    ),
    section(
        "admin",
        Kind::Section { or: Some("off") },
        "The HTTP endpoint for metrics and administration.",
    ),
    key(
        "admin.address",
        Kind::Listen,
        "Where it listens. Mutating verbs answer on a loopback address only.",
    )
    .value("127.0.0.1:9900")
    .flag("admin"),
    section("limits", SECTION, "Limits of the whole process."),
    key(
        "limits.memory",
        Kind::Size {
            min: 16 << 20,
            max: 1 << 40,
            or: MemoryLimit::WORDS,
        },
        "Sheds from 95 % of it on; `auto`: the control group's limit, a size: for the process alone.",
    )
    .value("auto")
    .flag("memory-limit"),
    section("drain", SECTION, "How the process ends."),
    key(
        "drain.delay",
        span(Duration::ZERO, HOUR),
        "Between SIGTERM (not ready any more) and the end of accepting.",
    )
    .value("0s")
    .flag("drain-delay"),
    key(
        "drain.timeout",
        span(Duration::ZERO, DAY),
        "How long sessions may then take to finish.",
    )
    .value("25s")
    .flag("drain-timeout"),
    section("log", SECTION, "What is written to standard output."),
    key(
        "log.level",
        Kind::Words(LogLevel::WORDS),
        "The least severe level that is written.",
    )
    .value("info")
    .flag("log-level"),
    key(
        "log.format",
        Kind::Words(LogFormat::WORDS),
        "Lines for people, or one JSON object a line.",
    )
    .value("text")
    .flag("log-format"),
    key(
        "log.access",
        Kind::Switch,
        "One line for each session when it ends.",
    )
    .value("true")
    .flag("access-log"),
    section("relay", SECTION, "How bytes are moved."),
    key(
        "relay.low_water",
        Kind::Switch,
        "Wait for more bytes at once in bulk streams: less CPU, and up to some milliseconds later.",
    )
    .value("true")
    .flag("low-water"),
    key(
        "workers",
        count_or(1, 1024, "auto"),
        "Data-plane threads at most; `auto`: by the processors the process may use. As many are used as there is work for.",
    )
    .value("auto")
    .flag("workers"),
];

/// The section that holds a key, in the same notation; the root is empty.
#[must_use]
pub fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

impl Key {
    /// The last part of the path.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// The word that its section accepts in place of all keys: `admin: off`.
    #[must_use]
    pub fn section_word(&self) -> Option<&'static str> {
        match find(parent(self.path))?.kind {
            Kind::Section { or } => or,
            _ => None,
        }
    }

    const fn value(mut self, text: &'static str) -> Self {
        self.default = Default::Value(text);
        self
    }

    const fn derived(mut self, words: &'static str) -> Self {
        self.default = Default::Derived(words);
        self
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    const fn inherited(mut self) -> Self {
        self.inherited = true;
        self
    }
}

impl Kind {
    /// Whether the key holds further keys and no value of its own.
    #[must_use]
    pub const fn is_section(self) -> bool {
        matches!(self, Self::Section { .. } | Self::Inherited | Self::List)
    }
}

/// The keys directly below a section (`""` is the root, `listeners[]` an item of the list).
/// Below `defaults` these are the inherited ones of a listener.
pub fn children(section: &str) -> impl Iterator<Item = &'static Key> {
    let (section, inherited_only) = in_listener(section);
    KEYS.iter()
        .filter(move |key| parent(key.path) == section && (key.inherited || !inherited_only))
}

/// The key at a path whose list positions are written `[]`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    match in_listener(path) {
        (_, true) if path == "defaults" => KEYS.iter().find(|key| key.path == path),
        (path, inherited_only) => KEYS
            .iter()
            .find(|key| key.path == path && (key.inherited || !inherited_only)),
    }
}

/// Where the rows for `defaults` are found, and whether it was such a path.
fn in_listener(path: &str) -> (String, bool) {
    match path.strip_prefix("defaults") {
        Some(rest) if rest.is_empty() || rest.starts_with('.') => {
            (format!("listeners[]{rest}"), true)
        }
        _ => (path.to_owned(), false),
    }
}

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = secs(3600);
const DAY: Duration = secs(24 * 3600);
const SECTION: Kind = Kind::Section { or: None };

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn span(min: Duration, max: Duration) -> Kind {
    Kind::Span {
        min,
        max,
        step: MS,
        off: false,
    }
}

const fn whole_seconds(min: Duration, max: Duration) -> Kind {
    Kind::Span {
        min,
        max,
        step: secs(1),
        off: false,
    }
}

/// Below 100 ms a timer ends healthy sessions; above a year it is a mistake.
const fn span_or_off() -> Kind {
    Kind::Span {
        min: Duration::from_millis(100),
        max: secs(8760 * 3600),
        step: MS,
        off: true,
    }
}

const fn count(min: u32, max: u32) -> Kind {
    Kind::Count { min, max, or: None }
}

const fn count_or(min: u32, max: u32, word: &'static str) -> Kind {
    Kind::Count {
        min,
        max,
        or: Some(word),
    }
}

const fn key(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key {
        path,
        kind,
        default: Default::Required,
        flag: None,
        inherited: false,
        doc,
    }
}

const fn section(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    let default = Default::Keys;
    Key {
        default,
        ..key(path, kind, doc)
    }
}
