//! The socket options that say when the kernel asks, and when it gives up.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use crate::liveness::{Policy, Span};
use crate::sys::sockopt::{self, IntOption};

/// As getsockopt(2) gives them; a value that follows the system's is that of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `SO_KEEPALIVE`.
    pub keepalive: i32,
    /// `TCP_KEEPIDLE`, seconds.
    pub idle: i32,
    /// `TCP_KEEPINTVL`, seconds.
    pub interval: i32,
    /// `TCP_KEEPCNT`.
    pub count: i32,
    /// `TCP_USER_TIMEOUT`, milliseconds; 0 is off.
    pub user_timeout: i32,
    /// `TCP_RTO_MAX_MS`; `None` before Linux 6.15.
    pub rto_max: Option<i32>,
}

/// The kernel's own.
const RTO_MAX_MS: i32 = 120_000;
/// The kernel gives up what is in flight after so many retransmissions (`tcp_retries2`).
const RETRANSMISSIONS: u64 = 15;

/// The kernel takes no more seconds for `TCP_KEEPIDLE` and `TCP_KEEPINTVL`.
const LONGEST: u64 = 32_767;

impl Options {
    /// Those of a socket.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn read(fd: RawFd) -> io::Result<Self> {
        let get = |option| sockopt::get_int(fd, option);
        Ok(Self {
            keepalive: get(sockopt::KEEPALIVE)?,
            idle: get(sockopt::KEEPIDLE)?,
            interval: get(sockopt::KEEPINTVL)?,
            count: get(sockopt::KEEPCNT)?,
            user_timeout: get(sockopt::USER_TIMEOUT)?,
            rto_max: get(sockopt::RTO_MAX_MS).ok(),
        })
    }

    /// Gives a socket those that differ from what it `has`. The kernel then counts the idle time from the
    /// last sign of life (`tcp_sock_set_keepidle_locked`, net/ipv4/tcp.c).
    ///
    /// # Errors
    /// The option that could not be set, with what setsockopt(2) says.
    pub fn give(&self, fd: RawFd, has: &Self) -> io::Result<()> {
        let set = |option: IntOption, value, old| match value == old {
            true => Ok(()),
            false => sockopt::set_int(fd, option, value).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", option.label))
            }),
        };
        set(sockopt::KEEPALIVE, self.keepalive, has.keepalive)?;
        set(sockopt::USER_TIMEOUT, self.user_timeout, has.user_timeout)?;
        set(sockopt::KEEPINTVL, self.interval, has.interval)?;
        if let (Some(value), Some(old)) = (self.rto_max, has.rto_max) {
            set(sockopt::RTO_MAX_MS, value, old)?;
        }
        // Always where the kernel is to ask: it arms the timer anew.
        let armed = if self.keepalive == 0 { has.idle } else { 0 };
        set(sockopt::KEEPIDLE, self.idle, armed)?;
        set(sockopt::KEEPCNT, self.count, has.count)
    }

    /// Those by which the kernel alone ends a peer that vanished within D, where D is 5 s or more: nine
    /// unanswered questions or more if there is time for them. Its timers are late by up to 1/8.
    #[must_use]
    pub fn to_keep(policy: &Policy) -> Self {
        let second = Span::ms(1000);
        let within = policy.detect_within - policy.detect_within / 8;
        let idle = policy.keepalive_idle().min(second * LONGEST);
        let interval = ((within - idle) / 9 / second).clamp(1, LONGEST);
        let count = ((within - idle) / (second * interval)).clamp(1, 127);
        let gap = (policy.detect_within / RETRANSMISSIONS).as_millis();
        Self {
            keepalive: 1,
            idle: int(idle / second),
            interval: int(interval),
            count: int(count),
            user_timeout: 0,
            rto_max: Some(int(gap).clamp(1000, RTO_MAX_MS)),
        }
    }

    /// What a connection that has these gets back that was `given` its options in place of the `first`: each that
    /// nobody has changed since. Where another made keepalive stricter, it wants it, and all stays.
    #[must_use]
    pub fn returned(&self, given: &Self, first: &Self, within: Span) -> Self {
        // A scan may have raised the count.
        let count = self.count.min(given.count);
        let is_stricter = (self.idle, self.interval, count)
            != (given.idle, given.interval, given.count)
            && self.keep(within);
        if is_stricter {
            return *self;
        }
        let of = |has: i32, given: i32, first: i32| if has == given { first } else { has };
        Self {
            keepalive: of(self.keepalive, given.keepalive, first.keepalive),
            idle: of(self.idle, given.idle, first.idle),
            interval: of(self.interval, given.interval, first.interval),
            count: of(count, given.count, first.count),
            user_timeout: of(self.user_timeout, given.user_timeout, first.user_timeout),
            rto_max: match self.rto_max == given.rto_max {
                true => first.rto_max,
                false => self.rto_max,
            },
        }
    }

    /// Whether a quiet peer that vanished is ended within this time already.
    #[must_use]
    pub fn keep(&self, within: Span) -> bool {
        let [idle, interval, count] = [self.idle, self.interval, self.count].map(positive);
        let tries = match positive(self.user_timeout) {
            0 => Span::ms((idle + interval * count) * 1000),
            // At the first probe after it, the first one excepted.
            limit => Span::ms((idle + interval) * 1000).max(Span::ms(limit + interval * 1000)),
        };
        self.keepalive != 0 && tries <= within
    }
}

