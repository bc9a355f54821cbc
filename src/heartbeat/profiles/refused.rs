//! Protocols that must not be asked in, and why: for whoever tries to.

/// Names, and what is wrong. Each reason follows "cannot be asked in: ".
const REFUSED: [(&[&str], &str); 18] = [
    (
        &["bgp"],
        "a KEEPALIVE of the proxy would keep a session up whose router is gone",
    ),
    (
        &["dicom"],
        "C-ECHO needs a presentation context that only the client can negotiate",
    ),
    (
        &["fix"],
        "every message has a sequence number: one more is a gap at both ends",
    ),
    (
        &["ftp"],
        "answers to NOOP come late or out of order during a transfer, which is when it is idle",
    ),
    (
        &["hl7", "mllp"],
        "it has no message without a meaning: what is sent is stored",
    ),
    (
        &["http", "http1"],
        "a request is answered once, in order: one more would be an answer that nobody wants",
    ),
    (
        &["imap"],
        "NOOP draws untagged EXPUNGE out while no command is in progress, which RFC 9051 (7.5.1) forbids: \
         the client's message numbers shift",
    ),
    (
        &["iscsi"],
        "commands have sequence numbers, which the proxy cannot take from the initiator",
    ),
    (
        &["opcua"],
        "every chunk has a sequence number, and may be signed",
    ),
    (&["oracle", "tns"], "its protocol is not published"),
    (
        &["rdp"],
        "it is encrypted, and has no question that a peer answers",
    ),
    (
        &["s7"],
        "it has no question without a meaning for the controller",
    ),
    (
        &["smb", "smb2", "cifs"],
        "ECHO needs a message id and credits, which the proxy cannot take from the client",
    ),
    (
        &["smtp"],
        "servers count NOOP as junk: Postfix makes each an error from 100 in a connection on",
    ),
    (&["ssh"], "it is encrypted from end to end"),
    (
        &["tds", "mssql", "sqlserver"],
        "it has no ping: a query would be one in the client's transaction",
    ),
    (
        &["tls"],
        "what is passed through encrypted cannot be read: terminate TLS, and name the protocol inside it",
    ),
    (
        &["x11"],
        "replies and errors have sequence numbers, which one more request shifts",
    ),
];

/// Why nothing is asked in the protocol of this name; `None` if it is not known to be unsafe.
#[must_use]
pub fn refusal(name: &str) -> Option<&'static str> {
    let (_, reason) = REFUSED.iter().find(|(names, _)| names.contains(&name))?;
    Some(reason)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_has_one_reason() {
        let names = || REFUSED.iter().flat_map(|(names, _)| names.iter());
        assert_eq!(names().collect::<BTreeSet<_>>().len(), names().count());
        for name in names() {
            assert!(refusal(name).is_some_and(|reason| !reason.ends_with('.')));
        }
        assert_eq!(refusal("redis"), None);
    }
}
