//! A name server that says what the test wants, or nothing.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use pulsegate::sys::netns::Namespace;

use super::ms;

const TYPE_A: [u8; 2] = [0, 1];
const ANSWER: [u8; 2] = [0x81, 0x80];
const NO_SUCH_NAME: [u8; 2] = [0x81, 0x83];

/// Answers for one name, as long as it is told to; all others do not exist. A name that begins with
/// `silent` is never answered for. It ends when it is dropped.
pub struct Dns {
    addresses: Arc<Mutex<Option<Vec<Ipv4Addr>>>>,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Listens where a resolver asks by default.
    pub fn start(host: &Namespace, addresses: &[Ipv4Addr]) -> Self {
        let bind = || UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        let socket = host.run(bind).expect("enter").expect("port 53");
        socket.set_read_timeout(Some(ms(50))).expect("an option");
        let addresses = Arc::new(Mutex::new(Some(addresses.to_vec())));
        let (asked, over): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let thread = {
            let (addresses, asked, over) = (addresses.clone(), asked.clone(), over.clone());
            thread::spawn(move || {
                let mut query = [0; 512];
                while !over.load(Ordering::Relaxed) {
                    let Ok((n, from)) = socket.recv_from(&mut query) else {
                        continue;
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    let addresses = addresses.lock().expect("not poisoned").clone();
                    if let Some(answer) = addresses.and_then(|a| answer(&query[..n], &a)) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })
        };
        Self {
            addresses,
            asked,
            over,
            thread: Some(thread),
        }
    }

    /// What it answers from now on; `None` is nothing.
    pub fn says(&self, addresses: Option<&[Ipv4Addr]>) {
        *self.addresses.lock().expect("not poisoned") = addresses.map(<[_]>::to_vec);
    }

    /// Questions that came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// RFC 1035, 4.1.
fn answer(query: &[u8], addresses: &[Ipv4Addr]) -> Option<Vec<u8>> {
    // One question: the first label, the others, the end of the name, type and class.
    let first = query.get(13..13 + usize::from(*query.get(12)?))?;
    if first.starts_with(b"silent") {
        return None;
    }
    let end = 12 + query[12..].iter().position(|byte| *byte == 0)? + 1;
    let question = query.get(12..end + 4)?;
    let known = first == b"service";
    let of_this_type = known && question[end - 12..end - 10] == TYPE_A;
    let records = if of_this_type { addresses } else { &[] };
    let flags = if known { ANSWER } else { NO_SUCH_NAME };
    let [high, low] = u16::try_from(records.len()).expect("few").to_be_bytes();
    let counts = [0, 1, high, low, 0, 0, 0, 0];
    let mut answer = [&query[..2], &flags[..], &counts[..], question].concat();
    for address in records {
        // The name is the one at offset 12; type A, class IN, no time to live.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
