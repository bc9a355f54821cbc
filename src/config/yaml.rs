//! YAML text to a tree of [`Node`]s, each with its place. The only file that knows the parser.
//!
//! The tree keeps what a map type loses: duplicate keys and their order. An alias (`*name`) shares
//! the node it stands for, so a few kilobytes of aliases of aliases cost nothing; what they stand
//! for is bounded all the same.

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::errors::Problem;
use super::kind::whole;

/// Values that a file may come to, aliases expanded. A thousand listeners with all their keys fit.
const MOST_NODES: usize = 100_000;
/// Bytes of text that they may hold.
const MOST_TEXT: usize = 1 << 20;
const MOST_DEPTH: usize = 128;

/// The tags of the core schema of YAML 1.2.
const OF_SCALARS: [&str; 5] = ["str", "int", "bool", "float", "null"];
const OF_COLLECTIONS: [&str; 2] = ["map", "seq"];

const TOO_DEEP: &str = "is nested too deeply";
const TOO_MUCH: &str = "comes to more than 100000 values or 1 MiB of text, aliases expanded";

/// A value and where it begins; `None` if it is not from a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub at: Option<Position>,
    pub content: Content,
    /// Values and bytes of text that it comes to, aliases expanded.
    size: (usize, usize),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Null,
    Bool(bool),
    Int(u64),
    /// Negative, fractional or huge: nothing here accepts it.
    OtherNumber(String),
    Text(String),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
    /// `!tag value`: nothing here accepts it.
    Tagged,
    /// The value of a flag, or a default: any of the above, as text.
    Flag(String),
}

impl Node {
    pub fn new(at: Option<Position>, content: Content) -> Self {
        let sum = |a: (usize, usize), node: &Rc<Self>| (a.0 + node.size.0, a.1 + node.size.1);
        let size = match &content {
            Content::Text(text) => (1, text.len()),
            Content::List(items) => items.iter().fold((1, 0), sum),
            Content::Map(entries) => entries.iter().fold((1, 0), |a, (k, v)| sum(sum(a, k), v)),
            _ => (1, 0),
        };
        Self { at, content, size }
    }

    /// The value of a key of a mapping.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Content::Map(entries) = &self.content else {
            return None;
        };
        let is = |key: &Self| matches!(&key.content, Content::Text(text) if text == name);
        let entry = entries.iter().find(|(key, _)| is(key));
        entry.map(|(_, value)| &**value)
    }

    pub fn of_flag(content: Content) -> Self {
        Self::new(None, content)
    }
}

impl Content {
    /// With its article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::OtherNumber(_) => "a number",
            Self::Text(_) | Self::Flag(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Tagged => "a value with a YAML tag",
        }
    }

    /// A plain scalar, by the core schema of YAML 1.2.
    fn of_plain(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Self::Null,
            "true" | "True" | "TRUE" => Self::Bool(true),
            "false" | "False" | "FALSE" => Self::Bool(false),
            _ => match whole(text).and_then(|digits| digits.parse().ok()) {
                Some(n) => Self::Int(n),
                // Rust also reads "inf" and "nan".
                None if text.parse::<f64>().is_ok()
                    && text.contains(|c: char| c.is_ascii_digit()) =>
                {
                    Self::OtherNumber(text.to_owned())
                }
                None => Self::Text(text.to_owned()),
            },
        }
    }
}

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

/// The text line by line, where the parser sees lines.
pub(super) struct Lines(Vec<Vec<char>>);

impl Lines {
    pub fn of(text: &str) -> Self {
        let text = text.replace("\r\n", "\n");
        let lines = text.split(['\n', '\r']);
        Self(lines.map(|line| line.chars().collect()).collect())
    }

    /// Where the text ends.
    pub fn end(&self) -> Position {
        let column = self.0.last().map_or(0, Vec::len) + 1;
        let line = self.0.len();
        Position { line, column }
    }

    /// The place of a marker. The parser may have gone beyond the end of the line or of the text.
    fn place(&self, marker: &Marker) -> Position {
        let line = marker.line();
        let Some(chars) = line.checked_sub(1).and_then(|i| self.0.get(i)) else {
            return self.end();
        };
        let column = marker.col().min(chars.len()) + 1;
        Position { line, column }
    }

    /// The parser puts a value that is left out on the colon before it, or behind that.
    fn left_out(&self, at: Position) -> Position {
        let colon = self.0[at.line - 1].get(at.column - 1) == Some(&':');
        let column = at.column + usize::from(colon);
        Position { column, ..at }
    }

