//! One address of an upstream, and what is counted there.

use std::io;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::check::Health;
use super::ejection::{Ejector, Record, Row};
use crate::config::{Check, UpstreamAddress};
use crate::liveness::{Span, Time};
use crate::sys;
use crate::tls::HandshakeError;

/// One address of an upstream. It lives for as long as its cluster has it, or a session uses it.
#[derive(Debug)]
pub struct Endpoint {
    /// No name.
    address: UpstreamAddress,
    /// As it is configured, where that is a DNS name.
    name: Option<Arc<str>>,
    /// Stands for the address where clients are spread by theirs.
    seed: u64,
    active: AtomicUsize,
    connects: AtomicU64,
    failures: AtomicU64,
    pub(super) record: Record,
    /// Whether checks have not found it down.
    up: AtomicBool,
    checked: Mutex<Checked>,
    /// When it came to be.
    created: Time,
}

/// What is known by checks.
#[derive(Debug, Default)]
struct Checked {
    health: Health,
    /// Why it is down: for telling causes apart, and for the operator.
    cause: Option<[String; 2]>,
    /// When it last went up or down.
    turned: Option<Time>,
    last: Option<LastCheck>,
}

/// The last check of an endpoint.
#[derive(Clone, Debug)]
pub struct LastCheck {
    /// When its result came.
    pub at: Time,
    /// Why it failed; `None`: it passed.
    pub error: Option<String>,
}

/// What the result of a check changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is up.
    Up,
    /// It is down.
    Down,
    /// It is down for another reason than before.
    Cause,
}

/// How an endpoint stands beside the others. The best is dialled first; the others are tried where no
/// better one connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing is known against it.
    Up,
    /// Sessions failed there, one after the other.
    Ejected,
    /// Checks have found it down.
    Down,
}

impl Endpoint {
    pub(super) fn new(address: UpstreamAddress, name: Option<Arc<str>>) -> Arc<Self> {
        Arc::new(Self {
            seed: seed(address.to_string().as_bytes()),
            address,
            name,
            active: AtomicUsize::new(0),
            connects: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            record: Record::default(),
            up: AtomicBool::new(true),
            checked: Mutex::default(),
            created: sys::now(),
        })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &UpstreamAddress {
        &self.address
    }

    /// Whether it is a Unix socket.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.address, UpstreamAddress::Unix(_))
    }

    /// The name that it was first found by, as it is configured; `None`: the address is configured.
    #[must_use]
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// What its certificate names where nothing else is configured: the host of its name, else its IP address.
    /// Empty: it is a Unix socket.
    #[must_use]
    pub fn host(&self) -> String {
        let name = self.name.as_ref().and_then(|name| name.rsplit_once(':'));
        let address = || self.address.literal().map(|to| to.ip().to_string());
        let name = name.map(|(host, _port)| host.to_owned());
        name.or_else(address).unwrap_or_default()
    }

