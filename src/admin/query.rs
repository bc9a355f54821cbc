//! The query of `/connections`: filters, order, form.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;

use super::view::{ConnectionView, Shown};

/// So many sessions are looked at in one go.
const TURN: usize = 64;

const PARAMETERS: &str = "listener, condition, phase, peer, min_idle, sort, limit, format";
const CONDITIONS: &[&str] = &[
    "alive",
    "quiet",
    "suspect",
    "stalled",
    "undelivered",
    "phantom",
];
const PHASES: &[&str] = &["queued", "connecting", "open", "half_closed", "closing"];

/// JSON or a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For programs.
    #[default]
    Json,
    /// For people, in the spirit of `ss -o`.
    Text,
}

/// What of the sessions is to be shown, and in which order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    listener: Option<String>,
    condition: Option<String>,
    phase: Option<String>,
    peer: Option<Peer>,
    min_idle: Option<Duration>,
    sort: Option<Sort>,
    limit: Option<usize>,
    /// What `format` asks for.
    pub(super) format: Option<Format>,
}

/// What a query leaves.
pub(super) struct Chosen {
    /// Sessions in the process.
    pub(super) total: usize,
    /// Of these, how many passed the filters.
    pub(super) matched: usize,
    /// Of these, as many as `limit` allows, in order.
    pub(super) sessions: Vec<Arc<dyn Shown>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Peer {
    Host(IpAddr),
    Socket(SocketAddr),
}

/// First comes what an operator looks for: the oldest, the longest idle or silent, the busiest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Age,
    Idle,
    Id,
    Received,
    Sent,
    LastLife,
}

impl Query {
    /// Reads the part of the URI behind `?`. The error names the parameter and what it accepts.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).ok_or_else(|| format!("{name}: bad percent-encoding"))?;
            if seen.contains(&name) {
                return Err(format!("{name}: given twice"));
            }
            seen.push(name);
            parsed.set(name, value)?;
        }
        Ok(parsed)
    }

    /// The same with `quick`, which asks for silent peers to be ended.
    pub(super) fn parse_verify(query: &str) -> Result<(Self, bool), String> {
        let is_quick = |pair: &&str| pair.split('=').next() == Some("quick");
        let quick = match query.split('&').filter(is_quick).collect::<Vec<_>>()[..] {
            [] | ["quick=false"] => false,
            ["quick" | "quick=true"] => true,
            [one] => return Err(refused("quick", one, "true or false")),
            _ => return Err("quick: given twice".to_owned()),
        };
        let rest: Vec<_> = query.split('&').filter(|pair| !is_quick(pair)).collect();
        match Self::parse(&rest.join("&")) {
            Ok(query) => Ok((query, quick)),
            Err(why) if why.ends_with(PARAMETERS) => Err(format!("{why}, quick")),
            Err(why) => Err(why),
        }
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "listener" => self.listener = Some(value),
            "condition" => self.condition = Some(one_of(name, value, CONDITIONS)?),
            "phase" => self.phase = Some(one_of(name, value, PHASES)?),
            "peer" => self.peer = Some(parsed(name, &value, "an IP address or IP:port")?),
            "min_idle" => {
                self.min_idle =
                    Some(duration(&value).ok_or_else(|| {
                        refused(name, &value, "a duration such as 90s, 5m or 1h")
                    })?);
            }
            "sort" => {
                let accepted = "age, idle, id, received, sent or last_life";
                self.sort = Some(parsed(name, &value, accepted)?);
            }
            "limit" => self.limit = Some(parsed(name, &value, "a whole number")?),
            "format" => self.format = Some(parsed(name, &value, "json or text")?),
            _ => return Err(format!("{name}: unknown; accepted are {PARAMETERS}")),
        }
        Ok(())
    }

    /// Filters, sorts and cuts. Other tasks of the thread have their turn meanwhile.
    pub(super) async fn choose(&self, mut sessions: Vec<Arc<dyn Shown>>) -> Chosen {
        let total = sessions.len();
        sessions.sort_unstable_by_key(|session| session.id());
        if self.looks_inside() {
            let sort = self.sort.unwrap_or(Sort::Id);
            let mut found = Vec::new();
            for (i, session) in sessions.into_iter().enumerate() {
                if i % TURN == TURN - 1 {
                    yield_now().await;
                }
                if let Some(view) = session.view().filter(|view| self.matches(view)) {
                    found.push((Reverse(sort.weight(&view)), session));
                }
            }
            // Stable: of equal weight, the lower id comes first.
            found.sort_by_key(|(weight, _)| *weight);
            sessions = found.into_iter().map(|(_, session)| session).collect();
        }
        let matched = sessions.len();
        sessions.truncate(self.limit.unwrap_or(usize::MAX));
        Chosen {
            total,
            matched,
            sessions,
        }
    }

    /// Whether an id is not enough to tell if a session is shown, and where.
    fn looks_inside(&self) -> bool {
        let only_form = Self {
            limit: self.limit,
            format: self.format,
            ..Self::default()
        };
        *self != only_form
    }

    fn matches(&self, c: &ConnectionView) -> bool {
        let condition = |word: &String| c.legs().any(|leg| leg.condition == word);
        let peer = |peer: &Peer| c.legs().filter_map(|l| l.peer).any(|a| peer.is(a));
        let idle = |d: &Duration| u128::from(c.idle_ms) >= d.as_millis();
        self.listener.as_ref().is_none_or(|l| *l == c.listener)
            && self.condition.as_ref().is_none_or(condition)
            && self.phase.as_ref().is_none_or(|p| p == c.phase)
            && self.peer.as_ref().is_none_or(peer)
            && self.min_idle.as_ref().is_none_or(idle)
    }
}

