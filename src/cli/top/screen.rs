//! What `top` shows, and what a key does. Pure: figures and keys in, lines out.

use std::cmp::Reverse;
use std::time::Duration;

use serde_json::Value;
use strum::VariantNames;

use crate::admin::client::{Sort, age};
use crate::telemetry::Colours;

pub(super) const HELP: &str = "\
Keys:
  s     next order: age, idle, id, received, sent, last_life
  /     filter: a peer (IP or IP:port), a listener, or phase=, condition=,
        min_idle= as in conns
  d     suspects only, and all again
  l, u  downstream legs only, upstream legs only, and both again
  p     pause, and go on
  up, down  choose a session
  v     verify it: ask both peers now
  k     end it; asks for the reason, Enter ends, Escape does not
  ?     these keys
  q     quit";

/// A note can be read for so long.
const NOTE: Duration = Duration::from_secs(10);

/// Parameters of `/connections`.
pub(super) type Query = Vec<(String, String)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Back,
    Up,
    Down,
    Interrupt,
}

/// What is to be done after a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Quit,
    Verify(u64),
    End(u64, String),
}

/// What the process has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    /// The overview before the last one.
    pub before: Option<Value>,
    pub summary: Value,
    /// The sessions that are shown.
    pub list: Value,
    /// Why none are.
    pub trouble: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Watching,
    Help,
    /// The filter is being typed.
    Filter(String),
    /// The reason is being typed for which a session ends.
    Reason(u64, String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Legs {
    #[default]
    Both,
    Downstream,
    Upstream,
}

/// What the operator has chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    place: String,
    mode: Mode,
    filter: String,
    sort: usize,
    suspects: bool,
    legs: Legs,
    /// Place of the chosen session in the list, and its number once it was chosen: it may move.
    chosen: usize,
    chosen_id: Option<u64>,
    pub paused: bool,
    /// What came of the last action.
    pub note: String,
    /// Why there is no news.
    pub trouble: String,
}

impl State {
    pub fn new(place: String) -> Self {
        Self {
            place,
            ..Self::default()
        }
    }

    fn sort(&self) -> &'static str {
        Sort::VARIANTS[self.sort % Sort::VARIANTS.len()]
    }

    /// What is to be asked for a screen of so many lines.
    pub fn query(&self, height: usize) -> Query {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut query = vec![
            pair("sort", self.sort()),
            pair("limit", &height.to_string()),
        ];
        if self.suspects {
            query.push(pair("condition", "suspect"));
        }
        query.extend(self.filter.split_whitespace().map(|word| {
            let is_address = word.contains(':') || word.parse::<std::net::IpAddr>().is_ok();
            match word.split_once('=') {
                Some((name, value)) => pair(name, value),
                None if is_address => pair("peer", word),
                None => pair("listener", word),
            }
        }));
        query
    }

    /// There is news, so long after the last key or note.
    pub fn refreshed(&mut self, after: Duration) {
        self.trouble.clear();
        if after >= NOTE {
            self.note.clear();
        }
    }

    pub fn press(&mut self, key: Key, frame: Option<&Frame>) -> Wish {
        if key == Key::Interrupt {
            return Wish::Quit;
        }
        match std::mem::take(&mut self.mode) {
            Mode::Watching => return self.command(key, frame),
            // Any key goes back.
            Mode::Help => {}
            Mode::Filter(text) => match typed(text, key) {
                Typed::On(text) => self.mode = Mode::Filter(text),
                Typed::Done(text) => {
                    self.filter = text;
                    (self.chosen, self.chosen_id) = (0, None);
                }
                Typed::Not => {}
            },
            Mode::Reason(id, text) => match typed(text, key) {
                Typed::On(text) => self.mode = Mode::Reason(id, text),
                Typed::Done(text) => return Wish::End(id, text),
                Typed::Not => {}
            },
        }
        Wish::Nothing
    }

    /// Where the chosen session is now. In place of one that is gone there is another.
    fn at(&self, sessions: &[Value]) -> usize {
        let is_it = |s: &Value| self.chosen_id.is_some() && s["id"].as_u64() == self.chosen_id;
        let last = sessions.len().saturating_sub(1);
        let found = sessions.iter().position(is_it);
        found.unwrap_or_else(|| self.chosen.min(last))
    }

    fn command(&mut self, key: Key, frame: Option<&Frame>) -> Wish {
        self.note.clear();
        let sessions = frame.map_or(&[][..], sessions);
        let at = self.at(sessions);
        let id_at = |at: usize| sessions.get(at).and_then(|s| s["id"].as_u64());
        let chosen = id_at(at);
        let only = |legs: Legs, wanted| if legs == wanted { Legs::Both } else { wanted };
        match key {
            Key::Char('q') => return Wish::Quit,
            Key::Char('s') => self.sort += 1,
            Key::Char('/') => self.mode = Mode::Filter(self.filter.clone()),
            Key::Char('d') => self.suspects = !self.suspects,
            Key::Char('l') => self.legs = only(self.legs, Legs::Downstream),
            Key::Char('u') => self.legs = only(self.legs, Legs::Upstream),
            Key::Char('p') => self.paused = !self.paused,
            Key::Char('?') => self.mode = Mode::Help,
            Key::Up | Key::Down => {
                self.chosen = match key {
                    Key::Up => at.saturating_sub(1),
                    _ => (at + 1).min(sessions.len().saturating_sub(1)),
                };
                self.chosen_id = id_at(self.chosen);
            }
            Key::Char('v') => {
                if let Some(id) = chosen {
                    self.note = format!("session {id}: asking both peers");
                    return Wish::Verify(id);
                }
            }
            Key::Char('k') => {
                if let Some(id) = chosen {
                    self.mode = Mode::Reason(id, String::new());
                }
            }
            _ => {}
        }
        Wish::Nothing
    }
}

