//! Manifests as text. Kubernetes reads YAML 1.1, in which some words mean something else than here.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::Deserialize;
use serde_yaml::{Deserializer, Value};

/// The documents of a stream; empty ones are left out.
///
/// # Errors
/// In one line: it is no YAML, or has a word of which two readers think differently.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, String> {
    let text = rewrite(text, |word| match ambiguous(word) {
        Some(why) => Err(format!("{word} {why}")),
        None => Ok(octal(word).map(|number| number.to_string())),
    })?;
    let documents = Deserializer::from_str(&text).map(|document| {
        let mut document = Value::deserialize(document)?;
        document.apply_merge()?;
        Ok(document)
    });
    let documents: Result<Vec<_>, serde_yaml::Error> = documents.collect();
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
    rewrite(text, |word| {
        Ok(is_misread(word).then(|| format!("'{word}'")))
    })
}

/// With something else in place of plain words, where `change` says so.
fn rewrite(
    text: &str,
    change: impl Fn(&str) -> Result<Option<String>, String>,
) -> Result<String, String> {
    // Places are counted in characters.
    let characters: Vec<char> = text.chars().collect();
    let (mut changed, mut done) = (String::new(), 0);
    for event in Parser::new_from_str(text) {
        let (event, at) = event.map_err(|error| error.to_string())?;
        let Event::Scalar(word, ScalarStyle::Plain, ..) = &event else {
            continue;
        };
        let new = change(word).map_err(|why| format!("line {}: {why}", at.start.line()))?;
        if let Some(new) = new {
            let (start, end) = (at.start.index(), at.start.index() + word.chars().count());
            changed.extend(&characters[done..start]);
            changed += &new;
            done = end;
        }
    }
    changed.extend(&characters[done..]);
    Ok(changed)
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
    let is_number = word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && word.starts_with('0') && octal(word).is_none())
        .then_some("is a number to Kubernetes; write it without 0 at its front, or quote it")
}

/// What Kubernetes takes a word for that begins with 0, such as the mode 0644.
fn octal(word: &str) -> Option<u64> {
    let digits = word.strip_prefix('0')?;
    u64::from_str_radix(digits, 8)
        .ok()
        .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::{documents, write};

    #[test]
    fn words_that_readers_understand_differently_are_refused_unquoted() {
        for (text, why) in [
            ("a: 1\nb: 0689\n", "line 2: 0689 is a number"),
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

    #[test]
    fn octal_numbers_and_merged_keys_are_what_kubernetes_reads() {
        for (text, read) in [
            ("defaultMode: 0644\n", "defaultMode: 420\n"),
            ("é: ü\r\na: [0755, x]\r\n", "é: ü\na:\n- 493\n- x\n"),
            (
                "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n",
                "a:\n  x: 1\n  'y': 2\nb:\n  'y': 3\n  x: 1\n",
            ),
        ] {
            let text = text.replace("y:", "'y':");
            let written = write(&documents(&text).expect("YAML")).expect("YAML");
            assert_eq!(written, read);
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
