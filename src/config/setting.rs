//! The declaration of a key: what it holds, its default, its flag.

use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use serde_yaml::Value as Yaml;

use super::kind::{enumeration, quoted};
use super::read::{Reader, Role, Scope};
use super::section::{Default, Form, Key, Section};
use super::units;
use super::yaml::{Content, Node};

/// The declaration of a key that holds a `T`.
pub(super) struct Setting<T> {
    /// Without its path and documentation.
    key: Key,
    inside: Box<Inside>,
    read: Box<Read<T>>,
    show: Box<dyn Fn(&T) -> Yaml>,
}

/// Adds the keys inside to the table.
type Inside = dyn Fn(&Key, &mut Vec<Key>);

/// Reads a place, given what is accepted, in words. `None` if it is refused; the reader has the
/// reason.
type Read<T> = dyn Fn(&Scope<'_>, &mut Reader<'_>, &str) -> Option<T>;

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// The YAML type of a value.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Text,
    /// Text that may look like a number, and must be quoted then.
    Name,
    /// A number with a unit, which is text.
    Amount,
    /// Text that looks like a fraction, and need not be quoted.
    Version,
    /// Text that may be a whole number, and need not be quoted then.
    Code,
    Number,
    Switch,
}

/// A key that holds one value. `parse` reads the text of a flag, of a default or of a YAML scalar; its
/// error says what is wrong with the text.
pub(super) fn value<T: 'static>(
    is: Type,
    form: Form,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
    show: impl Fn(&T) -> Yaml + 'static,
) -> Setting<T> {
    let read = move |at: &Scope<'_>, reader: &mut Reader<'_>, accepted: &str| {
        let (place, node) = at.given()?;
        match scalar(is, &node.content, &parse) {
            Ok(value) => Some(value),
            Err(why) => {
                let end = if why.ends_with('?') { "" } else { ";" };
                reader.refuse(place, &format!("{why}{end} accepted: {accepted}"))
            }
        }
    };
    Setting::new(form, read, show)
}

/// Reads a node of a file, or a flag. The error is a sentence without its subject.
fn scalar<T>(
    is: Type,
    content: &Content,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, String> {
    let parse_text = |text: &str| parse(text).map_err(|why| format!("{} {why}", quoted(text)));
    match (is, content) {
        (_, Content::Flag(text)) => parse_text(text),
        (_, Content::Null) => Err("has no value".to_owned()),
        (Type::Switch, Content::Bool(on)) => parse(&on.to_string()),
        (Type::Switch, Content::Text(text)) => Err(format!("{} is text", quoted(text))),
        (Type::Number | Type::Code, Content::Int(n)) => {
            parse(&n.to_string()).map_err(|why| format!("{n} {why}"))
        }
        (Type::Number, Content::Text(text)) => {
            Err(format!("{} is text, not a number", quoted(text)))
        }
        (_, Content::Text(text)) => parse_text(text),
        (Type::Amount, Content::Int(n)) => Err(format!("{n} has no unit")),
        (Type::Name, Content::Int(n)) => Err(format!("{n} is a number; quoted it is a name")),
        (_, Content::Int(n)) => Err(format!("{n} is a number")),
        (Type::Version, Content::OtherNumber(n)) => parse_text(n),
        // What `off` is in YAML 1.1, which Helm and others still read and write.
        (Type::Text | Type::Amount, Content::Bool(false)) => {
            parse("off").map_err(|_| "false is not accepted".to_owned())
        }
        (_, Content::OtherNumber(n)) => Err(format!("{n} is not accepted")),
        (_, Content::Bool(on)) => Err(format!("{on} is not accepted")),
        (_, other) => Err(format!("is {}", other.kind())),
    }
}

/// A key that holds the keys of `T`.
pub(super) fn section_of<T: Section + 'static>() -> Setting<T> {
    let read = |at: &Scope<'_>, reader: &mut Reader<'_>, accepted: &str| {
        reader.open(at, accepted)?;
        T::read(at, reader)
    };
    Setting {
        inside: Box::new(T::describe),
        ..Setting::new(Form::Section(None), read, Section::show)
    }
}

/// A key that holds what the items of a list inherit. It is checked here, and read by the items.
pub(super) fn template_of<T: Section>() -> Setting<()> {
    let read = |at: &Scope<'_>, reader: &mut Reader<'_>, accepted: &str| {
        reader.open(at, accepted)?;
        reader.role = Role::Template;
        T::read(at, reader);
        reader.role = Role::Value;
        Some(())
    };
    Setting::new(Form::Section(None), read, |()| Yaml::Null)
}

