//! What changes for each listener from one configuration to the next.

use super::ListenerConfig;
use super::section::Section;

/// What becomes of a listener. They are known by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// It is new.
    Added(&'a ListenerConfig),
    /// It is not wanted any more.
    Removed(&'a ListenerConfig),
    /// It is wanted otherwise: before, after, and the keys, or sections, that differ.
    Changed(&'a ListenerConfig, &'a ListenerConfig, Vec<&'static str>),
}

/// The removed first, so that an address may go from one listener to another.
#[must_use]
pub fn diff<'a>(before: &'a [ListenerConfig], after: &'a [ListenerConfig]) -> Vec<Change<'a>> {
    let named = |of: &'a [ListenerConfig], name: &str| of.iter().find(|l| l.name == name);
    let removed = before
        .iter()
        .filter(|old| named(after, &old.name).is_none());
    let others = after
        .iter()
        .filter_map(|new| match named(before, &new.name) {
            None => Some(Change::Added(new)),
            Some(old) => {
                let keys = old.changed(new);
                (!keys.is_empty()).then_some(Change::Changed(old, new, keys))
            }
        });
    removed.map(Change::Removed).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(name: &str, port: u16) -> ListenerConfig {
        let flags = [
            ("listen", format!("127.0.0.1:{port}")),
            ("upstream", "127.0.0.1:1".to_owned()),
        ];
        let config = crate::config::from_flags(&flags).expect("flags");
        ListenerConfig {
            name: name.to_owned(),
            ..config.listeners[0].clone()
        }
    }

    #[test]
    fn names_what_is_added_removed_and_changed() {
        let before = [
            listener("a", 1001),
            listener("b", 1002),
            listener("c", 1003),
        ];
        let mut other = listener("c", 1004);
        other.limits.max_connections = Some(7);
        let after = [listener("d", 1001), listener("b", 1002), other];
        assert_eq!(
            diff(&before, &after),
            [
                Change::Removed(&before[0]),
                Change::Added(&after[0]),
                Change::Changed(&before[2], &after[2], vec!["address", "limits"]),
            ]
        );
        assert_eq!(diff(&after, &after), []);
        let all = diff(&[], &after);
        assert!(all.iter().all(|change| matches!(change, Change::Added(_))));
        assert_eq!(all.len(), after.len());
    }
}