impl Peer {
    /// A client may be known by its IPv4-mapped address; that is the same client.
    fn is(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        match self {
            Self::Host(host) => host.to_canonical() == ip,
            Self::Socket(s) => s.ip().to_canonical() == ip && s.port() == address.port(),
        }
    }
}

impl FromStr for Peer {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let bracketed = s.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
        if let Ok(ip) = bracketed.unwrap_or(s).parse() {
            return Ok(Self::Host(ip));
        }
        s.parse().map(Self::Socket).map_err(|_| ())
    }
}

impl FromStr for Sort {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        Ok(match s {
            "age" => Self::Age,
            "idle" => Self::Idle,
            "id" => Self::Id,
            "received" => Self::Received,
            "sent" => Self::Sent,
            "last_life" => Self::LastLife,
            _ => return Err(()),
        })
    }
}

impl FromStr for Format {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        match s {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(()),
        }
    }
}

impl Sort {
    fn weight(self, c: &ConnectionView) -> u64 {
        match self {
            Self::Id => 0,
            Self::Age => c.age_ms,
            Self::Idle => c.idle_ms,
            Self::Received => c.legs().map(|l| l.received_bytes).sum(),
            Self::Sent => c.legs().map(|l| l.sent_bytes).sum(),
            Self::LastLife => c.legs().map(|l| l.last_life_ms).max().unwrap_or(0),
        }
    }
}

fn refused(name: &str, value: &str, accepted: &str) -> String {
    format!("{name}: expected {accepted}, got '{value}'")
}

fn parsed<T: FromStr>(name: &str, value: &str, accepted: &str) -> Result<T, String> {
    value.parse().map_err(|_| refused(name, value, accepted))
}

fn one_of(name: &str, value: String, words: &[&str]) -> Result<String, String> {
    if words.contains(&value.as_str()) {
        return Ok(value);
    }
    Err(refused(
        name,
        &value,
        &format!("one of {}", words.join(", ")),
    ))
}

/// A number with a unit.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

