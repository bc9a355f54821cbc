//! The query of `/connections`: filters, order, form.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use strum::{Display, EnumString, VariantNames};
use tokio::task::yield_now;

use super::table::Detail;
use super::view::{Brief, ConnectionView, OnSilent, Phase, Shown};
use crate::config;
use crate::liveness::Condition;

/// After so many sessions other tasks of the thread have their turn.
const TURN: usize = 64;

const PARAMETERS: [&str; 9] = [
    "listener",
    "condition",
    "phase",
    "peer",
    "min_idle",
    "sort",
    "limit",
    "format",
    "wide",
];
/// Those of `/upstreams` and `/found`.
const LISTENER_PARAMETERS: [&str; 2] = ["listener", "format"];
/// Further ones of `POST /verify`.
const VERIFY_PARAMETERS: [&str; 1] = ["quick"];
/// Further ones of `DELETE /connections`, and of one session.
const CLOSE_PARAMETERS: [&str; 2] = ["all", "reason"];
/// No reason for the log is longer, in bytes.
const LONGEST_REASON: usize = 200;

/// JSON or a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Format {
    /// For programs.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Which sessions to show, and in which order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    listener: Option<String>,
    condition: Option<Condition>,
    phase: Option<Phase>,
    peer: Option<Peer>,
    min_idle: Option<Duration>,
    sort: Option<Sort>,
    limit: Option<usize>,
    /// What `format` asks for.
    pub(super) format: Option<Format>,
    /// What `wide` asks for.
    pub(super) detail: Detail,
    /// What `quick` asks for.
    pub(super) on_silent: OnSilent,
    /// Why an operator ends sessions, for the log.
    pub(super) reason: Option<String>,
    all: bool,
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

/// What the weight of a session is worth. A look finds no more than was known without one, so that only those that
/// may be among the first are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    AtMost,
    Exactly,
}

/// The order of sessions. Except for `Id` the largest is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Sort {
    /// Since the session began.
    Age,
    /// Since a byte last moved.
    Idle,
    /// As the sessions began.
    Id,
    /// Bytes received from both peers.
    Received,
    /// Bytes sent to both peers.
    Sent,
    /// Since the last sign of life of the peer that is silent for longer.
    LastLife,
}

