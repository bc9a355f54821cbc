//! What is wrong with a configuration, all of it, one line each.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fmt, fs};

use super::read::Scope;
use super::table::Table;
use super::yaml::{self, Position};

/// At most so many problems are printed; a file with more is the wrong file.
const MOST: usize = 100;

/// Everything that is wrong with a configuration; each line says where, what, and what would be
/// accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    lines: Vec<String>,
}

impl ConfigErrors {
    /// One line for each problem, in the order of the file.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// A single problem that has no place in a text.
    pub(crate) fn one(line: String) -> Self {
        Self { lines: vec![line] }
    }

    /// What is wrong with the files that a configuration names, each with the path of its key. The
    /// configuration does not know where its keys stand, so its own file is read again.
    pub(crate) fn of_files(found: &[(String, String)], file: Option<&Path>) -> Self {
        // A FIFO would be waited for.
        let text = file.filter(|file| file.is_file());
        let text = text.and_then(|file| fs::read_to_string(file).ok());
        let root = text.and_then(|text| yaml::parse(&text).ok());
        let place = |path: &str| {
            let Some(file) = file.map(Path::display) else {
                return String::new();
            };
            let root = root.as_ref().map(Scope::of_root);
            match root.and_then(|root| root.descendant(path).at()) {
                Some(Position { line, column }) => format!("{file}:{line}:{column}: "),
                None => format!("{file}: "),
            }
        };
        let lines = found.iter().map(|(path, line)| place(path) + line);
        Self {
            lines: lines.collect(),
        }
    }

    pub(super) fn new(mut problems: Vec<Problem>, source: Source<'_>, table: Table<'_>) -> Self {
        problems.sort_by_key(|problem| problem.at);
        let mut lines: Vec<String> = problems.iter().map(|p| source.line(p, table)).collect();
        // What is wrong under `defaults` is found again for each listener.
        let mut seen = BTreeSet::new();
        lines.retain(|line| seen.insert(line.clone()));
        if lines.len() > MOST {
            let more = lines.len() - MOST;
            lines.truncate(MOST);
            lines.push(format!("and {more} more"));
        }
        Self { lines }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// `None` with flags.
    pub at: Option<Position>,
    /// `listeners[0].upstream.address`; empty for the whole file.
    pub path: String,
    pub message: String,
}

impl Problem {
    pub fn new(at: Option<Position>, path: &str, message: impl Into<String>) -> Self {
        let (path, message) = (path.to_owned(), message.into());
        Self { at, path, message }
    }

    /// A problem with a file as a whole.
    pub fn of_file(at: Option<Position>, message: impl Into<String>) -> Self {
        Self::new(at, "", message)
    }
}

/// Where a configuration came from: decides how a place in it is called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// A file of this name.
    File(&'a str),
    Flags,
}

impl Source<'_> {
    fn line(self, problem: &Problem, table: Table<'_>) -> String {
        let Problem { at, path, message } = problem;
        let (place, path) = match self {
            Self::Flags => (self.name_of(path, table), ""),
            Self::File(file) => match at {
                Some(at) => (format!("{file}:{}:{}", at.line, at.column), path.as_str()),
                None => (file.to_owned(), path.as_str()),
            },
        };
        let colon = if path.is_empty() { "" } else { ": " };
        format!("{place}{colon}{path}: {message}")
    }

    /// How a message calls a key: by its flag, or by the last part of its path.
    pub fn name_of(self, path: &str, table: Table<'_>) -> String {
        // The items of a list have the flag of the list.
        let path_of_key = generic(path);
        let key = table.find(path_of_key.trim_end_matches("[]"));
        let flag = key.and_then(|key| key.flag);
        match (self, flag) {
            (Self::Flags, Some(flag)) => format!("--{flag}"),
            (Self::Flags, None) => path.to_owned(),
            (Self::File(_), _) => path.rsplit('.').next().unwrap_or(path).to_owned(),
        }
    }
}

/// The path in the notation of the key table: `listeners[3].name` is `listeners[].name`.
pub(super) fn generic(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            inside = *c == '[' || (inside && *c != ']');
            !inside || *c == '['
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_positions_are_dropped() {
        assert_eq!(
            generic("listeners[12].upstream.address"),
            "listeners[].upstream.address"
        );
        assert_eq!(generic("workers"), "workers");
    }
}
