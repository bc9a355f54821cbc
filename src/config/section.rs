//! Sections: structs whose fields are keys. The macro [`section!`] declares a key once; the table of
//! keys, reading and printing are made from the declaration.

use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use super::read::{Reader, Scope};

/// One key, as documentation, schema and flags show it.
#[derive(Clone, Debug)]
pub struct Key {
    /// From the root; `[]` stands for the items of a list: `listeners[].liveness.stall_timeout`.
    pub path: String,
    /// For the operator.
    pub doc: String,
    /// What applies when it is left out.
    pub default: Default,
    /// The flag of `pulsegate run` that sets it, without dashes.
    pub flag: Option<&'static str>,
    /// Whether it may also stand under `defaults`.
    pub inherited: bool,
    /// The word that its section accepts in place of all keys: `admin: off`.
    pub section_word: Option<&'static str>,
    /// What it holds.
    pub form: Form,
}

/// What a key holds.
#[derive(Clone, Debug)]
pub enum Form {
    /// A mapping of further keys, or this word.
    Section(Option<&'static str>),
    /// A list of mappings; the noun of one if at least one is needed.
    List(Option<&'static str>),
    /// A value.
    Value(Accepted),
}

/// What a value may be.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// In words.
    pub words: String,
    /// As JSON Schema.
    pub schema: Json,
    /// In the help of the flag.
    pub placeholder: String,
}

/// What applies when a key is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// There is none: the key must be given.
    Required,
    /// This, written as a flag has it.
    Value(&'static str),
    /// Follows from other keys, in words.
    Derived(&'static str),
    /// A section: its keys have their own defaults.
    Keys,
}

impl Key {
    pub(super) fn new(form: Form) -> Self {
        let default = match form {
            Form::Value(_) => Default::Required,
            _ => Default::Keys,
        };
        Self {
            path: String::new(),
            doc: String::new(),
            default,
            flag: None,
            inherited: true,
            section_word: None,
            form,
        }
    }

    /// The last part of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// Whether the key holds further keys and no value of its own.
    #[must_use]
    pub const fn is_section(&self) -> bool {
        !matches!(self.form, Form::Value(_))
    }
}

impl Form {
    /// What is accepted, in words.
    #[must_use]
    pub fn accepted(&self) -> String {
        match self {
            Self::Section(None) => "a mapping of keys".to_owned(),
            Self::Section(Some(word)) => format!("a mapping of keys, or {word}"),
            Self::List(None) => "a list of mappings".to_owned(),
            Self::List(Some(_)) => "a list of at least one mapping".to_owned(),
            Self::Value(accepted) => accepted.words.clone(),
        }
    }
}

/// A struct made by [`section!`].
pub(super) trait Section: Sized {
    /// Adds its keys to the table.
    fn describe(section: &Key, table: &mut Vec<Key>);
    /// Reads every key before any is missed, so that all problems are found.
    fn read(at: &Scope<'_>, reader: &mut Reader<'_>) -> Option<Self>;
    fn show(&self) -> Yaml;
}

/// The name of a key, whose field may be a word of the language: `r#for`.
pub(super) fn name(field: &'static str) -> &'static str {
    field.trim_start_matches("r#")
}

/// Declares a section: a struct, each field of which is a key. The comment of a field is its
/// documentation for the operator. After `else` a derived default is computed from the other fields,
/// each an `Option` here; `check` finds contradictions between them.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $section:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $key:expr $(, else $derived:expr)?;)+
        }
        $(check |$at:ident, $reader:ident| $check:expr)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $section {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl $crate::config::section::Section for $section {
            fn describe(
                section: &$crate::config::section::Key,
                table: &mut Vec<$crate::config::section::Key>,
            ) {
                $($crate::config::setting::Setting::<$type>::describe(
                    $key, section, $crate::config::section::name(stringify!($field)), concat!($($doc),+), table,
                );)+
            }

            fn read(
                at: &$crate::config::read::Scope<'_>,
                reader: &mut $crate::config::read::Reader<'_>,
            ) -> Option<Self> {
                $(let $field = $crate::config::setting::Setting::<$type>::read(
                    &$key, at, $crate::config::section::name(stringify!($field)), reader,
                );)+
                $($(let $field = $field.or_else(|| {
                    let is_left_out = at.child($crate::config::section::name(stringify!($field))).given().is_none();
                    if is_left_out { $derived(at) } else { None }
                });)?)+
                $({
                    let ($at, $reader) = (at, &mut *reader);
                    $check;
                })?
                Some(Self { $($field: $field?,)+ })
            }

            fn show(&self) -> serde_yaml::Value {
                let mut keys = serde_yaml::Mapping::new();
                $(keys.insert(
                    $crate::config::section::name(stringify!($field)).into(),
                    $crate::config::setting::Setting::<$type>::show(&$key, &self.$field),
                );)+
                keys.retain(|_, value| !value.is_null());
                keys.into()
            }
        }
    };
}
pub(super) use section;

#[cfg(test)]
mod tests {
    use crate::config::errors::{ConfigErrors, Source};
    use crate::config::kind::{count, name, span};
    use crate::config::setting::{Items, Setting, list, section_of};
    use crate::config::{read, table, yaml};
    use std::time::Duration;

