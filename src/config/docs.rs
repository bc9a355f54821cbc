//! The table of keys in `docs/CONFIGURATION.md`.

use super::keys::{self, Default, KEYS, Key};

/// Markdown, one row for each key that holds a value.
#[must_use]
pub fn table() -> String {
    let head = "| key | accepts | default | flag | meaning |\n|---|---|---|---|---|\n";
    let rows = KEYS.iter().filter(|key| !key.is_section()).map(row);
    head.to_owned() + &rows.collect::<String>()
}

fn row(key: &Key) -> String {
    let (path, doc, accepted) = (&key.path, &key.doc, key.form.accepted());
    let or = key
        .section_word
        .map(|word| format!(", or `{}: {word}`", keys::parent(path)));
    let or = or.unwrap_or_default();
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
    format!("| `{path}` | {accepted}{or} | {default} | {flag} | {doc} |\n")
}
