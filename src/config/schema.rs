//! The JSON Schema of the file.

use serde_json::{Map, Value, json};

use super::keys::{self, Default, Key, Kind};

/// Draft 2020-12, for editors and for validation before a rollout. What spans several keys
/// (contradictions, duplicates) is only found by loading.
#[must_use]
pub fn json() -> Value {
    let mut root = section("");
    root.insert(
        "$schema".to_owned(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    root.insert("title".to_owned(), json!("pulsegate configuration"));
    Value::Object(root)
}

fn section(path: &str) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys::children(path) {
        let path = if path.is_empty() {
            key.name().to_owned()
        } else {
            format!("{path}.{}", key.name())
        };
        properties.insert(key.name().to_owned(), property(&path, key));
        if needed(&path, key) {
            required.push(key.name());
        }
    }
    let mut map = Map::new();
    map.insert("type".to_owned(), json!("object"));
    map.insert("additionalProperties".to_owned(), json!(false));
    map.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        map.insert("required".to_owned(), json!(required));
    }
    map
}

/// A section is needed if a key in it is.
fn needed(path: &str, key: &Key) -> bool {
    match key.kind {
        Kind::List => true,
        Kind::Section { .. } => {
            keys::children(path).any(|child| child.default == Default::Required)
        }
        _ => key.default == Default::Required,
    }
}

fn property(path: &str, key: &Key) -> Value {
    let mut map = match key.kind {
        Kind::Section { or: None } | Kind::Inherited => or_null(section(path)),
        Kind::Section { or: Some(word) } => {
            any_of(&[Value::Object(or_null(section(path))), words(&[word])])
        }
        Kind::List => object(json!({
            "type": "array", "minItems": 1, "items": section(&format!("{path}[]"))
        })),
        kind => object(value(kind)),
    };
    map.insert(
        "description".to_owned(),
        json!(format!("{} Accepts {}.", key.doc, key.kind.accepted())),
    );
    if let Default::Value(text) = key.default {
        let number = text.parse::<u32>().map(|n| json!(n));
        let switch = text.parse::<bool>().map(|b| json!(b));
        map.insert(
            "default".to_owned(),
            number.or(switch).unwrap_or_else(|_| json!(text)),
        );
    }
    Value::Object(map)
}

fn value(kind: Kind) -> Value {
    match kind {
        Kind::Name => json!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,63}$" }),
        Kind::Listen | Kind::Dial => json!({ "type": "string", "pattern": "^.+:[0-9]{1,5}$" }),
        Kind::Span { .. } => json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }),
        Kind::Count { min, max, or } => {
            let number = json!({ "type": "integer", "minimum": min, "maximum": max });
            match or {
                Some(word) => json!({ "anyOf": [number, { "const": word }] }),
                None => number,
            }
        }
        Kind::Size { or, .. } => json!({
            "anyOf": [{ "type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)$" }, words(or)]
        }),
        Kind::Words(accepted) => words(accepted),
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Section { .. } | Kind::Inherited | Kind::List => json!({}),
    }
}

/// In YAML 1.1 `off` is `false`, which is accepted, too.
fn words(accepted: &[&str]) -> Value {
    let mut words: Vec<Value> = accepted.iter().map(|word| json!(word)).collect();
    if accepted.contains(&"off") {
        words.push(json!(false));
    }
    json!({ "enum": words })
}

/// A section whose keys are all commented out is accepted.
fn or_null(mut section: Map<String, Value>) -> Map<String, Value> {
    if !section.contains_key("required") {
        section.insert("type".to_owned(), json!(["object", "null"]));
    }
    section
}

fn any_of(options: &[Value]) -> Map<String, Value> {
    object(json!({ "anyOf": options }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
