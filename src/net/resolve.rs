//! DNS names of upstreams.
//!
//! getaddrinfo(3) blocks, for as long as the configuration of the resolver lets it, and cannot be
//! called off. So it runs on threads that are made at the start, one for each name, whatever the
//! number of clients: a name whose DNS is out takes one thread and a few sockets, delays no other
//! name, and nothing waits for its thread when the process ends.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use crate::liveness::Millis;
use crate::sys;

/// Threads at most; names beyond share them.
const MOST_THREADS: usize = 64;
/// What getaddrinfo(3) needs is far below; glibc keeps what is large on the heap.
const STACK: usize = 256 * 1024;
/// Descriptors that a look-up holds at most: a socket for each of three name servers, and one file,
/// or connection to a cache, or by TCP.
const DESCRIPTORS: u64 = 4;
/// A name that cannot be resolved is tried again after so long.
const RETRY: Duration = Duration::from_secs(1);
/// Between two lines of the log about a name that cannot be resolved.
const LINE_EVERY: Millis = 60_000;

/// A name, and what it stands for.
#[derive(Debug)]
pub struct Name {
    host: Box<str>,
    known: watch::Sender<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last good answer; it is used while there is no newer one. Empty: there was none yet.
    addresses: Arc<[IpAddr]>,
    /// Why the last look-up failed, until the next begins.
    failure: Option<Arc<str>>,
}

/// Descriptors that look-ups of so many names hold at most.
#[must_use]
pub fn descriptors(names: usize) -> u64 {
    DESCRIPTORS * names.min(MOST_THREADS) as u64
}

/// Looks names up from now on, each again and again with its pause, until it is dropped.
///
/// # Errors
/// When a thread cannot be made.
pub fn start<'a>(
    hosts: impl IntoIterator<Item = (&'a str, Duration)>,
) -> io::Result<Vec<Arc<Name>>> {
    let mut names = Vec::new();
    let mut shares: Vec<Vec<(Weak<Name>, Duration)>> = Vec::new();
    for (n, (host, every)) in hosts.into_iter().enumerate() {
        let name = Arc::new(Name {
            host: host.into(),
            known: watch::Sender::default(),
        });
        if n < MOST_THREADS {
            shares.push(Vec::new());
        }
        shares[n % MOST_THREADS].push((Arc::downgrade(&name), every));
        names.push(name);
    }
    for share in shares {
        let thread = thread::Builder::new().name("resolver".to_owned());
        thread.stack_size(STACK).spawn(move || keep_up(&share))?;
    }
    Ok(names)
}

/// The work of a thread. It is never joined, since a look-up may hang.
fn keep_up(share: &[(Weak<Name>, Duration)]) {
    let mut failing: Vec<Option<Millis>> = vec![None; share.len()];
    loop {
        let mut pause = Duration::MAX;
        for ((name, every), failing) in share.iter().zip(&mut failing) {
            let Some(name) = name.upgrade() else { return };
            let found = name.look_up();
            pause = pause.min(if found.is_ok() { *every } else { RETRY });
            name.report(&found, failing);
            name.learn(found);
        }
        thread::park_timeout(pause);
    }
}

impl Name {
    /// Its host name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The last good answer; `None` if there was none yet.
    #[must_use]
    pub fn known(&self) -> Option<Arc<[IpAddr]>> {
        let addresses = self.known.borrow().addresses.clone();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The last good answer; waits for the first one.
    ///
    /// # Errors
    /// Why the look-up that was going on has failed, or the one before if it was a moment ago.
    pub async fn addresses(&self) -> io::Result<Arc<[IpAddr]>> {
        let mut known = self.known.subscribe();
        let known = known
            .wait_for(|known| !known.addresses.is_empty() || known.failure.is_some())
            .await
            .map_err(io::Error::other)?;
        match &known.failure {
            Some(failure) if known.addresses.is_empty() => Err(io::Error::other(&**failure)),
            _ => Ok(known.addresses.clone()),
        }
    }

    fn look_up(&self) -> io::Result<Arc<[IpAddr]>> {
        // Whoever comes from now on waits for this answer.
        self.known.send_if_modified(|known| {
            known.failure = None;
            false
        });
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in (&*self.host, 0).to_socket_addrs()? {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        if addresses.is_empty() {
            return Err(io::Error::other("the name has no address"));
        }
        Ok(addresses.into())
    }

    fn learn(&self, found: io::Result<Arc<[IpAddr]>>) {
        self.known.send_modify(|known| match found {
            Ok(addresses) => known.addresses = addresses,
            Err(error) => known.failure = Some(error.to_string().into()),
        });
    }

    /// One line when it begins to fail, then seldom, and one when it is over.
    fn report(&self, found: &io::Result<Arc<[IpAddr]>>, failing: &mut Option<Millis>) {
        let now = sys::now();
        let host = &*self.host;
        match found {
            Ok(_) if failing.take().is_some() => tracing::info!(host, "the name is resolved again"),
            Ok(_) => {}
            Err(error) if failing.is_none_or(|last| now >= last + LINE_EVERY) => {
                *failing = Some(now);
                let then = match self.known() {
                    Some(_) => "its last addresses are used",
                    None => "its clients are turned away",
                };
                tracing::warn!(host, "cannot resolve a name: {error}; {then}");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name {
            host: "db.example".into(),
            known: watch::Sender::default(),
        }
    }

    fn answer(last: u8) -> Arc<[IpAddr]> {
        [IpAddr::from([192, 0, 2, last])].into()
    }

    #[tokio::test]
    async fn all_who_wait_share_one_answer() {
        let name = Arc::new(name());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let name = name.clone();
                tokio::spawn(async move { name.addresses().await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        name.learn(Ok(answer(1)));
        for task in waiting {
            assert_eq!(task.await.unwrap().unwrap(), answer(1));
        }
    }

    #[tokio::test]
    async fn the_last_good_answer_is_kept_while_dns_is_out() {
        let name = name();
        name.learn(Err(io::Error::other("out")));
        assert_eq!(name.addresses().await.unwrap_err().to_string(), "out");
        name.learn(Ok(answer(1)));
        name.learn(Err(io::Error::other("out")));
        assert_eq!(name.addresses().await.unwrap(), answer(1));
        name.learn(Ok(answer(2)));
        assert_eq!(name.known(), Some(answer(2)));
    }

    #[tokio::test]
    async fn a_literal_and_a_file_need_no_dns() {
        let every = Duration::from_secs(60);
        let names = start([("localhost", every), ("192.0.2.7", every)]).unwrap();
        let found = names[0].addresses().await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        assert_eq!(names[1].addresses().await.unwrap(), answer(7));
    }

    #[test]
    fn names_beyond_the_most_threads_share_them() {
        let hosts: Vec<String> = (0..200).map(|n| format!("192.0.2.{n}")).collect();
        let hosts = hosts.iter().map(|h| (&**h, Duration::from_secs(60)));
        let names = start(hosts).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            for (n, name) in names.iter().enumerate() {
                assert_eq!(
                    name.addresses().await.unwrap()[0],
                    IpAddr::from([192, 0, 2, n as u8])
                );
            }
        });
    }
}
