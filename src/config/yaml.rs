//! YAML text to a tree of [`Node`]s. The only file that knows the YAML library.
//!
//! The tree keeps what a map type would lose: duplicate keys, their order, and where each node
//! stands. The library gives no positions while it reads, but it attaches one to an error; so
//! every node is numbered, and [`locate`] reads the text again and fails on purpose at the node
//! of that number. That costs a second reading for each *error*, never for a good file.
//!
//! An alias (`*name`) is read as if what it stands for were written there. A few kilobytes of aliases
//! of aliases are gigabytes so; therefore what a text comes to is bounded, not only its own size.

use std::fmt;

use super::value::LARGEST_WHOLE;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// Values that a file may come to, aliases expanded. A thousand listeners with all their keys fit.
const MOST_NODES: u32 = 100_000;
/// Brackets that may be open at once. The library's own limit, of any nesting, is 128.
const MOST_BRACKETS: usize = 1000;
/// Bytes of text that they may hold.
const MOST_TEXT: usize = 1 << 20;

/// A value and its number, counted from 0 in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub number: u32,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Null,
    Bool(bool),
    Int(u64),
    /// Negative, fractional or huge: nothing here accepts it.
    OtherNumber(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// `!tag value`: nothing here accepts it.
    Tagged,
}

impl Content {
    /// With its article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::OtherNumber(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Tagged => "a value with a YAML tag",
        }
    }
}

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

/// Why the text is not one YAML document.
#[derive(Debug)]
pub(super) struct Broken {
    pub at: Option<Position>,
    pub message: String,
}

/// Where brackets are opened far more often than closed. The library would take seconds for a
/// megabyte of them before it says that they are too many.
fn too_deep(text: &str) -> Option<Position> {
    let mut depth = 0_usize;
    for (line, content) in text.lines().enumerate() {
        for (column, c) in content.chars().enumerate() {
            match c {
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MOST_BRACKETS {
                let (line, column) = (line + 1, column + 1);
                return Some(Position { line, column });
            }
        }
    }
    None
}

/// Reads exactly one document.
pub(super) fn parse(text: &str) -> Result<Node, Broken> {
    if let Some(at) = too_deep(text) {
        let message = TOO_DEEP.to_owned();
        return Err(Broken {
            at: Some(at),
            message,
        });
    }
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(document) = documents.next() else {
        return Err(empty());
    };
    let mut reader = Reader::default();
    let node = reader.deserialize(document).map_err(|error| {
        let last = reader.next.saturating_sub(1);
        let mut broken = broken(text, &error);
        broken.at = broken.at.or_else(|| locate(text, last));
        broken
    })?;
    if documents.next().is_some() {
        let message = "holds more than one YAML document; exactly one is accepted".to_owned();
        return Err(Broken { at: None, message });
    }
    if node.content == Content::Null {
        return Err(empty());
    }
    Ok(node)
}

/// Where the node of this number stands in a text that [`parse`] accepted.
pub(super) fn locate(text: &str, number: u32) -> Option<Position> {
    let mut reader = Reader {
        stop_at: Some(number),
        ..Reader::default()
    };
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    position(&reader.deserialize(document).err()?)
}

const TOO_DEEP: &str = "is nested too deeply";
const TOO_MUCH: &str = "comes to more than 100000 values or 1 MiB of text, aliases expanded";

fn empty() -> Broken {
    let message = "is empty; at least `listeners` is needed".to_owned();
    Broken { at: None, message }
}

fn broken(text: &str, error: &serde_yaml::Error) -> Broken {
    if text.trim().is_empty() {
        return empty();
    }
    let at = position(error);
    let mut message = error.to_string();
    if let Some(at) = at {
        let suffix = format!(" at line {} column {}", at.line, at.column);
        message = message.replacen(&suffix, "", 1);
    }
    // The library says in which key, or finds it out first.
    let too_much = message.ends_with(TOO_MUCH) || message.ends_with("repetition limit exceeded");
    let message = if too_much {
        TOO_MUCH.to_owned()
    } else if message.ends_with("recursion limit exceeded") {
        TOO_DEEP.to_owned()
    } else {
        format!("is not valid YAML: {message}")
    };
    Broken { at, message }
}

fn position(error: &serde_yaml::Error) -> Option<Position> {
    error.location().map(|at| Position {
        line: at.line(),
        column: at.column(),
    })
}

#[derive(Default)]
struct Reader {
    next: u32,
    text: usize,
    stop_at: Option<u32>,
}

impl Reader {
    fn deserialize<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<Node, D::Error> {
        NodeSeed(self).deserialize(from)
    }
}

struct NodeSeed<'a>(&'a mut Reader);

