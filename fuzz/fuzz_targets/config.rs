//! Text of a configuration. Reading never panics, the position of an error lies in the text, and
//! what is accepted is accepted again as it is printed, and printed alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate::config;

const NAME: &str = "fuzz.yaml";

fuzz_target!(|bytes: &[u8]| match config::load(NAME, bytes) {
    Ok(config) => {
        let printed = config::to_yaml(&config);
        let again = config::load(NAME, printed.as_bytes());
        let again = again.map(|config| config::to_yaml(&config));
        assert_eq!(again.as_ref(), Ok(&printed));
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
    let mut numbers = place.split(':').skip(1).map_while(|n| n.parse::<usize>().ok());
    let (Some(line), Some(column)) = (numbers.next(), numbers.next()) else {
        return;
    };
    let text = text.replace("\r\n", "\n");
    let width = text.split(['\n', '\r']).nth(line - 1).map(|line| line.chars().count());
    assert!(column > 0 && width.is_some_and(|width| column <= width + 1), "{error}");
}
