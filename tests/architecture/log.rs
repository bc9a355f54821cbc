//! Every event of the log is in docs/LOG.md with its level and its fields, and nothing else is.

use std::collections::BTreeSet;
use std::fs;

use super::{File, none, root, tree, word_at};

/// Each macro that writes an event, and its level; `event!` says it itself.
const MACROS: [(&str, &str); 6] = [
    ("error!(", "ERROR"),
    ("warn!(", "WARN"),
    ("info!(", "INFO"),
    ("debug!(", "DEBUG"),
    ("trace!(", "TRACE"),
    ("event!(", ""),
];

/// The fields and levels of the access line are in a section of their own; `src/telemetry.rs` checks them.
const ACCESS_LINE: &str = "session ended";

/// As the document has it: `…` stands for what differs from one event to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    message: String,
    level: String,
    fields: BTreeSet<String>,
}

impl Event {
    fn says(&self) -> String {
        let fields: Vec<_> = self.fields.iter().map(|f| format!("`{f}`")).collect();
        format!(
            "| `{}` | {} | {} |",
            self.message,
            self.level,
            fields.join(", ")
        )
    }
}

#[test]
fn every_event_is_documented_and_every_documented_event_exists() {
    let document = fs::read_to_string(root().join("docs/LOG.md")).expect("readable");
    let documented = documented(&document);
    let found: BTreeSet<_> = tree().iter().flat_map(events).collect();
    assert!(found.len() > 50, "the events were not found");
    let missing = found.difference(&documented);
    let missing = missing.map(|event| format!("docs/LOG.md lacks {}", event.says()));
    let surplus = documented.difference(&found);
    let surplus = surplus.map(|event| format!("src has no event for {}", event.says()));
    none(missing.chain(surplus));
}

/// The rows of the tables of events.
fn documented(document: &str) -> BTreeSet<Event> {
    let mut rows = BTreeSet::new();
    let mut is_table = false;
    for line in document.lines() {
        is_table = line.starts_with("| Message | Level |") || is_table && line.starts_with('|');
        let cells: Vec<_> = line.split(" | ").collect();
        if let (true, Some(message), [_, level, fields, _]) =
            (is_table, cells[0].strip_prefix("| `"), &cells[..])
        {
            rows.insert(Event {
                message: message.trim_end_matches('`').to_owned(),
                level: (*level).to_owned(),
                fields: fields
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .map(str::to_owned)
                    .collect(),
            });
        }
    }
    rows
}

fn events(file: &File) -> Vec<Event> {
    let calls = MACROS.into_iter().flat_map(|(name, level)| {
        let at = word_at(&file.code, name);
        at.map(move |at| (at + name.len(), level))
    });
    let events = calls.filter_map(|(at, level)| event(file, at, level));
    events
        .filter(|event| event.message != ACCESS_LINE)
        .collect()
}

/// The event whose arguments begin there.
fn event(file: &File, at: usize, level: &str) -> Option<Event> {
    let mut level = level.to_owned();
    let mut fields = BTreeSet::new();
    for (from, to) in arguments(&file.code, at) {
        let (code, source) = (file.code[from..to].trim(), file.source[from..to].trim());
        if let Some(text) = source.strip_prefix('"') {
            let message = pattern(&text[..text.rfind('"')?]);
            return Some(Event {
                message,
                level,
                fields,
            });
        }
        match code.strip_prefix("Level::") {
            Some(word) => level = word.to_owned(),
            None if code.starts_with("target:") || code.starts_with('$') => {}
            None => {
                let name = code.split('=').next()?.trim();
                fields.insert(name.trim_start_matches(['%', '?']).to_owned());
            }
        }
    }
    // It is the macro of something else.
    None
}

/// Where the arguments of a call begin and end.
fn arguments(code: &str, at: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let (mut depth, mut from) = (0, at);
    for (i, c) in code[at..].char_indices() {
        match c {
            ')' if depth == 0 => {
                all.push((from, at + i));
                break;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push((from, at + i));
                from = at + i + 1;
            }
            _ => {}
        }
    }
    all
}

/// A format string as the document has it.
fn pattern(format: &str) -> String {
    let lines = format.split("\\\n").enumerate();
    let lines = lines.map(|(i, line)| if i > 0 { line.trim_start() } else { line });
    let text: String = lines.collect();
    let mut parts = text.split('{');
    let mut pattern = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if !pattern.ends_with('…') {
            pattern.push('…');
        }
        pattern.push_str(part.split_once('}').map_or("", |(_, rest)| rest));
    }
    pattern
}

#[test]
fn undocumented_events_are_found() {
    let source = r#"
fn f() {
    tracing::warn!(listener = name, %client, count = of(a, b), "a client, who {why:?}, is \
        refused: {}{advice}", why());
    event!(target: ACCESS, Level::INFO, id, "session started");
    event!(target: ACCESS, $level, id, "session ended");
    let line = "warn!(\"in a text\")";
    // info!("in a comment")
}
#[cfg(test)]
mod tests { fn g() { debug!("in a test"); } }
"#;
    let found = events(&File::new("a.rs", source));
    let says: Vec<_> = found.iter().map(Event::says).collect();
    let expected = [
        "| `a client, who …, is refused: …` | WARN | `client`, `count`, `listener` |",
        "| `session started` | INFO | `id` |",
    ];
    assert_eq!(says, expected);
    let document = "\
| Message | Level | Fields | When |
|---|---|---|---|
| `a client, who …, is refused: …` | WARN | `listener`, `client`, `count` | Always |
| `nothing` | INFO |  | Never |

| `no event` | INFO |  | In another table |
";
    let rows = documented(document);
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows.contains(&found[0]), "{rows:?}");
}