enum Typed {
    On(String),
    Done(String),
    Not,
}

fn typed(mut text: String, key: Key) -> Typed {
    match key {
        Key::Enter => return Typed::Done(text),
        Key::Escape => return Typed::Not,
        Key::Back => drop(text.pop()),
        Key::Char(c) if !c.is_control() => text.push(c),
        _ => {}
    }
    Typed::On(text)
}

fn sessions(frame: &Frame) -> &[Value] {
    frame.list["connections"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// The lines of a screen of this size: columns and lines.
pub(super) fn lines(
    state: &State,
    frame: Option<&Frame>,
    (width, height): (usize, usize),
    colours: Colours,
) -> Vec<String> {
    let mut lines = vec![clip(&title(state, frame), width)];
    if state.mode == Mode::Help {
        lines.extend(HELP.lines().map(|line| clip(line, width)));
        return lines;
    }
    if let Some(frame) = frame {
        // Sessions are to be seen below the listeners.
        let most = (height / 2).saturating_sub(2).max(1);
        lines.extend(overview(frame, most).iter().map(|line| clip(line, width)));
        let room = height.saturating_sub(lines.len() + 2);
        lines.extend(table(state, frame, (width, room), colours));
    }
    let refused = frame.map_or("", |frame| &frame.trouble);
    let trouble = match state.trouble.as_str() {
        "" => refused,
        trouble => trouble,
    };
    let last = match &state.mode {
        Mode::Filter(text) => format!("filter: {text}_"),
        Mode::Reason(id, text) => {
            format!("end session {id}, because (Enter ends, Escape does not): {text}_")
        }
        _ if !state.note.is_empty() => state.note.clone(),
        _ if !trouble.is_empty() => trouble.to_owned(),
        _ => "s sort  / filter  d suspects  l/u leg  v verify  k end  p pause  ? help  q quit"
            .to_owned(),
    };
    // Nobody presses a key where it is printed.
    if height < usize::MAX {
        lines.truncate(height.saturating_sub(1));
        lines.push(clip(&last, width));
    }
    lines
}

fn title(state: &State, frame: Option<&Frame>) -> String {
    let version = frame.map_or("", |frame| frame.summary["version"].as_str().unwrap_or(""));
    let status = match frame {
        _ if !state.trouble.is_empty() => "no news",
        None => "connecting",
        _ if state.paused => "paused",
        Some(frame) if frame.summary["draining"] == true => "draining",
        Some(_) => "live",
    };
    let mut title = format!("pulsegate {version} - {status} - sort {}", state.sort());
    if !state.filter.is_empty() {
        title = format!("{title} filter {}", state.filter);
    }
    if state.suspects {
        title += " suspects only";
    }
    // What may be cut.
    format!("{title} {}", state.place)
}

/// One line for each listener, the same figures as in the metrics. Where there are too many, those to look after are
/// shown.
fn overview(frame: &Frame, most: usize) -> Vec<String> {
    let line = |cells: [&str; 8]| {
        let [
            listener,
            sessions,
            waiting,
            half_open,
            stalled,
            undelivered,
            found,
            rate,
        ] = cells;
        format!(
            "{listener:<14} {sessions:>9} {waiting:>7} {half_open:>9} {stalled:>7} {undelivered:>11} {found:>6} {rate:>9}"
        )
    };
    let head = [
        "LISTENER",
        "SESSIONS",
        "WAITING",
        "HALF-OPEN",
        "STALLED",
        "UNDELIVERED",
        "FOUND",
        "BYTES/S",
    ];
    let mut lines = vec![line(head)];
    let mut shown: Vec<_> = listeners(&frame.summary).iter().collect();
    let more = shown.len().checked_sub(most).filter(|more| *more > 0);
    if more.is_some() {
        shown.sort_by_key(|listener| Reverse(concern(listener)));
        shown.truncate(most);
    }
    let ms = |of: &Value| of["monotonic_ms"].as_u64().unwrap_or(0);
    for listener in shown {
        let both = |name: &str| of_both(&listener[name]);
        let was = frame.before.as_ref().and_then(|before| {
            let same = |l: &&Value| l["listener"] == listener["listener"];
            let was = of_both(&listeners(before).iter().find(same)?["received_bytes"]);
            let passed = ms(&frame.summary).saturating_sub(ms(before));
            let moved = both("received_bytes").saturating_sub(was);
            moved.saturating_mul(1000).checked_div(passed)
        });
        let sessions = match listener["limit"].as_u64() {
            // Clients that wait are sessions, and have no place.
            Some(limit) => format!("{}/{limit}", listener["in_use"]),
            None => listener["active"].to_string(),
        };
        lines.push(line([
            &cut(listener["listener"].as_str().unwrap_or("-"), NAME),
            &sessions,
            &listener["queued"].to_string(),
            &both("half_open").to_string(),
            &both("stalled").to_string(),
            &both("undelivered").to_string(),
            &listener["found"].to_string(),
            &was.map_or_else(|| "-".to_owned(), |rate| rate.to_string()),
        ]));
    }
    lines.extend(more.map(|more| format!("and {more} listeners with less to look after")));
    lines.extend(out_of_use(&frame.summary));
    lines
}

/// The listeners that have endpoints which are down or ejected, and how many of how many.
fn out_of_use(summary: &Value) -> Option<String> {
    let of = |listener: &Value| {
        let (all, lost) = (listener["endpoints"].as_u64()?, lost(listener));
        let name = listener["listener"].as_str()?;
        (lost > 0).then(|| format!("{name} {lost} of {all}"))
    };
    let lost: Vec<_> = listeners(summary).iter().filter_map(of).collect();
    (!lost.is_empty()).then(|| format!("Endpoints down or ejected: {}", lost.join(", ")))
}

fn lost(listener: &Value) -> u64 {
    let count = |name: &str| listener[name].as_u64().unwrap_or(0);
    count("endpoints").saturating_sub(count("endpoints_up"))
}

/// How much a listener needs somebody: clients and services that are gone or hang, who waits, what was found, sessions.
fn concern(listener: &Value) -> [u64; 4] {
    let both = |name: &str| of_both(&listener[name]);
    let one = |name: &str| listener[name].as_u64().unwrap_or(0);
    let hung = both("stalled") + both("undelivered") + one("phantom");
    [
        both("half_open") + hung + lost(listener),
        one("queued"),
        one("found"),
        one("active"),
    ]
}

fn listeners(summary: &Value) -> &[Value] {
    summary["listeners"].as_array().map_or(&[], Vec::as_slice)
}

fn of_both(legs: &Value) -> u64 {
    let leg = |name: &str| legs[name].as_u64().unwrap_or(0);
    leg("downstream") + leg("upstream")
}

/// A line of the table: `ID` and `AGE`, the name of the listener and `PHASE` share a column.
type Cells = [String; 7];

fn head() -> Cells {
    let words = [
        "ID/AGE",
        "NAME/PHASE",
        "LEG",
        "PEER",
        "CONDITION",
        "LIFE",
        "NEXT",
    ];
    words.map(str::to_owned)
}

/// No peer is cut to fewer columns.
const PEER: usize = 7;

/// The table in so many columns. Where that is not enough, peers lose their beginning.
fn aligned(mut rows: Vec<Cells>, width: usize) -> Vec<String> {
    let widest = |rows: &[Cells], i: usize| rows.iter().map(|row| row[i].chars().count()).max();
    let mut widths: [usize; 7] = std::array::from_fn(|i| widest(&rows, i).unwrap_or(0));
    let others = widths.iter().sum::<usize>() - widths[3] + widths.len() - 1;
    widths[3] = widths[3].min(width.saturating_sub(others).max(PEER));
    for row in &mut rows {
        let (surplus, peer) = (row[3].chars().count().saturating_sub(widths[3]), &row[3]);
        if surplus > 0 {
            row[3] = ['…']
                .into_iter()
                .chain(peer.chars().skip(surplus + 1))
                .collect();
        }
    }
    let line = |[id, listener, leg, peer, condition, life, next]: Cells| {
        let [a, b, c, d, e, f, _] = widths;
        format!("{id:>a$} {listener:<b$} {leg:<c$} {peer:<d$} {condition:<e$} {life:>f$} {next}")
    };
    rows.into_iter().map(line).collect()
}

/// As many sessions as there is room for, so that the chosen one is among them, below a line that names the columns.
fn table(
    state: &State,
    frame: &Frame,
    (width, room): (usize, usize),
    colours: Colours,
) -> Vec<String> {
    let lines_of_one = if state.legs == Legs::Both { 2 } else { 1 };
    let fit = (room / lines_of_one).max(1);
    let chosen = state.at(sessions(frame));
    let first = chosen.saturating_sub(fit - 1);
    let shown = sessions(frame).iter().enumerate().skip(first).take(fit);
    let mut looks = vec![(String::new(), false)];
    let mut rows = vec![head()];
    for (i, session) in shown {
        let is_chosen = i == chosen && room < usize::MAX / 2;
        for (condition, row) in of_session(state.legs, session) {
            looks.push((condition, is_chosen));
            rows.push(row);
        }
    }
    let lines = aligned(rows, width).into_iter().zip(looks);
    let lines = lines.map(|(line, (condition, is_chosen))| {
        styled(&clip(&line, width), &condition, is_chosen, colours)
    });
    lines.collect()
}

fn of_session(legs: Legs, session: &Value) -> Vec<(String, Cells)> {
    let ms = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), age);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut rows = Vec::new();
    for (name, short, is_shown) in [
        ("downstream", "down", legs != Legs::Upstream),
        ("upstream", "up", legs != Legs::Downstream),
    ] {
        if !is_shown {
            continue;
        }
        let leg = &session[name];
        let timer = if name == "downstream" {
            &session["timer"]
        } else {
            &leg["timer"]
        };
        let next = match (session["verdict"].as_str(), timer["reason"].as_str()) {
            (Some(verdict), _) => verdict.to_owned(),
            (None, Some(reason)) => format!("{} {}", ms(&timer["in_ms"]), of_leg(reason, name)),
            (None, None) => String::new(),
        };
        let condition = text(&leg["condition"]);
        let (peer, life) = (text(&leg["peer"]), ms(&leg["last_life_ms"]));
        // The second line has the age and the phase where the first has the number and the listener.
        let [id, listener] = match rows.is_empty() {
            true => [
                session["id"].to_string(),
                cut(&text(&session["listener"]), PHASE),
            ],
            false => [ms(&session["age_ms"]), text(&session["phase"])],
        };
        let row = [
            id,
            listener,
            short.to_owned(),
            peer,
            condition.clone(),
            life,
            next,
        ];
        rows.push((condition, row));
    }
    rows
}