fn int(value: u64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn positive(value: i32) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.keepalive == 0 { "off" } else { "on" };
        write!(
            f,
            "keepalive {word}, idle {} s, interval {} s, count {}, user timeout {} ms",
            self.idle, self.interval, self.count, self.user_timeout
        )?;
        self.rto_max
            .map_or(Ok(()), |gap| write!(f, ", longest RTO {gap} ms"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;
    use crate::scan::policy;

    #[test]
    fn what_is_given_keeps_the_promise_with_several_questions() {
        for seconds in [5, 10, 30, 60, 300, 3600, 360_000, 36_000_000] {
            let policy = policy(Duration::from_secs(seconds));
            let options = Options::to_keep(&policy);
            assert!(options.keep(policy.detect_within), "{seconds}: {options}");
            // The timers of the kernel are late by 1/8 at most.
            let latest = (options.idle + options.interval * options.count) * 9 / 8;
            assert!(
                i64::from(latest) <= seconds.cast_signed(),
                "{seconds}: {options}"
            );
            assert!(options.count >= 3, "{seconds}: {options}");
            let longest = options.idle.max(options.interval);
            assert!(longest <= 32_767, "{seconds}: {options}");
        }
    }

    #[test]
    fn stricter_options_are_told_from_laxer_ones() {
        let own = |keepalive, idle, interval, count, user_timeout| Options {
            keepalive,
            idle,
            interval,
            count,
            user_timeout,
            rto_max: None,
        };
        let within = Span::ms(30_000);
        assert!(!own(0, 1, 1, 1, 0).keep(within));
        assert!(!own(1, 7200, 75, 9, 0).keep(within));
        assert!(own(1, 10, 5, 3, 0).keep(within));
        assert!(!own(1, 10, 5, 9, 0).keep(within));
        assert!(own(1, 10, 5, 9, 20_000).keep(within));
        assert!(!own(1, 60, 5, 9, 20_000).keep(within));
    }

    #[test]
    fn what_nobody_changed_since_goes_back() {
        let within = Span::ms(30_000);
        let first = Options {
            keepalive: 0,
            idle: 7200,
            interval: 75,
            count: 9,
            user_timeout: 0,
            rto_max: Some(120_000),
        };
        let given = Options::to_keep(&policy(Duration::from_secs(30)));
        let back = |has: Options| has.returned(&given, &first, within);
        assert_eq!(back(given), first);
        let raised = Options { count: 12, ..given };
        assert_eq!(back(raised), first);
        let off = Options {
            keepalive: 0,
            ..given
        };
        assert_eq!(back(off), first);
        let slow = Options { idle: 600, ..given };
        assert_eq!(back(slow), Options { idle: 600, ..first });
        let user_timeout = 20_000;
        let timed = Options {
            user_timeout,
            ..given
        };
        assert_eq!(
            back(timed),
            Options {
                user_timeout,
                ..first
            }
        );
        let stricter = Options::to_keep(&policy(Duration::from_secs(5)));
        assert_eq!(back(stricter), stricter);
    }

    #[test]
    fn options_are_given_and_given_back() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let fd = near.as_raw_fd();
        let own = Options::read(fd).expect("read");
        assert_eq!(own.keepalive, 0);
        let wanted = Options {
            rto_max: own.rto_max.map(|_| 2000),
            ..Options::to_keep(&policy(Duration::from_secs(30)))
        };
        wanted.give(fd, &own).expect("set");
        assert_eq!(Options::read(fd).expect("read"), wanted);
        own.give(fd, &wanted).expect("set");
        assert_eq!(Options::read(fd).expect("read"), own);
    }
}