    fn broken(&self, error: &ScanError) -> Problem {
        let message = match error.info() {
            "recursion limit exceeded" => TOO_DEEP.to_owned(),
            info => format!("is not valid YAML: {info}"),
        };
        Problem::of_file(Some(self.place(error.marker())), message)
    }
}

/// Reads exactly one document.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let lines = Lines::of(text);
    let mut tree = Tree::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| lines.broken(&error))?;
        match event {
            Event::DocumentStart(_) if documents == 1 => {
                let message = "holds more than one YAML document; exactly one is accepted";
                return Err(Problem::of_file(None, message));
            }
            Event::DocumentStart(_) => documents += 1,
            event => {
                let at = lines.place(&span.start);
                let at = match &event {
                    Event::Scalar(text, ScalarStyle::Plain, ..) if text.is_empty() => {
                        lines.left_out(at)
                    }
                    _ => at,
                };
                tree.event(event, at)?;
            }
        }
    }
    match tree.root {
        Some(root) if root.content != Content::Null => Ok(Rc::unwrap_or_clone(root)),
        _ => Err(Problem::of_file(
            None,
            "is empty; at least `listeners` is needed",
        )),
    }
}

/// The part of the tree that has been read.
#[derive(Default)]
struct Tree {
    root: Option<Rc<Node>>,
    /// The lists and mappings that have not ended, the innermost last.
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
}

struct Open {
    at: Position,
    anchor: usize,
    is_foreign: bool,
    /// Of a mapping: keys and values in turn.
    items: Vec<Rc<Node>>,
}

impl Tree {
    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), Problem> {
        match event {
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                let is_foreign = is_foreign(tag.as_deref(), &OF_COLLECTIONS);
                let items = Vec::new();
                self.open.push(Open {
                    at,
                    anchor,
                    is_foreign,
                    items,
                });
                if self.open.len() > MOST_DEPTH {
                    return Err(Problem::of_file(Some(at), TOO_DEEP));
                }
            }
            Event::SequenceEnd => self.close(Content::List)?,
            Event::MappingEnd => self.close(|items| Content::Map(pairs(items)))?,
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => self.add(node.clone(), 0),
                None => {
                    let message = "is an alias inside the value that it stands for";
                    return Err(Problem::of_file(Some(at), message));
                }
            },
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.as_ref().is_some_and(|tag| tag.suffix == "str");
                let content = match style {
                    _ if is_foreign(tag.as_deref(), &OF_SCALARS) => Content::Tagged,
                    ScalarStyle::Plain if !is_text => Content::of_plain(&text),
                    _ => Content::Text(text.to_string()),
                };
                self.add(Rc::new(Node::new(Some(at), content)), anchor);
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the innermost list or mapping.
    fn close(&mut self, content: impl FnOnce(Vec<Rc<Node>>) -> Content) -> Result<(), Problem> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let root = self.open.first().map_or(open.at, |root| root.at);
        let node = Node::new(Some(open.at), content(open.items));
        if node.size.0 > MOST_NODES || node.size.1 > MOST_TEXT {
            return Err(Problem::of_file(Some(root), TOO_MUCH));
        }
        let tagged = || Node::new(node.at, Content::Tagged);
        self.add(
            Rc::new(if open.is_foreign { tagged() } else { node }),
            open.anchor,
        );
        Ok(())
    }

    fn add(&mut self, node: Rc<Node>, anchor: usize) {
        // The parser counts anchors from 1.
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(parent) => parent.items.push(node),
            None => self.root = Some(node),
        }
    }
}

fn pairs(items: Vec<Rc<Node>>) -> Vec<(Rc<Node>, Rc<Node>)> {
    let mut items = items.into_iter();
    std::iter::from_fn(|| items.next().zip(items.next())).collect()
}

