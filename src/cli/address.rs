//! The admin address as a person gives it: a host may be a name.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::admin::client::{Target, Trust};
use crate::config::{self, ControlAddress, Roots, UpstreamAddress, UpstreamTls};
use crate::tls::{Connector, LoadError};

/// For one of several addresses of a name to accept.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Where an endpoint is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Host(UpstreamAddress),
    /// The same, by HTTPS.
    Https(UpstreamAddress),
    /// A unix socket.
    File(PathBuf),
}

impl Place {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with the text, and what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::File(path.into()));
        }
        let parsed = match text.strip_prefix("https://") {
            Some(rest) => parse(rest.trim_end_matches('/')).map(Self::Https),
            None => parse(text).map(Self::Host),
        };
        parsed.map_err(|why| why + "; or https://host:port, or unix:/PATH")
    }

    /// Its certificate is to be issued by an authority of this file.
    ///
    /// # Errors
    /// In one line: it has no address, or the authorities cannot be used.
    pub fn target(&self, ca: Option<&Path>) -> Result<Target, String> {
        match self {
            Self::Https(address) => Ok(Target::https(reach(address)?, issued(address, ca)?)),
            _ if ca.is_some() => Err("--admin-ca goes with --admin https://HOST:PORT".to_owned()),
            Self::Host(address) => reach(address).map(Target::from),
            Self::File(path) => Ok(ControlAddress::Unix(path.clone()).into()),
        }
    }
}

/// For the host as it is written.
fn issued(address: &UpstreamAddress, ca: Option<&Path>) -> Result<Trust, String> {
    let host = match address {
        UpstreamAddress::Socket(address) => address.ip().to_string(),
        UpstreamAddress::Name { host, .. } => host.clone(),
        UpstreamAddress::Unix(_) => String::new(),
    };
    let ca = ca.map_or(Roots::System, |file| Roots::File(file.to_owned()));
    let wrong = |error: LoadError| format!("--admin-{error}");
    let connector = Connector::load(&UpstreamTls::of(ca)).map_err(wrong)?;
    let name = connector.server_name(&host);
    let name = name.map_err(|_| format!("{host:?} is no name that a certificate can have"))?;
    Ok(Trust::Issued(name, connector.config()))
}

/// Reads it. `0.0.0.0:9900` is reached on loopback.
///
/// # Errors
/// What is wrong with the text, and what is accepted.
pub(super) fn parse(text: &str) -> Result<UpstreamAddress, String> {
    if let Ok(address) = text.parse() {
        return Ok(UpstreamAddress::Socket(address));
    }
    let accepted = "host:port, such as 127.0.0.1:9900, [::1]:9900 or localhost:9900";
    config::host_and_port(text).map_err(|why| format!("{why}; accepted: {accepted}"))
}

/// Its addresses, at least one.
///
/// # Errors
/// In one line, why there is none.
pub(super) fn resolve(address: &UpstreamAddress) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = match address {
        UpstreamAddress::Socket(address) => return Ok(vec![*address]),
        UpstreamAddress::Unix(_) => return Err(format!("{address} is no address of a host")),
        UpstreamAddress::Name { host, port } => (host, *port),
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
pub(super) fn reach(address: &UpstreamAddress) -> Result<SocketAddr, String> {
    let found = resolve(address)?;
    if let [one] = found[..] {
        return Ok(one);
    }
    let accepts = |a: &&SocketAddr| TcpStream::connect_timeout(a, CONNECT_WITHIN).is_ok();
    Ok(*found.iter().find(accepts).unwrap_or(&found[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_may_be_names() {
        for (text, name) in [
            ("127.0.0.1:9900", false),
            ("0.0.0.0:9900", false),
            ("[::1]:9900", false),
            ("localhost:9900", true),
            ("pulsegate-0.pulsegate.svc:9900", true),
        ] {
            let parsed = parse(text).expect(text);
            assert_eq!(parsed.name().is_some(), name, "{text}");
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
            assert!(parse(text).is_err(), "{text}");
        }
        let url = parse("http://localhost:9900");
        assert!(url.expect_err("a URL").contains("URL"));
    }

    #[test]
    fn the_address_that_accepts_is_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let bound = listener.local_addr().expect("bound");
        let address = parse(&format!("localhost:{}", bound.port())).expect("valid");
        assert_eq!(reach(&address), Ok(bound));
    }
}
