//! The load: what clients do to a target, counted. Each kind runs on a thread of its own until
//! it is told to stop.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backend::{self, CHUNK, discard, pour, runtime};

/// Size of a message.
pub const MESSAGE: usize = 64;
/// No answer takes this long, even from a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a load has done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Messages answered, or connections served.
    pub units: AtomicU64,
    pub errors: AtomicU64,
    /// Waits are recorded now.
    pub recording: AtomicBool,
    pub stop: AtomicBool,
    micros: Mutex<Vec<u32>>,
}

impl Tally {
    pub fn unit(&self, since: Instant) {
        self.units.fetch_add(1, Ordering::Relaxed);
        if self.recording.load(Ordering::Relaxed) {
            let micros = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.lock().push(micros);
        }
    }

    pub fn error(&self) {
        if !self.stopped() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The waits that were recorded.
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.micros.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs one task for each connection and waits for all of them. Setting `stop` ends them at the
/// next turn; a task that hangs is dropped.
pub fn each<F>(connections: usize, tally: &Arc<Tally>, task: impl Fn(usize) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    runtime().block_on(async {
        let mut tasks = JoinSet::new();
        for n in 0..connections {
            let (work, tally) = (task(n), Arc::clone(tally));
            tasks.spawn(async move {
                if work.await.is_err() {
                    tally.error();
                }
            });
        }
        while !tally.stopped() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        let _hanging = timeout(Duration::from_millis(500), all).await;
    });
}

async fn dial(to: SocketAddr, kind: u8) -> io::Result<TcpStream> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    stream.write_all(&[kind]).await?;
    Ok(stream)
}

pub fn message(n: u64) -> [u8; MESSAGE] {
    let mut message = [b'm'; MESSAGE];
    message[..8].copy_from_slice(&n.to_le_bytes());
    message
}

pub async fn ask<S>(stream: &mut S, question: &[u8]) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut answer = vec![0; question.len()];
    stream.write_all(question).await?;
    stream.flush().await?;
    timeout(PATIENCE, stream.read_exact(&mut answer)).await??;
    if answer == question {
        Ok(())
    } else {
        Err(ErrorKind::InvalidData.into())
    }
}

/// Connections that ask again as soon as they have the answer.
pub fn ping(to: SocketAddr, connections: usize, tally: &Arc<Tally>) {
    each(connections, tally, |_| {
        let tally = Arc::clone(tally);
        async move {
            let mut stream = dial(to, b'E').await?;
            let mut n = 0;
            while !tally.stopped() {
                let since = Instant::now();
                ask(&mut stream, &message(n)).await?;
                tally.unit(since);
                n += 1;
            }
            Ok(())
        }
    });
}

/// Connect, one message there and back, FIN; again and again.
pub fn connect(to: SocketAddr, at_a_time: usize, tally: &Arc<Tally>) {
    each(at_a_time, tally, |_| {
        let tally = Arc::clone(tally);
        async move {
            let mut n = 0;
            while !tally.stopped() {
                let since = Instant::now();
                let mut stream = dial(to, b'E').await?;
                ask(&mut stream, &message(n)).await?;
                drop(stream);
                tally.unit(since);
                n += 1;
            }
            Ok(())
        }
    });
}

/// When the messages of a connection were due that have no answer yet.
type Due = Arc<Mutex<VecDeque<Instant>>>;

type Socket = (std::net::TcpStream, Due);

/// Connections for `rate` that have carried one message, so that the target is done with opening
/// them. The first failure is the last attempt: one that is out of order must not cost the patience
/// of all.
pub fn open(to: SocketAddr, connections: usize) -> Vec<io::Result<Socket>> {
    runtime().block_on(async {
        let mut sockets = Vec::new();
        while sockets.len() < connections && sockets.last().is_none_or(io::Result::is_ok) {
            let opened = async {
                let mut stream = dial(to, b'E').await?;
                ask(&mut stream, &message(0)).await?;
                Ok((stream.into_std()?, Due::default()))
            };
            sockets.push(opened.await);
        }
        sockets
    })
}

