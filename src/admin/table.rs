//! `/connections` for people: what is known of a session and its two legs in 80 columns, or everything in the spirit
//! of `ss -o`. And the same for what verifying found, and for what a reload did.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::liveness::Leg;
use crate::metrics::FoundList;

use super::view::{
    ConnectionView, EndpointView, LegView, ReloadReport, TimerView, TlsView, VerifiedLeg,
    VerifiedSession, VerifyList,
};

/// A terminal is at least that wide.
const COLUMNS: usize = 80;
/// As long as an IPv4 address with its port.
const SHORT_PEER: usize = 21;

const HEAD: &str = "ID LISTENER PHASE AGE IDLE \
    LEG LOCAL PEER STATE CONDITION LIFE RECEIVED SENT UNACKED NOTSENT RETR/PROBE RTT";
const ENDPOINTS_HEAD: &str =
    "LISTENER ENDPOINT NAME STATE SESSIONS CONNECTS FAILURES IN-A-ROW EJECTIONS EJECTED-FOR CAUSE";
const GROUPS_HEAD: &str = "TIMES LAST PEER REASON LISTENER";
const ENDS_HEAD: &str = "AGO ID LISTENER REASON EVIDENCE PEER SILENT AGE RECEIVED SENT";
const VERIFIED_HEAD: &str = "ID LISTENER CLOSED LEG ANSWER SILENT EVIDENCE TOOK";

/// How much is shown of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Detail {
    /// What fits into 80 columns.
    #[default]
    Short,
    /// Everything.
    Full,
}

/// A table of sessions, made a part at a time.
pub(super) enum Sessions {
    Short { began: bool },
    Full(Table),
}

impl Sessions {
    pub(super) fn new(detail: Detail) -> Self {
        match detail {
            Detail::Short => Self::Short { began: false },
            Detail::Full => Self::Full(Table::default()),
        }
    }

    /// The lines of these sessions; the first time, below those that name the columns.
    pub(super) fn rows(&mut self, connections: &[ConnectionView]) -> String {
        match self {
            Self::Full(table) => table.lines(HEAD, connections.iter().flat_map(pair)),
            Self::Short { began } => {
                let head = (!std::mem::replace(began, true)).then(short_head);
                let lines = connections.iter().flat_map(short);
                let lines = head.into_iter().flatten().chain(lines);
                lines.map(|line| line + "\n").collect()
            }
        }
    }
}

fn short_head() -> [String; 2] {
    let [id, phase, age, idle, next] = ["ID", "PHASE", "AGE", "IDLE", "NEXT"];
    [
        session_line([id, phase, age, idle, next, "LISTENER"]),
        leg_line(["LEG", "PEER", "CONDITION", "LIFE"]),
    ]
}

/// One line for the session, and one for each leg.
fn short(c: &ConnectionView) -> [String; 3] {
    let next = match (c.verdict, &c.timer) {
        (Some(verdict), _) => verdict.to_owned(),
        (None, Some(timer)) => format!("{} {}", age(timer.in_ms), timer.reason),
        (None, None) => "-".to_owned(),
    };
    let [id, phase] = [c.id.to_string(), c.phase.to_string()];
    let [age_of, idle] = [age(c.age_ms), age(c.idle_ms)];
    let leg = |name, leg: Option<&LegView>| match leg {
        Some(leg) => {
            let (peer, life) = (address(leg.peer), age(leg.last_life_ms));
            leg_line([name, &peer, leg.condition, &life])
        }
        None => leg_line([name, "-", "-", "-"]),
    };
    [
        session_line([&id, &phase, &age_of, &idle, &next, &c.listener]),
        leg("down", Some(&c.downstream)),
        leg("up", c.upstream.as_ref()),
    ]
}

/// The name of the listener is the last, because it may be cut.
fn session_line([id, phase, age, idle, next, listener]: [&str; 6]) -> String {
    let line = format!("{id:<5} {phase:<11} {age:<6} {idle:<6} {next:<29} ");
    let room = COLUMNS.saturating_sub(line.chars().count());
    line + &clipped(listener, room)
}

fn leg_line([leg, peer, condition, life]: [&str; 4]) -> String {
    let line = format!("  {leg:<4} {peer:<SHORT_PEER$} {condition:<11} {life}");
    line.trim_end().to_owned()
}

