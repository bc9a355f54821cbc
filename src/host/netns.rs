//! What the kernel counts for the whole network namespace, pulsegate's part not kept apart.

use std::fs;
use std::io;

/// Counters of `/proc/net/netstat`, since the namespace was made. `None`: this kernel has no such
/// counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Newcomers dropped because an accept queue was full (`ListenOverflows`).
    pub listen_overflows: Option<u64>,
    /// The same and those dropped for other reasons, such as no memory (`ListenDrops`).
    pub listen_drops: Option<u64>,
    /// Handshakes answered with a cookie instead of memory (`SyncookiesSent`).
    pub syncookies_sent: Option<u64>,
    /// Cookies that came back, each a connection (`SyncookiesRecv`).
    pub syncookies_received: Option<u64>,
    /// SYNs answered with a cookie because the queue was full (`TCPReqQFullDoCookies`).
    pub request_queue_full_cookies: Option<u64>,
}

impl Counters {
    /// Reads the namespace of the calling thread (some 30 us).
    ///
    /// # Errors
    /// Where `/proc` is not mounted or hidden.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&read("netstat")?))
    }

    /// Finds the counters by name: their order and number differ between kernels.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        // A line of names and a line of values for each group.
        let value = |name| {
            lines.chunks_exact(2).find_map(|group| {
                let column = group[0].split_ascii_whitespace().position(|n| n == name)?;
                let value = group[1].split_ascii_whitespace().nth(column)?;
                value.parse().ok()
            })
        };
        Self {
            listen_overflows: value("ListenOverflows"),
            listen_drops: value("ListenDrops"),
            syncookies_sent: value("SyncookiesSent"),
            syncookies_received: value("SyncookiesRecv"),
            request_queue_full_cookies: value("TCPReqQFullDoCookies"),
        }
    }
}

/// The TCP line of `/proc/net/sockstat`. `None`: this kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Sockets in use (`inuse`): connections of either direction and listeners. Of IPv4 alone.
    pub in_use: Option<u64>,
    /// Connections in TIME_WAIT.
    pub time_wait: Option<u64>,
    /// Connections that no process holds and that the kernel still ends.
    pub orphans: Option<u64>,
    /// Memory of TCP buffers in pages; of the whole host.
    pub memory_pages: Option<u64>,
}

impl Sockets {
    /// Reads the namespace of the calling thread (some 20 us).
    ///
    /// # Errors
    /// Where `/proc` is not mounted or hidden.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&read("sockstat")?))
    }

    /// Finds the values by name.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let tcp = text.lines().find_map(|line| line.strip_prefix("TCP:"));
        let words: Vec<&str> = tcp.unwrap_or_default().split_ascii_whitespace().collect();
        let value = |name| {
            let pair = words.chunks_exact(2).find(|pair| pair[0] == name)?;
            pair[1].parse().ok()
        };
        Self {
            in_use: value("inuse"),
            time_wait: value("tw"),
            orphans: value("orphan"),
            memory_pages: value("mem"),
        }
    }
}

/// `/proc/net` is the namespace of the process's first thread; that of this thread comes first.
fn read(file: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/thread-self/net/{file}"))
        .or_else(|_| fs::read_to_string(format!("/proc/net/{file}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18, shortened.
    const NETSTAT: &str = "\
TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts TW ListenOverflows ListenDrops TCPAbortOnMemory TCPReqQFullDoCookies TCPReqQFullDrop TCPRetransFail
TcpExt: 4 3 0 0 81200 46 51 8 7 6 0
IpExt: InNoRoutes InTruncatedPkts InMcastPkts
IpExt: 0 0 2
";

    #[test]
    fn counters_are_found_by_name() {
        let expected = Counters {
            listen_overflows: Some(46),
            listen_drops: Some(51),
            syncookies_sent: Some(4),
            syncookies_received: Some(3),
            request_queue_full_cookies: Some(7),
        };
        assert_eq!(Counters::parse(NETSTAT), expected);
    }

    /// Another order, another group first, some counters missing, an unknown one added.
    #[test]
    fn other_kernels_have_other_columns() {
        let text = "\
IpExt: InNoRoutes InTruncatedPkts
IpExt: 1 2
TcpExt: ListenDrops Novelty ListenOverflows SyncookiesSent
TcpExt: 5 99 4 18446744073709551615
";
        let expected = Counters {
            listen_overflows: Some(4),
            listen_drops: Some(5),
            syncookies_sent: Some(u64::MAX),
            ..Counters::default()
        };
        assert_eq!(Counters::parse(text), expected);
    }

    #[test]
    fn what_makes_no_sense_is_unknown() {
        for text in [
            "",
            "TcpExt: ListenDrops\n",
            "TcpExt: ListenDrops\nTcpExt:\n",
            "TcpExt: ListenDrops\nTcpExt: -1\n",
            "\0\n\0\n",
        ] {
            assert_eq!(Counters::parse(text), Counters::default(), "{text:?}");
        }
        for text in ["", "TCP:", "TCP: tw", "TCP: tw x orphan", "TCP6: tw 3"] {
            assert_eq!(Sockets::parse(text), Sockets::default(), "{text:?}");
        }
    }

    #[test]
    fn sockets_are_those_of_the_tcp_line() {
        let text = "\
sockets: used 29
TCP: inuse 9 orphan 94 tw 39099 alloc 104 mem 383
UDP: inuse 0 mem 7
FRAG: inuse 0 memory 0
";
        let expected = Sockets {
            in_use: Some(9),
            time_wait: Some(39_099),
            orphans: Some(94),
            memory_pages: Some(383),
        };
        assert_eq!(Sockets::parse(text), expected);
        let without_memory = Sockets::parse("TCP: tw 3 inuse 9 orphan 0\n");
        assert_eq!(without_memory.time_wait, Some(3));
        assert_eq!(without_memory.memory_pages, None);
    }

    #[test]
    fn this_kernel_can_be_read() {
        assert!(Counters::read().expect("read").listen_drops.is_some());
        assert!(Sockets::read().expect("read").time_wait.is_some());
    }
}
