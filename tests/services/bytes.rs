//! Bytes that are known at each offset, so that one that is lost, repeated or changed shows.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::LazyLock;

/// A prime, so that no power of two hides a shift.
const PERIOD: usize = 1_048_573;
const CHUNK: usize = 64 << 10;

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

/// A position in an endless pseudo-random stream.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    at: usize,
}

impl Stream {
    /// The stream of a seed, from its start.
    pub fn new(seed: u64) -> Self {
        let at = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        Self {
            at: usize::try_from(at).expect("44 bits") % PERIOD,
        }
    }

    /// The next bytes, at most so many, as many as are contiguous.
    fn next(&mut self, at_most: usize) -> &'static [u8] {
        let table: &'static [u8] = &TABLE;
        let rest = &table[self.at..];
        let some = &rest[..rest.len().min(at_most)];
        self.at = (self.at + some.len()) % PERIOD;
        some
    }

    /// Writes the next `bytes`.
    pub fn send(&mut self, to: &mut impl Write, mut bytes: usize) -> io::Result<()> {
        while bytes > 0 {
            let some = self.next(bytes.min(CHUNK));
            to.write_all(some)?;
            bytes -= some.len();
        }
        Ok(())
    }

    /// Reads `bytes`, which must be the next ones.
    pub fn receive(&mut self, from: &mut impl Read, bytes: usize) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut received = 0;
        while received < bytes {
            let limit = CHUNK.min(bytes - received);
            let n = from.read(&mut buffer[..limit])?;
            if n == 0 {
                let why = format!("the stream ends at {received} of {bytes}");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            self.check(&buffer[..n], received)?;
            received += n;
        }
        Ok(())
    }

    fn check(&mut self, mut bytes: &[u8], at: usize) -> io::Result<()> {
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            if &bytes[..expected.len()] != expected {
                let why = format!("a wrong byte at or after {at}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            bytes = &bytes[expected.len()..];
        }
        Ok(())
    }
}

/// The next read must be the end of the stream, and no abort.
pub fn expect_end(from: &mut impl Read) -> io::Result<()> {
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("bytes after the end")),
    }
}

/// Writes a file of so many bytes of a seed's stream.
pub fn write_file(path: &Path, seed: u64, bytes: usize) {
    let mut file = BufWriter::new(File::create(path).expect("create a file"));
    Stream::new(seed)
        .send(&mut file, bytes)
        .expect("write a file");
    file.flush().expect("write a file");
}

/// The file must be what [`write_file`] writes.
#[track_caller]
pub fn expect_file(path: &Path, seed: u64, bytes: usize) {
    let mut file = File::open(path).expect("open a file");
    let whole = Stream::new(seed)
        .receive(&mut file, bytes)
        .and_then(|()| expect_end(&mut file));
    whole.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Both files must have the same bytes.
#[track_caller]
pub fn expect_same(one: &Path, other: &Path) {
    let mut files = [one, other].map(|path| File::open(path).expect("open a file"));
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let sizes = files
        .each_ref()
        .map(|file| file.metadata().expect("a size").len());
    let names = format!("{} and {}", one.display(), other.display());
    assert_eq!(sizes[0], sizes[1], "sizes of {names}");
    let mut rest = usize::try_from(sizes[0]).expect("fits");
    while rest > 0 {
        let n = rest.min(CHUNK);
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.read_exact(&mut buffer[..n]).expect("read a file");
        }
        assert!(buffers[0][..n] == buffers[1][..n], "{names} differ");
        rest -= n;
    }
}
