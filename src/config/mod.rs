//! Configuration: text or flags to a [`Config`] that cannot be wrong, or every error at once.
//!
//! [`keys`] is the one table of keys. A file goes `yaml` (a tree with positions) -> `settings`
//! (flat, each value checked by its row of the table) -> `build` (defaults, contradictions,
//! types); flags enter at `settings`. [`schema`] and [`docs`] print the table.

mod build;
pub mod docs;
mod duration;
mod errors;
pub mod keys;
mod print;
pub mod schema;
mod settings;
mod size;
mod suggest;
mod types;
mod value;
mod yaml;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use duration::show;
pub use errors::ConfigErrors;
pub use print::to_yaml;

pub use types::*;

use errors::{Source, place};
use settings::Settings;
use yaml::Position;

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
        Err(error) => Err(ConfigErrors::one(format!(
            "{name}: cannot be read: {error}"
        ))),
        Ok(n) if n as u64 > MOST_BYTES => Err(ConfigErrors::one(format!(
            "{name}: is larger than {} KiB",
            MOST_BYTES >> 10
        ))),
        Ok(_) => load(&name, &bytes),
    }
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
    let text = std::str::from_utf8(text).map_err(|error| {
        let good = String::from_utf8_lossy(&text[..error.valid_up_to()]);
        let line = 1 + good.matches('\n').count();
        let column = 1 + good.chars().rev().take_while(|c| *c != '\n').count();
        let place = place(name, Some(Position { line, column }));
        ConfigErrors::one(format!("{place}: is not UTF-8 text"))
    })?;
    let root = yaml::parse(text).map_err(|broken| {
        let place = place(name, broken.at);
        ConfigErrors::one(format!("{place}: {}", broken.message))
    })?;
    finish(Settings::of_file(Source::File { name, text }, &root))
}

/// Checks flags: pairs of a flag of the key table, without dashes, and its value. They describe
/// one listener.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn from_flags(flags: &[(&str, String)]) -> Result<Config, ConfigErrors> {
    finish(Settings::of_flags(flags))
}

/// Reads a duration as the configuration has it: `500ms`, `10s`, `5m`, `1h`.
///
/// # Errors
///
/// What is wrong with the text.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    duration::parse(text).map_err(|wrong| format!("{wrong}; write 500ms, 10s, 5m or 1h"))
}

fn finish(mut settings: Settings<'_>) -> Result<Config, ConfigErrors> {
    settings
        .build()
        .ok_or_else(|| ConfigErrors::new(settings.problems, settings.source))
}
