//! Which connections are meant. Pure.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// At either end.
    pub port: Option<u16>,
    /// At this host's end.
    pub local_port: Option<u16>,
    /// At the other end.
    pub peer_port: Option<u16>,
    /// Where the other end is.
    pub peer: Option<IpNet>,
    /// Name of the process, as `/proc/PID/comm` has it.
    pub process: Option<String>,
    /// The process.
    pub pid: Option<u32>,
    /// The control group of the process, or one above it.
    pub cgroup: Option<String>,
}

impl Matching {
    /// By the ends alone.
    #[must_use]
    pub fn ends(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let ports = [local.port(), peer.port()];
        self.port.is_none_or(|port| ports.contains(&port))
            && self.local_port.is_none_or(|port| port == local.port())
            && self.peer_port.is_none_or(|port| port == peer.port())
            && self.peer.is_none_or(|net| net.contains(&peer.ip()))
    }

    /// Whether the process matters.
    #[must_use]
    pub fn asks_for_process(&self) -> bool {
        self.process.is_some() || self.pid.is_some() || self.cgroup.is_some()
    }

    /// By the process alone; `cgroup` is asked for only if that matters. The kernel keeps 15 bytes of a name.
    pub fn holder(&self, pid: u32, name: &str, cgroup: impl FnOnce() -> String) -> bool {
        let is_within = |group: &String| {
            let own = cgroup();
            let rest = own.strip_prefix(group.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_called =
            |wanted: &String| wanted == name || name.len() == 15 && wanted.starts_with(name);
        self.pid.is_none_or(|wanted| wanted == pid)
            && self.process.as_ref().is_none_or(is_called)
            && self.cgroup.as_ref().is_none_or(is_within)
    }
}

/// A network, or one address. An IPv4-mapped one is that of IPv4, as the ends of connections are.
pub fn network(text: &str) -> Result<IpNet, String> {
    let canonical = |net: IpNet| match (net.addr().to_canonical(), net.prefix_len()) {
        (IpAddr::V4(four), bits @ 96..) => Ipv4Net::new(four, bits - 96).map_or(net, IpNet::V4),
        _ => net,
    };
    let one = text.parse::<IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse())
        .map(canonical)
        .map_err(|_| format!("{text:?} is neither an address nor a network such as 10.0.0.0/8"))
}

impl FromStr for Matching {
    type Err = String;

    /// Reads `port=6379,process=redis-server`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Self::default();
        let mut keys = HashSet::new();
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())
                .ok_or_else(|| format!("{part:?} has no value: write KEY=VALUE"))?;
            if !keys.insert(key) {
                return Err(format!(
                    "{key}: all keys of one --match must hold; write another --match for another value"
                ));
            }
            let number = |what: &str| format!("{key}: {value:?} is no {what}");
            let port = || value.parse().map(Some).map_err(|_| number("port"));
            match key {
                "port" => found.port = port()?,
                "local-port" => found.local_port = port()?,
                "peer-port" => found.peer_port = port()?,
                "peer" => found.peer = Some(network(value)?),
                "process" => found.process = Some(value.to_owned()),
                "pid" => found.pid = Some(value.parse().map_err(|_| number("process number"))?),
                "cgroup" => found.cgroup = Some(value.to_owned()),
                _ => {
                    return Err(format!(
                        "{key:?} is no key; there are port, local-port, peer-port, peer, process, pid, cgroup"
                    ));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Matching {
        text.parse().expect(text)
    }

    #[test]
    fn every_key_that_is_given_must_hold() {
        let local = "10.0.0.1:50000".parse().expect("an address");
        let peer = "10.9.0.2:6379".parse().expect("an address");
        for (text, holds) in [
            ("port=6379", true),
            ("port=50000", true),
            ("local-port=6379", false),
            ("peer-port=6379,peer=10.9.0.0/16", true),
            ("peer-port=6379,peer=10.8.0.0/16", false),
            ("peer=10.9.0.2", true),
            ("peer=::ffff:10.9.0.2", true),
            ("peer=::ffff:10.8.0.2", false),
            ("peer=::ffff:10.9.0.0/112", true),
            ("peer=::ffff:0:0/96", true),
            ("peer=::/0", false),
        ] {
            assert_eq!(read(text).ends(local, peer), holds, "{text}");
        }
        let group = || "/system.slice/redis.service".to_owned();
        for (text, holds) in [
            ("process=redis-server", true),
            ("process=redis", false),
            ("cgroup=/system.slice", true),
            ("cgroup=/system.slice/", true),
            ("cgroup=/system.sl", false),
            ("pid=7,cgroup=/system.slice/redis.service", true),
            ("pid=8", false),
        ] {
            assert!(read(text).asks_for_process());
            assert_eq!(read(text).holder(7, "redis-server", group), holds, "{text}");
        }
        let long = read("process=postgres_exporter");
        for (name, holds) in [("postgres_export", true), ("postgres", false)] {
            assert_eq!(long.holder(7, name, group), holds, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("port", "KEY=VALUE"),
            ("port=x", "no port"),
            ("process=", "no value"),
            ("peer=10.0.0", "network"),
            ("name=x", "cgroup"),
            ("port=6379,port=6380", "another --match"),
            ("", "KEY=VALUE"),
        ] {
            let error = text.parse::<Matching>().expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