/// The word for a reason in the line of a leg, which says which one it is.
fn of_leg<'a>(reason: &'a str, leg: &str) -> &'a str {
    let rest = reason.strip_prefix(leg);
    rest.and_then(|rest| rest.strip_prefix('_'))
        .unwrap_or(reason)
}

/// As many columns as the longest word for a phase has.
const PHASE: usize = 11;
/// Columns for the name in the line of a listener.
const NAME: usize = 14;

fn cut(name: &str, columns: usize) -> String {
    match name.chars().count() {
        n if n <= columns => name.to_owned(),
        _ => name.chars().take(columns - 1).chain(['…']).collect(),
    }
}

fn styled(line: &str, condition: &str, is_chosen: bool, colours: Colours) -> String {
    let colour = match condition {
        _ if colours == Colours::Plain => "",
        "suspect" => "\x1b[31m",
        "stalled" | "undelivered" | "phantom" => "\x1b[33m",
        _ => "",
    };
    let reverse = if is_chosen { "\x1b[7m" } else { "" };
    match (colour, reverse) {
        ("", "") => line.to_owned(),
        _ => format!("{colour}{reverse}{line}\x1b[0m"),
    }
}

/// What others chose must not move the cursor.
fn clip(line: &str, width: usize) -> String {
    let shown = line.chars().filter(|c| !c.is_control());
    shown.take(width).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frame() -> Frame {
        let leg = |peer: &str, condition: &str| {
            json!({ "peer": peer, "condition": condition, "last_life_ms": 24_100,
                "timer": { "reason": "upstream_dead", "in_ms": 5_900 } })
        };
        let session = |id: u64, condition: &str| {
            json!({ "id": id, "listener": "db", "phase": "half_closed", "age_ms": 3_723_000, "verdict": null,
                "timer": { "reason": "downstream_dead", "in_ms": 5_900 },
                "downstream": leg("192.0.2.7:51234", condition), "upstream": leg("10.0.0.9:5432", "alive") })
        };
        let summary = |now: u64, moved: u64| {
            json!({ "version": "1.2.3", "monotonic_ms": 1000 * now, "draining": false, "sessions": 20, "listeners": [{
                "listener": "db", "active": 22, "in_use": 20, "limit": 20, "queued": 2, "found": 7,
                "half_open": { "downstream": 1, "upstream": 0 }, "stalled": { "downstream": 0, "upstream": 0 },
                "undelivered": { "downstream": 0, "upstream": 0 },
                "received_bytes": { "downstream": moved, "upstream": 0 } }] })
        };
        let all: Vec<_> = (1..=20)
            .map(|id| session(id, if id == 2 { "suspect" } else { "alive" }))
            .collect();
        Frame {
            before: Some(summary(10, 1000)),
            summary: summary(12, 5000),
            list: json!({ "total": 20, "matched": 20, "connections": all }),
            trouble: String::new(),
        }
    }

    fn shown(state: &State, colours: Colours) -> Vec<String> {
        lines(state, Some(&frame()), (80, 24), colours)
    }

    #[test]
    fn a_screen_of_80_columns_and_24_lines() {
        let lines = shown(&State::new("127.0.0.1:9900".into()), Colours::Plain);
        // Two lines for each session, none cut in halves.
        assert_eq!(lines.len(), 23, "{lines:#?}");
        assert!(
            lines
                .iter()
                .all(|line| line.len() <= 80 + "\x1b[7m\x1b[0m".len()),
            "{lines:#?}"
        );
        let expected = [
            "pulsegate 1.2.3 - live - sort age 127.0.0.1:9900",
            "LISTENER        SESSIONS WAITING HALF-OPEN STALLED UNDELIVERED  FOUND   BYTES/S",
            "db                 20/20       2         1       0           0      7      2000",
            "ID/AGE NAME/PHASE  LEG  PEER            CONDITION  LIFE NEXT",
            "\x1b[7m     1 db          down 192.0.2.7:51234 alive     24.1s 5.9s dead\x1b[0m",
            "\x1b[7m 1h02m half_closed up   10.0.0.9:5432   alive     24.1s 5.9s dead\x1b[0m",
        ];
        assert_eq!(lines[..6], expected);
        assert!(lines[22].ends_with("q quit"), "{}", lines[22]);
        let coloured = shown(&State::default(), Colours::Shown);
        assert!(
            coloured[6].starts_with("\x1b[31m     2 db"),
            "{}",
            coloured[6]
        );
    }

    #[test]
    fn the_help_fits_into_80_columns() {
        for line in HELP.lines() {
            assert!(line.len() <= 80, "{line}");
        }
    }

    #[test]
    fn keys() {
        let frame = frame();
        let mut state = State::default();
        let press = |state: &mut State, keys: &str| {
            let key = |c| match c {
                '\n' => Key::Enter,
                '^' => Key::Escape,
                '<' => Key::Back,
                '+' => Key::Down,
                c => Key::Char(c),
            };
            keys.chars()
                .fold(Wish::Nothing, |_, c| state.press(key(c), Some(&frame)))
        };
        let query = |state: &State| {
            let words = state.query(24).into_iter().map(|(n, v)| format!("{n}={v}"));
            words.collect::<Vec<_>>().join("&")
        };
        assert_eq!(query(&state), "sort=age&limit=24");
        press(&mut state, "sd/10.0.0.1 webx<\n");
        assert_eq!(
            query(&state),
            "sort=idle&limit=24&condition=suspect&peer=10.0.0.1&listener=web"
        );
        press(&mut state, "/ min_idle=5m^d");
        assert_eq!(
            query(&state),
            "sort=idle&limit=24&peer=10.0.0.1&listener=web"
        );
        assert_eq!(press(&mut state, "+v"), Wish::Verify(2));
        assert_eq!(press(&mut state, "kq^"), Wish::Nothing);
        assert_eq!(press(&mut state, "kgone\n"), Wish::End(2, "gone".into()));
        assert_eq!(press(&mut state, "?q"), Wish::Nothing);
        press(&mut state, "lp");
        assert!(state.paused);
        let only = shown(&state, Colours::Plain);
        assert!(
            only.iter().all(|line| !line.contains("10.0.0.9")),
            "{only:#?}"
        );
        assert_eq!(press(&mut state, "q"), Wish::Quit);
        assert_eq!(state.press(Key::Interrupt, None), Wish::Quit);
    }

    #[test]
    fn the_chosen_session_is_followed_where_the_order_changes() {
        let (mut frame, mut state) = (frame(), State::default());
        assert_eq!(state.press(Key::Down, Some(&frame)), Wish::Nothing);
        frame.list["connections"]
            .as_array_mut()
            .expect("a list")
            .reverse();
        let lines = lines(&state, Some(&frame), (80, 24), Colours::Plain);
        let marked = lines.iter().find(|l| l.starts_with("\x1b[7m"));
        assert!(marked.is_some_and(|l| l.contains(" 2 db")), "{lines:#?}");
        assert_eq!(state.press(Key::Char('v'), Some(&frame)), Wish::Verify(2));
    }

    #[test]
    fn a_note_can_be_read_and_is_gone_with_later_news() {
        let mut state = State {
            note: "session 1 is being ended".to_owned(),
            trouble: "Connection refused".to_owned(),
            ..State::default()
        };
        state.refreshed(Duration::from_secs(9));
        assert_eq!((state.note.len(), state.trouble.as_str()), (24, ""));
        state.refreshed(Duration::from_secs(10));
        assert_eq!(state.note, "");
    }

    #[test]
    fn old_figures_are_told_from_new_ones() {
        let mut state = State::new("unix:/run/pulsegate/control.sock, 127.0.0.1:9900".into());
        let why = "127.0.0.1:9900: Connection refused (os error 111)";
        state.trouble = why.to_owned();
        (0..5).for_each(|_| drop(state.press(Key::Char('s'), None)));
        let lines = shown(&state, Colours::Plain);
        assert!(
            lines[0].starts_with("pulsegate 1.2.3 - no news - sort last_life"),
            "{}",
            lines[0]
        );
        assert_eq!(lines.last().map(String::as_str), Some(why));
    }

    #[test]
    fn of_many_listeners_those_in_trouble_are_shown_above_the_sessions() {
        let mut frame = frame();
        let quiet = |n: u64| json!({ "listener": format!("a-name-that-is-too-long-{n}"), "active": n, "limit": null, "queued": 0, "found": 0 });
        let all = frame.summary["listeners"].as_array_mut().expect("a list");
        all.extend((0..999).map(quiet));
        all.rotate_left(1);
        all[700]["endpoints"] = json!(2);
        all[700]["endpoints_up"] = json!(1);
        for (height, first) in [(24, 10), (10, 3)] {
            let lines = lines(
                &State::default(),
                Some(&frame),
                (80, height),
                Colours::Plain,
            );
            assert!(lines[2].starts_with("db "), "{lines:#?}");
            assert!(
                lines[3].starts_with("a-name-that-i…       700 "),
                "{lines:#?}"
            );
            let more = format!("and {} listeners", 1000 - first);
            assert!(lines[2 + first].starts_with(&more), "{lines:#?}");
            assert_eq!(
                lines[3 + first],
                "Endpoints down or ejected: a-name-that-is-too-long-700 1 of 2"
            );
            assert!(
                lines.iter().any(|l| l.contains("192.0.2.7:51234")),
                "{lines:#?}"
            );
        }
    }

    #[test]
    fn the_next_clock_is_whole_in_80_columns() {
        let long = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        for (reason, shown) in [
            ("downstream_undelivered", "59m59s undelivered"),
            ("first_response_timeout", "59m59s first_response_timeout"),
        ] {
            let mut frame = frame();
            for session in frame.list["connections"].as_array_mut().expect("a list") {
                session["id"] = json!(999_999);
                session["listener"] = json!("a-name-that-is-too-long");
                session["timer"] = json!({ "reason": reason, "in_ms": 3_599_999 });
                for leg in ["downstream", "upstream"] {
                    session[leg]["peer"] = json!(long);
                    session[leg]["condition"] = json!("undelivered");
                }
            }
            let size = |width| lines(&State::default(), Some(&frame), (width, 24), Colours::Plain);
            let narrow = size(80);
            assert!(narrow.iter().any(|l| l.ends_with(shown)), "{narrow:#?}");
            assert!(narrow.iter().any(|l| l.contains(":65535 ")), "{narrow:#?}");
            assert!(size(120).iter().any(|l| l.contains(long)));
        }
    }

    #[test]
    fn the_chosen_session_is_seen_and_names_move_no_cursor() {
        let mut state = State::default();
        (0..50).for_each(|_| drop(state.press(Key::Down, Some(&frame()))));
        let lines = shown(&state, Colours::Plain);
        assert!(
            lines.iter().any(|l| l.starts_with("\x1b[7m    20 db")),
            "{lines:#?}"
        );
        assert_eq!(clip("a\x1b[2Jb\n", 80), "a[2Jb");
    }
}
