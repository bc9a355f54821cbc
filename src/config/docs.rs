//! The table of keys in `docs/CONFIGURATION.md`.

use super::keys::{self, Default, KEYS, Key};

/// Markdown, one row for each key that holds a value.
#[must_use]
pub fn table() -> String {
    let head = "| key | accepts | default | flag | meaning |\n|---|---|---|---|---|\n";
    let rows = KEYS.iter().filter(|key| !key.kind.is_section()).map(row);
    head.to_owned() + &rows.collect::<String>()
}

fn row(key: &Key) -> String {
    let Key { path, doc, .. } = key;
    let mut accepts = key.kind.accepted();
    if let Some(word) = key.section_word() {
        accepts += &format!(", or `{}: {word}`", keys::parent(path));
    }
    let default = match key.default {
        Default::Required => "required".to_owned(),
        Default::Value(text) => format!("`{text}`"),
        Default::Derived(words) => words.to_owned(),
        Default::Keys => String::new(),
    };
    let flag = key
        .flag
        .map(|flag| format!("`--{flag}`"))
        .unwrap_or_default();
    format!("| `{path}` | {accepts} | {default} | {flag} | {doc} |\n")
}
