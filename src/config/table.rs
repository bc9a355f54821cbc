//! The table of keys, made from the declarations.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::LazyLock;

use super::section::{Form, Key, Section};
use super::types::Config;
use super::yaml::{Content, Node};

/// Every key, in the order in which it is documented.
pub static KEYS: LazyLock<Vec<Key>> = LazyLock::new(of::<Config>);

/// The keys of a root section.
pub(super) fn of<T: Section>() -> Vec<Key> {
    let mut table = Vec::new();
    let mut root = Key::new(Form::Section(None));
    root.inherited = false;
    T::describe(&root, &mut table);
    table
}

/// The section that holds a key, in the same notation; the root is empty.
#[must_use]
pub fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// Keys to look up by their path, with list positions written `[]`.
#[derive(Clone, Copy)]
pub(super) struct Table<'a>(pub &'a [Key]);

impl<'a> Table<'a> {
    /// The keys directly below a section (`""` is the root, `listeners[]` an item of the list).
    /// Below `defaults` these are the inherited ones of a listener.
    pub fn children(self, section: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
        let (section, role) = in_listener(section);
        let keys = self.0.iter();
        keys.filter(move |key| {
            parent(&key.path) == section && (key.inherited || role == Place::Own)
        })
    }

    pub fn find(self, path: &str) -> Option<&'a Key> {
        let (path, _) = in_listener(path);
        self.0.iter().find(|key| key.path == path)
    }

    /// The names of the keys below a section.
    pub fn names(self, section: &str) -> String {
        let names: Vec<&str> = self.children(section).map(Key::name).collect();
        names.join(", ")
    }

    /// The message about a key that is none of the section.
    pub fn unknown(self, section: &str, name: &str) -> String {
        let accepted = self.names(section);
        if name == "<<" {
            return format!(
                "merge keys are not supported; what all listeners share belongs under defaults; \
                 accepted: {accepted}"
            );
        }
        let elsewhere = self.0.iter().find(|key| key.name() == name);
        if elsewhere.is_none()
            && let Some(near) = nearest(name, self.children(section).map(Key::name))
        {
            return format!("unknown key, did you mean {near}? accepted: {accepted}");
        }
        match elsewhere.map(|key| parent(&key.path)) {
            Some("") => {
                format!("unknown key; it belongs to the top level; accepted here: {accepted}")
            }
            Some(section) => {
                format!("unknown key; it belongs under {section}; accepted here: {accepted}")
            }
            None => format!("unknown key; accepted: {accepted}"),
        }
    }

    /// The tree that a file with the settings of these flags has; they describe one listener. An
    /// unknown flag is the error.
    pub fn tree_of(self, flags: &[(&str, String)]) -> Result<Node, String> {
        let mut leaves = vec![("listeners[]", "")];
        for (flag, text) in flags {
            let key = self.0.iter().find(|key| key.flag == Some(*flag));
            let key = key.ok_or_else(|| format!("{flag}: is not a flag"))?;
            leaves.push(match key.section_word {
                Some(word) if word == text => (parent(&key.path), text),
                _ => (&key.path, text),
            });
        }
        let has_keys = |section: &str| leaves.iter().any(|(leaf, _)| parent(leaf) == section);
        let is_word = |(path, text): &&(&str, &str)| !text.is_empty() && has_keys(path);
        match leaves.iter().find(is_word) {
            Some((section, word)) => Err(format!(
                "{section} is {word}: none of its keys can be given"
            )),
            None => Ok(tree(&leaves)),
        }
    }
}

/// A tree of the texts at these paths; a list has one item.
fn tree(leaves: &[(&str, &str)]) -> Node {
    let mut sections: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (path, text) in leaves {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        sections.entry(first).or_default().push((rest, text));
    }
    let entries = sections.into_iter().map(|(name, mut leaves)| {
        let node = match name.strip_suffix("[]") {
            Some(_) => {
                leaves.retain(|(path, _)| !path.is_empty());
                Node::of_flag(Content::List(vec![Rc::new(tree(&leaves))]))
            }
            None => match leaves[..] {
                [("", text)] => Node::of_flag(Content::Flag(text.to_owned())),
                _ => tree(&leaves),
            },
        };
        let name = Content::Text(name.trim_end_matches("[]").to_owned());
        (Rc::new(Node::of_flag(name)), Rc::new(node))
    });
    Node::of_flag(Content::Map(entries.collect()))
}

/// The keys of `defaults` are those of a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Own,
    Defaults,
}

fn in_listener(path: &str) -> (String, Place) {
    match path.strip_prefix("defaults.") {
        Some(rest) => (format!("listeners[].{rest}"), Place::Defaults),
        None if path == "defaults" => ("listeners[]".to_owned(), Place::Defaults),
        None => (path.to_owned(), Place::Own),
    }
}

/// The candidate that differs least from `word`, if it differs little; the case does not count.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let length = word.chars().count();
    let limit = 1 + length / 4;
    candidates
        // Keeps a hostile key of a megabyte from costing anything.
        .filter(|candidate| candidate.len().abs_diff(length) <= limit)
        .map(|candidate| {
            let lower = [word, candidate].map(str::to_ascii_lowercase);
            (strsim::levenshtein(&lower[0], &lower[1]), candidate)
        })
        // Of two letters one may not differ: v3 is not meant to be v1.
        .filter(|(distance, _)| *distance <= limit && distance * 2 < length)
        .min()
        .map(|(_, candidate)| candidate)
}
