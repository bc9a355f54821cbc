//! The service behind every target. The first byte of a connection says what it is for:
//! `E`: every byte comes back; `D`: bytes are discarded; `S`: bytes are sent until the client
//! leaves; `B`: both of the last two at once.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};

pub const CHUNK: usize = 256 << 10;

/// Bulk bytes that arrived, here or at the load generator.
pub static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Serves on two threads of its own until the process ends: bulk streams must not delay echoes.
pub fn start(address: SocketAddr) {
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        let runtime = runtime();
        ready
            .send(runtime.handle().clone())
            .expect("somebody waits");
        runtime.block_on(std::future::pending::<()>());
    });
    let bulk = is_ready.recv().expect("a thread for bulk");
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        runtime().block_on(async {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind(address).expect("bind the backend");
            let listener = socket.listen(4096).expect("listen");
            ready.send(()).expect("somebody waits");
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, bulk.clone()));
                }
            }
        });
    });
    is_ready.recv().expect("the backend listens");
}

/// A runtime for the calling thread.
pub fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn serve(mut stream: TcpStream, bulk: Handle) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind).await?;
    if kind == *b"E" {
        return echo(stream).await;
    }
    let stream = stream.into_std()?;
    bulk.spawn(async move {
        let mut stream = TcpStream::from_std(stream)?;
        match kind[0] {
            b'D' => discard(&stream).await,
            b'B' => both(stream).await,
            _ => pour(&mut stream).await,
        }
    });
    Ok(())
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let mut buffer = [0; 16 << 10];
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => stream.write_all(&buffer[..n]).await?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

/// Counts and throws away what arrives, without copying it out of the kernel: the ends are not
/// what is measured.
pub async fn discard(stream: &TcpStream) -> io::Result<()> {
    let mut untouched = vec![0_u8; CHUNK];
    loop {
        stream.readable().await?;
        let taken = stream.try_io(Interest::READABLE, || {
            let (_, n) = rustix::net::recv(stream, &mut untouched[..], RecvFlags::TRUNC)?;
            Ok(n)
        });
        match taken {
            Ok(0) => return Ok(()),
            Ok(n) => ARRIVED.fetch_add(n as u64, Ordering::Relaxed),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
    }
}

/// Sends until the other end leaves.
pub async fn pour(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let chunk = vec![b'x'; CHUNK];
    loop {
        stream.write_all(&chunk).await?;
    }
}

/// Sends and discards at once until the other end leaves.
pub async fn both(mut stream: TcpStream) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    tokio::select! { end = discard(reader.as_ref()) => end, end = pour(&mut writer) => end }
}