    /// Sessions that are connected to it, or are being connected.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Connections made.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// Connects that were refused, failed otherwise, or were not answered in their time.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How it stands now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if !self.up.load(Ordering::Relaxed) {
            Standing::Down
        } else if self.record.ejected_for().is_some() {
            Standing::Ejected
        } else {
            Standing::Up
        }
    }

    /// Since when it has stood as it does.
    #[must_use]
    pub fn stands_since(&self) -> Time {
        let by_checks = self.lock().turned.unwrap_or(self.created);
        match self.standing() {
            Standing::Down => by_checks,
            Standing::Ejected | Standing::Up => by_checks.max(self.record.turned()),
        }
    }

    /// The last check, if there was one.
    #[must_use]
    pub fn last_check(&self) -> Option<LastCheck> {
        self.lock().last.clone()
    }

    /// How long it is ejected for yet, if it is.
    #[must_use]
    pub fn ejected_for(&self) -> Option<Span> {
        self.record.ejected_for()
    }

    /// How often it was ejected.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.record.ejections()
    }

    /// Connects or sessions, whichever are more, that failed since the last that went well.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.record.failures()
    }

    /// Takes in the result of a check, and says what that changes.
    pub fn checked(&self, result: &io::Result<()>, check: &Check) -> Option<Change> {
        let mut checked = self.lock();
        let turns = checked.health.take(result.is_ok(), check);
        let is_up = checked.health.is_up();
        self.up.store(is_up, Ordering::Relaxed);
        let now = sys::now();
        checked.turned = if turns { Some(now) } else { checked.turned };
        checked.last = Some(LastCheck {
            at: now,
            error: result.as_ref().err().map(ToString::to_string),
        });
        let Err(error) = result else {
            checked.cause.take_if(|_| is_up);
            return turns.then_some(Change::Up);
        };
        if is_up {
            return None;
        }
        let now = [kind(error), error.to_string()];
        let before = checked.cause.replace(now.clone());
        match turns {
            true => Some(Change::Down),
            false => before
                .is_some_and(|before| before[0] != now[0])
                .then_some(Change::Cause),
        }
    }

    /// Why it is down, as the last check said that has failed.
    #[must_use]
    pub fn cause(&self) -> Option<String> {
        let checked = self.lock();
        checked.cause.as_ref().map(|[_, text]| text.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Checked> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// It is checked no longer.
    pub fn unchecked(&self) {
        let mut checked = self.lock();
        let turned = match checked.health.is_up() {
            true => checked.turned,
            false => Some(sys::now()),
        };
        *checked = Checked {
            turned,
            ..Checked::default()
        };
        self.up.store(true, Ordering::Relaxed);
    }

    /// How much a client belongs here (rendezvous hashing): it goes where this is the highest. The same
    /// in every process, so that several instances agree.
    pub(super) fn affinity(&self, client: IpAddr) -> u64 {
        let client = match client.to_canonical() {
            IpAddr::V4(ip) => seed(&ip.octets()),
            IpAddr::V6(ip) => seed(&ip.octets()),
        };
        mix(self.seed ^ client)
    }

    /// Counts the outcome of a connect, and returns it.
    pub(super) fn count<T>(&self, ejector: &Arc<Ejector>, outcome: io::Result<T>) -> io::Result<T> {
        match &outcome {
            Ok(_) => {
                self.connects.fetch_add(1, Ordering::Relaxed);
                ejector.went_well(self, Row::Connects);
            }
            Err(error) => self.count_failure(ejector, error),
        }
        outcome
    }

    /// Counts a connect that failed.
    pub(super) fn count_failure(&self, ejector: &Arc<Ejector>, error: &io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !is_local(error) {
            ejector.failed(self, Row::Connects, error);
        }
    }
}

/// What tells the failures of checks apart: how long ago a certificate has expired does not.
fn kind(error: &io::Error) -> String {
    let of_tls = error.get_ref().and_then(|it| it.downcast_ref());
    of_tls.map_or_else(
        || error.to_string(),
        |error: &HandshakeError| error.failure.to_string(),
    )
}

/// Whether this host ran out of something; the upstream has no part in it.
#[must_use]
pub fn is_local(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let is_short = matches!(
        code,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    );
    is_short || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// FNV-1a, and mixed: similar addresses have nothing in common.
fn seed(bytes: &[u8]) -> u64 {
    let byte = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, byte))
}

/// The end of SplitMix64: each bit of the result depends on each bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A session counted as active at its endpoint, until it is dropped.
#[derive(Debug)]
pub struct ActiveSession(Arc<Endpoint>);

impl ActiveSession {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl Deref for ActiveSession {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Upstream;
    use crate::tls::HandshakeFailure;

    #[test]
    fn why_an_endpoint_is_down_is_known_and_a_change_of_it_is_told() {
        let address = UpstreamAddress::Socket(([127, 0, 0, 1], 1).into());
        let check = Check {
            rise: 2,
            fall: 2,
            ..Upstream::of(address.clone()).check
        };
        let endpoint = Endpoint::new(address, None);
        let of_tls =
            |failure, text: &str| Err(io::Error::other(HandshakeError::new(failure, text)));
        let expired = |ago: &str| of_tls(HandshakeFailure::CertificateExpired, ago);
        let status = || Err(io::Error::other("status 503"));
        for (result, change, cause) in [
            (expired("1 s ago"), None, None),
            (expired("2 s ago"), Some(Change::Down), Some("2 s ago")),
            (expired("3 s ago"), None, Some("3 s ago")),
            (status(), Some(Change::Cause), Some("status 503")),
            (status(), None, Some("status 503")),
            (Ok(()), None, Some("status 503")),
            (Ok(()), Some(Change::Up), None),
            (status(), None, None),
        ] {
            assert_eq!(endpoint.checked(&result, &check), change, "{result:?}");
            assert_eq!(endpoint.cause().as_deref(), cause, "{result:?}");
            let last = endpoint.last_check().expect("checked");
            assert_eq!(last.error, result.err().map(|error| error.to_string()));
            if change.is_some_and(|change| change != Change::Cause) {
                assert_eq!(endpoint.stands_since(), last.at);
            }
        }
    }
}
