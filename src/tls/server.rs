//! What a server is configured with: listeners, and the admin address.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

use super::files::{Files, Named};
use super::handshake::{note_refused, note_server_name};
use super::material::{Material, Section};
use crate::config::{AdminTls, ClientAuth, MinVersion, Sni, Tls};

/// What the clients of a listener meet.
pub type Acceptor = Material<Tls>;

/// What those of the admin address meet.
pub type AdminAcceptor = Material<AdminTls>;

impl Acceptor {
    /// How long a handshake may take.
    #[must_use]
    pub fn handshake_timeout(&self) -> Duration {
        self.section().handshake_timeout
    }
}

impl Section for Tls {
    type Config = ServerConfig;

    fn make(&self, files: &mut Files) -> Option<ServerConfig> {
        let mut keys = Vec::new();
        for (i, pair) in self.certificates.iter().enumerate() {
            let named = ["certificate", "key"].map(|key| format!("certificates[{i}].{key}"));
            let named = |of: usize, file| Named {
                reported: "certificates",
                key: &named[of],
                file,
            };
            let certified = files.certified(named(0, &pair.certificate), named(1, &pair.key));
            keys.extend(certified.map(Arc::new));
        }
        let authorities = self.client_ca.as_ref().map(|file| {
            files.authorities(Named {
                reported: "client_ca",
                key: "client_ca",
                file,
            })
        });
        let clients = match (authorities, self.client_auth) {
            (Some(authorities), Some(auth)) => Some((authorities?.store, auth)),
            _ => None,
        };
        let chosen = Chosen {
            keys,
            sni: self.sni,
        };
        let made = server(chosen, self.min_version, clients);
        let mut config = made.map_err(|(key, error)| files.refuse(key, error)).ok()?;
        config.alpn_protocols = protocols(&self.alpn);
        Some(config)
    }
}

impl Section for AdminTls {
    type Config = ServerConfig;

    fn make(&self, files: &mut Files) -> Option<ServerConfig> {
        let [chain, key] =
            [("certificate", &self.certificate), ("key", &self.key)].map(|(reported, file)| {
                Named {
                    reported,
                    key: reported,
                    file,
                }
            });
        let chosen = Chosen {
            keys: vec![Arc::new(files.certified(chain, key)?)],
            sni: Sni::Any,
        };
        let made = server(chosen, MinVersion::V1_2, None);
        let mut config = made.map_err(|(key, error)| files.refuse(key, error)).ok()?;
        config.alpn_protocols = protocols(&["http/1.1".to_owned()]);
        Some(config)
    }
}

pub(super) fn protocols(alpn: &[String]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_owned()).collect()
}

