//! Who may use the endpoint. On a loopback address, every process of this host may read and change; on a
//! unix socket, whom the file's mode lets in. On another address, every client that reaches it may read.
//! The network must not change anything but with a token, and web pages in the operator's browser must not
//! do either.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN};
use hyper::{HeaderMap, StatusCode};
use rustix::fs::OFlags;
use strum::IntoStaticStr;

use crate::config::unreadable;
use crate::telemetry::Repeated;

/// From where the endpoint can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It listens on a unix socket, which no browser reaches: the mode of the file says who may.
    File,
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

/// How the endpoint is spoken to, as a browser says it of a page's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
pub(super) enum Scheme {
    /// Plain.
    #[strum(serialize = "http://")]
    Http,
    /// In TLS.
    #[strum(serialize = "https://")]
    Https,
}

/// The file of the token that lets its bearer change something from anywhere.
#[derive(Clone, Debug)]
pub struct TokenFile(Arc<Path>);

/// A token has so many characters at least: as many as no guesses of a few thousand a second find.
const SHORTEST_TOKEN: usize = 16;
const LONGEST_TOKEN: usize = 4096;

/// Lines about a token file that cannot be used any more.
static TOKEN_LINES: Repeated = Repeated::new();

impl TokenFile {
    /// One that has a token now.
    ///
    /// # Errors
    /// In a few words: why it has none.
    pub fn new(path: PathBuf) -> Result<Self, String> {
        let file = Self(path.into());
        file.read().map(|_| file)
    }

    /// The token. It may be replaced at any time, so it is not kept.
    pub(super) fn read(&self) -> Result<String, String> {
        token_in(&self.0, read_file(&self.0))
    }

    /// Whether a request has the token.
    fn is_borne(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(text);
        let given = given.and_then(|given| given.split_once(' '));
        let Some(("Bearer" | "bearer", given)) = given else {
            return false;
        };
        match self.read() {
            Ok(token) => is_same(given.as_bytes(), token.as_bytes()),
            Err(why) => {
                if TOKEN_LINES.begin() {
                    tracing::warn!("a change with a token is refused: {why}");
                    tokio::spawn(TOKEN_LINES.sum_up(|more| {
                        tracing::warn!(
                            "changes with a token are refused: {more} more in the last 10 s"
                        );
                    }));
                }
                false
            }
        }
    }
}

/// The token of a file that is read once: a pipe, too.
///
/// # Errors
/// In a few words: why it has none.
pub(super) fn read_token(path: &Path) -> Result<String, String> {
    token_in(path, File::open(path).and_then(read_some))
}

/// What a token file must hold.
fn token_in(path: &Path, text: io::Result<String>) -> Result<String, String> {
    let text = text.map_err(|error| unreadable(path, &error))?;
    let token = text.trim_end();
    let fits = token.bytes().all(|b| b.is_ascii_graphic());
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&token.len()) || !fits {
        return Err(format!(
            "{}: must hold a token: {SHORTEST_TOKEN} to {LONGEST_TOKEN} printable characters on one line, no blanks",
            path.display()
        ));
    }
    Ok(token.to_owned())
}

/// A FIFO would be waited for, each time.
fn read_file(path: &Path) -> io::Result<String> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    read_some(file)
}

/// No more than shows that it is too long.
fn read_some(file: File) -> io::Result<String> {
    let mut text = String::new();
    let read = file
        .take(LONGEST_TOKEN as u64 + 1)
        .read_to_string(&mut text);
    read.map(|_| text)
}

/// Takes the same time wherever the first difference is.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let pairs = a.iter().zip(b);
    let differ = pairs.fold(0, |differ, (a, b)| black_box(differ | (a ^ b)));
    a.len() == b.len() && differ == 0
}

/// Who may do what at one address of the endpoint.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub reach: Reach,
    pub scheme: Scheme,
    pub token: Option<TokenFile>,
}

/// What a page may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Changes {
    /// Whoever reaches the address may change something.
    Open,
    /// Whoever has the token.
    Token,
    /// Nobody.
    Never,
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

impl Guard {
    /// Who may change something here.
    pub fn changes(&self) -> Changes {
        match (self.reach, &self.token) {
            (Reach::File | Reach::Host, _) => Changes::Open,
            (Reach::Network, Some(_)) => Changes::Token,
            (Reach::Network, None) => Changes::Never,
        }
    }