/// The items of a list.
pub(super) struct Items<T> {
    /// Declares one item.
    pub of: Setting<T>,
    /// What one item is, for messages, if at least one is needed.
    pub needed: Option<&'static str>,
    /// The key at the root that holds what the items inherit.
    pub template: Option<&'static str>,
}

impl<T> Items<T> {
    /// Each item, `None` if it is refused.
    pub fn each(&self, at: &Scope<'_>, reader: &mut Reader<'_>) -> Option<Vec<Option<T>>> {
        let accepted = self.form().accepted();
        let template = self.template.map(|name| reader.root().child(name));
        match (at.given().map(|(_, node)| &node.content), self.needed) {
            // Flags are the keys of one item.
            (None, Some(_)) if reader.is_of_flags() => {
                let item = Rc::new(Node::of_flag(Content::Map(Vec::new())));
                let list = Node::of_flag(Content::List(vec![item]));
                self.each(&at.with(&list), reader)
            }
            (None, Some(_)) => reader.missing(at, &accepted),
            (None, None) => Some(Vec::new()),
            (Some(Content::List(items)), Some(noun)) if items.is_empty() => {
                reader.refuse(at, &format!("is empty; at least one {noun} is needed"))
            }
            (Some(Content::List(items)), _) => {
                let accepted = self.of.key.form.accepted();
                let places = (0..items.len()).map(|i| at.item(i, items, template.as_ref()));
                Some(
                    places
                        .map(|place| (self.of.read)(&place, reader, &accepted))
                        .collect(),
                )
            }
            (Some(Content::Flag(text)), _) => {
                let place = at.given().and_then(|(_, node)| node.at);
                let items = text
                    .trim_matches(['[', ']'])
                    .split(',')
                    .filter(|item| !item.is_empty());
                let item = |item: &str| Node::new(place, Content::Flag(item.trim().to_owned()));
                let items = items.map(|text| Rc::new(item(text)));
                let content = Content::List(items.collect());
                self.each(&at.with(&Node::new(place, content)), reader)
            }
            (Some(other), _) => {
                reader.refuse(at, &format!("is {}; accepted: {accepted}", other.kind()))
            }
        }
    }

    fn form(&self) -> Form {
        match self.of.key.form.clone() {
            Form::Value(mut item) => {
                let least = usize::from(self.needed.is_some());
                item.words.insert_str(0, "a list, each item ");
                item.schema = json!({ "type": "array", "items": item.schema, "minItems": least });
                Form::Value(item)
            }
            _ => Form::List(self.needed),
        }
    }
}

/// A key that holds a list.
pub(super) fn list<T: 'static>(items: Items<T>) -> Setting<Vec<T>> {
    let (form, items) = (items.form(), Rc::new(items));
    let (inner, shown) = (items.clone(), items.clone());
    let inside = move |list: &Key, table: &mut Vec<Key>| {
        let path = format!("{}[]", list.path);
        let inherited = list.inherited || inner.template.is_some();
        let item = Key::new(inner.of.key.form.clone());
        (inner.of.inside)(
            &Key {
                path,
                inherited,
                ..item
            },
            table,
        );
    };
    let read = move |at: &Scope<'_>, reader: &mut Reader<'_>, _: &str| {
        items.each(at, reader)?.into_iter().collect()
    };
    let show = move |list: &Vec<T>| list.iter().map(|item| shown.of.show(item)).collect();
    let is_value = matches!(form, Form::Value(_));
    let mut list = Setting::new(form, read, show);
    list.inside = Box::new(inside);
    if is_value { list.default("[]") } else { list }
}

impl<T: 'static> Setting<Vec<T>> {
    /// A text may stand for the list, with its items as a flag has them. To be said before default and
    /// flag.
    pub fn or_text(self) -> Self {
        let mut form = self.key.form.clone();
        if let Form::Value(accepted) = &mut form {
            let item = accepted.words.replacen("a list, each item ", "", 1);
            accepted.words = format!("{item}; or a list of several");
            let item = accepted.schema["items"].clone();
            accepted.schema = json!({ "anyOf": [item, accepted.schema] });
        }
        let inner = self.read;
        let read = move |at: &Scope<'_>, reader: &mut Reader<'_>, accepted: &str| {
            let text = at.given().and_then(|(_, node)| match &node.content {
                Content::Text(text) => Some(Node::new(node.at, Content::Flag(text.clone()))),
                _ => None,
            });
            match text {
                Some(list) => inner(&at.with(&list), reader, accepted),
                None => inner(at, reader, accepted),
            }
        };
        Self {
            inside: self.inside,
            ..Self::new(form, read, self.show)
        }
    }
}

