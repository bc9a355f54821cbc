//! The JSON Schema of the file.

use serde_json::{Map, Value, json};

use super::keys::{Default, Form, KEYS, Key};
use super::kind::enumeration;
use super::table::Table;

/// Draft 2020-12, for editors and for validation before a rollout. What spans several keys
/// (contradictions, duplicates) is only found by loading.
#[must_use]
pub fn json() -> Value {
    let mut root = section("");
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("pulsegate configuration");
    root
}

/// A mapping; one whose keys are all commented out is accepted if none is needed.
fn section(path: &str) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in Table(&KEYS).children(path) {
        let path = super::setting::join(path, key.name());
        properties.insert(key.name().to_owned(), property(&path, key));
        if is_needed(&path, key) {
            required.push(key.name());
        }
    }
    let mut schema = json!({
        "type": "object", "additionalProperties": false, "properties": properties
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    } else if !path.is_empty() && !path.ends_with("[]") {
        schema["type"] = json!(["object", "null"]);
    }
    schema
}

/// A section that cannot be left out is needed if a key in it is.
fn is_needed(path: &str, key: &Key) -> bool {
    let needed = |child: &Key| child.default == Default::Required;
    match &key.form {
        Form::List(noun) => noun.is_some(),
        Form::Section(_) if key.default != Default::Keys => false,
        Form::Section(_) => Table(&KEYS).children(path).any(needed),
        _ => needed(key),
    }
}

fn property(path: &str, key: &Key) -> Value {
    let mut property = match &key.form {
        Form::Section(None) => section(path),
        Form::Section(Some(word)) => {
            json!({ "anyOf": [section(path), enumeration(&[word])] })
        }
        Form::List(noun) => {
            let least = usize::from(noun.is_some());
            json!({ "type": "array", "minItems": least, "items": section(&format!("{path}[]")) })
        }
        Form::Value(value) => value.schema.clone(),
    };
    property["description"] = json!(format!("{} Accepts {}.", key.doc, key.form.accepted()));
    if let Default::Value(text) = key.default {
        let number = text.parse::<u32>().map(|n| json!(n));
        let switch = text.parse::<bool>().map(|on| json!(on));
        property["default"] = number.or(switch).unwrap_or_else(|_| json!(text));
    }
    property
}