    /// Why a mutating request is refused, if it is.
    pub fn refuses(&self, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        let forbidden = |why| (StatusCode::FORBIDDEN, why);
        match (&self.token, self.reach) {
            // No page of another site can send it unasked.
            (Some(token), _) if token.is_borne(headers) => None,
            (_, Reach::File) => None,
            (_, Reach::Host) => change_refusal(self.scheme, headers).map(forbidden),
            (Some(_), _) => Some((
                StatusCode::UNAUTHORIZED,
                "changes are accepted here with the token of admin.token_file only (Authorization: Bearer)",
            )),
            (None, _) => Some(forbidden(
                "changes are accepted only on a loopback address, at admin.control, or with admin.token_file",
            )),
        }
    }
}

/// Why a mutating request from this host is refused, if it is.
fn change_refusal(scheme: Scheme, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(text), hosts.next()) else {
        return Some("one Host header is needed");
    };
    if !names_this_host(host) {
        return Some(FOREIGN_HOST);
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    let scheme: &str = scheme.into();
    if !origins.all(|origin| text(origin).and_then(|o| o.strip_prefix(scheme)) == Some(host)) {
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
            assert_eq!(change_refusal(Scheme::Http, &headers), None, "{pairs:?}");
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
            let refused = change_refusal(Scheme::Http, &headers(pairs));
            assert!(refused.is_some(), "{pairs:?}");
        }
        let https = [("host", "[::1]:1"), ("origin", "https://[::1]:1")];
        assert_eq!(change_refusal(Scheme::Https, &headers(&https)), None);
        assert!(change_refusal(Scheme::Http, &headers(&https)).is_some());
    }

    #[tokio::test]
    async fn tokens() {
        let path = std::env::temp_dir().join(format!("pulsegate-token-{}", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        for bad in [
            "",
            "too-short\n",
            "two words of a token",
            "0123456789abcdef\nx",
        ] {
            write(bad);
            assert!(TokenFile::new(path.clone()).is_err(), "{bad:?}");
        }
        write("0123456789abcdef\n");
        let token = Some(TokenFile::new(path.clone()).expect("a token"));
        let (reach, scheme) = (Reach::Network, Scheme::Http);
        let guard = Guard {
            reach,
            scheme,
            token,
        };
        let refused = |bearer: &str| {
            let mut headers = headers(&[("host", "evil.example"), ("origin", "null")]);
            headers.insert(AUTHORIZATION, bearer.parse().expect("a header"));
            guard.refuses(&headers).map(|(status, _)| status)
        };
        assert_eq!(refused("Bearer 0123456789abcdef"), None);
        assert_eq!(guard.changes(), Changes::Token);
        for bad in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert_eq!(refused(bad), Some(StatusCode::UNAUTHORIZED), "{bad}");
        }
        write("fedcba9876543210");
        assert_eq!(refused("Bearer fedcba9876543210"), None);
        assert!(refused("Bearer 0123456789abcdef").is_some());
        std::fs::remove_file(&path).expect("removed");
        assert!(refused("Bearer fedcba9876543210").is_some());
        let (mode, cwd) = (rustix::fs::Mode::RWXU, rustix::fs::CWD);
        rustix::fs::mknodat(cwd, &path, rustix::fs::FileType::Fifo, mode, 0).expect("made");
        let why = TokenFile::new(path.clone()).expect_err("a FIFO");
        assert!(why.contains("is not a regular file"), "{why}");
        assert!(refused("Bearer fedcba9876543210").is_some());
        std::fs::remove_file(&path).expect("removed");
        let none = Guard {
            token: None,
            ..guard
        };
        assert_eq!(none.changes(), Changes::Never);
        let refused = none.refuses(&headers(&[("host", "127.0.0.1")]));
        assert_eq!(
            refused.map(|(status, _)| status),
            Some(StatusCode::FORBIDDEN)
        );
    }

    #[test]
    fn reading() {
        let rebound = headers(&[("host", "evil.example:9900")]);
        assert_eq!(refusal(Reach::Host, &rebound), Some(FOREIGN_HOST));
        assert_eq!(refusal(Reach::Network, &rebound), None);
        assert_eq!(refusal(Reach::File, &rebound), None);
        let file = Guard {
            reach: Reach::File,
            scheme: Scheme::Http,
            token: None,
        };
        assert_eq!(file.refuses(&rebound), None);
        let own: [&[_]; 3] = [&[], &[("host", "localhost:1")], &[("host", "[::1]:1")]];
        for pairs in own {
            assert_eq!(refusal(Reach::Host, &headers(pairs)), None, "{pairs:?}");
        }
    }
}
