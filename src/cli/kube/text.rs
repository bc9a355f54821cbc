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
    let text = text.map_err(|error| error.to_string())?;
    quote(&text.join("---\n"))
}

/// With quotes around text that stands there plain and that a reader of YAML 1.1 takes for something else.
fn quote(text: &str) -> Result<String, String> {
    // Places are counted in characters.
    let characters: Vec<char> = text.chars().collect();
    let (mut quoted, mut done) = (String::new(), 0);
    for event in Parser::new_from_str(text) {
        let (event, at) = event.map_err(|error| error.to_string())?;
        if let Event::Scalar(word, ScalarStyle::Plain, ..) = &event
            && is_misread(word)
        {
            let (start, end) = (at.start.index(), at.start.index() + word.chars().count());
            quoted.extend(&characters[done..start]);
            quoted += &format!("'{word}'");
            done = end;
        }
    }
    quoted.extend(&characters[done..]);
    Ok(quoted)
}

/// Switches, dates, times and numbers of other forms. What is no text has a form that every reader knows.
fn is_misread(word: &str) -> bool {
    let is_number = word.parse::<f64>().is_ok();
    let looks_so = word.starts_with(|c: char| c.is_ascii_digit() || "+-.=<".contains(c));
    is_switch(word) || (looks_so && !is_number && !word.contains('\''))
}

fn is_switch(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    ["yes", "no", "on", "off", "y", "n"].contains(&word.as_str())
}

/// Why a plain word may not stand there, if it may not.
fn ambiguous(word: &str) -> Option<&'static str> {
    if is_switch(word) {
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
            ("a: {", "expected node content"),
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
