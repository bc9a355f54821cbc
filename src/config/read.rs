//! Reading: places in the tree that was given, and the problems found so far.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::errors::{ConfigErrors, Problem, Source, generic};
use super::kind::quoted;
use super::setting::join;
use super::table::{Table, parent};
use super::yaml::{Content, Node, Position};

/// A place in the configuration, whether something is given there or not.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    /// With list positions: `listeners[0].name`.
    pub path: String,
    node: Option<&'a Node>,
    /// Where the innermost section begins that is there: the place of a missing key.
    nearest: Option<Position>,
    /// The place to inherit from.
    template: Option<Box<Self>>,
    /// How many items the list has of which this is one.
    pub siblings: usize,
}

impl<'a> Scope<'a> {
    fn new(path: String, node: Option<&'a Node>, nearest: Option<Position>) -> Self {
        let (template, siblings) = (None, 0);
        let nearest = node.map_or(nearest, |node| node.at);
        Self {
            path,
            node,
            nearest,
            template,
            siblings,
        }
    }

    pub fn of_root(root: &'a Node) -> Self {
        Self::new(String::new(), Some(root), None)
    }

    /// The place of a key of this section.
    pub fn child(&self, name: &str) -> Self {
        let node = self.node.and_then(|node| node.get(name));
        let mut child = Self::new(join(&self.path, name), node, self.nearest);
        child.template = self
            .template
            .as_ref()
            .map(|template| Box::new(template.child(name)));
        child
    }

    /// The place of an item of this list.
    pub fn item(&self, i: usize, items: &'a [Rc<Node>], template: Option<&Self>) -> Self {
        let mut item = Self::new(format!("{}[{i}]", self.path), Some(&items[i]), None);
        item.template = template.cloned().map(Box::new);
        item.siblings = items.len();
        item
    }

    /// The place of the item `i` of the list that is given here.
    pub fn nth(&self, i: usize) -> Self {
        match self.node.map(|node| &node.content) {
            Some(Content::List(items)) => self.item(i, items, None),
            _ => self.clone(),
        }
    }

    /// The place of a key, as its path has it: `listeners[0].tls.certificates[0].key`.
    pub fn descendant(&self, path: &str) -> Self {
        let defaults = self.child("defaults");
        path.split('.').fold(self.clone(), |at, part| {
            let (name, rest) = part.split_once('[').unwrap_or((part, ""));
            let at = at.child(name);
            let template = (name == "listeners").then_some(&defaults);
            let i: Option<usize> = rest.trim_end_matches(']').parse().ok();
            match (i, at.given().map(|(list, node)| (list, &node.content))) {
                (Some(i), Some((list, Content::List(items)))) if i < items.len() => {
                    list.item(i, items, template)
                }
                _ => at,
            }
        })
    }

    /// The same place with something given.
    pub fn with<'b>(&self, node: &'b Node) -> Scope<'b> {
        Scope::new(self.path.clone(), Some(node), None)
    }

    /// What is given here, or inherited, and the place where it stands.
    pub fn given(&self) -> Option<(&Self, &'a Node)> {
        match (self.node, &self.template) {
            (Some(node), _) => Some((self, node)),
            (None, Some(template)) => template.given(),
            (None, None) => None,
        }
    }

    /// Whether something is given here and at another place, and both stand in the same section.
    pub fn is_beside(&self, other: &Self) -> bool {
        let section = |at: &Self| at.given().map(|(at, _)| parent(&at.path).to_owned());
        section(self).is_some_and(|this| section(other) == Some(this))
    }

    /// Whether something is given here and not inherited.
    pub fn is_own(&self) -> bool {
        self.node.is_some()
    }

    /// Where that stands; of what is missing, the section that it is missing in.
    pub fn at(&self) -> Option<Position> {
        self.given().map_or(self.nearest, |(_, node)| node.at)
    }
}

/// What a section is read for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Its value: defaults apply.
    Value,
    /// Only to check what is given.
    Template,
}

/// The state of reading.
pub(super) struct Reader<'a> {
    table: Table<'a>,
    source: Source<'a>,
    root: &'a Node,
    pub role: Role,
    /// Values that are wrong in themselves, and keys that are unknown or missing.
    refused: Vec<Problem>,
    /// What contradicts something else.
    contradictions: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub fn new(table: Table<'a>, source: Source<'a>, root: &'a Node) -> Self {
        let (role, refused, contradictions) = (Role::Value, Vec::new(), Vec::new());
        Self {
            table,
            source,
            root,
            role,
            refused,
            contradictions,
        }
    }

    pub fn root(&self) -> Scope<'a> {
        Scope::of_root(self.root)
    }

    /// The value, if there was no problem.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        let problems = [self.refused, self.contradictions].concat();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(ConfigErrors::new(problems, self.source, self.table)),
        }
    }

    /// How a message calls a key: by its flag, or by the last part of its path.
    pub fn name_of(&self, at: &Scope<'_>) -> String {
        self.source.name_of(&at.path, self.table)
    }

    pub fn is_of_flags(&self) -> bool {
        matches!(self.source, Source::Flags)
    }

    /// What is given at a place is wrong.
    pub fn refuse<T>(&mut self, at: &Scope<'_>, message: &str) -> Option<T> {
        let key = self.table.find(&generic(&at.path));
        let word = match key.and_then(|key| key.section_word) {
            Some(word) if self.is_of_flags() => format!(", or {word}"),
            _ => String::new(),
        };
        self.problem(at.at(), &at.path, format!("{message}{word}"));
        None
    }

    /// What is given, or missing, at a place contradicts something else.
    pub fn contradict(&mut self, at: &Scope<'_>, message: String) {
        let path = at.given().map_or(&at.path, |(at, _)| &at.path);
        let problem = Problem::new(at.at(), path, message);
        self.contradictions.push(problem);
    }

    pub fn missing<T>(&mut self, at: &Scope<'_>, accepted: &str) -> Option<T> {
        let message = format!("is missing; accepted: {accepted}");
        self.problem(at.nearest, &at.path, message);
        None
    }

    fn problem(&mut self, at: Option<Position>, path: &str, message: String) {
        self.refused.push(Problem::new(at, path, message));
    }

    /// Checks that a section is a mapping, and the names of its keys.
    pub fn open(&mut self, at: &Scope<'_>, accepted: &str) -> Option<()> {
        let Some(node) = at.node else { return Some(()) };
        let entries = match &node.content {
            Content::Map(entries) => entries.as_slice(),
            // All keys of a section commented out.
            Content::Null if !at.path.ends_with(']') => &[],
            other => {
                let (kind, names) = (other.kind(), self.table.names(&generic(&at.path)));
                let message = format!("is {kind}; accepted: {accepted}; the keys are {names}");
                return self.refuse(at, &message);
            }
        };
        let section = generic(&at.path);
        let mut seen = BTreeSet::new();
        for (name, _) in entries {
            let Content::Text(text) = &name.content else {
                let (kind, names) = (name.content.kind(), self.table.names(&section));
                let message = format!("a key is {kind}; accepted: {names}");
                self.problem(name.at, &at.path, message);
                continue;
            };
            let path = join(&at.path, &printable(text));
            if !seen.insert(text) {
                self.problem(name.at, &path, "is given twice".to_owned());
            } else if !self.table.children(&section).any(|key| key.name() == text) {
                self.problem(name.at, &path, self.table.unknown(&section, text));
            }
        }
        Some(())
    }
}

/// A key that is not ours and may hold anything.
fn printable(name: &str) -> String {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if name.len() <= 60 && name.bytes().all(fits) {
        name.to_owned()
    } else {
        quoted(name)
    }
}
