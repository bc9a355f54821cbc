//! Certificates in a folder, and a server of TLS.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::process::Folder;
use crate::support::certificates::{Authority, Certified, Subject};

/// An authority, and a folder with its certificate, `ca.pem`, and with what it has issued.
pub struct Papers {
    folder: Folder,
    authority: Authority,
}

impl Papers {
    pub fn new() -> Self {
        let (folder, authority) = (Folder::new(), Authority::root("the authority"));
        authority.write(folder.join("ca.pem"));
        Self { folder, authority }
    }

    /// Makes or replaces `NAME.pem` and `NAME.key`.
    pub fn issue(&self, name: &str, subject: Subject) -> Certified {
        self.authority.certify(self.folder.path(), name, subject)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same, for command lines.
    pub fn named(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
}

/// What a server does with a client whose handshake is over.
pub type Serve = fn(&mut StreamOwned<ServerConnection, TcpStream>) -> io::Result<()>;

/// A server of TLS. After `serve` it reads until the client ends.
pub struct TlsServer {
    pub address: SocketAddr,
    /// Clients that ended with close_notify, and others.
    ends: Arc<[AtomicUsize; 2]>,
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl TlsServer {
    pub fn start(config: Arc<ServerConfig>, serve: Serve) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("bound");
        let config = Arc::new(Mutex::new(config));
        let ends = Arc::new([const { AtomicUsize::new(0) }; 2]);
        let (current, ended) = (config.clone(), ends.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let config = current.lock().expect("not poisoned").clone();
                let (stream, ended) = (stream.expect("a client"), ended.clone());
                thread::spawn(move || {
                    let connection = ServerConnection::new(config).expect("a configuration");
                    let result = meet(StreamOwned::new(connection, stream), serve);
                    ended[usize::from(result.is_err())].fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self {
            address,
            ends,
            config,
        }
    }

    /// What clients meet from now on.
    pub fn become_another(&self, config: Arc<ServerConfig>) {
        *self.config.lock().expect("not poisoned") = config;
    }

    /// How many clients ended with close_notify, and how many otherwise.
    pub fn ends(&self) -> [usize; 2] {
        [0, 1].map(|i| self.ends[i].load(Ordering::Relaxed))
    }
}

fn meet(mut stream: StreamOwned<ServerConnection, TcpStream>, serve: Serve) -> io::Result<()> {
    while stream.conn.is_handshaking() {
        let told = stream.conn.complete_io(&mut stream.sock);
        if let Err(error) = told {
            // The alert.
            let _cut = stream.conn.write_tls(&mut stream.sock);
            return Err(error);
        }
    }
    serve(&mut stream)?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest)? > 0 {}
    stream.conn.send_close_notify();
    stream.flush()
}
