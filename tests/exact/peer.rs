//! One end of a connection through the relay: sends a known pattern by a plan, and checks what
//! comes.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;
use std::time::Duration;

use pulsegate::sys::sockopt;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A prime, so that no power of two hides a shift.
const PERIOD: usize = 1_048_573;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    };
    (0..PERIOD).map(|_| next()).collect()
});

/// The bytes of a stream at an offset, as many as are contiguous.
pub fn pattern(stream: usize, offset: u64) -> &'static [u8] {
    let table: &'static [u8] = &TABLE;
    let at = (stream * 500_009 + usize::try_from(offset).unwrap()) % PERIOD;
    &table[at..]
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Send(usize),
    Pause(Duration),
    /// One byte of the pattern as TCP urgent data.
    Urgent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Fin,
    /// Sends only when the other side has said FIN.
    FinLast,
    /// RST, when everything has been acknowledged.
    Reset,
}

/// What one end does.
#[derive(Clone, Debug)]
pub struct Side {
    pub steps: Vec<Step>,
    pub ending: Ending,
    pub receive_buffer: Option<usize>,
    /// From this byte on, do not read for so many milliseconds.
    pub pauses: Vec<(usize, u64)>,
    /// Read at once.
    pub chunk: usize,
}

impl Side {
    pub fn sends(steps: Vec<Step>) -> Self {
        Self {
            steps,
            ending: Ending::Fin,
            receive_buffer: None,
            pauses: Vec::new(),
            chunk: 262_144,
        }
    }

    pub fn total(&self) -> u64 {
        let sizes = self.steps.iter().map(|step| match step {
            Step::Send(n) => *n as u64,
            Step::Pause(_) => 0,
            Step::Urgent => 1,
        });
        sizes.sum()
    }
}

/// How a stream ended for its reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Saw {
    #[default]
    Nothing,
    Fin,
    Reset,
}

/// What one end has seen.
#[derive(Debug, Default)]
pub struct Report {
    pub received: u64,
    pub saw: Saw,
    /// The error went to the writer, so the reader could not see it.
    pub write_failed: bool,
    /// A byte that was not the expected one.
    pub wrong: Option<String>,
}

/// Plays one end. `stream` is its number: it sends that pattern, and expects the one of the other
/// end, which differs in the last bit.
pub async fn play(socket: TcpStream, side: &Side, stream: usize) -> Report {
    let (ended, other_ended) = watch::channel(false);
    let mut report = Report::default();
    let mut write_failed = false;
    {
        let reading = async {
            read(&socket, side, stream ^ 1, &mut report).await;
            // Nobody waits where nobody is last.
            let _ = ended.send(true);
        };
        let writing = async {
            write_failed = write(&socket, side, stream, other_ended).await.is_err();
        };
        if side.ending == Ending::Reset {
            tokio::select! {
                () = writing => {}
                () = async { reading.await; std::future::pending().await } => {}
            }
        } else {
            tokio::join!(reading, writing);
        }
    }
    report.write_failed = write_failed;
    if side.ending == Ending::Reset {
        let abort = Some(Duration::ZERO);
        socket2::SockRef::from(&socket).set_linger(abort).unwrap();
    }
    report
}

async fn read(socket: &TcpStream, side: &Side, stream: usize, report: &mut Report) {
    let mut pauses = side.pauses.clone();
    pauses.sort_unstable();
    let mut buffer = vec![0; side.chunk];
    loop {
        while pauses
            .first()
            .is_some_and(|(at, _)| *at as u64 <= report.received)
        {
            tokio::time::sleep(Duration::from_millis(pauses.remove(0).1)).await;
        }
        socket.readable().await.unwrap();
        match socket.try_read(&mut buffer) {
            Ok(0) => {
                report.saw = Saw::Fin;
                return;
            }
            Ok(n) => {
                let mut bytes = &buffer[..n];
                while !bytes.is_empty() {
                    let expected = pattern(stream, report.received);
                    let n = expected.len().min(bytes.len());
                    if bytes[..n] != expected[..n] && report.wrong.is_none() {
                        report.wrong = Some(format!("a wrong byte after {}", report.received));
                    }
                    report.received += n as u64;
                    bytes = &bytes[n..];
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                report.saw = Saw::Reset;
                return;
            }
        }
    }
}

async fn write(
    socket: &TcpStream,
    side: &Side,
    stream: usize,
    mut other_ended: watch::Receiver<bool>,
) -> io::Result<()> {
    if side.ending == Ending::FinLast {
        // The sender lives as long as this.
        let _ = other_ended.wait_for(|ended| *ended).await;
    }
    let mut sent = 0;
    for step in &side.steps {
        match *step {
            Step::Pause(pause) => tokio::time::sleep(pause).await,
            Step::Urgent => {
                let byte = &pattern(stream, sent)[..1];
                let send = || socket2::SockRef::from(socket).send_out_of_band(byte);
                socket.async_io(tokio::io::Interest::WRITABLE, send).await?;
                sent += 1;
            }
            Step::Send(n) => {
                let end = sent + n as u64;
                while sent < end {
                    let bytes = pattern(stream, sent);
                    let most = usize::try_from(end - sent).unwrap().min(bytes.len());
                    socket.writable().await?;
                    match socket.try_write(&bytes[..most]) {
                        Ok(n) => sent += n as u64,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    if side.ending != Ending::Reset {
        return socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write);
    }
    while sockopt::send_queue_bytes(socket.as_raw_fd())? > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
