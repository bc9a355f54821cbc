//! Where the configuration comes from: a file, or flags made from the key table.

use std::path::{Path, PathBuf};

use super::address;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::keys::{Default, Form, KEYS, Key};
use crate::config::{self, Config, ConfigErrors, UpstreamAddress};

/// The configuration of `run`, `check`, `explain` and `doctor`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Read everything from this YAML file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

impl RunArgs {
    /// The configuration, checked.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file or the flags.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let path = match &self.config {
            Some(path) if self.flags.0.is_empty() => return config::load_file(path),
            Some(path) => path.display(),
            None if self.flags.0.is_empty() => {
                let line = "give --config FILE, or --listen ADDR and --upstream ADDR";
                return Err(ConfigErrors::one(line.to_owned()));
            }
            None => return config::from_flags(&self.flags.resolved()?),
        };
        let names: Vec<String> = self
            .flags
            .0
            .iter()
            .map(|(flag, _)| format!("--{flag}"))
            .collect();
        let names = names.join(", ");
        let line = format!("--config excludes {names}: set these in {path}");
        Err(ConfigErrors::one(line))
    }

    /// The file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Whether neither a file nor a flag was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.config.is_none() && self.flags.0.is_empty()
    }

    /// The file, or `flags`.
    #[must_use]
    pub fn source(&self) -> String {
        self.config
            .as_ref()
            .map_or_else(|| "flags".to_owned(), |path| path.display().to_string())
    }
}

/// The flags that were given, unread. Their values are checked together with everything else, so
/// that all errors are found at once.
#[derive(Clone, Debug)]
struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// With the name of this host that --admin may have been given replaced by its address.
    fn resolved(&self) -> Result<Vec<(&'static str, String)>, ConfigErrors> {
        let mut flags = self.0.clone();
        for (_, text) in flags.iter_mut().filter(|(flag, _)| *flag == "admin") {
            if let Ok(address @ UpstreamAddress::Name { .. }) = address::parse(text) {
                let found = address::resolve(&address);
                let found = found.map_err(|why| ConfigErrors::one(format!("--admin: {why}")))?;
                *text = found[0].to_string();
            }
        }
        Ok(flags)
    }
}

fn flagged() -> impl Iterator<Item = (&'static str, &'static Key)> {
    KEYS.iter().filter_map(|key| Some((key.flag?, key)))
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let mut flags: Vec<_> = flagged().collect();
        flags.sort_by_key(|(_, key)| HEADINGS.iter().position(|it| *it == heading(key)));
        flags.into_iter().fold(command, |command, (flag, key)| {
            command.arg(
                Arg::new(flag)
                    .long(flag)
                    .value_name(value_name(key))
                    .help_heading(heading(key))
                    .hide_short_help(!MOST_USED.contains(&flag))
                    .help(short_help(key))
                    .long_help(long_help(key)),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |(flag, _)| Some((flag, matches.get_one::<String>(flag)?.clone()));
        Ok(Self(flagged().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The headings of the help, in their order.
const HEADINGS: [&str; 10] = [
    "Listener and upstream",
    "Liveness",
    "Heartbeats",
    "Limits",
    "TLS",
    "PROXY protocol",
    "Checks of the service",
    "Admin endpoint",
    "Log",
    "Process",
];

/// Where a key belongs, by the beginning of its path: the first that fits.
const SECTIONS: [(&str, &str); 13] = [
    ("listeners[].tls", "TLS"),
    ("listeners[].upstream.tls", "TLS"),
    ("listeners[].proxy_protocol", "PROXY protocol"),
    ("listeners[].upstream.proxy_protocol", "PROXY protocol"),
    ("listeners[].upstream.check", "Checks of the service"),
    ("listeners[].upstream.ejection", "Checks of the service"),
    ("listeners[].liveness.heartbeat", "Heartbeats"),
    ("listeners[].liveness", "Liveness"),
    ("listeners[].limits", "Limits"),
    ("listeners[].access", "Limits"),
    ("listeners[]", "Listener and upstream"),
    ("admin", "Admin endpoint"),
    ("log", "Log"),
];

fn heading(key: &Key) -> &'static str {
    let found = SECTIONS
        .iter()
        .find(|(begin, _)| key.path.starts_with(begin));
    found.map_or("Process", |(_, heading)| heading)
}

/// What `-h` shows; `--help` has all flags.
const MOST_USED: [&str; 9] = [
    "listen",
    "upstream",
    "detect-within",
    "idle-timeout",
    "max-connections",
    "on-full",
    "tls-certificate",
    "tls-key",
    "admin",
];

/// More words than these stand in the long help only.
const WORDS: usize = 24;

fn value_name(key: &Key) -> String {
    match placeholder(key) {
        words if words.len() > WORDS => "WORD".to_owned(),
        words => words,
    }
}

fn placeholder(key: &Key) -> String {
    match (&key.form, key.section_word) {
        (Form::Value(value), Some(word)) => format!("{}|{word}", value.placeholder),
        (Form::Value(value), None) => value.placeholder.clone(),
        _ => String::new(),
    }
}

/// The first sentence, without what is in brackets.
fn short_help(key: &Key) -> String {
    let first = key.doc.split(". ").next().unwrap_or_default();
    let first = first.split(" (").next().unwrap_or_default();
    with_default(key, first.trim_end_matches('.'))
}

fn long_help(key: &Key) -> String {
    let help = with_default(key, key.doc.trim_end_matches('.'));
    match placeholder(key) {
        words if words.len() > WORDS => format!("{help} [one of: {}]", words.replace('|', ", ")),
        _ => help,
    }
}

fn with_default(key: &Key, doc: &str) -> String {
    match key.default {
        Default::Value("0s") if key.form.accepted().ends_with("or off (0s)") => {
            format!("{doc} [default: off]")
        }
        Default::Value(text) => format!("{doc} [default: {text}]"),
        Default::Derived(words) if words.starts_with("required") => doc.to_owned(),
        Default::Derived(words) => format!("{doc} [default: {}]", words.replace('`', "")),
        Default::Required | Default::Keys => doc.to_owned(),
    }
}
