//! Who may change something through the endpoint. It has no passwords: whoever is on this host
//! may. What has to be kept out is the network, and web pages in the operator's browser.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderValue, ORIGIN};

/// Whether mutating verbs are answered at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutations {
    /// The endpoint listens on a loopback address.
    Allowed,
    /// It can be reached from other hosts.
    Refused,
}

impl Mutations {
    /// By the address the endpoint listens on.
    pub(super) fn on(address: IpAddr) -> Self {
        if address.to_canonical().is_loopback() {
            Self::Allowed
        } else {
            Self::Refused
        }
    }
}

/// Why a mutating request is refused, if it is.
pub(super) fn refusal(mutations: Mutations, headers: &HeaderMap) -> Option<&'static str> {
    if mutations == Mutations::Refused {
        return Some("changes are accepted only where the admin address is a loopback address");
    }
    // A page whose DNS name was rebound to 127.0.0.1 is same-origin to the browser; the name in
    // the Host header gives it away.
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(text), hosts.next()) else {
        return Some("one Host header is needed");
    };
    if !names_this_host(host) {
        return Some("the Host header must be an IP address or localhost");
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    if !origins.all(|origin| text(origin).and_then(|o| o.strip_prefix("http://")) == Some(host)) {
        return Some("cross-site request (Origin)");
    }
    // `same-site` is refused too: every port of localhost is the same site.
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if !sites.all(|site| matches!(text(site), Some("same-origin" | "none"))) {
        return Some("cross-site request (Sec-Fetch-Site)");
    }
    None
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// Whether `host`, with or without a port, is an IP address or `localhost`.
fn names_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bracketed = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost") || bracketed.unwrap_or(name).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hosts() {
        for host in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:9",
            "[::1]:9",
            "[::1]",
            "10.1.2.3",
        ] {
            assert!(names_this_host(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "",
            ":1",
        ] {
            assert!(!names_this_host(host), "{host}");
        }
    }

    #[test]
    fn loopback_addresses() {
        for (address, expected) in [
            ("127.0.0.1", Mutations::Allowed),
            ("::1", Mutations::Allowed),
            ("::ffff:127.0.0.1", Mutations::Allowed),
            ("0.0.0.0", Mutations::Refused),
            ("::", Mutations::Refused),
            ("10.0.0.1", Mutations::Refused),
        ] {
            let address = address.parse().expect("valid");
            assert_eq!(Mutations::on(address), expected, "{address}");
        }
    }

    #[test]
    fn requests() {
        let ok: [&[_]; 3] = [
            &[("host", "127.0.0.1:1")],
            &[("host", "localhost:1"), ("origin", "http://localhost:1")],
            &[("host", "[::1]:1"), ("sec-fetch-site", "none")],
        ];
        for pairs in ok {
            assert_eq!(
                refusal(Mutations::Allowed, &headers(pairs)),
                None,
                "{pairs:?}"
            );
            assert!(refusal(Mutations::Refused, &headers(pairs)).is_some());
        }
        let bad: [&[_]; 8] = [
            &[],
            &[("host", "evil.example")],
            &[("host", "127.0.0.1"), ("host", "127.0.0.1")],
            &[("host", "127.0.0.1:1"), ("origin", "null")],
            &[("host", "127.0.0.1:1"), ("origin", "http://127.0.0.1:2")],
            &[("host", "127.0.0.1:1"), ("origin", "https://evil.example")],
            &[("host", "127.0.0.1:1"), ("sec-fetch-site", "cross-site")],
            &[("host", "127.0.0.1:1"), ("sec-fetch-site", "same-site")],
        ];
        for pairs in bad {
            assert!(
                refusal(Mutations::Allowed, &headers(pairs)).is_some(),
                "{pairs:?}"
            );
        }
    }
}