/// Sessions are resumed by tickets, of which nothing is kept here. Their key is a new one with each load. Where
/// clients are to show certificates there are none: who resumes a session shows nothing, also when what was shown
/// is over. Early data is refused: it can be sent twice by anybody.
fn server(
    chosen: Chosen,
    min: MinVersion,
    clients: Option<(RootCertStore, ClientAuth)>,
) -> Result<ServerConfig, (&'static str, rustls::Error)> {
    let of_certificates = |error| ("certificates", error);
    let builder = ServerConfig::builder_with_provider(super::provider())
        .with_protocol_versions(super::versions(min))
        .map_err(|error| ("min_version", error))?;
    let has_tickets = clients.is_none();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((authorities, auth)) => {
            builder.with_client_cert_verifier(verifier(authorities, auth)?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(chosen));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if has_tickets {
        config.ticketer = super::ticketer().map_err(of_certificates)?;
    } else {
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn verifier(
    authorities: RootCertStore,
    auth: ClientAuth,
) -> Result<Arc<dyn ClientCertVerifier>, (&'static str, rustls::Error)> {
    let builder =
        WebPkiClientVerifier::builder_with_provider(authorities.into(), super::provider());
    let builder = match auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    let refused = |error: rustls::server::VerifierBuilderError| {
        ("client_ca", rustls::Error::General(error.to_string()))
    };
    let verifier = builder.build().map_err(refused)?;
    Ok(Arc::new(Telling(verifier)))
}

/// Tells which certificate of a client is refused.
#[derive(Debug)]
struct Telling(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Telling {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(certificate, chain, now);
        verified.inspect_err(|_| note_refused(certificate))
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The certificates of a listener, one of which a client gets.
#[derive(Debug)]
struct Chosen {
    keys: Vec<Arc<CertifiedKey>>,
    sni: Sni,
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        note_server_name(name);
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let named =
            |key: &&Arc<CertifiedKey>| name.as_ref().is_some_and(|name| has_name(key, name));
        let schemes = hello.signature_schemes();
        let suits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // Of two for one name, RSA and ECDSA, the client may understand one only.
        let best = self.keys.iter().filter(named);
        let best = best.clone().find(suits).or_else(|| best.clone().next());
        match self.sni {
            Sni::Strict => best.cloned(),
            Sni::Any => {
                let any = || self.keys.iter().find(suits).or(self.keys.first());
                best.or_else(any).cloned()
            }
        }
    }
}

fn has_name(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    let verified = |certificate| rustls::client::verify_server_name(&certificate, name);
    certificate.and_then(verified).is_ok()
}

#[cfg(test)]
mod tests {
    use rustls::client::Resumption;
    use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};

    use super::*;
    use crate::tls::Connector;
    use crate::tls::tests::lab::{Lab, shake};

    fn acceptor(tls: &Tls) -> Arc<Acceptor> {
        Arc::new(Acceptor::load(tls).unwrap_or_else(|error| panic!("{error}")))
    }

    fn connector(tls: &crate::config::UpstreamTls) -> Arc<rustls::ClientConfig> {
        let made = Connector::load(tls);
        made.unwrap_or_else(|error| panic!("{error}")).config()
    }

    #[test]
    fn a_client_gets_the_first_certificate_that_names_its_server() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("first", &["a.example"], &ca);
        lab.issue("wild", &["*.b.example", "192.0.2.7"], &ca);
        lab.issue("late", &["x.b.example", "c.example"], &ca);
        let chains = ["first", "wild", "late"];
        let any = acceptor(&lab.server(&chains, "sni: any")).config();
        let strict = acceptor(&lab.server(&chains, "sni: strict")).config();
        let client = connector(&lab.client("ca", ""));
        for (name, chain) in [
            ("a.example", "first"),
            ("x.b.example", "wild"),
            ("X.B.EXAMPLE", "wild"),
            ("c.example", "late"),
        ] {
            for server in [&any, &strict] {
                let shaken = shake(&client, server, name);
                assert!(shaken.shows(&lab.path(&format!("{chain}.crt"))), "{name}");
            }
        }
        // Another name, too deep a name, no name: an IP address is not sent.
        for name in ["d.example", "x.y.b.example", "192.0.2.7"] {
            let refused = shake(&client, &strict, name);
            assert!(refused.server.is_err(), "{name}");
            let shown = shake(&client, &any, name);
            // Its names do not fit, which the client finds.
            assert!(shown.server.is_err() && shown.client.is_err(), "{name}");
            let told = shown.client.unwrap_err().to_string();
            assert!(told.contains("a.example"), "{told}");
        }
    }

    #[test]
    fn clients_show_who_they_are_where_they_must() {
        let lab = Lab::new();
        let [ca, clients, others] = ["ca", "clients", "others"].map(|name| lab.authority(name));
        lab.issue("server", &["s.example"], &ca);
        lab.issue("good", &["client.example"], &clients);
        lab.issue("foreign", &["client.example"], &others);
        let server = |auth: &str| {
            let file = lab.path("clients.crt");
            let keys = format!("client_ca: {}, client_auth: {auth}", file.display());
            acceptor(&lab.server(&["server"], &keys)).config()
        };
        let client = |file: &str| {
            let [crt, key] = ["crt", "key"].map(|ext| lab.path(&format!("{file}.{ext}")));
            let keys = format!("certificate: {}, key: {}", crt.display(), key.display());
            connector(&lab.client("ca", &keys))
        };
        let nobody = connector(&lab.client("ca", ""));
        let goes = |client: &Arc<rustls::ClientConfig>, server: &Arc<ServerConfig>| {
            shake(client, server, "s.example").both().is_some()
        };
        let plain = acceptor(&lab.server(&["server"], "")).config();
        for (server, with_none) in [
            (server("required"), false),
            (server("optional"), true),
            (plain.clone(), true),
        ] {
            assert!(goes(&client("good"), &server));
            assert_eq!(goes(&nobody, &server), with_none);
            // Who is not asked shows nothing.
            assert_eq!(
                goes(&client("foreign"), &server),
                Arc::ptr_eq(&server, &plain)
            );
        }
        let (_, shown) = shake(&client("good"), &server("optional"), "s.example")
            .both()
            .unwrap();
        assert_eq!(shown.peer_certificates().unwrap().len(), 1);
    }

    #[test]
    fn versions_and_protocols_are_those_that_are_configured() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("server", &["s.example"], &ca);
        let server = |keys: &str| acceptor(&lab.server(&["server"], keys)).config();
        let client = |keys: &str| connector(&lab.client("ca", keys));
        let shaken = |client: &Arc<rustls::ClientConfig>, server: &Arc<ServerConfig>| {
            let (client, server) = shake(client, server, "s.example").both()?;
            assert_eq!(client.alpn_protocol(), server.alpn_protocol());
            let alpn = server
                .alpn_protocol()
                .map(|p| String::from_utf8_lossy(p).into_owned());
            Some((server.protocol_version().unwrap(), alpn))
        };
        let (both, new) = (server(""), server("min_version: 1.3"));
        // What the client of this test would have to be configured with.
        let provider = crate::tls::provider();
        let suites = provider.cipher_suites.iter().copied();
        let suites = suites.filter(|suite| suite.version().version == ProtocolVersion::TLSv1_2);
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: suites.collect(),
            ..(*provider).clone()
        };
        let roots = lab.client("ca", "");
        let mut files = Files::default();
        let crate::config::Roots::File(file) = &roots.ca else {
            panic!("a file")
        };
        let roots = files
            .authorities(Named {
                reported: "ca",
                key: "ca",
                file,
            })
            .unwrap();
        let old = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots.store)
            .with_no_client_auth();
        let old = Arc::new(old);
        let v = |version| Some((version, None));
        assert_eq!(shaken(&client(""), &both), v(ProtocolVersion::TLSv1_3));
        assert_eq!(shaken(&old, &both), v(ProtocolVersion::TLSv1_2));
        assert_eq!(shaken(&old, &new), None);
        let alpn = server("alpn: [redis, h2]");
        let spoken = |keys: &str| shaken(&client(keys), &alpn).map(|(_, alpn)| alpn);
        assert_eq!(spoken("alpn: [h2, redis]"), Some(Some("redis".to_owned())));
        assert_eq!(spoken("alpn: [mqtt]"), None);
        assert_eq!(spoken(""), Some(None));
        let ignored = shaken(&client("alpn: [mqtt]"), &both);
        assert_eq!(ignored, v(ProtocolVersion::TLSv1_3));
    }

    #[test]
    fn sessions_are_resumed_until_files_change_and_never_early() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("server", &["s.example"], &ca);
        let server = acceptor(&lab.server(&["server"], ""));
        assert_eq!(server.config().max_early_data_size, 0);
        let mut client = (*connector(&lab.client("ca", ""))).clone();
        client.resumption = Resumption::in_memory_sessions(8);
        let client = Arc::new(client);
        let kind = || {
            let shaken = shake(&client, &server.config(), "s.example");
            shaken.both().unwrap().1.handshake_kind().unwrap()
        };
        assert_eq!(kind(), HandshakeKind::Full);
        assert_eq!(kind(), HandshakeKind::Resumed);
        assert!(server.read_again().unwrap().is_none());
        assert_eq!(kind(), HandshakeKind::Resumed);
        lab.issue("server", &["s.example"], &ca);
        let renewal = server.read_again().unwrap().unwrap();
        assert_eq!(renewal.keys, ["certificates"]);
        assert_eq!(kind(), HandshakeKind::Resumed);
        renewal.put_in_force();
        assert_eq!(kind(), HandshakeKind::Full);
        assert_eq!(kind(), HandshakeKind::Resumed);
    }

    /// A certificate that is over would be good for as long as its session is resumed.
    #[test]
    fn who_must_show_a_certificate_shows_it_each_time() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("server", &["s.example"], &ca);
        let kinds = |client: ClientConfig, keys: &str| {
            let server = acceptor(&lab.server(&["server"], keys)).config();
            let client = Arc::new(client);
            [(); 2].map(|()| {
                let shaken = shake(&client, &server, "s.example");
                shaken.both().unwrap().1.handshake_kind().unwrap()
            })
        };
        let ours = (*connector(&lab.client("ca", ""))).clone();
        assert_eq!(kinds(ours, ""), [HandshakeKind::Full; 2]);
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let file = lab.path("ca.crt");
        let asked = format!("client_ca: {}, client_auth: optional", file.display());
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let theirs = ClientConfig::builder_with_provider(crate::tls::provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            let resumed = [HandshakeKind::Full, HandshakeKind::Resumed];
            assert_eq!(kinds(theirs.clone(), ""), resumed);
            assert_eq!(kinds(theirs, &asked), [HandshakeKind::Full; 2]);
        }
    }

    #[test]
    fn files_that_cannot_be_used_change_nothing() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("server", &["s.example"], &ca);
        let server = acceptor(&lab.server(&["server"], ""));
        let before = server.config();
        let old = std::fs::read(lab.path("server.crt")).unwrap();
        lab.issue("server", &["s.example"], &ca);
        let new = std::fs::read(lab.path("server.crt")).unwrap();
        lab.write("server.crt", &old);
        let error = server.read_again().map(|_| ()).unwrap_err().to_string();
        let expected = format!(
            "certificates[0].key: {}: does not fit the first certificate of {}",
            lab.path("server.key").display(),
            lab.path("server.crt").display()
        );
        assert_eq!(error, expected);
        assert!(Arc::ptr_eq(&before, &server.config()));
        lab.write("server.crt", new);
        server.read_again().unwrap().unwrap().put_in_force();
        assert!(!Arc::ptr_eq(&before, &server.config()));
        let client = connector(&lab.client("ca", ""));
        let shaken = shake(&client, &server.config(), "s.example");
        assert!(shaken.shows(&lab.path("server.crt")));
    }
}
