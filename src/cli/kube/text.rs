//! Manifests as text. Kubernetes reads YAML 1.1, in which some words mean something else than here.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::Deserialize;
use serde_yaml::{Deserializer, Value};

/// The documents of a stream; empty ones are left out.
///
/// # Errors
/// In one line: it is no YAML, or has a word of which two readers think differently.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, String> {
    for event in Parser::new_from_str(text) {
        let (event, at) = event.map_err(|error| error.to_string())?;
        if let Event::Scalar(word, ScalarStyle::Plain, ..) = &event
            && let Some(why) = ambiguous(word)
        {
            return Err(format!("line {}: {word} {why}", at.start.line()));
        }
    }
    let documents = Deserializer::from_str(text).map(Value::deserialize);
    let documents: Result<Vec<_>, _> = documents.collect();
    let mut documents = documents.map_err(|error| error.to_string())?;
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

/// The stream.
///
/// # Errors
/// When a value has no place in YAML.
pub(super) fn write(documents: &[Value]) -> Result<String, String> {
    let text = documents.iter().map(serde_yaml::to_string);
    let text: Result<Vec<_>, _> = text.collect();
    text.map(|text| text.join("---\n"))
        .map_err(|error| error.to_string())
}

/// Why a plain word may not stand there, if it may not.
fn ambiguous(word: &str) -> Option<&'static str> {
    let switch = ["yes", "no", "on", "off", "y", "n"];
    if switch.contains(&word.to_ascii_lowercase().as_str()) {
        return Some("is true or false to Kubernetes; write true or false, or quote it");
    }
    let digits = word.strip_prefix('0')?;
    let octal = digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit());
    octal.then_some(
        "is an octal number to Kubernetes; write it as a decimal one (0644 is 420), or quote it",
    )
}

#[cfg(test)]
mod tests {
    use super::{documents, write};

    #[test]
    fn words_that_readers_understand_differently_are_refused_unquoted() {
        for (text, why) in [
            ("a: 1\nb: 0644\n", "line 2: 0644 is an octal number"),
            ("a: [yes]", "line 1: yes is true or false"),
            ("a: Off", "Off is true or false"),
            ("a: {", "line 1"),
        ] {
            let said = documents(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
        for text in [
            "a: 'yes'\n",
            "a: \"0644\"\n",
            "a: 0\n",
            "a: 0.5\n",
            "a: 08-01\n",
        ] {
            documents(text).expect(text);
        }
    }

    /// What was text stays text to a reader of YAML 1.1.
    #[test]
    fn text_stays_text() {
        for word in [
            "yes", "off", "0644", "1e3", "0x1f", "null", "~", "1_000", "true",
        ] {
            let read = documents(&format!("a: '{word}'\n")).expect("YAML");
            let written = write(&read).expect("YAML");
            let quoted = [format!("a: '{word}'\n"), format!("a: \"{word}\"\n")];
            assert!(quoted.contains(&written), "{word}: {written}");
        }
    }
}