impl<T: 'static> Setting<T> {
    fn new(
        form: Form,
        read: impl Fn(&Scope<'_>, &mut Reader<'_>, &str) -> Option<T> + 'static,
        show: impl Fn(&T) -> Yaml + 'static,
    ) -> Self {
        Self {
            key: Key::new(form),
            inside: Box::new(|_, _| {}),
            read: Box::new(read),
            show: Box::new(show),
        }
    }

    /// What applies when it is left out, written as a flag has it.
    pub fn default(mut self, text: &'static str) -> Self {
        self.key.default = Default::Value(text);
        self
    }

    /// What applies when it is left out, in words; the declaration says after `else` how it follows.
    pub fn derived(mut self, words: &'static str) -> Self {
        self.key.default = Default::Derived(words);
        self
    }

    pub fn flag(mut self, flag: &'static str) -> Self {
        self.key.flag = Some(flag);
        self
    }

    /// Not accepted under `defaults`.
    pub fn own(mut self) -> Self {
        self.key.inherited = false;
        self
    }

    /// Accepts a word for none. To be said before default and flag.
    pub fn or(self, word: &'static str) -> Setting<Option<T>> {
        let form = match self.key.form.clone() {
            Form::Value(mut value) => {
                value.words += &format!(", or {word}");
                value.placeholder += &format!("|{word}");
                value.schema = json!({ "anyOf": [value.schema, enumeration(&[word])] });
                Form::Value(value)
            }
            _ => Form::Section(Some(word)),
        };
        let is_none = move |content: &Content| match content {
            Content::Text(text) | Content::Flag(text) => text == word,
            // What `off` is in YAML 1.1.
            Content::Bool(false) => word == "off",
            _ => false,
        };
        self.optional(form, is_none, word)
    }

    /// May be left out, which then is no value. To be said before default and flag.
    pub fn maybe(self) -> Setting<Option<T>> {
        let (inner, show, form) = (self.read, self.show, self.key.form);
        let read = move |at: &Scope<'_>, reader: &mut Reader<'_>, accepted: &str| {
            inner(at, reader, accepted).map(Some)
        };
        let show = move |value: &Option<T>| value.as_ref().map_or(Yaml::Null, &show);
        Setting {
            inside: self.inside,
            ..Setting::new(form, read, show)
        }
    }

    fn optional(
        self,
        form: Form,
        is_none: impl Fn(&Content) -> bool + 'static,
        none: &'static str,
    ) -> Setting<Option<T>> {
        let (inner, show) = (self.read, self.show);
        let read = move |at: &Scope<'_>, reader: &mut Reader<'_>, accepted: &str| match at.given() {
            Some((_, node)) if is_none(&node.content) => Some(None),
            _ => inner(at, reader, accepted).map(Some),
        };
        let show = move |value: &Option<T>| value.as_ref().map_or_else(|| none.into(), &show);
        Setting {
            inside: self.inside,
            ..Setting::new(form, read, show)
        }
    }

    /// Adds the key and those inside to the table.
    pub fn describe(self, section: &Key, name: &str, doc: &str, table: &mut Vec<Key>) {
        let mut key = self.key;
        key.path = join(&section.path, name);
        key.doc = doc.trim().to_owned();
        key.inherited &= section.inherited;
        key.section_word = match section.form {
            Form::Section(word) => word,
            _ => None,
        };
        table.push(key.clone());
        (self.inside)(&key, table);
    }

    /// Reads the key `name` of a section; else its default.
    pub fn read(&self, section: &Scope<'_>, name: &str, reader: &mut Reader<'_>) -> Option<T> {
        let at = section.child(name);
        let accepted = self.key.form.accepted();
        match self.key.default {
            _ if at.given().is_some() => (self.read)(&at, reader, &accepted),
            _ if reader.role == Role::Template => None,
            Default::Keys => (self.read)(&at, reader, &accepted),
            Default::Value(text) => {
                let node = Node::of_flag(Content::Flag(text.to_owned()));
                (self.read)(&at.with(&node), reader, &accepted)
            }
            Default::Required => reader.missing(&at, &accepted),
            Default::Derived(_) => None,
        }
    }

    pub fn show(&self, value: &T) -> Yaml {
        (self.show)(value)
    }
}

impl Setting<Duration> {
    /// Accepts `off` for none, and `0s`.
    pub fn or_off(self) -> Setting<Option<Duration>> {
        let mut form = self.key.form.clone();
        if let Form::Value(accepted) = &mut form {
            accepted.words += ", or off (0s)";
            accepted.placeholder += "|off";
            accepted.schema = json!({ "anyOf": [accepted.schema, enumeration(&["off"])] });
        }
        let is_none = |content: &Content| match content {
            Content::Text(text) | Content::Flag(text) => {
                text == "off" || units::duration(text) == Ok(Duration::ZERO)
            }
            Content::Bool(false) => true,
            _ => false,
        };
        self.optional(form, is_none, "0s")
    }
}
