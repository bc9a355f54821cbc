//! The keys of TLS. A section that is left out is plain TCP, or plain HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strum::{Display, EnumString, VariantNames};

use super::kind::{alpn, choice, file, roots, server_name, span, version};
use super::section::section;
use super::setting::{Items, list, section_of};
use super::{Config, check};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

section! {
    /// TLS between clients and a listener.
    Tls {
        /// Each chain with its key. A client gets the first one that names the server it asks for; the first of
        /// all where none does, or where it asks for none.
        certificates: Vec<CertificateFiles> = list(certificates());
        /// A file with the certificates of the authorities that may have issued those of clients, PEM. none: clients
        /// are not asked for one.
        client_ca: Option<PathBuf> = file().or("none").default("none").flag("tls-client-ca");
/// Whether a client must have a certificate. optional: one that is sent must be good.
        client_auth: Option<ClientAuth> = choice().or("none")
            .derived("`required` with client_ca, else `none`").flag("tls-client-auth"),
            else |_| Some(client_ca.as_ref()?.as_ref().map(|_| ClientAuth::Required));
        /// The oldest version that is spoken.
        min_version: MinVersion = version().default("1.2").flag("tls-min-version");
        /// Protocols inside TLS (ALPN), the best first. A client that names others only is refused; an empty list:
        /// what it names does not matter.
        alpn: Vec<String> = alpn().flag("tls-alpn");
        /// What a client meets that asks for a server which no certificate names, or for none. any: the first
        /// certificate; strict: it is refused.
        sni: Sni = choice().default("any").flag("tls-sni");
        /// How long the handshake may take.
        handshake_timeout: Duration =
            span(100 * MS..=300 * SECOND).default("10s").flag("tls-handshake-timeout");
    }
    check |at, reader| check::client_auth(at, reader, client_ca.as_ref(), client_auth)
}

section! {
    /// A chain and its key.
    CertificateFiles {
        /// The chain, PEM, the server's own certificate first.
        certificate: PathBuf = file().flag("tls-certificate");
        /// Its key, PEM: PKCS#8, SEC1 or RSA, not encrypted.
        key: PathBuf = file().flag("tls-key");
    }
}

fn certificates() -> Items<CertificateFiles> {
    let (of, needed, template) = (section_of(), Some("certificate"), None);
    Items {
        of,
        needed,
        template,
    }
}

section! {
    /// TLS between a listener and its service. The handshake is part of connect_timeout.
    UpstreamTls {
        /// The authorities that may have issued the certificate of the service. system: those that this host trusts;
        /// else a file, PEM.
        ca: Roots = roots().default("system").flag("upstream-tls-ca");
        /// The name, or IP address, that the certificate of the service must have. It is also sent (SNI).
        server_name: Option<String> =
            server_name().maybe().derived("the host of the endpoint").flag("upstream-tls-server-name"),
            else |_| Some(None);
        /// The chain that is sent to a service which asks for one, PEM.
        certificate: Option<PathBuf> =
            file().or("none").default("none").flag("upstream-tls-certificate");
        /// Its key, PEM: PKCS#8, SEC1 or RSA, not encrypted.
        key: Option<PathBuf> = file().or("none").default("none").flag("upstream-tls-key");
        /// The oldest version that is spoken.
        min_version: MinVersion = version().default("1.2").flag("upstream-tls-min-version");
        /// Protocols inside TLS (ALPN) that the service is offered, the best first.
        alpn: Vec<String> = alpn().flag("upstream-tls-alpn");
    }
    check |at, reader| check::certificate_and_key(at, reader, certificate.as_ref(), key.as_ref())
}

section! {
    /// HTTPS in place of HTTP at `admin.address`.
    AdminTls {
        /// The chain, PEM, the server's own certificate first.
        certificate: PathBuf = file().flag("admin-tls-certificate");
        /// Its key, PEM: PKCS#8, SEC1 or RSA, not encrypted.
        key: PathBuf = file().flag("admin-tls-key");
    }
}

impl UpstreamTls {
    /// One that trusts these, and has defaults.
    #[must_use]
    pub fn of(ca: Roots) -> Self {
        Self {
            ca,
            server_name: None,
            certificate: None,
            key: None,
            min_version: MinVersion::V1_2,
            alpn: Vec::new(),
        }
    }
}

impl Config {
    /// The files with certificates and keys that it names.
    pub fn tls_files(&self) -> impl Iterator<Item = &Path> {
        let down = self.listeners.iter().filter_map(|l| l.tls.as_ref());
        let up = self
            .listeners
            .iter()
            .filter_map(|l| l.upstream.tls.as_ref());
        let down = down.flat_map(|tls| {
            let pairs = tls
                .certificates
                .iter()
                .flat_map(|p| [&p.certificate, &p.key]);
            pairs.chain(&tls.client_ca)
        });
        let up = up.flat_map(|tls| {
            let ca = match &tls.ca {
                Roots::File(file) => Some(file),
                Roots::System => None,
            };
            ca.into_iter().chain(&tls.certificate).chain(&tls.key)
        });
        let admin = self.admin.iter().filter_map(|admin| admin.tls.as_ref());
        let admin = admin.flat_map(|tls| [&tls.certificate, &tls.key]);
        down.chain(up).chain(admin).map(PathBuf::as_path)
    }
}

/// Whether a client must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ClientAuth {
    /// It must.
    Required,
    /// It may; one that is sent must be good.
    Optional,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
pub enum MinVersion {
    /// RFC 5246.
    #[strum(serialize = "1.2")]
    V1_2,
    /// RFC 8446.
    #[strum(serialize = "1.3")]
    V1_3,
}

/// What a client meets that asks for a server which no certificate names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Sni {
    /// The first certificate.
    Any,
    /// It is refused.
    Strict,
}

/// The authorities that are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those that this host trusts.
    System,
    /// Those in this file.
    File(PathBuf),
}

impl std::fmt::Display for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
