//! The tables of keys in `docs/CONFIGURATION.md` and `docs/RELOAD.md`.

use super::Effect;
use super::keys::{self, Default, KEYS, Key};

/// Markdown, one row for each key that holds a value.
#[must_use]
pub fn table() -> String {
    let head = "| key | accepts | default | flag | meaning |\n|---|---|---|---|---|\n";
    let rows = KEYS.iter().filter(|key| !key.is_section()).map(row);
    head.to_owned() + &rows.collect::<String>()
}

/// What a change of each key does to a process that runs, as Markdown.
#[must_use]
pub fn effects() -> String {
    let keys = KEYS.iter().filter(|key| !key.is_section());
    let row = |key: &Key| {
        let list = match Effect::of(&key.path) {
            Effect::Applied => "applied",
            Effect::NewSessions => "new sessions only",
            Effect::Restart => "needs a restart",
        };
        format!("| `{}` | {list} |\n", key.path)
    };
    "| key | a change is |\n|---|---|\n".to_owned() + &keys.map(row).collect::<String>()
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