impl Query {
    /// Reads the part of the URI behind `?`. The error names the parameter and what it accepts.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        Self::parse_with(query, &PARAMETERS)
    }

    /// The same for verifying, with `quick`.
    pub(super) fn parse_verify(query: &str) -> Result<Self, String> {
        Self::parse_with(query, &[&PARAMETERS[..], &VERIFY_PARAMETERS].concat())
    }

    /// The same for ending sessions, with `all` and `reason`.
    pub(super) fn parse_close(query: &str) -> Result<Self, String> {
        Self::parse_with(query, &[&PARAMETERS[..], &CLOSE_PARAMETERS].concat())
    }

    /// The same where only a listener is chosen.
    pub(super) fn parse_of_listener(query: &str) -> Result<Self, String> {
        Self::parse_with(query, &LISTENER_PARAMETERS)
    }

    /// The listener that is asked for.
    pub(super) fn listener(&self) -> Option<&str> {
        self.listener.as_deref()
    }

    /// Whether a listener is asked for.
    pub(super) fn wants_listener(&self, name: &str) -> bool {
        self.listener.as_deref().is_none_or(|wanted| wanted == name)
    }

    /// Whether `all` or a filter says which sessions; without one, a slip would end them all.
    pub(super) fn names_sessions(&self) -> bool {
        self.all || self.filters()
    }

    fn parse_with(query: &str, accepted: &[&str]) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut seen = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !accepted.contains(&&*name) {
                let accepted = accepted.join(", ");
                return Err(format!("{name}: unknown; accepted are {accepted}"));
            }
            // No value has a percent sign, and what is no UTF-8 was replaced.
            if value.contains(['%', char::REPLACEMENT_CHARACTER]) {
                return Err(format!("{name}: bad percent-encoding"));
            }
            if seen.contains(&name) {
                return Err(format!("{name}: given twice"));
            }
            parsed.set(&name, &value)?;
            seen.push(name);
        }
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "listener" => self.listener = Some(value.to_owned()),
            "condition" => self.condition = Some(word(name, value)?),
            "phase" => self.phase = Some(word(name, value)?),
            "peer" => self.peer = Some(parsed(name, value, "an IP address or IP:port")?),
            "min_idle" => {
                let duration = config::duration(value);
                let accepted = "a duration such as 90s, 5m or 1h";
                self.min_idle = Some(duration.map_err(|_| refused(name, value, accepted))?);
            }
            "sort" => self.sort = Some(word(name, value)?),
            "limit" => self.limit = Some(parsed(name, value, "a whole number")?),
            "format" => self.format = Some(word(name, value)?),
            "reason" if value.len() > LONGEST_REASON => {
                return Err(format!("{name}: longer than {LONGEST_REASON} bytes"));
            }
            "reason" => self.reason = Some(value.to_owned()),
            "all" => self.all = switch(name, value)?,
            "wide" if switch(name, value)? => self.detail = Detail::Full,
            "wide" => self.detail = Detail::Short,
            _ if switch(name, value)? => self.on_silent = OnSilent::End,
            _ => self.on_silent = OnSilent::Report,
        }
        Ok(())
    }

    /// Filters, sorts and truncates.
    pub(super) async fn choose(&self, mut sessions: Vec<Arc<dyn Shown>>) -> Chosen {
        let total = sessions.len();
        let limit = self.limit.unwrap_or(usize::MAX);
        let sort = self.sort.unwrap_or(Sort::Id);
        sessions.sort_unstable_by_key(|session| session.id());
        if !self.filters() && sort == Sort::Id {
            sessions.truncate(limit);
            return Chosen {
                total,
                matched: total,
                sessions,
            };
        }
        let mut found = Vec::new();
        for (i, session) in sessions.iter().enumerate() {
            if i % TURN == TURN - 1 {
                yield_now().await;
            }
            if let Some((weight, known)) = self.weight(&**session, sort) {
                // Of equal weight, the lower id comes first.
                found.push((weight, Reverse(i), known));
            }
        }
        let mut matched = found.len();
        let mut found = BinaryHeap::from(found);
        let mut chosen = Vec::new();
        let mut looks = 0;
        while chosen.len() < limit
            && let Some((_, Reverse(i), known)) = found.pop()
        {
            if known == Known::Exactly {
                chosen.push(sessions[i].clone());
                continue;
            }
            looks += 1;
            if looks % TURN == 0 {
                yield_now().await;
            }
            match sessions[i].view() {
                Some(view) => found.push((sort.weight(&view), Reverse(i), Known::Exactly)),
                None => matched -= 1,
            }
        }
        Chosen {
            total,
            matched,
            sessions: chosen,
        }
    }

    /// Its weight in this order; `None` where the filters leave it out. The kernel is asked only about a session
    /// that may pass, and where what is known is not enough for a filter.
    fn weight(&self, session: &dyn Shown, sort: Sort) -> Option<(u64, Known)> {
        let brief = session.brief().filter(|brief| self.may_match(brief))?;
        // Where nobody asks for a peer, the kernel need not say who it is.
        let is_peer = |peer: &Peer| session.peers().iter().flatten().any(|a| peer.is(*a));
        if !self.peer.as_ref().is_none_or(is_peer) {
            return None;
        }
        if !self.needs_a_look() {
            return Some(sort.known_weight(&brief));
        }
        let view = session.view().filter(|view| self.matches(view))?;
        Some((sort.weight(&view), Known::Exactly))
    }

    /// What a session was last found to be says that the filters may leave it.
    fn may_match(&self, brief: &Brief) -> bool {
        let phase =
            |wanted: Phase| wanted == brief.phase || is_open(wanted) && is_open(brief.phase);
        let idle = |d: &Duration| u128::from(brief.idle_ms) >= d.as_millis();
        let condition = |wanted: Condition| {
            !is_found(wanted) || brief.conditions.contains(&<&str>::from(wanted))
        };
        self.listener
            .as_deref()
            .is_none_or(|l| *l == *brief.listener)
            && self.phase.is_none_or(phase)
            && self.min_idle.as_ref().is_none_or(idle)
            && self.condition.is_none_or(condition)
    }

    /// Whether a session that may match has to be looked at.
    fn needs_a_look(&self) -> bool {
        self.min_idle.is_some()
            || self.phase.is_some_and(is_open)
            || self.condition.is_some_and(|wanted| !is_found(wanted))
    }

    fn filters(&self) -> bool {
        self.listener.is_some()
            || self.condition.is_some()
            || self.phase.is_some()
            || self.peer.is_some()
            || self.min_idle.is_some()
    }

    fn matches(&self, c: &ConnectionView) -> bool {
        let condition = |word: Condition| c.legs().any(|leg| leg.condition == <&str>::from(word));
        let peer = |peer: &Peer| c.legs().filter_map(|l| l.peer).any(|a| peer.is(a));
        let idle = |d: &Duration| u128::from(c.idle_ms) >= d.as_millis();
        self.listener.as_ref().is_none_or(|l| *l == c.listener)
            && self.condition.is_none_or(condition)
            && self.phase.is_none_or(|p| p == c.phase)
            && self.peer.as_ref().is_none_or(peer)
            && self.min_idle.as_ref().is_none_or(idle)
    }
}

