//! What is wrong with a configuration, all of it, one line each.

use std::fmt;

use super::keys;
use super::yaml;

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

    pub(super) fn new(mut problems: Vec<Problem>, source: Source<'_>) -> Self {
        // Nodes are numbered in the order of the text.
        problems.sort_by_key(|problem| problem.at);
        let mut lines: Vec<String> = Vec::new();
        let mut more = 0;
        for problem in &problems {
            if lines.len() == MOST {
                more += 1;
                continue;
            }
            // A contradiction under `defaults` is found once for each listener.
            let line = source.line(problem);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        if more > 0 {
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
#[derive(Debug)]
pub(super) struct Problem {
    /// Number of the node; `None` with flags.
    pub at: Option<u32>,
    /// `listeners[0].upstream.address`; empty for the whole file.
    pub path: String,
    pub message: String,
}

/// Where a configuration came from: decides how a place in it is called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    File { name: &'a str, text: &'a str },
    Flags,
}

impl Source<'_> {
    fn line(self, problem: &Problem) -> String {
        let Problem { at, path, message } = problem;
        match self {
            Self::Flags => format!("{}: {message}", self.name_of(path)),
            Self::File { name, text } => {
                let position = at.and_then(|number| yaml::locate(text, number));
                let place = place(name, position);
                if path.is_empty() {
                    format!("{place}: {message}")
                } else {
                    format!("{place}: {path}: {message}")
                }
            }
        }
    }

    /// How a message calls a key: by its flag, or by the last part of its path.
    pub fn name_of(self, path: &str) -> String {
        let flag = keys::find(&generic(path)).and_then(|key| key.flag);
        match (self, flag) {
            (Self::Flags, Some(flag)) => format!("--{flag}"),
            (Self::Flags, None) => path.to_owned(),
            (Self::File { .. }, _) => path.rsplit('.').next().unwrap_or(path).to_owned(),
        }
    }
}

/// `file:line:column`, or only the file.
pub(super) fn place(file: &str, position: Option<yaml::Position>) -> String {
    match position {
        Some(at) => format!("{file}:{}:{}", at.line, at.column),
        None => file.to_owned(),
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
