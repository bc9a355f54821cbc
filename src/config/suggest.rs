//! "Did you mean".

/// The candidate that differs least from `word`, if it differs little.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = 1 + word.chars().count() / 4;
    candidates
        .map(|candidate| (distance(word, candidate, limit), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, remove or replace (Levenshtein); more than `limit` is not counted exactly.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let b: Vec<char> = b.chars().collect();
    // Also keeps a hostile key of a megabyte from costing anything.
    if a.chars().count().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            let replaced = diagonal + usize::from(x != *y);
            row[j + 1] = replaced.min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised() {
        let keys = [
            "detect_within",
            "probe_interval",
            "idle_timeout",
            "name",
            "stall_timeout",
        ];
        let near = |word| nearest(word, keys.into_iter());
        assert_eq!(near("detect-within"), Some("detect_within"));
        assert_eq!(near("idletimeout"), Some("idle_timeout"));
        assert_eq!(near("nmae"), Some("name"));
        assert_eq!(near("tls"), None);
        assert_eq!(near(""), None);
    }
}