    use super::{Form, Section};

    // What no key of the product needs yet: sections in lists in sections in lists.
    section! {
        /// The root.
        Root {
            /// Groups.
            groups: Vec<Group> = list(some(section_of(), "group"));
        }
    }

    section! {
        /// A group.
        Group {
            /// A section that can be off.
            tls: Option<Tls> = section_of().or("off");
            /// A section in a section.
            check: Check = section_of();
        }
    }

    section! {
        /// TLS.
        Tls {
            /// Sections in a list in a section.
            certificates: Vec<Certificate> = list(some(section_of(), "certificate"));
            /// A list of values.
            alpn: Vec<String> = list(Items { of: name(), needed: None, template: None });
        }
    }

    section! {
        /// A certificate.
        Certificate {
            /// Its name.
            certificate: String = name();
            /// Its weight.
            weight: Option<u8> = count(1..=9).or("none").default("none");
        }
    }

    section! {
        /// A check.
        Check {
            /// How often.
            interval: Duration = span(Duration::ZERO..=Duration::from_secs(9)).default("5s");
        }
    }

    fn some<T>(of: Setting<T>, noun: &'static str) -> Items<T> {
        let needed = Some(noun);
        Items {
            of,
            needed,
            template: None,
        }
    }

    fn load(text: &str) -> Result<Root, ConfigErrors> {
        let root = yaml::parse(text).unwrap();
        read(&table::of::<Root>(), Source::File("f"), &root)
    }

    const GOOD: &str = "\
groups:
  - tls:
      certificates:
        - { certificate: a, weight: 3 }
        - certificate: b
      alpn: [h2, 'http']
    check: { interval: 7s }
  - { tls: off, check: }
";

    #[test]
    fn lists_of_sections_in_lists_are_read_and_printed() {
        let root = load(GOOD).unwrap();
        let tls = root.groups[0].tls.as_ref().unwrap();
        let weights: Vec<_> = tls.certificates.iter().map(|c| c.weight).collect();
        assert_eq!(weights, [Some(3), None]);
        assert_eq!(tls.alpn, ["h2", "http"]);
        let intervals = root
            .groups
            .iter()
            .map(|group| group.check.interval.as_secs());
        assert_eq!(intervals.collect::<Vec<_>>(), [7, 5]);
        assert_eq!(root.groups[1].tls, None);
        let printed = serde_yaml::to_string(&root.show()).unwrap();
        assert_eq!(load(&printed), Ok(root), "{printed}");
    }

    #[test]
    fn errors_inside_lists_of_sections_have_their_place() {
        let errors = load(
            "\
groups:
  - tls:
      certificates:
        - { certificate: a, weigth: 3 }
        - { weight: 10 }
        - 5
      alpn: [h2, 5, [x]]
      sni: x
    check: { interval: 10s }
  - tls: { certificates: [] }
  - tls: on
",
        );
        let expected = [
            "f:4:29: groups[0].tls.certificates[0].weigth: unknown key, did you mean weight? accepted: certificate, weight",
            "f:5:11: groups[0].tls.certificates[1].certificate: is missing; accepted: 1 to 63 letters, digits, \"-\", \"_\" or \".\"",
            "f:5:21: groups[0].tls.certificates[1].weight: 10 is above 9; accepted: a whole number from 1 to 9, or none",
            "f:6:11: groups[0].tls.certificates[2]: is a number; accepted: a mapping of keys; the keys are certificate, weight",
            "f:7:18: groups[0].tls.alpn[1]: 5 is a number; quoted it is a name; accepted: 1 to 63 letters, digits, \"-\", \"_\" or \".\"",
            "f:7:21: groups[0].tls.alpn[2]: is a list; accepted: 1 to 63 letters, digits, \"-\", \"_\" or \".\"",
            "f:8:7: groups[0].tls.sni: unknown key; accepted: certificates, alpn",
            "f:9:24: groups[0].check.interval: \"10s\" is above 9s; accepted: a duration such as 10s, from 0s to 9s",
            "f:10:26: groups[1].tls.certificates: is empty; at least one certificate is needed",
            "f:11:10: groups[2].tls: is text; accepted: a mapping of keys, or off; the keys are certificates, alpn",
        ];
        assert_eq!(errors.unwrap_err().lines(), expected);
    }

    #[test]
    fn the_table_has_the_keys_inside_lists() {
        let table = table::of::<Root>();
        let paths: Vec<&str> = table.iter().map(|key| key.path.as_str()).collect();
        let expected = [
            "groups",
            "groups[].tls",
            "groups[].tls.certificates",
            "groups[].tls.certificates[].certificate",
            "groups[].tls.certificates[].weight",
            "groups[].tls.alpn",
            "groups[].check",
            "groups[].check.interval",
        ];
        assert_eq!(paths, expected);
        let Form::Value(accepted) = &table[5].form else {
            panic!("a list of values is a value");
        };
        assert_eq!(accepted.schema["items"]["type"], "string");
    }
}
