//! The network: a client, healthy clients, the proxy, the service; each on a link of its own.
//!
//! ```text
//! client  10.1.0.2 --- 10.1.0.1 \
//! healthy 10.2.0.2 --- 10.2.0.1  proxy
//! service 10.3.0.2 --- 10.3.0.1 /
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use pulsegate::sys::link::{self, Direction};
use pulsegate::sys::netns::Namespace;

use super::endpoint::{Endpoint, Options, Service};

/// Where the proxy accepts clients, on every address that it has.
pub const LISTEN_PORT: u16 = 8000;
/// Where the service listens.
pub const SERVICE_PORT: u16 = 9000;
/// The same with its address.
pub const SERVICE: SocketAddr = Host::Service.socket(SERVICE_PORT);

/// A host other than the proxy, and the link between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The client whose link is broken.
    Client,
    /// Clients that must not notice.
    Healthy,
    /// The legacy service.
    Service,
}

/// A link is named by its host.
pub type Link = Host;

const HOSTS: [Host; 3] = [Host::Client, Host::Healthy, Host::Service];

impl Host {
    const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The host's address with a port.
    pub const fn socket(self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address()), port)
    }

    /// The host's address.
    pub const fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number(), 0, 2)
    }

    /// The proxy's address on the link to this host.
    pub fn proxy_address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number(), 0, 1)
    }
}

/// The network of one test. Nothing of it is left when it is dropped.
#[derive(Debug)]
pub struct Net {
    hosts: [Namespace; 3],
    links: [link::Link; 3],
    /// Where the proxy runs.
    pub proxy: Namespace,
}

impl Net {
    /// Builds the network with every link whole.
    pub fn new() -> Self {
        let make = || Namespace::new().expect("a network namespace");
        let (proxy, hosts) = (make(), [make(), make(), make()]);
        let connect = |host: Host| {
            link::Link::connect(host.number(), &proxy, &hosts[host as usize])
                .expect("connect two namespaces")
        };
        Self {
            links: HOSTS.map(connect),
            hosts,
            proxy,
        }
    }

    /// The namespace of a host.
    pub fn host(&self, host: Host) -> &Namespace {
        &self.hosts[host as usize]
    }

    /// Both directions of a link swallow everything, silently.
    pub fn cut(&self, link: Link) {
        self.links[link as usize]
            .cut(&self.proxy, self.host(link))
            .expect("cut the link");
    }

    /// One direction of a link swallows everything, silently.
    pub fn cut_one_way(&self, link: Link, direction: Direction) {
        self.links[link as usize]
            .cut_one_way(&self.proxy, self.host(link), direction)
            .expect("cut one way of the link");
    }

    /// The link is whole again.
    pub fn heal(&self, link: Link) {
        self.links[link as usize]
            .heal(&self.proxy, self.host(link))
            .expect("heal the link");
    }

    /// Connects from a host to the proxy.
    #[track_caller]
    pub fn dial(&self, from: Host, options: Options) -> Endpoint {
        self.try_dial(from, options).expect("connect to the proxy")
    }

    /// The same where the proxy may refuse, or reset at once.
    pub fn try_dial(&self, from: Host, options: Options) -> io::Result<Endpoint> {
        let to = SocketAddr::from((from.proxy_address(), LISTEN_PORT));
        Endpoint::connect(self.host(from), to, options)
    }

    /// Starts the service.
    pub fn serve(&self, options: Options) -> Service {
        Service::start(self.host(Host::Service), SERVICE, options).expect("start the service")
    }

    /// Bytes that the kernel of a host has not got acknowledged on a connection.
    pub fn unacknowledged(&self, host: Host, connection: &Endpoint) -> u64 {
        let table = self
            .host(host)
            .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))
            .expect("enter the namespace")
            .expect("read the table");
        let ports = (connection.local.port(), connection.peer.port());
        let line = table.lines().find(|l| ports_of(l) == Some(ports));
        let queues = line.and_then(|l| l.split_whitespace().nth(4)?.split_once(':'));
        queues.map_or(0, |(sent, _)| u64::from_str_radix(sent, 16).unwrap_or(0))
    }
}

/// Local and remote port of a line of `/proc/net/tcp`.
fn ports_of(line: &str) -> Option<(u16, u16)> {
    let mut ends = line.split_whitespace().skip(1);
    let mut port = || u16::from_str_radix(ends.next()?.split_once(':')?.1, 16).ok();
    Some((port()?, port()?))
}
