//! Who may use the endpoint. There are no passwords. On a loopback address, every process of this
//! host may read and change. On another address, every client that reaches it may read. The network
//! must not change anything, and web pages in the operator's browser must not do either.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderValue, ORIGIN};

/// From where the endpoint can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It listens on a loopback address.
    Host,
    /// From other hosts.
    Network,
}

impl Reach {
    /// By the address the endpoint listens on.
    pub(super) fn of(address: IpAddr) -> Self {
        if address.to_canonical().is_loopback() {
            Self::Host
        } else {
            Self::Network
        }
    }
}

const FOREIGN_HOST: &str = "the Host header must be an IP address or localhost";

/// Why a request of any kind is refused, if it is. A page whose DNS name was rebound to 127.0.0.1
/// is same-origin to the browser, and could read; the name in the Host header gives it away. From
/// the network the endpoint is asked under any name, such as that of a Service.
pub(super) fn refusal(reach: Reach, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let known = |host| text(host).is_some_and(names_this_host);
    (reach == Reach::Host && !hosts.all(known)).then_some(FOREIGN_HOST)
}

/// Why a mutating request is refused, if it is.
pub(super) fn change_refusal(reach: Reach, headers: &HeaderMap) -> Option<&'static str> {
    if reach == Reach::Network {
        return Some("changes are accepted only where the admin address is a loopback address");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(text), hosts.next()) else {
        return Some("one Host header is needed");
    };
    if !names_this_host(host) {
        return Some(FOREIGN_HOST);
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
            ("127.0.0.1", Reach::Host),
            ("::1", Reach::Host),
            ("::ffff:127.0.0.1", Reach::Host),
            ("0.0.0.0", Reach::Network),
            ("::", Reach::Network),
            ("10.0.0.1", Reach::Network),
        ] {
            let address = address.parse().expect("valid");
            assert_eq!(Reach::of(address), expected, "{address}");
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
            let headers = headers(pairs);
            assert_eq!(change_refusal(Reach::Host, &headers), None, "{pairs:?}");
            assert!(change_refusal(Reach::Network, &headers).is_some());
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
            let refused = change_refusal(Reach::Host, &headers(pairs));
            assert!(refused.is_some(), "{pairs:?}");
        }
    }

    #[test]
    fn reading() {
        let rebound = headers(&[("host", "evil.example:9900")]);
        assert_eq!(refusal(Reach::Host, &rebound), Some(FOREIGN_HOST));
        assert_eq!(refusal(Reach::Network, &rebound), None);
        let own: [&[_]; 3] = [&[], &[("host", "localhost:1")], &[("host", "[::1]:1")]];
        for pairs in own {
            assert_eq!(refusal(Reach::Host, &headers(pairs)), None, "{pairs:?}");
        }
    }
}
