//! The legacy service and its clients: one line asked, one line answered.
//!
//! Like many an old service it trusts TCP: no keepalive, no timeout, a thread for each connection.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What `DUMP` answers with: more than any buffer on the way can hold.
const DUMP: usize = 64 << 20;
const ASK_EVERY: Duration = Duration::from_millis(500);

/// How a connection ended for the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// FIN, the end of a complete stream.
    Finished,
    /// RST, an abort.
    Aborted,
}

/// The legacy service.
#[derive(Debug)]
pub struct Service {
    pub address: SocketAddr,
    endings: Arc<Mutex<Vec<(String, Ending)>>>,
}

impl Service {
    /// Serves on threads of its own until the process ends.
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let endings: Arc<Mutex<Vec<_>>> = Arc::default();
        let log = endings.clone();
        thread::Builder::new().spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                thread::spawn(move || {
                    let mut name = String::new();
                    let ending = match serve(&stream, &mut name) {
                        Ok(()) => Ending::Finished,
                        Err(_) => Ending::Aborted,
                    };
                    log.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((name, ending));
                });
            }
        })?;
        Ok(Self { address, endings })
    }

    /// How the connection of a client ended, if it did.
    pub fn ending_of(&self, client: &str) -> Option<Ending> {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        endings
            .iter()
            .find(|(name, _)| name == client)
            .map(|(_, ending)| *ending)
    }
}

fn serve(mut stream: &TcpStream, name: &mut String) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut leaks = false;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            break;
        }
        match line.trim_end().split_once(' ') {
            Some(("LOGIN", who)) => who.clone_into(name),
            _ if line.starts_with("LEAK") => leaks = true,
            _ if line.starts_with("DUMP") => {
                stream.write_all(&vec![b'.'; DUMP])?;
                continue;
            }
            _ => {}
        }
        stream.write_all(format!("OK {line}").as_bytes())?;
    }
    if leaks {
        return Err(wait_for_abort(stream)?);
    }
    Ok(())
}

/// A service that never closes what its client has finished; it only notices an abort.
fn wait_for_abort(stream: &TcpStream) -> io::Result<io::Error> {
    loop {
        if let Some(error) = stream.take_error()? {
            return Ok(error);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A client that asks and waits for the answer.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Logs in; the service knows the connection by this name.
    pub fn login(stream: TcpStream, name: &str) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut client = Self {
            stream: BufReader::new(stream),
        };
        client.ask(&format!("LOGIN {name}"))?;
        Ok(client)
    }

    pub fn ask(&mut self, line: &str) -> io::Result<()> {
        self.tell(line)?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        if answer.trim_end() == format!("OK {line}") {
            Ok(())
        } else {
            Err(io::Error::new(ErrorKind::UnexpectedEof, "no answer"))
        }
    }

    /// Sends a line and does not wait.
    pub fn tell(&mut self, line: &str) -> io::Result<()> {
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
    }

    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

/// Clients that ask all the time.
#[derive(Debug, Default)]
pub struct Crowd {
    asked: AtomicU64,
    answered: AtomicU64,
    over: AtomicBool,
}

impl Crowd {
    /// Has a client ask twice a second.
    pub fn join(self: &Arc<Self>, mut client: Client) {
        let crowd = self.clone();
        thread::spawn(move || {
            while !crowd.over.load(Ordering::Relaxed) {
                crowd.asked.fetch_add(1, Ordering::Relaxed);
                if client.ask("READ 7").is_err() {
                    return;
                }
                crowd.answered.fetch_add(1, Ordering::Relaxed);
                thread::sleep(ASK_EVERY);
            }
        });
    }

    /// Ends it; returns how many questions were asked, and how many were answered.
    pub fn disperse(&self) -> (u64, u64) {
        self.over.store(true, Ordering::Relaxed);
        thread::sleep(ASK_EVERY);
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (count(&self.asked), count(&self.answered))
    }
}