/// Whether a tag is none of these of YAML's own: `!!python/object:x` is written like one.
fn is_foreign(tag: Option<&Tag>, known: &[&str]) -> bool {
    tag.is_some_and(|tag| !tag.is_yaml_core_schema() || !known.contains(&&*tag.suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(node: &Node, out: &mut Vec<String>) {
        let at = node.at.unwrap();
        let what = match &node.content {
            Content::Map(_) => "map".to_owned(),
            Content::List(_) => "list".to_owned(),
            Content::Text(text) => text.clone(),
            other => format!("{other:?}"),
        };
        out.push(format!("{}:{} {what}", at.line, at.column));
        match &node.content {
            Content::Map(entries) => entries.iter().for_each(|(key, value)| {
                placed(key, out);
                placed(value, out);
            }),
            Content::List(items) => items.iter().for_each(|item| placed(item, out)),
            _ => {}
        }
    }

    #[test]
    fn every_node_is_located_where_it_starts() {
        let text =
            "# comment\na: 1\nlist:\n  - x: \"two words\"\n    y: {k: [v, 2.5]}\n  -   z\nb: ~\n";
        let node = parse(text).unwrap();
        let mut found = Vec::new();
        placed(&node, &mut found);
        let expected = [
            "2:1 map",
            "2:1 a",
            "2:4 Int(1)",
            "3:1 list",
            "4:3 list",
            "4:5 map",
            "4:5 x",
            "4:8 two words",
            "5:5 y",
            "5:8 map",
            "5:9 k",
            "5:12 list",
            "5:13 v",
            "5:16 OtherNumber(\"2.5\")",
            "6:7 z",
            "7:1 b",
            "7:4 Null",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_value_that_is_left_out_has_a_place_in_the_text() {
        for (text, place) in [
            ("a:", "1:3 Null"),
            ("a:\r\n", "1:3 Null"),
            ("a: ", "1:3 Null"),
            ("b: 1\ra:\r\rc: 1", "2:3 Null"),
            ("{a}", "1:3 Null"),
            ("[? a]", "1:5 Null"),
            ("? a", "1:4 Null"),
            ("- a\n-", "2:2 Null"),
            ("a: &x", "1:4 Null"),
        ] {
            let mut found = Vec::new();
            placed(&parse(text).unwrap(), &mut found);
            assert!(
                found.iter().any(|found| found == place),
                "{text:?} {found:?}"
            );
        }
        for (text, line, column) in [("a: b\0c", 1, 5), ("a: |\n  x\0", 2, 4), ("\0", 1, 1)] {
            let at = parse(text).unwrap_err().at;
            assert_eq!(at, Some(Position { line, column }), "{text:?}");
        }
    }

    #[test]
    fn what_aliases_come_to_is_bounded() {
        // 9^9 values in 300 bytes; the library would expand some of them, and text without limit.
        let mut bomb = "a: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(",");
            bomb += &format!("b: &a{i} [{aliases}]\n");
        }
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(9999), "*a,".repeat(200));
        let many = format!("[{}]", "a,".repeat(100_001));
        let wide = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(5000), "*a,".repeat(50));
        for text in [bomb, long, many, wide] {
            let broken = parse(&text).unwrap_err();
            assert_eq!(broken.message, TOO_MUCH);
            assert!(broken.at.is_some());
        }
        for open in ["[", "- ", "{", "? "] {
            let deep = parse(&open.repeat(100_000)).unwrap_err();
            assert_eq!(deep.message, TOO_DEEP);
            // The parser has a limit of its own, for brackets.
            let column = [open.len() * MOST_DEPTH + 1, 256];
            assert!(
                deep.at
                    .is_some_and(|at| at.line == 1 && column.contains(&at.column))
            );
        }
        let itself = parse("a: &a [*a]\n").unwrap_err();
        assert_eq!(
            itself.message,
            "is an alias inside the value that it stands for"
        );
        // What people use them for.
        let node = parse("a: &a {x: 1}\nb: [*a, *a]\n").unwrap();
        let mut found = Vec::new();
        placed(&node, &mut found);
        assert_eq!(found.iter().filter(|what| what.ends_with(" x")).count(), 3);
    }

    #[test]
    fn duplicate_keys_and_tags_survive() {
        let node = parse("a: 1\na: !x [1, 2]\n? !y z\n: !!str 5\n").unwrap();
        let Content::Map(entries) = node.content else {
            panic!("not a map");
        };
        let values: Vec<_> = entries.iter().map(|(_, value)| &value.content).collect();
        let text = Content::Text("5".to_owned());
        assert_eq!(values, [&Content::Int(1), &Content::Tagged, &text]);
        assert_eq!(entries[2].0.content, Content::Tagged);
        for (value, is_refused) in [
            ("!!python/object:x \"y\"", true),
            ("!!python/object:x {}", true),
            ("!!set []", true),
            ("!!map y", true),
            ("!x y", true),
            ("!!int 5", false),
            ("!!bool true", false),
            ("!!float 1.5", false),
            ("!!null ~", false),
            ("!!map {}", false),
            ("!!seq []", false),
        ] {
            let node = parse(&format!("a: {value}")).unwrap();
            let content = &node.get("a").unwrap().content;
            assert_eq!(*content == Content::Tagged, is_refused, "{value}");
        }
    }
}
