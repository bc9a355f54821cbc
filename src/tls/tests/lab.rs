//! Authorities, certificates and handshakes for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use crate::config::{self, Tls, UpstreamTls};

/// A directory of the test's own, removed when it is dropped.
pub(in crate::tls) struct Lab(PathBuf);

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(in crate::tls) type Authority = CertifiedIssuer<'static, KeyPair>;

impl Lab {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pulsegate-tls-{}-{n}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// `NAME.crt`.
    pub fn authority(&self, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let made = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        self.write(&format!("{name}.crt"), made.pem());
        made
    }

    /// `FILE.crt` and `FILE.key`.
    pub fn issue(&self, file: &str, names: &[&str], by: &Authority) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let (params, key) = (
            CertificateParams::new(names).unwrap(),
            KeyPair::generate().unwrap(),
        );
        let made = params.signed_by(&key, by).unwrap();
        self.write(&format!("{file}.crt"), made.pem());
        self.write(&format!("{file}.key"), key.serialize_pem());
    }

    /// The section of a listener with these chains.
    pub fn server(&self, chains: &[&str], further: &str) -> Tls {
        let pair = |file: &&str| {
            let [crt, key] = ["crt", "key"].map(|ext| self.path(&format!("{file}.{ext}")));
            format!(
                "{{ certificate: {}, key: {} }}",
                crt.display(),
                key.display()
            )
        };
        let chains: Vec<_> = chains.iter().map(pair).collect();
        let tls = format!(
            "tls: {{ certificates: [{}], {further} }}",
            chains.join(", ")
        );
        listener(&tls, "off").tls.unwrap()
    }

    /// The section of an upstream whose certificate comes from this authority.
    pub fn client(&self, authority: &str, further: &str) -> UpstreamTls {
        let ca = self.path(&format!("{authority}.crt"));
        let tls = format!("{{ ca: {}, {further} }}", ca.display());
        listener("tls: off", &tls).upstream.tls.unwrap()
    }
}

fn listener(tls: &str, upstream: &str) -> config::ListenerConfig {
    let text = format!(
        "listeners: [{{ address: 127.0.0.1:1, {tls}, upstream: {{ address: 127.0.0.1:2, tls: {upstream} }} }}]"
    );
    let config = config::load("f", text.as_bytes());
    config
        .unwrap_or_else(|errors| panic!("{errors}"))
        .listeners
        .remove(0)
}

/// What came of a handshake, for the client and for the server.
pub(in crate::tls) struct Shaken {
    pub client: Result<ClientConnection, rustls::Error>,
    pub server: Result<ServerConnection, rustls::Error>,
}

impl Shaken {
    /// The end of the handshake, if both are content.
    pub fn both(self) -> Option<(ClientConnection, ServerConnection)> {
        self.client.ok().zip(self.server.ok())
    }

    /// The certificate that the server has shown, as it is in a file.
    pub fn shows(&self, file: &Path) -> bool {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let expected = CertificateDer::from_pem_file(file).unwrap();
        let client = self.client.as_ref().unwrap();
        client.peer_certificates().unwrap()[0] == expected
    }
}

/// A handshake in memory, until nobody has anything to say.
pub(in crate::tls) fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Shaken {
    let name = ServerName::try_from(name).unwrap().to_owned();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let (mut told_client, mut told_server) = (Ok(()), Ok(()));
    let is_going_on = |client: &ClientConnection, server: &ServerConnection| {
        client.wants_write() || server.wants_write()
    };
    while is_going_on(&client, &server) {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && told_server.is_ok() {
            server.read_tls(&mut rest).unwrap();
            told_server = server.process_new_packets().map(drop);
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && told_client.is_ok() {
            client.read_tls(&mut rest).unwrap();
            told_client = client.process_new_packets().map(drop);
        }
    }
    Shaken {
        client: told_client.map(|()| client),
        server: told_server.map(|()| server),
    }
}
