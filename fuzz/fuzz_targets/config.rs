//! Text of a configuration. Reading never panics, the position of an error lies in the text, and
//! what is accepted is accepted again as it is printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate::config;

const NAME: &str = "fuzz.yaml";

fuzz_target!(|bytes: &[u8]| match config::load(NAME, bytes) {
    Ok(config) => {
        let printed = config::to_yaml(&config);
        let again = config::load(NAME, printed.as_bytes());
        assert_eq!(again.as_ref(), Ok(&config), "{printed}");
    }
    Err(errors) => {
        assert!(!errors.lines().is_empty());
        for error in errors.lines() {
            check_position(error, &String::from_utf8_lossy(bytes));
        }
    }
});

fn check_position(error: &str, text: &str) {
    let Some(place) = error.strip_prefix(NAME) else {
        return assert!(error.starts_with("and ") && error.ends_with(" more"));
    };
    let mut numbers = place.split(':').skip(1).map_while(|n| n.parse().ok());
    let (Some(line), Some(column)) = (numbers.next(), numbers.next()) else {
        return;
    };
    // What YAML may take for the end of a line.
    let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
    let lines = text.split(breaks).count();
    // The end of a text without a last line break is told as the line after it, and a value that is
    // missing behind the place where it would begin.
    assert!((1..=lines + 1).contains(&line), "{error}");
    assert!((1..=text.chars().count() + 2).contains(&column), "{error}");
}
