//! The admin address as a person gives it: a host may be a name.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

/// For one of several addresses of a name to accept.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// As it is.
    Socket(SocketAddr),
    /// To be looked up.
    Name { host: String, port: u16 },
}

impl Address {
    /// Its addresses, at least one.
    ///
    /// # Errors
    /// In one line, why there is none.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let (host, port) = match self {
            Self::Socket(address) => return Ok(vec![*address]),
            Self::Name { host, port } => (host, *port),
        };
        match (&**host, port).to_socket_addrs().map(Vec::from_iter) {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(format!("{host} has no address")),
            Err(error) => Err(format!("{host} cannot be looked up: {error}")),
        }
    }

    /// The address that accepts, the first one if none does: `localhost` may be `[::1]`, too.
    ///
    /// # Errors
    /// In one line, why there is none.
    pub fn reach(&self) -> Result<SocketAddr, String> {
        let found = self.resolve()?;
        if let [one] = found[..] {
            return Ok(one);
        }
        let accepts = |a: &&SocketAddr| TcpStream::connect_timeout(a, CONNECT_WITHIN).is_ok();
        Ok(*found.iter().find(accepts).unwrap_or(&found[0]))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Socket(address));
        }
        if text.contains("://") {
            return Err("a URL; write host:port".to_owned());
        }
        let why = "accepted: host:port, such as 127.0.0.1:9900, [::1]:9900 or localhost:9900";
        let (host, port) = text.rsplit_once(':').ok_or(why)?;
        let port = port.parse().map_err(|_| why)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        // Digits and points alone are an IP address gone wrong.
        let label = host.trim_end_matches('.').rsplit('.').next();
        let number = label.is_none_or(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if number || !host.bytes().all(fits) || host.parse::<IpAddr>().is_ok() {
            return Err(why.to_owned());
        }
        let host = host.to_owned();
        Ok(Self::Name { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_be_names() {
        for (text, name) in [
            ("127.0.0.1:9900", false),
            ("[::1]:9900", false),
            ("localhost:9900", true),
            ("pulsegate-0.pulsegate.svc:9900", true),
        ] {
            let parsed: Address = text.parse().expect(text);
            assert_eq!(matches!(parsed, Address::Name { .. }), name, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        for text in [
            "",
            "9900",
            ":9900",
            "::1:9900",
            "localhost",
            "127.1.1:1",
            "a b:1",
            "a:x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        let url = "http://localhost:9900".parse::<Address>();
        assert!(url.expect_err("a URL").contains("URL"));
    }

    #[test]
    fn the_address_that_accepts_is_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let bound = listener.local_addr().expect("bound");
        let address: Address = format!("localhost:{}", bound.port())
            .parse()
            .expect("valid");
        assert_eq!(address.reach(), Ok(bound));
    }
}