/// Which of the two it is says a FIN that may have come since.
fn is_open(phase: Phase) -> bool {
    matches!(phase, Phase::Open | Phase::HalfClosed)
}

/// Whether it is found out by observing, not by the time that passes. The metrics count the same.
fn is_found(condition: Condition) -> bool {
    !matches!(condition, Condition::Alive | Condition::Quiet)
}

/// `quick` is as good as `quick=true`.
fn switch(name: &str, value: &str) -> Result<bool, String> {
    Ok(value.is_empty() || parsed(name, value, "true or false")?)
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

impl Sort {
    /// What is known without a look.
    const fn known_weight(self, brief: &Brief) -> (u64, Known) {
        match self {
            Self::Id => (0, Known::Exactly),
            Self::Age => (brief.age_ms, Known::Exactly),
            Self::Received => (brief.received_bytes, Known::Exactly),
            Self::Sent => (brief.sent_bytes, Known::Exactly),
            Self::Idle => (brief.idle_ms, Known::AtMost),
            Self::LastLife => (brief.last_life_ms, Known::AtMost),
        }
    }

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

fn word<T: FromStr + VariantNames>(name: &str, value: &str) -> Result<T, String> {
    let (last, others) = T::VARIANTS.split_last().unwrap_or((&"nothing", &[]));
    parsed(name, value, &format!("{} or {last}", others.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::super::table::tests::{brief, session};
    use super::*;

    impl Shown for ConnectionView {
        fn id(&self) -> u64 {
            self.id
        }

        fn view(&self) -> Option<Self> {
            Some(self.clone())
        }

        fn brief(&self) -> Option<Brief> {
            Some(brief(self))
        }

        fn peers(&self) -> [Option<SocketAddr>; 2] {
            [
                self.downstream.peer,
                self.upstream.as_ref().and_then(|leg| leg.peer),
            ]
        }
    }

    /// A session that counts how often it is looked at.
    struct Watched(ConnectionView, Arc<AtomicUsize>);

    impl Shown for Watched {
        fn id(&self) -> u64 {
            self.0.id
        }

        fn view(&self) -> Option<ConnectionView> {
            self.1.fetch_add(1, Relaxed);
            self.0.view()
        }

        fn brief(&self) -> Option<Brief> {
            self.0.brief()
        }

        fn peers(&self) -> [Option<SocketAddr>; 2] {
            self.0.peers()
        }
    }

    #[tokio::test]
    async fn only_sessions_that_may_pass_are_looked_at() {
        for (query, expected) in [
            ("limit=5", 0),
            ("listener=web&limit=5", 0),
            ("listener=web&sort=age&limit=5", 0),
            ("sort=received&limit=5", 0),
            ("condition=suspect", 0),
            ("peer=192.0.2.7&phase=queued", 0),
            ("listener=web&min_idle=1h", 0),
            ("listener=web&sort=idle", 10),
            ("sort=idle&limit=5", 5),
            ("listener=web&condition=quiet", 10),
            ("listener=web&phase=half_closed", 10),
            ("sort=last_life&limit=1", 1),
            ("sort=last_life", 100),
        ] {
            let looks = Arc::new(AtomicUsize::new(0));
            let watched = |id| {
                let mut view = session(id);
                view.listener = if id % 10 == 0 { "web" } else { "db" }.into();
                Arc::new(Watched(view, looks.clone())) as Arc<dyn Shown>
            };
            let query_of = Query::parse(query).expect("valid");
            query_of.choose((1..=100).map(watched).collect()).await;
            assert_eq!(looks.load(Relaxed), expected, "{query}");
        }
    }

    /// Each session moved bytes since it was observed; the third has ended.
    struct Moved(ConnectionView);

    impl Shown for Moved {
        fn id(&self) -> u64 {
            self.0.id
        }

        fn view(&self) -> Option<ConnectionView> {
            (self.0.id != 3).then(|| self.0.clone())
        }

        fn brief(&self) -> Option<Brief> {
            let idle_ms = self.0.idle_ms + 100 * self.0.id;
            Some(Brief {
                idle_ms,
                ..brief(&self.0)
            })
        }

        fn peers(&self) -> [Option<SocketAddr>; 2] {
            self.0.peers()
        }
    }

    #[tokio::test]
    async fn what_a_look_finds_decides_the_order() {
        let moved = |(id, idle_ms)| {
            let mut view = session(id);
            view.idle_ms = idle_ms;
            Arc::new(Moved(view)) as Arc<dyn Shown>
        };
        let sessions = [(1, 900), (2, 950), (3, 990), (4, 500), (5, 500)].map(moved);
        let query = Query::parse("sort=idle&limit=4").expect("valid");
        let chosen = query.choose(sessions.to_vec()).await;
        let ids: Vec<_> = chosen.sessions.iter().map(|s| s.id()).collect();
        assert_eq!(ids, [2, 1, 4, 5]);
        assert_eq!((chosen.total, chosen.matched), (5, 4));
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
        b.phase = Phase::HalfClosed;
        let mut c = session(3);
        c.upstream = None;
        c.phase = Phase::Queued;
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
            ("wide=very", &["wide", "true or false"]),
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
        let verify =
            |query| Query::parse_verify(query).map(|q| (q.listener, q.on_silent == OnSilent::End));
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
            ("slow=true", "wide, quick"),
        ] {
            let error = verify(query).expect_err(query);
            assert!(error.contains(word), "{query}: {error}");
        }
    }

    #[test]
    fn the_document_lists_every_word() {
        let document = include_str!("../../docs/ADMIN.md");
        for (name, words) in [
            ("phase", Phase::VARIANTS),
            ("condition", Condition::VARIANTS),
            ("sort", Sort::VARIANTS),
            ("format", Format::VARIANTS),
        ] {
            let start = format!("| `{name}` |");
            let row = document.lines().find(|line| line.starts_with(&start));
            let quoted = row.expect(name).split('`').skip(3).step_by(2);
            let (mut listed, mut words): (Vec<_>, _) = (quoted.collect(), words.to_vec());
            listed.sort_unstable();
            words.sort_unstable();
            assert_eq!(listed, words, "{name}");
        }
    }
}
