//! The hosts around the proxy: an echo service, clients that say nothing, clients that work, a client that
//! connects without pause.

#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Host, Net};

const MESSAGE: [u8; 64] = [b'm'; 64];
/// Connections that are opened at the same time.
const DIALS: usize = 32;
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Work on a thread inside a host's namespace; it ends when this is dropped.
pub struct Work {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Work {
    /// Returns once `body` says that it is ready, with what it says.
    fn start<T, F>(net: &Arc<Net>, host: Host, body: impl FnOnce(mpsc::Sender<T>) -> F) -> (Self, T)
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (net, body) = (Arc::clone(net), body(ready));
        let thread = thread::spawn(move || {
            net.host(host).enter().expect("enter the namespace");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = body => {}
                    _ = stopped => {}
                }
            });
        });
        let said = is_ready.recv().expect("the host gets ready");
        let work = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        (work, said)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the service has seen end.
#[derive(Debug, Default)]
pub struct Endings(Mutex<Vec<Instant>>);

impl Endings {
    /// When connections ended, in order.
    pub fn times(&self) -> Vec<Instant> {
        self.0.lock().expect("not poisoned").clone()
    }
}

/// Starts the echo service. The first `idle` connections have a thread of their own: the end of
/// thousands of them must not hold up the answers to the others, which are measured.
pub fn serve(net: &Arc<Net>, idle: usize) -> (Vec<Work>, Arc<Endings>) {
    let endings = Arc::new(Endings::default());
    let told = Arc::clone(&endings);
    let (for_idle, elsewhere) = Work::start(net, Host::Service, |ready| async move {
        let here = tokio::runtime::Handle::current();
        ready.send(here).expect("somebody waits");
        std::future::pending::<()>().await;
    });
    let address = net.service();
    let (for_others, ()) = Work::start(net, Host::Service, move |ready| async move {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(address).expect("bind");
        let listener = socket.listen(4096).expect("listen");
        ready.send(()).expect("somebody waits");
        let here = tokio::runtime::Handle::current();
        for n in 0.. {
            let (stream, _) = listener.accept().await.expect("accept");
            let stream = stream.into_std().expect("a socket");
            let at = if n < idle { &elsewhere } else { &here };
            at.spawn(serve_one(stream, Arc::clone(&told)));
        }
    });
    (vec![for_others, for_idle], endings)
}

async fn serve_one(stream: std::net::TcpStream, told: Arc<Endings>) {
    let stream = TcpStream::from_std(stream).expect("register");
    // RST is how the session of a vanished client ends.
    let _ = echo(stream).await;
    told.0.lock().expect("not poisoned").push(Instant::now());
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        // No buffer is held while nothing happens: there are thousands of these.
        stream.readable().await?;
        let mut buffer = [0; 1024];
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => stream.write_all(&buffer[..n]).await?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Opens sessions that carry one message and then nothing; says how many came about.
pub fn hold(net: &Arc<Net>, sessions: usize) -> (Work, usize) {
    let to = net.listener(Host::Client);
    Work::start(net, Host::Client, move |ready| async move {
        let held = open(to, sessions).await;
        ready.send(held.len()).expect("somebody waits");
        std::future::pending::<()>().await;
    })
}

async fn open(to: SocketAddr, sessions: usize) -> Vec<TcpStream> {
    let slots = Arc::new(Semaphore::new(DIALS));
    let mut dials = JoinSet::new();
    for _ in 0..sessions {
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("never closed");
        dials.spawn(async move {
            let stream = greet(to).await;
            drop(slot);
            stream
        });
    }
    dials.join_all().await.into_iter().flatten().collect()
}

async fn greet(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    ask(&mut stream).await?;
    Ok(stream)
}

async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&MESSAGE).await?;
    let mut answer = [0; MESSAGE.len()];
    stream.read_exact(&mut answer).await?;
    if answer == MESSAGE {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// How long the working clients waited for their answers, by phase.
#[derive(Debug, Default)]
pub struct Waits {
    phase: AtomicUsize,
    micros: [Mutex<Vec<u32>>; 3],
    pub failures: AtomicU64,
}

impl Waits {
    /// From now on the answers count for this phase.
    pub fn begin(&self, phase: usize) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// The waits of a phase.
    pub fn take(&self, phase: usize) -> Vec<u32> {
        std::mem::take(&mut self.micros[phase].lock().expect("not poisoned"))
    }
}

/// Clients that ask ten times a second each, evenly spread.
pub fn work(net: &Arc<Net>, clients: usize) -> (Work, Arc<Waits>) {
    let to = net.listener(Host::Healthy);
    Work::start(net, Host::Healthy, move |ready| async move {
        let waits = Arc::new(Waits::default());
        let streams = open(to, clients).await;
        let missing = (clients - streams.len()) as u64;
        waits.failures.fetch_add(missing, Ordering::Relaxed);
        let begin = Instant::now();
        for (i, stream) in streams.into_iter().enumerate() {
            let first = begin + ASK_EVERY * i as u32 / clients as u32;
            tokio::spawn(keep_asking(stream, first, Arc::clone(&waits)));
        }
        ready.send(waits).expect("somebody waits");
        std::future::pending::<()>().await;
    })
}

async fn keep_asking(mut stream: TcpStream, first: Instant, waits: Arc<Waits>) {
    let mut due = first;
    loop {
        // A question that had to wait for the previous answer has waited since it was due. What
        // the timer of this program is late does not count.
        tokio::time::sleep_until(due.into()).await;
        let now = Instant::now();
        let late = now.duration_since(due) > ASK_EVERY / 4;
        let asked = if late { due } else { now };
        if ask(&mut stream).await.is_err() {
            waits.failures.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let micros = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
        let phase = waits.phase.load(Ordering::Relaxed);
        waits.micros[phase]
            .lock()
            .expect("not poisoned")
            .push(micros);
        due += ASK_EVERY;
    }
}

/// Connects so many times a second, and is reset; says how often it was.
pub fn flood(net: &Arc<Net>, to: SocketAddr, rate: u32) -> (Work, impl Fn() -> u64 + use<>) {
    const TICK: Duration = Duration::from_millis(1);
    const MOST: usize = 2000;
    let ended = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ended);
    let (work, ()) = Work::start(net, Host::Client, move |ready| async move {
        ready.send(()).expect("somebody waits");
        let (begin, places) = (Instant::now(), Arc::new(Semaphore::new(MOST)));
        for n in 0_u64.. {
            let due = begin + Duration::from_secs(1) * u32::try_from(n).unwrap_or(0) / rate;
            if due > Instant::now() {
                tokio::time::sleep(TICK).await;
            }
            let place = Arc::clone(&places).acquire_owned().await;
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                if let Ok(mut stream) = TcpStream::connect(to).await {
                    // One that is let in leaves soon.
                    let _reset = tokio::time::timeout(10 * TICK, stream.read(&mut [0])).await;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                drop(place);
            });
        }
    });
    (work, move || ended.load(Ordering::Relaxed))
}