impl NodeSeed<'_> {
    fn number<E: serde::de::Error>(&mut self) -> Result<u32, E> {
        let number = self.0.next;
        self.0.next += 1;
        if self.0.stop_at == Some(number) {
            return Err(E::custom("located"));
        }
        if number == MOST_NODES {
            return Err(E::custom(TOO_MUCH));
        }
        Ok(number)
    }

    fn leaf<E: serde::de::Error>(mut self, content: Content) -> Result<Node, E> {
        let number = self.number()?;
        Ok(Node { number, content })
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.leaf(Content::Null)
    }

    /// A document that holds only comments.
    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.leaf(Content::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.leaf(Content::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.leaf(Content::Int(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.leaf(Content::OtherNumber(value.to_string()))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.leaf(Content::OtherNumber(value.to_string()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.leaf(Content::OtherNumber(value.to_string()))
    }

    /// `1e+06` is a whole number as well as 1000000.
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        if value.fract() == 0.0 && (0.0..=LARGEST_WHOLE).contains(&value) {
            return self.leaf(Content::Int(value as u64));
        }
        self.leaf(Content::OtherNumber(value.to_string()))
    }

    fn visit_str<E: serde::de::Error>(mut self, value: &str) -> Result<Node, E> {
        self.0.text += value.len();
        if self.0.text > MOST_TEXT {
            // At the node, as every other error.
            self.number()?;
            return Err(E::custom(TOO_MUCH));
        }
        self.leaf(Content::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Node, A::Error> {
        let number = self.number()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(NodeSeed(self.0))? {
            list.push(item);
        }
        let content = Content::List(list);
        Ok(Node { number, content })
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Node, A::Error> {
        let number = self.number()?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key_seed(NodeSeed(self.0))? {
            map.push((key, entries.next_value_seed(NodeSeed(self.0))?));
        }
        let content = Content::Map(map);
        Ok(Node { number, content })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (_tag, value) = tagged.variant::<Tag>()?;
        value.newtype_variant::<IgnoredAny>()?;
        self.leaf(Content::Tagged)
    }
}

/// The name of a tag, unread.
struct Tag;

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)
            .map(|_| Self)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(node: &Node, out: &mut Vec<(u32, String)>) {
        match &node.content {
            Content::Map(entries) => {
                out.push((node.number, "map".to_owned()));
                for (key, value) in entries {
                    numbered(key, out);
                    numbered(value, out);
                }
            }
            Content::List(items) => {
                out.push((node.number, "list".to_owned()));
                for item in items {
                    numbered(item, out);
                }
            }
            Content::Text(text) => out.push((node.number, text.clone())),
            other => out.push((node.number, format!("{other:?}"))),
        }
    }

    #[test]
    fn every_node_is_located_where_it_starts() {
        let text =
            "# comment\na: 1\nlist:\n  - x: \"two words\"\n    y: {k: [v, 2.5]}\n  -   z\nb: ~\n";
        let node = parse(text).unwrap();
        let mut nodes = Vec::new();
        numbered(&node, &mut nodes);
        let found: Vec<String> = nodes
            .iter()
            .map(|(number, what)| {
                let at = locate(text, *number).unwrap();
                format!("{}:{} {what}", at.line, at.column)
            })
            .collect();
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
        for depth in [200, 900, 5000] {
            let deep = parse(&"[".repeat(depth)).unwrap_err();
            assert_eq!(deep.message, TOO_DEEP);
            assert_eq!(deep.at.map(|at| at.line), Some(1));
        }
        let itself = parse("a: &a [*a]\n").unwrap_err();
        assert_eq!(itself.message, TOO_DEEP);
        // What people use them for.
        let node = parse("a: &a {x: 1}\nb: [*a, *a]\n").unwrap();
        let mut nodes = Vec::new();
        numbered(&node, &mut nodes);
        assert_eq!(nodes.iter().filter(|(_, what)| what == "x").count(), 3);
    }

    #[test]
    fn duplicate_keys_and_tags_survive() {
        let node = parse("a: 1\na: !x [1, 2]\n").unwrap();
        let Content::Map(entries) = node.content else {
            panic!("not a map");
        };
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].1.content, Content::Tagged);
    }
}