/// Undoes percent-encoding; `+` is a plus, since no value has a blank.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            decoded.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// The reverse of [`decode`], for the client.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write;

    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::session;
    use super::*;

    impl Shown for ConnectionView {
        fn id(&self) -> u64 {
            self.id
        }

        fn view(&self) -> Option<Self> {
            Some(self.clone())
        }
    }

    async fn ids(query: &str, connections: &[ConnectionView]) -> Vec<u64> {
        let query = Query::parse(query).expect("valid");
        let shown = |c: &ConnectionView| Arc::new(c.clone()) as Arc<dyn Shown>;
        let chosen = query.choose(connections.iter().map(shown).collect()).await;
        assert_eq!(chosen.total, connections.len());
        chosen.sessions.iter().map(|s| s.id()).collect()
    }

    #[tokio::test]
    async fn filters_and_order() {
        let mut a = session(1);
        a.listener = "web".into();
        a.idle_ms = 5_000;
        a.age_ms = 1;
        let mut b = session(2);
        b.downstream.condition = "suspect";
        b.downstream.peer = Some("[::ffff:192.0.2.9]:700".parse().expect("valid"));
        b.downstream.last_life_ms = 99_999;
        b.phase = "half_closed";
        let mut c = session(3);
        c.upstream = None;
        c.phase = "queued";
        c.downstream.received_bytes = 1 << 40;
        let all = [c, a, b];

        for (query, expected) in [
            ("", &[1, 2, 3][..]),
            ("listener=web", &[1]),
            ("listener=we%62", &[1]),
            ("listener=none", &[]),
            ("condition=suspect", &[2]),
            ("phase=queued", &[3]),
            ("phase=connecting", &[]),
            ("peer=192.0.2.9", &[2]),
            ("peer=192.0.2.9:700", &[2]),
            ("peer=192.0.2.9:701", &[]),
            ("peer=%5B%3A%3Affff%3A192.0.2.9%5D%3A700", &[2]),
            ("min_idle=5s", &[1]),
            ("sort=idle", &[1, 2, 3]),
            ("sort=age", &[2, 3, 1]),
            ("sort=last_life&limit=1", &[2]),
            ("sort=received", &[3, 1, 2]),
            ("limit=0", &[]),
            ("&&", &[1, 2, 3]),
        ] {
            assert_eq!(ids(query, &all).await, expected, "{query}");
        }
    }

    #[test]
    fn a_bad_query_names_the_parameter_and_what_it_accepts() {
        for (query, words) in [
            ("colour=red", &["colour", "listener", "min_idle"][..]),
            ("condition=dead", &["condition", "suspect", "'dead'"]),
            ("phase=", &["phase", "half_closed"]),
            ("peer=localhost", &["peer", "IP:port"]),
            ("min_idle=5", &["min_idle", "90s", "'5'"]),
            ("min_idle=-5s", &["min_idle"]),
            ("min_idle=1e9s", &["min_idle"]),
            ("sort=size", &["sort", "last_life"]),
            ("limit=-1", &["limit", "whole number"]),
            ("format=xml", &["format", "json or text"]),
            ("listener=%f", &["listener", "percent"]),
            ("listener=%ff", &["listener", "percent"]),
            ("limit=1&limit=2", &["limit", "twice"]),
        ] {
            let error = Query::parse(query).expect_err(query);
            for word in words {
                assert!(error.contains(word), "{query}: {error}");
            }
        }
    }

    #[test]
    fn quick_is_for_verifying_only() {
        assert!(Query::parse("quick=true").is_err());
        let verify = |query| Query::parse_verify(query).map(|(q, quick)| (q.listener, quick));
        let web = || Some("web".to_owned());
        for (query, expected) in [
            ("", (None, false)),
            ("quick", (None, true)),
            ("quick=true&listener=web", (web(), true)),
            ("listener=web&quick=false", (web(), false)),
        ] {
            assert_eq!(verify(query), Ok(expected), "{query}");
        }
        for (query, word) in [
            ("quick=yes", "true or false"),
            ("quick=true&quick=true", "twice"),
            ("slow=true", "format, quick"),
        ] {
            let error = verify(query).expect_err(query);
            assert!(error.contains(word), "{query}: {error}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1.5m"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("1d"), Some(Duration::from_secs(86_400)));
        for bad in ["", "s", "1", "1..2s", "1y", "1 s", ".s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn encoding_comes_back() {
        let text = "[::1]:80 & a%b=ü";
        assert_eq!(decode(&encode(text)).as_deref(), Some(text));
    }
}
