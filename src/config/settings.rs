//! The flat form between text and types: a checked value for each key that was given, whether by
//! file or by flags, and the problems found so far.

use std::collections::{BTreeMap, BTreeSet};

use super::errors::{Problem, Source};
use super::keys::{self, KEYS, Key, Kind};
use super::suggest::nearest;
use super::value::{Value, quoted};
use super::yaml::{Content, Node};

/// What was given.
pub(super) struct Settings<'a> {
    pub source: Source<'a>,
    /// By path, with list positions: `listeners[0].name`.
    pub entries: BTreeMap<String, Entry>,
    pub listeners: usize,
    pub problems: Vec<Problem>,
}

/// A value or section that was given.
pub(super) struct Entry {
    /// Number of its node; `None` with flags.
    pub at: Option<u32>,
    /// `None`: a section, or a value that has been refused.
    pub value: Option<Value>,
}

impl<'a> Settings<'a> {
    fn empty(source: Source<'a>) -> Self {
        Self {
            source,
            entries: BTreeMap::new(),
            listeners: 0,
            problems: Vec::new(),
        }
    }

    /// Reads a file.
    pub fn of_file(source: Source<'a>, root: &Node) -> Self {
        let mut settings = Self::empty(source);
        settings.section("", "", root);
        settings
    }

    /// Reads flags, named without dashes. They describe one listener.
    pub fn of_flags(flags: &[(&str, String)]) -> Settings<'static> {
        let mut settings = Settings::empty(Source::Flags);
        settings.listeners = 1;
        for (flag, text) in flags {
            let Some(key) = KEYS.iter().find(|key| key.flag == Some(*flag)) else {
                settings.problem(None, flag, "is not a flag".to_owned());
                continue;
            };
            let (path, read) = match key.section_word() {
                Some(word) if word == text => (keys::parent(key.path), Ok(Value::Word(word))),
                Some(word) => {
                    let read = key.kind.read_text(text);
                    (
                        key.path,
                        read.map_err(|message| format!("{message}, or {word}")),
                    )
                }
                None => (key.path, key.kind.read_text(text)),
            };
            settings.enter(&path.replace("[]", "[0]"), None, read);
        }
        settings
    }

    pub fn problem(&mut self, at: Option<u32>, path: &str, message: String) {
        let path = path.to_owned();
        self.problems.push(Problem { at, path, message });
    }

    fn enter(&mut self, path: &str, at: Option<u32>, read: Result<Value, String>) {
        let value = read.map_err(|message| self.problem(at, path, message)).ok();
        self.entries.insert(path.to_owned(), Entry { at, value });
    }

    /// Reads the keys of a mapping. `path` has list positions, `table` is the same place in the
    /// notation of the key table.
    fn section(&mut self, path: &str, table: &str, node: &Node) {
        let entry = Entry {
            at: Some(node.number),
            value: None,
        };
        self.entries.insert(path.to_owned(), entry);
        let entries = match &node.content {
            Content::Map(entries) => entries.as_slice(),
            // All keys of a section commented out.
            Content::Null if !table.ends_with("[]") => &[],
            other => {
                let message = format!("is {}; accepted: a mapping of keys", other.kind());
                return self.problem(Some(node.number), path, message);
            }
        };
        let mut seen = BTreeSet::new();
        for (name, value) in entries {
            let at = Some(name.number);
            let Content::Text(text) = &name.content else {
                let message = format!(
                    "a key is {}; accepted: {}",
                    name.content.kind(),
                    names(table)
                );
                self.problem(at, path, message);
                continue;
            };
            let child = join(path, text);
            if !seen.insert(text) {
                self.problem(at, &printable(path, text), "is given twice".to_owned());
                continue;
            }
            match keys::children(table).find(|key| key.name() == text) {
                Some(key) => self.child(&child, &join(table, text), key, value),
                None => self.problem(at, &printable(path, text), unknown(table, text)),
            }
        }
    }

    fn child(&mut self, path: &str, table: &str, key: &Key, node: &Node) {
        match (key.kind, &node.content) {
            (Kind::List, Content::List(items)) => {
                self.listeners = items.len();
                let entry = Entry {
                    at: Some(node.number),
                    value: None,
                };
                self.entries.insert(path.to_owned(), entry);
                for (i, item) in items.iter().enumerate() {
                    self.section(&format!("{path}[{i}]"), &format!("{table}[]"), item);
                }
            }
            (Kind::Section { or: Some(word) }, Content::Text(text)) if text == word => {
                self.enter(path, Some(node.number), Ok(Value::Word(word)));
            }
            // What `off` is in YAML 1.1.
            (Kind::Section { or: Some("off") }, Content::Bool(false)) => {
                self.enter(path, Some(node.number), Ok(Value::Word("off")));
            }
            (Kind::Section { or: None } | Kind::Inherited, _)
            | (Kind::Section { .. }, Content::Map(_) | Content::Null) => {
                self.section(path, table, node);
            }
            (Kind::List | Kind::Section { .. }, other) => {
                let message = format!("is {}; accepted: {}", other.kind(), key.kind.accepted());
                self.enter(path, Some(node.number), Err(message));
            }
            (kind, content) => self.enter(path, Some(node.number), kind.read(content)),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// The path of a key that is not ours and may hold anything.
fn printable(path: &str, name: &str) -> String {
    let plain = name.len() <= 60
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if plain {
        join(path, name)
    } else {
        join(path, &quoted(name))
    }
}

fn names(table: &str) -> String {
    let names: Vec<&str> = keys::children(table).map(Key::name).collect();
    names.join(", ")
}

fn unknown(table: &str, name: &str) -> String {
    let accepted = names(table);
    if name == "<<" {
        return format!(
            "merge keys are not supported; what all listeners share belongs under defaults; \
             accepted: {accepted}"
        );
    }
    if let Some(near) = nearest(name, keys::children(table).map(Key::name)) {
        return format!("unknown key, did you mean {near}? accepted: {accepted}");
    }
    let elsewhere = KEYS.iter().find(|key| key.name() == name);
    match elsewhere.map(|key| keys::parent(key.path)) {
        Some("") => format!("unknown key; it belongs to the top level; accepted here: {accepted}"),
        Some(section) => {
            format!("unknown key; it belongs under {section}; accepted here: {accepted}")
        }
        None => format!("unknown key; accepted: {accepted}"),
    }
}
