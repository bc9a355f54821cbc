//! An authority of the tests' own, and what it has certified: files as TLS servers and clients read them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
    /// Its own certificate and those up to the root, without that.
    chain: String,
}

/// The files of a certificate: its chain, itself first, and its key (PKCS#8).
#[derive(Clone, Debug)]
pub struct Certified {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// What is certified.
pub struct Subject(CertificateParams, KeyPair);

impl Subject {
    /// A server, or client, with these names: DNS names or IP addresses. The first is its common name, too.
    pub fn named(names: &[&str]) -> Self {
        let all: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(all).expect("names");
        params.distinguished_name.remove(DnType::CommonName);
        let name = names.first().copied().unwrap_or("nameless");
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        Self(params, KeyPair::generate().expect("a key"))
    }

    /// The same without a SAN: only a common name.
    pub fn with_common_name(name: &str) -> Self {
        let mut subject = Self::named(&[name]);
        subject.0.subject_alt_names.clear();
        subject
    }

    /// Valid in the past only.
    pub fn expired(mut self) -> Self {
        self.0.not_before = date_time_ymd(2001, 1, 1);
        self.0.not_after = date_time_ymd(2002, 1, 1);
        self
    }

    /// Valid in the future only.
    pub fn not_yet_valid(mut self) -> Self {
        self.0.not_before = date_time_ymd(2901, 1, 1);
        self.0.not_after = date_time_ymd(2902, 1, 1);
        self
    }

    /// With an RSA key of 2048 bits, which openssl(1) makes.
    pub fn with_rsa_key(mut self) -> Self {
        let mut openssl = Command::new("openssl");
        openssl.args(["genpkey", "-quiet", "-algorithm", "RSA"]);
        let made = openssl.output().expect("run openssl");
        let pem = String::from_utf8(made.stdout).expect("PEM");
        self.1 = KeyPair::from_pem(&pem).expect("a key");
        self
    }
}

impl Authority {
    /// One that nobody has certified.
    pub fn root(name: &str) -> Self {
        let (params, key) = Self::params(name);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
            chain: String::new(),
        }
    }

    /// One that this one has certified.
    pub fn intermediate(&self, name: &str) -> Self {
        let (params, key) = Self::params(name);
        let pem = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Self {
            issuer: Issuer::new(params, key),
            chain: format!("{pem}{}", self.chain),
            pem,
        }
    }

    fn params(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, KeyPair::generate().expect("a key"))
    }

    /// Writes its own certificate into a file.
    pub fn write(&self, file: PathBuf) -> PathBuf {
        fs::write(&file, &self.pem).expect("written");
        file
    }

    /// Writes a certificate and its key into two files of this name.
    pub fn certify(&self, folder: &Path, name: &str, Subject(params, key): Subject) -> Certified {
        let own = params.signed_by(&key, &self.issuer).expect("signed").pem();
        let files = Certified {
            chain: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        fs::write(&files.chain, format!("{own}{}", self.chain)).expect("written");
        fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }
}

impl Certified {
    /// The two as a mapping of YAML.
    pub fn yaml(&self) -> String {
        let (chain, key) = (self.chain.display(), self.key.display());
        format!("{{ certificate: '{chain}', key: '{key}' }}")
    }

    fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_file_iter(&self.chain).expect("PEM");
        let chain = chain.collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&self.key).expect("a key");
        (chain, key)
    }
}

/// A client that trusts this authority, and may have a certificate of its own.
pub fn client(authority: &Path, own: Option<&Certified>) -> Arc<ClientConfig> {
    client_of(authority, own, rustls::ALL_VERSIONS)
}

/// The same of some versions only.
pub fn client_of(
    authority: &Path,
    own: Option<&Certified>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(authority).expect("PEM");
    roots.add(root).expect("a certificate");
    let builder = ClientConfig::builder_with_provider(pulsegate::tls::provider());
    let builder = builder.with_protocol_versions(versions).expect("versions");
    let builder = builder.with_root_certificates(roots);
    let config = match own.map(Certified::der) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("fits"),
        None => builder.with_no_client_auth(),
    };
    Arc::new(config)
}

/// A server with this certificate, whose clients must have one of this authority.
pub fn server_for(own: &Certified, authority: &Path) -> Arc<ServerConfig> {
    let (chain, key) = own.der();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(authority).expect("PEM");
    roots.add(root).expect("a certificate");
    let provider = pulsegate::tls::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions();
    let verifier = verifier.build().expect("an authority");
    let builder = builder
        .expect("versions")
        .with_client_cert_verifier(verifier);
    Arc::new(builder.with_single_cert(chain, key).expect("fits"))
}

/// A server with this certificate, that asks its clients for none.
pub fn server(own: &Certified) -> Arc<ServerConfig> {
    server_of(own, rustls::ALL_VERSIONS)
}

/// The same of some versions only.
pub fn server_of(
    own: &Certified,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let (chain, key) = own.der();
    let builder = ServerConfig::builder_with_provider(pulsegate::tls::provider());
    let builder = builder.with_protocol_versions(versions).expect("versions");
    let builder = builder.with_no_client_auth();
    Arc::new(builder.with_single_cert(chain, key).expect("fits"))
}
