//! What an end under test says on its socket: its bytes, or TLS. Bytes are counted as payload in both.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fs, mem};

use rustix::event::PollFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::certificates::{self, Authority, Certified, Subject};

/// The name of every TLS server of the tests.
const NAME: &str = "localhost";
/// Payload of one record.
const RECORD: usize = 16 << 10;
/// The last words of an end that is closed while its socket is full.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// Which legs speak TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Legs {
    /// None.
    #[default]
    Plain,
    /// That of the clients.
    Downstream,
    /// That of the service.
    Upstream,
    /// Both.
    Both,
}

impl Legs {
    /// What clients speak.
    pub fn of_clients(self) -> Speech {
        match self {
            Self::Downstream | Self::Both => Speech::TlsClient,
            Self::Plain | Self::Upstream => Speech::Plain,
        }
    }

    /// What services speak.
    pub fn of_services(self) -> Speech {
        match self {
            Self::Upstream | Self::Both => Speech::TlsServer,
            Self::Plain | Self::Downstream => Speech::Plain,
        }
    }

    /// What the proxy is started with.
    pub fn flags(self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: &Path| {
            flags.extend([name.to_owned(), value.display().to_string()]);
        };
        if self.of_clients() != Speech::Plain {
            flag("--tls-certificate", &papers().server.chain);
            flag("--tls-key", &papers().server.key);
        }
        if self.of_services() != Speech::Plain {
            flag("--upstream-tls-ca", &papers().ca);
            flag("--upstream-tls-server-name", Path::new(NAME));
        }
        flags
    }
}

/// What one end speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speech {
    /// Its bytes.
    #[default]
    Plain,
    /// TLS, and begins.
    TlsClient,
    /// TLS, and answers.
    TlsServer,
}

/// Of all TLS tests of this process.
struct Papers {
    folder: PathBuf,
    ca: PathBuf,
    server: Certified,
    of_clients: Arc<ClientConfig>,
    of_services: Arc<ServerConfig>,
}

static PAPERS: OnceLock<Papers> = OnceLock::new();

fn make_papers() -> Papers {
    let name = format!("pulsegate-papers-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("make a folder");
    let authority = Authority::root("the lab");
    let ca = authority.write(folder.join("ca.pem"));
    let server = authority.certify(&folder, "server", Subject::named(&[NAME]));
    Papers {
        of_clients: certificates::client(&ca, None),
        of_services: certificates::server(&server),
        folder,
        ca,
        server,
    }
}

fn papers() -> &'static Papers {
    PAPERS.get_or_init(make_papers)
}

/// Removes the files, when all tests are over.
pub fn remove_papers() {
    if let Some(papers) = PAPERS.get() {
        let _best_effort = fs::remove_dir_all(&papers.folder);
    }
}

/// A socket and what is said on it. On one that blocks, [`Channel::shake`] comes first.
#[derive(Debug)]
pub struct Channel {
    pub socket: TcpStream,
    tls: Option<Box<Tls>>,
}

#[derive(Debug)]
struct Tls {
    connection: Connection,
    /// Payload of the record that the socket has not taken entirely.
    under_way: usize,
    said_end: bool,
}

impl Channel {
    /// Nothing is said yet.
    pub fn new(socket: TcpStream, speech: Speech) -> Self {
        let connection: Option<Connection> = match speech {
            Speech::Plain => None,
            Speech::TlsClient => {
                let name = ServerName::try_from(NAME).expect("a name");
                let config = papers().of_clients.clone();
                Some(ClientConnection::new(config, name).expect("valid").into())
            }
            Speech::TlsServer => {
                let config = papers().of_services.clone();
                Some(ServerConnection::new(config).expect("valid").into())
            }
        };
        let tls = |connection| {
            let (under_way, said_end) = (0, false);
            Box::new(Tls {
                connection,
                under_way,
                said_end,
            })
        };
        Self {
            socket,
            tls: connection.map(tls),
        }
    }

    /// Whether payload cannot be sent yet.
    pub fn is_shaking(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.connection.is_handshaking())
    }

    /// What it waits for beside payload.
    pub fn wants(&self) -> PollFlags {
        let writes = self
            .tls
            .as_ref()
            .is_some_and(|t| t.connection.wants_write());
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, self.is_shaking());
        events.set(PollFlags::OUT, writes);
        events
    }

    /// Goes on with the handshake as far as that is possible now.
    pub fn shake(&mut self) -> io::Result<()> {
        let Self {
            socket,
            tls: Some(tls),
        } = self
        else {
            return Ok(());
        };
        let gone_on = loop {
            match tls.flush(socket) {
                Ok(()) if !tls.connection.is_handshaking() => break Ok(()),
                Ok(()) => {}
                Err(error) => break Err(error),
            }
            match tls.receive(socket) {
                Ok(0) => break Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        match gone_on {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Says the end of the stream; false if the socket is too full for it.
    pub fn finish(&mut self) -> bool {
        if let Some(tls) = &mut self.tls {
            if tls.connection.is_handshaking() {
                return false;
            }
            if !mem::replace(&mut tls.said_end, true) {
                tls.connection.send_close_notify();
            }
            let full = tls.flush(&mut self.socket);
            if full.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                return false;
            }
        }
        // It fails only on a socket that was reset; reading tells.
        let _ = self.socket.shutdown(Shutdown::Write);
        true
    }

    /// As an application does before close(2). Returns how much payload the kernel has got by that.
    pub fn last_words(&mut self) -> usize {
        let Some(tls) = &mut self.tls else {
            return 0;
        };
        if !mem::replace(&mut tls.said_end, true) {
            tls.connection.send_close_notify();
        }
        let _ = self.socket.set_nonblocking(false);
        let _ = self.socket.set_write_timeout(Some(LAST_WORDS_WITHIN));
        match tls.flush(&mut self.socket) {
            Ok(()) => mem::take(&mut tls.under_way),
            Err(_) => 0,
        }
    }
}

/// Gives payload to the kernel; how much of it that has now. After `WouldBlock` it is given the same again.
impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.write(bytes);
        };
        if tls.connection.is_handshaking() {
            return Err(ErrorKind::WouldBlock.into());
        }
        if tls.under_way == 0 {
            let record = &bytes[..bytes.len().min(RECORD)];
            tls.under_way = tls.connection.writer().write(record)?;
        }
        tls.flush(&mut self.socket)?;
        Ok(mem::take(&mut tls.under_way))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads payload. 0 is the orderly end of the stream, which TLS says itself.
impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.read(buffer);
        };
        loop {
            match tls.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            tls.receive(&mut self.socket)?;
        }
    }
}

impl Tls {
    fn flush(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(socket)?;
        }
        Ok(())
    }

    /// Takes in what came; 0 is FIN.
    fn receive(&mut self, socket: &mut TcpStream) -> io::Result<usize> {
        let n = self.connection.read_tls(socket)?;
        let understood = self.connection.process_new_packets();
        understood.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(n)
    }
}