/// A fixed number of messages each second, the connections in turn, whatever becomes of the
/// answers. The wait counts from the time that a message was due, so that none hides behind a late
/// one before it.
pub fn rate(sockets: Vec<io::Result<Socket>>, per_second: u32, tally: &Arc<Tally>) {
    let sound = sockets.into_iter().filter_map(|socket| {
        let failed = |_| tally.error();
        socket.map_err(failed).ok()
    });
    let sockets: Vec<Socket> = sound.collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            each(sockets.len(), tally, |n| {
                let (stream, due) = &sockets[n];
                read_answers(stream.try_clone(), Arc::clone(due), Arc::clone(tally))
            });
        });
        send_on_time(&sockets, per_second, tally);
        // Ends the readers. If each of 2000 looked at a clock instead, that would be load, too.
        for (stream, _) in &sockets {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

fn send_on_time(sockets: &[Socket], per_second: u32, tally: &Tally) {
    let begin = Instant::now();
    let gap = Duration::from_secs(1) / per_second;
    for n in 0_u32.. {
        if tally.stopped() {
            return;
        }
        let at = begin + gap * n;
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if sockets.is_empty() {
            return;
        }
        let (stream, due) = &sockets[n as usize % sockets.len()];
        due.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(at);
        // The kernel has room for far more than is ever under way.
        if (&*stream).write_all(&message(n.into())).is_err() {
            tally.error();
        }
    }
}

async fn read_answers(
    stream: io::Result<std::net::TcpStream>,
    due: Due,
    tally: Arc<Tally>,
) -> io::Result<()> {
    let mut reader = TcpStream::from_std(stream?)?;
    let mut answer = [0; MESSAGE];
    loop {
        reader.read_exact(&mut answer).await?;
        let at = due
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        tally.unit(at.ok_or(ErrorKind::InvalidData)?);
    }
}

/// Streams towards the service; `per_second` bounds the bytes of all together.
pub fn upload(to: SocketAddr, connections: usize, per_second: Option<u64>, tally: &Arc<Tally>) {
    each(connections, tally, |_| {
        let tally = Arc::clone(tally);
        async move {
            let mut stream = dial(to, b'D').await?;
            let stopped = stopped(&tally);
            let bytes = async {
                match per_second {
                    None => pour(&mut stream).await,
                    Some(all) => paced(&mut stream, all / connections as u64).await,
                }
            };
            tokio::select! { sent = bytes => sent, () = stopped => Ok(()) }
        }
    });
}

async fn paced(stream: &mut TcpStream, per_second: u64) -> io::Result<()> {
    let (chunk, begin, mut sent) = (vec![b'x'; CHUNK], Instant::now(), 0);
    loop {
        let allowed = (begin.elapsed().as_secs_f64() * per_second as f64) as u64;
        if sent < allowed {
            let n = CHUNK.min(usize::try_from(allowed - sent).unwrap_or(CHUNK));
            stream.write_all(&chunk[..n]).await?;
            sent += n as u64;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Streams from the service.
pub fn download(to: SocketAddr, connections: usize, tally: &Arc<Tally>) {
    each(connections, tally, |_| {
        let tally = Arc::clone(tally);
        async move {
            let stream = dial(to, b'S').await?;
            tokio::select! { end = discard(&stream) => end, () = stopped(&tally) => Ok(()) }
        }
    });
}

/// Streams both ways at once on each connection.
pub fn both(to: SocketAddr, connections: usize, tally: &Arc<Tally>) {
    each(connections, tally, |_| {
        let tally = Arc::clone(tally);
        async move {
            let stream = dial(to, b'B').await?;
            tokio::select! { end = backend::both(stream) => end, () = stopped(&tally) => Ok(()) }
        }
    });
}

/// Connections that carry one message of `size` and are then held; `opened` is counted in units.
pub fn hold(to: SocketAddr, connections: usize, size: usize, tally: &Arc<Tally>) {
    runtime().block_on(async {
        let (mut held, mut question) = (Vec::new(), vec![b'm'; size]);
        for n in 0..connections {
            let since = Instant::now();
            let greeted = async {
                let mut stream = dial(to, b'E').await?;
                question[..MESSAGE].copy_from_slice(&message(n as u64));
                ask(&mut stream, &question).await?;
                io::Result::Ok(stream)
            };
            match greeted.await {
                Ok(stream) => {
                    tally.unit(since);
                    held.push(stream);
                }
                Err(_) => tally.error(),
            }
        }
        stopped(tally).await;
        for mut stream in held {
            if ask(&mut stream, &message(0)).await.is_err() {
                tally.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}

pub async fn stopped(tally: &Tally) {
    while !tally.stopped() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
