//! Configuration: text or flags to a [`Config`] that cannot be wrong, or every error at once.
//!
//! `types` declares each key once, by the macro in `section`. A file, or flags, become a tree with
//! positions (`yaml`), which the declarations `read`; `check` finds contradictions. The table of
//! [`keys`], the [`schema`], the [`docs`] and the printed configuration are made from the declarations.

mod bytes;
mod check;
mod diff;
pub mod docs;
mod errors;
mod heartbeat;
mod kind;
mod network;
mod read;
pub mod schema;
mod section;
mod setting;
mod table;
mod tls;
mod types;
mod units;
mod yaml;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use bytes::{Bytes, Statuses};
pub use diff::{Difference, Effect, diff};
pub use errors::ConfigErrors;
pub use heartbeat::*;
pub use network::Network;
pub use tls::*;
pub use types::*;
pub use units::show;

use errors::{Problem, Source};
use keys::{Form, KEYS, Key};
use read::Reader;
use section::Section;
use table::Table;
use yaml::{Lines, Node};

/// The table of keys.
pub mod keys {
    pub use crate::config::section::{Accepted, Default, Form, Key};
    pub use crate::config::table::{KEYS, parent};
}

/// No configuration is larger; reading stops there, even on a device that never ends.
const MOST_BYTES: u64 = 1 << 20;

/// Reads and checks a file. Its path is the `file` of every error.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn load_file(path: &Path) -> Result<Config, ConfigErrors> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(ConfigErrors::one(unreadable(path, &error))),
        Ok(n) if n as u64 > MOST_BYTES => Err(ConfigErrors::one(format!(
            "{name}: is larger than {} KiB",
            MOST_BYTES >> 10
        ))),
        Ok(_) => load(&name, &bytes),
    }
}

/// Says that a file cannot be read, and what helps.
#[must_use]
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "; the user that pulsegate runs as must be allowed to",
        _ => "",
    };
    format!("{}: cannot be read: {error}{advice}", path.display())
}

/// Checks the text of a file called `name`.
///
/// ```
/// let text = b"listeners: [{ address: 127.0.0.1:9000, upstream: { address: 127.0.0.1:6379 } }]";
/// let config = pulsegate::config::load("example.yaml", text).expect("it is complete");
/// assert_eq!(config.listeners[0].liveness.detect_within.as_secs(), 30);
///
/// let errors = pulsegate::config::load("wrong.yaml", b"listenrs: []").unwrap_err();
/// assert!(errors.to_string().contains("wrong.yaml:1:1: listenrs: unknown key"));
/// ```
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn load(name: &str, text: &[u8]) -> Result<Config, ConfigErrors> {
    let root = std::str::from_utf8(text).map_err(|error| {
        let good = String::from_utf8_lossy(&text[..error.valid_up_to()]);
        Problem::of_file(Some(Lines::of(&good).end()), "is not UTF-8 text")
    });
    let root = root.and_then(yaml::parse);
    let file = Source::File(name);
    match root {
        Ok(root) => read(&KEYS, file, &root),
        Err(problem) => Err(ConfigErrors::new(vec![problem], file, Table(&KEYS))),
    }
}

/// Checks flags: pairs of a flag of the key table, without dashes, and its value. They describe
/// one listener.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn from_flags(flags: &[(&str, String)]) -> Result<Config, ConfigErrors> {
    let root = Table(&KEYS).tree_of(flags).map_err(ConfigErrors::one)?;
    read(&KEYS, Source::Flags, &root)
}

/// Reads a tree by the declaration of the section `T`.
fn read<T: Section>(keys: &[Key], source: Source<'_>, root: &Node) -> Result<T, ConfigErrors> {
    let mut reader = Reader::new(Table(keys), source, root);
    let root = reader.root();
    let opened = reader.open(&root, &Form::Section(None).accepted());
    let value = opened.and_then(|()| T::read(&root, &mut reader));
    reader.finish(value)
}

/// The configuration in force, every default filled in, as YAML that [`load`] reads back. A default that
/// another limit always forestalls is printed as that limit: written beside each other, the two would
/// contradict.
#[must_use]
pub fn to_yaml(config: &Config) -> String {
    let mut config = config.clone();
    config.listeners.iter_mut().for_each(ListenerConfig::level);
    // Text, numbers and mappings of them can always be printed.
    serde_yaml::to_string(&config.show()).unwrap_or_default()
}

/// Reads `host:port` of one host, an IP address or a DNS name.
///
/// # Errors
///
/// What is wrong with the text.
pub fn host_and_port(text: &str) -> Result<UpstreamAddress, String> {
    kind::parse_dial(text)
}

/// Reads the address of a listener, as it is printed.
///
/// # Errors
///
/// What is wrong with the text.
pub fn listen_address(text: &str) -> Result<ListenAddress, String> {
    kind::parse_listener(text)
}

/// Reads a duration as the configuration has it: `500ms`, `10s`, `5m`, `1h`.
///
/// # Errors
///
/// What is wrong with the text.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    units::duration(text).map_err(|wrong| format!("{wrong}; write 500ms, 10s, 5m or 1h"))
}