/// The beginning of a text, and a mark where something is missing.
fn clipped(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept = text.chars().take(room.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// A table, made a part at a time. Columns only become wider.
#[derive(Default)]
pub(super) struct Table {
    widths: Vec<usize>,
}

type Row = Vec<String>;

impl Table {
    fn lines(&mut self, head: &str, rows: impl Iterator<Item = Row>) -> String {
        let head = self.widths.is_empty().then(|| cells(head.split(' ')));
        let rows: Vec<Row> = head.into_iter().chain(rows).collect();
        for row in &rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&self.widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn cells<'a>(words: impl IntoIterator<Item = &'a str>) -> Row {
    words.into_iter().map(str::to_owned).collect()
}

/// What verifying found.
pub(super) fn verified(sessions: &[VerifiedSession]) -> String {
    let rows = sessions.iter().flat_map(|session| {
        let closed = if session.closed { "yes" } else { "no" };
        let (id, listener) = (session.id.to_string(), session.listener.as_str());
        let downstream = verified_leg("downstream", Some(&session.downstream));
        let upstream = verified_leg("upstream", session.upstream.as_ref());
        below(cells([&id, listener, closed]), downstream, upstream)
    });
    Table::default().lines(VERIFIED_HEAD, rows)
}

/// The endpoints of the services.
pub(super) fn endpoints(endpoints: &[EndpointView]) -> String {
    let rows = endpoints.iter().map(|endpoint| {
        let ejected = endpoint.ejected_for_ms.map_or_else(|| "-".to_owned(), age);
        vec![
            endpoint.listener.clone(),
            endpoint.endpoint.clone(),
            endpoint.name.clone().unwrap_or_else(|| "-".to_owned()),
            endpoint.state.to_string(),
            endpoint.active_sessions.to_string(),
            endpoint.connects.to_string(),
            endpoint.failures.to_string(),
            endpoint.consecutive_failures.to_string(),
            endpoint.ejections.to_string(),
            ejected,
            endpoint.cause.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    Table::default().lines(ENDPOINTS_HEAD, rows)
}

/// What happened how often in the last 24 hours, and each of it.
pub(super) fn found(list: &FoundList) -> String {
    if list.ends.is_empty() {
        return "no peer was found gone or hanging\n".to_owned();
    }
    let ago = |at: i64| age(1000 * u64::try_from(list.now - at).unwrap_or(0));
    let groups = list.groups.iter().map(|group| {
        vec![
            group.times.to_string(),
            ago(group.last_at),
            group.peer.clone(),
            group.reason.to_owned(),
            group.listener.clone(),
        ]
    });
    let ends = list.ends.iter().map(|end| {
        let (received, sent) = match end.leg {
            Leg::Downstream => (end.downstream_received, end.downstream_sent),
            Leg::Upstream => (end.upstream_received, end.upstream_sent),
        };
        vec![
            ago(end.at),
            end.id.to_string(),
            end.listener.clone(),
            end.reason.to_owned(),
            end.evidence.unwrap_or("-").to_owned(),
            end.peer(),
            end.silent_ms.map_or_else(|| "-".to_owned(), age),
            age(end.duration_ms),
            received.to_string(),
            sent.to_string(),
        ]
    });
    let groups = Table::default().lines(GROUPS_HEAD, groups);
    groups + "\n" + &Table::default().lines(ENDS_HEAD, ends)
}

/// What became of each change.
pub(super) fn reloaded(report: &ReloadReport) -> String {
    let lists = [
        ("applied", &report.applied),
        ("new sessions only", &report.new_sessions_only),
        ("needs a restart", &report.needs_restart),
    ];
    let lines = lists.iter().flat_map(|(list, keys)| {
        let line = move |key: &String| format!("{list:<17}  {key}\n");
        keys.iter().map(line)
    });
    match lines.collect::<String>() {
        none if none.is_empty() => "nothing differs\n".to_owned(),
        lines => lines,
    }
}

/// The same, and a last line that counts.
pub(super) fn verify_list(list: &VerifyList) -> String {
    let mut text = verified(&list.sessions);
    let _ = writeln!(
        text,
        "{} asked: {} alive, {} silent, {} unknown, {} over; {} closed, {} skipped",
        list.asked, list.alive, list.silent, list.unknown, list.over, list.closed, list.skipped
    );
    text
}

fn verified_leg(name: &str, leg: Option<&VerifiedLeg>) -> Row {
    let Some(leg) = leg else {
        return cells([name, "-", "-", "-", "-"]);
    };
    vec![
        name.to_owned(),
        leg.answer.to_string(),
        leg.silent_ms.map_or_else(|| "-".to_owned(), age),
        leg.evidence.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{}ms", leg.took_ms),
    ]
}

/// The session's own cells stand on the first line only.
fn below(session: Row, downstream: Row, upstream: Row) -> [Row; 2] {
    let blank = vec![String::new(); session.len()];
    [[session, downstream].concat(), [blank, upstream].concat()]
}

fn pair(c: &ConnectionView) -> [Row; 2] {
    let word = |name, timer: Option<&TimerView>| {
        timer.map(|t| format!("{name}:({},{})", t.reason, age(t.in_ms)))
    };
    let of_session = [
        word("timer", c.downstream.timer.as_ref()),
        word("next", c.timer.as_ref()),
        c.verdict.map(|reason| format!("verdict:({reason})")),
        c.downstream.tls.as_ref().map(tls),
    ];
    let of_upstream = c.upstream.as_ref().and_then(|leg| leg.timer.as_ref());
    let of_upstream = [
        word("timer", of_upstream),
        c.upstream
            .as_ref()
            .and_then(|leg| leg.tls.as_ref())
            .map(tls),
    ];
    let session = vec![
        c.id.to_string(),
        c.listener.clone(),
        c.phase.to_string(),
        age(c.age_ms),
        age(c.idle_ms),
    ];
    let words =
        |words: &[Option<String>]| words.iter().flatten().cloned().collect::<Row>().join(" ");
    let mut downstream = leg("downstream", Some(&c.downstream));
    downstream.push(words(&of_session));
    let mut upstream = leg("upstream", c.upstream.as_ref());
    upstream.push(words(&of_upstream));
    below(session, downstream, upstream)
}

/// The version, and whose certificate the peer has. That is the peer's word: it may be anything.
fn tls(tls: &TlsView) -> String {
    match &tls.identity {
        Some(identity) => format!("tls:({},{})", tls.version, identity.escape_debug()),
        None => format!("tls:({})", tls.version),
    }
}

fn leg(name: &str, leg: Option<&LegView>) -> Row {
    let Some(leg) = leg else {
        return cells([name].into_iter().chain(["-"; 11]));
    };
    vec![
        name.to_owned(),
        address(leg.local),
        address(leg.peer),
        leg.state.to_owned(),
        leg.condition.to_owned(),
        age(leg.last_life_ms),
        leg.received_bytes.to_string(),
        leg.sent_bytes.to_string(),
        leg.unacked.to_string(),
        leg.notsent_bytes.to_string(),
        format!("{}/{}", leg.retransmits, leg.probes),
        format!("{}.{}ms", leg.rtt_us / 1000, leg.rtt_us % 1000 / 100),
    ]
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

/// A time in ms for people: three digits or so, whatever the size.
#[must_use]
pub fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::view::{AnswerWord, Brief, Phase};
    use super::*;

    fn timer(reason: &'static str, in_ms: u64) -> Option<TimerView> {
        Some(TimerView { reason, in_ms })
    }

    fn leg_view(peer: &str) -> LegView {
        LegView {
            local: Some("10.0.0.5:9000".parse().expect("valid")),
            peer: Some(peer.parse().expect("valid")),
            state: "ESTAB",
            condition: "alive",
            last_life_ms: 400,
            received_bytes: 10,
            sent_bytes: 20,
            unacked: 1,
            notsent_bytes: 0,
            retransmits: 2,
            probes: 3,
            rtt_us: 250,
            heartbeat: None,
            timer: None,
            tls: None,
        }
    }

    /// A plain open session.
    pub(crate) fn session(id: u64) -> ConnectionView {
        ConnectionView {
            id,
            listener: "db".into(),
            phase: Phase::Open,
            age_ms: 3_723_000,
            idle_ms: 400,
            proxy: None,
            downstream: leg_view("192.0.2.7:51234"),
            upstream: Some(leg_view("127.0.0.1:5432")),
            timer: None,
            verdict: None,
        }
    }

    /// The same as it was last observed.
    pub(crate) fn brief(view: &ConnectionView) -> Brief {
        let upstream = view.upstream.as_ref();
        Brief {
            listener: view.listener.as_str().into(),
            phase: view.phase,
            conditions: [
                view.downstream.condition,
                upstream.map_or("alive", |leg| leg.condition),
            ],
            age_ms: view.age_ms,
            idle_ms: view.idle_ms,
            last_life_ms: view.legs().map(|leg| leg.last_life_ms).max().unwrap_or(0),
            received_bytes: view.legs().map(|leg| leg.received_bytes).sum(),
            sent_bytes: view.legs().map(|leg| leg.sent_bytes).sum(),
        }
    }

    #[test]
    fn what_verifying_found() {
        let leg = VerifiedLeg {
            answer: AnswerWord::Alive,
            silent_ms: Some(2),
            evidence: Some("answered".into()),
            took_ms: 3,
        };
        let session = |id, upstream: Option<VerifiedLeg>| VerifiedSession {
            id,
            listener: "db".into(),
            downstream: leg.clone(),
            closed: upstream.is_some(),
            upstream,
        };
        let gone = VerifiedLeg {
            answer: AnswerWord::Silent,
            silent_ms: Some(4321),
            evidence: Some("keepalive".into()),
            took_ms: 802,
        };
        let list = VerifyList::of(vec![session(7, Some(gone)), session(8, None)], 3);
        let expected = "\
ID  LISTENER  CLOSED  LEG         ANSWER  SILENT  EVIDENCE   TOOK
7   db        yes     downstream  alive   0.0s    answered   3ms
                      upstream    silent  4.3s    keepalive  802ms
8   db        no      downstream  alive   0.0s    answered   3ms
                      upstream    -       -       -          -
2 asked: 1 alive, 1 silent, 0 unknown, 0 over; 1 closed, 1 skipped
";
        let text = verify_list(&list);
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_session_and_its_legs_in_80_columns() {
        let mut first = session(7);
        first.timer = timer("downstream_dead", 12_345);
        first.downstream.condition = "suspect";
        let mut second = session(8);
        second.upstream = None;
        second.verdict = Some("admin");
        second.listener = "a-listener-with-a-name-of-more-than-27-columns".into();
        let text = Sessions::new(Detail::Short).rows(&[first, second]);
        let expected = "\
ID    PHASE       AGE    IDLE   NEXT                          LISTENER
  LEG  PEER                  CONDITION   LIFE
7     open        1h02m  0.4s   12.3s downstream_dead         db
  down 192.0.2.7:51234       suspect     0.4s
  up   127.0.0.1:5432        alive       0.4s
8     open        1h02m  0.4s   admin                         a-listener-with-a…
  down 192.0.2.7:51234       alive       0.4s
  up   -                     -           -
";
        assert_eq!(text, expected, "\n{text}");
    }

    /// Whatever is as long as it can be: IPv6 addresses, the name of the listener, words, ages, numbers.
    #[test]
    fn no_line_is_wider_than_80_columns() {
        let mut longest = session(999_999_999);
        longest.listener = "n".repeat(63);
        longest.phase = Phase::HalfClosed;
        longest.age_ms = 365 * 86_400_000 - 1;
        longest.idle_ms = longest.age_ms;
        longest.timer = timer("downstream_undelivered", longest.age_ms);
        let peer = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        let mut leg = leg_view(peer);
        leg.condition = "undelivered";
        leg.last_life_ms = longest.age_ms;
        longest.downstream = leg.clone();
        longest.upstream = Some(leg);
        let text = Sessions::new(Detail::Short).rows(&[session(1), longest]);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert_eq!(text.matches(peer).count(), 2, "{text}");
        assert_eq!(text.matches("364d23h downstream_undelivered").count(), 1);
    }

    #[test]
    fn everything_in_two_lines_for_each_session() {
        let mut first = session(7);
        first.timer = timer("idle_timeout", 2000);
        first.downstream.timer = timer("downstream_dead", 12_345);
        first.upstream.as_mut().expect("connected").timer = timer("upstream_dead", 14_000);
        first.downstream.condition = "suspect";
        let mut second = session(8);
        second.upstream = None;
        second.verdict = Some("admin");
        let text = Sessions::new(Detail::Full).rows(&[first, second]);
        let expected = "\
ID  LISTENER  PHASE  AGE    IDLE  LEG         LOCAL          PEER             STATE  CONDITION  LIFE  RECEIVED  SENT  UNACKED  NOTSENT  RETR/PROBE  RTT
7   db        open   1h02m  0.4s  downstream  10.0.0.5:9000  192.0.2.7:51234  ESTAB  suspect    0.4s  10        20    1        0        2/3         0.2ms  timer:(downstream_dead,12.3s) next:(idle_timeout,2.0s)
                                  upstream    10.0.0.5:9000  127.0.0.1:5432   ESTAB  alive      0.4s  10        20    1        0        2/3         0.2ms  timer:(upstream_dead,14.0s)
8   db        open   1h02m  0.4s  downstream  10.0.0.5:9000  192.0.2.7:51234  ESTAB  alive      0.4s  10        20    1        0        2/3         0.2ms  verdict:(admin)
                                  upstream    -              -                -      -          -     -         -     -        -        -           -
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn ages() {
        for (ms, text) in [
            (0, "0.0s"),
            (59_999, "59.9s"),
            (60_000, "1m00s"),
            (3_600_000, "1h00m"),
            (90_000_000, "1d01h"),
        ] {
            assert_eq!(age(ms), text);
        }
    }
}
