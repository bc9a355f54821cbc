//! What a client is configured with: sessions and checks, on their way to a service.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use rustls::sign::SingleCertAndKey;

use super::files::{Files, Named};
use super::material::{Material, Section};
use super::server::protocols;
use crate::config::{Roots, UpstreamTls};

/// How a service is met.
pub type Connector = Material<UpstreamTls>;

impl Connector {
    /// The name that the certificate of an endpoint must have: the one that is configured, else its host, a DNS
    /// name or an IP address.
    ///
    /// # Errors
    /// No certificate can have that name.
    pub fn server_name(&self, host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
        let name = self.section().server_name.as_deref().unwrap_or(host);
        let name = name.strip_suffix('.').unwrap_or(name);
        ServerName::try_from(name).map(|name| name.to_owned())
    }
}

impl Section for UpstreamTls {
    type Config = ClientConfig;

    fn make(&self, files: &mut Files) -> Option<ClientConfig> {
        let named = |key, file| Named {
            reported: key,
            key,
            file,
        };
        let roots = match &self.ca {
            Roots::System => files.system("ca"),
            Roots::File(file) => files.authorities(named("ca", file)),
        };
        let own = match (&self.certificate, &self.key) {
            (Some(chain), Some(key)) => {
                let own = files.certified(named("certificate", chain), named("key", key));
                Some(own?)
            }
            _ => None,
        };
        let roots = roots?;
        let versions = super::versions(self.min_version);
        let builder = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(versions)
            .map_err(|error| files.refuse("min_version", error))
            .ok()?
            .with_root_certificates(roots);
        let mut config = match own {
            Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols(&self.alpn);
        Some(config)
    }
}
