//! What a client is configured with: sessions and checks, on their way to a service.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{InvalidDnsNameError, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, Error};

use super::certificate::{Certificate, Date, Validity};
use super::files::{Authorities, Files, LoadError, Named};
use super::handshake::note_refused;
use super::judge::{Judge, Shown};
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
        let verifier = trusting(self, files);
        client(self, files, verifier)
    }
}

/// Judges servers as a client of this section does.
///
/// # Errors
/// All that is wrong with the authorities.
pub fn judge_of(section: &UpstreamTls) -> Result<Arc<dyn ServerCertVerifier>, LoadError> {
    let mut files = Files::default();
    let verifier = trusting(section, &mut files);
    files.finish(verifier).map(|(verifier, _)| verifier)
}

/// A client of this section, but for those whom it trusts: its servers are judged in another way.
///
/// # Errors
/// All that is wrong with the files.
pub fn judged_by(
    section: &UpstreamTls,
    judge: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, LoadError> {
    let mut files = Files::default();
    let client = client(section, &mut files, Some(judge));
    files.finish(client).map(|(client, _)| client)
}

fn named<'a>(key: &'static str, file: &'a Path) -> Named<'a> {
    Named {
        reported: key,
        key,
        file,
    }
}

fn trusting(section: &UpstreamTls, files: &mut Files) -> Option<Arc<dyn ServerCertVerifier>> {
    let trusted = match &section.ca {
        Roots::System => files.system("ca"),
        Roots::File(file) => files.authorities(named("ca", file)),
    };
    let verifier = verifier(trusted?);
    verifier.map_err(|error| files.refuse("ca", error)).ok()
}

fn client(
    section: &UpstreamTls,
    files: &mut Files,
    verifier: Option<Arc<dyn ServerCertVerifier>>,
) -> Option<ClientConfig> {
    let own = match (&section.certificate, &section.key) {
        (Some(chain), Some(key)) => {
            let own = files.certified(named("certificate", chain), named("key", key));
            Some(own?)
        }
        _ => None,
    };
    let builder = ClientConfig::builder_with_provider(super::provider())
        .with_protocol_versions(super::versions(section.min_version))
        .map_err(|error| files.refuse("min_version", error))
        .ok()?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier?);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(&section.alpn);
    // Who resumes a session shows no certificate, also when the one that it began with is over.
    config.resumption = Resumption::disabled();
    Some(config)
}

/// A certificate is good if an authority has issued it, or if the operator has named it itself: many a service
/// has one that it signed with its own key. As that mostly says that it is an authority, webpki refuses it as the
/// certificate of a server.
fn verifier(trusted: Authorities) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let Authorities {
        store,
        certificates,
    } = trusted;
    let builder = WebPkiServerVerifier::builder_with_provider(store.into(), super::provider());
    let verifier = builder.build();
    let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
    let judge = move |shown: Shown<'_>| {
        let Shown {
            certificate,
            chain,
            name,
            now,
        } = shown;
        match verifier.verify_server_cert(certificate, chain, name, &[], now) {
            Err(_) if certificates.contains(certificate) => judge_alone(shown),
            judged => judged.map(drop),
        }
        .inspect_err(|_| note_refused(certificate))
    };
    Ok(Arc::new(Judge::new(judge)))
}

/// Dates and names, as of any other.
fn judge_alone(shown: Shown<'_>) -> Result<(), Error> {
    let now = i64::try_from(shown.now.as_secs()).unwrap_or(i64::MAX);
    let validity = Certificate::of(shown.certificate).map(|it| it.validity(now));
    let refused = match validity {
        Some(Validity::Days(_)) => {
            let certificate = ParsedCertificate::try_from(shown.certificate)?;
            return rustls::client::verify_server_name(&certificate, shown.name);
        }
        Some(Validity::Expired(until)) => CertificateError::ExpiredContext {
            time: shown.now,
            not_after: at(until),
        },
        Some(Validity::NotYet(from)) => CertificateError::NotValidYetContext {
            time: shown.now,
            not_before: at(from),
        },
        None => CertificateError::BadEncoding,
    };
    Err(refused.into())
}

fn at(date: Date) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(date.seconds.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };

    use super::*;
    use crate::tls::Acceptor;
    use crate::tls::tests::lab::{Lab, shake};

    #[test]
    fn a_certificate_that_is_named_itself_is_good_for_its_names_and_dates() {
        let lab = Lab::new();
        let make = |file: &str, until: i32, is_ca: IsCa| {
            let mut params = CertificateParams::new(["s.example".to_owned()]).unwrap();
            params.not_after = date_time_ymd(until, 1, 1);
            params.is_ca = is_ca;
            let key = KeyPair::generate().unwrap();
            lab.write(&format!("{file}.key"), key.serialize_pem());
            let made = CertifiedIssuer::self_signed(params, key).unwrap();
            lab.write(&format!("{file}.crt"), made.pem());
        };
        let authority = IsCa::Ca(BasicConstraints::Unconstrained);
        make("own", 2090, authority);
        make("plain", 2090, IsCa::NoCa);
        make("other", 2090, authority);
        make("old", 2001, authority);
        let refused = |trusted: &str, shown: &str, name: &str| {
            let client = Connector::load(&lab.client(trusted, "")).unwrap().config();
            let server = Acceptor::load(&lab.server(&[shown], "")).unwrap().config();
            shake(&client, &server, name).client.err()
        };
        assert_eq!(refused("own", "own", "s.example"), None);
        assert_eq!(refused("plain", "plain", "s.example"), None);
        let wrong = refused("own", "own", "t.example");
        assert!(matches!(
            wrong,
            Some(Error::InvalidCertificate(
                CertificateError::NotValidForNameContext { .. }
            ))
        ));
        let expired = refused("old", "old", "s.example");
        assert!(matches!(
            expired,
            Some(Error::InvalidCertificate(
                CertificateError::ExpiredContext { .. }
            ))
        ));
        assert!(refused("own", "other", "s.example").is_some());
        assert!(refused("own", "plain", "s.example").is_some());
    }

    #[test]
    fn the_name_of_a_service_is_the_configured_one_or_its_host() {
        let lab = Lab::new();
        lab.authority("ca");
        let name = |keys: &str, host: &str| {
            let made = Connector::load(&lab.client("ca", keys)).unwrap();
            made.server_name(host)
                .map(|name| name.to_str().into_owned())
                .ok()
        };
        assert_eq!(name("", "db.example").as_deref(), Some("db.example"));
        assert_eq!(name("", "db.example.").as_deref(), Some("db.example"));
        assert_eq!(name("", "192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(name("", "2001:db8::1").as_deref(), Some("2001:db8::1"));
        assert_eq!(
            name("server_name: a.example", "b").as_deref(),
            Some("a.example")
        );
        assert_eq!(name("server_name: '::1'", "b").as_deref(), Some("::1"));
        assert_eq!(name("", ""), None);
    }
}
