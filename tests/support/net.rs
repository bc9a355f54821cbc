//! The network: a client, healthy clients, the proxy, the service; each on a link of its own.
//!
//! ```text
//! client  10.1.0.2 --- 10.1.0.1 \
//! healthy 10.2.0.2 --- 10.2.0.1  proxy
//! service 10.3.0.2 --- 10.3.0.1 /
//! ```
//!
//! Over IPv6 the addresses are `fd00:1::2`, `fd00:1::1` and so on.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use pulsegate::sys::netns::Namespace;

use super::channel::Legs;
use super::endpoint::{Endpoint, Options, Service};
use super::link::{self, Direction, Family};

/// Where the proxy accepts clients, on every address that it has.
const LISTEN_PORT: u16 = 8000;
/// Where the service listens.
const SERVICE_PORT: u16 = 9000;

thread_local! {
    static KIND: Cell<(Family, Legs)> = const { Cell::new((Family::V4, Legs::Plain)) };
}

/// Has the networks that this thread builds have such addresses, and such peers.
pub fn build_over(family: Family, legs: Legs) {
    KIND.set((family, legs));
}

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
}

/// The network of one test. Nothing of it is left when it is dropped.
#[derive(Debug)]
pub struct Net {
    hosts: [Namespace; 3],
    links: [link::Link; 3],
    /// Where the proxy runs.
    pub proxy: Namespace,
    /// Which legs of the proxy speak TLS.
    pub legs: Legs,
}

impl Net {
    /// Builds the network with every link whole.
    pub fn new() -> Self {
        let (family, legs) = KIND.get();
        let make = || Namespace::new().expect("a network namespace");
        let (proxy, hosts) = (make(), [make(), make(), make()]);
        let connect = |host: Host| {
            link::Link::connect(host.number(), family, &proxy, &hosts[host as usize])
                .expect("connect two namespaces")
        };
        Self {
            links: HOSTS.map(connect),
            hosts,
            proxy,
            legs,
        }
    }

    /// The address of a host.
    pub fn address(&self, host: Host) -> IpAddr {
        self.links[host as usize].far()
    }

    /// Where the service listens.
    pub fn service(&self) -> SocketAddr {
        self.socket(Host::Service, SERVICE_PORT)
    }

    /// A host's address with a port.
    pub fn socket(&self, host: Host, port: u16) -> SocketAddr {
        (self.address(host), port).into()
    }

    /// Gives the proxy a second address on the link to a host.
    pub fn add_proxy_address(&self, host: Host) -> IpAddr {
        let (second, prefix): (IpAddr, u8) = match self.proxy_address(host) {
            IpAddr::V4(ip) => (Ipv4Addr::from_bits(ip.to_bits() + 8).into(), 24),
            IpAddr::V6(ip) => (Ipv6Addr::from_bits(ip.to_bits() + 8).into(), 64),
        };
        let interface = format!("link{}", host.number());
        let mut netlink = self.proxy.netlink().expect("a netlink socket");
        let added = netlink.add_address(&interface, second, prefix);
        added.expect("another address");
        second
    }

    /// The proxy's address on the link to a host.
    pub fn proxy_address(&self, host: Host) -> IpAddr {
        self.links[host as usize].near()
    }

    /// Where the proxy listens.
    pub fn everywhere(&self) -> SocketAddr {
        let any: IpAddr = match self.proxy_address(Host::Client) {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        (any, LISTEN_PORT).into()
    }

    /// Where the proxy accepts a host's connections.
    pub fn listener(&self, host: Host) -> SocketAddr {
        (self.proxy_address(host), LISTEN_PORT).into()
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

    /// A host receives none of the packets that this nftables expression matches.
    pub fn drop_at(&self, host: Host, matching: &str) {
        drop_in(self.host(host), matching);
    }

    /// One packet in ten is lost between the proxy and a client, each way.
    pub fn lose(&self, client: Host) {
        let by_chance = "numgen random mod 100 < 10";
        self.drop_at(client, by_chance);
        let address = self.address(client);
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        drop_in(
            &self.proxy,
            &format!("{family} saddr {address} {by_chance}"),
        );
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
        let speech = self.legs.of_clients();
        Endpoint::connect(self.host(from), self.listener(from), speech, options)
    }

    /// Starts the service.
    pub fn serve(&self, options: Options) -> Service {
        let (host, speech) = (self.host(Host::Service), self.legs.of_services());
        Service::start(host, self.service(), speech, options).expect("start the service")
    }

    /// Bytes that the kernel of a host has not got acknowledged on a connection.
    pub fn unacknowledged(&self, host: Host, connection: &Endpoint) -> u64 {
        self.unacknowledged_between(host, connection.local, connection.peer)
    }

    /// The same of one that its application has closed; its FIN counts as a byte.
    pub fn unacknowledged_between(&self, host: Host, local: SocketAddr, peer: SocketAddr) -> u64 {
        let table = tcp_table(self.host(host), local);
        let ports = (local.port(), peer.port());
        let line = table.lines().find(|l| ports_of(l) == Some(ports));
        let queues = line.and_then(|l| l.split_whitespace().nth(4)?.split_once(':'));
        queues.map_or(0, |(sent, _)| u64::from_str_radix(sent, 16).unwrap_or(0))
    }
}

/// The kernel's connections of a host, those of the same family as this address.
pub fn tcp_table(host: &Namespace, like: SocketAddr) -> String {
    let file = if like.is_ipv4() { "tcp" } else { "tcp6" };
    let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    host.run(read).expect("enter").expect("read the table")
}

/// Local and remote port of a line of `/proc/net/tcp` or `tcp6`.
fn ports_of(line: &str) -> Option<(u16, u16)> {
    let mut ends = line.split_whitespace().skip(1);
    let mut port = || u16::from_str_radix(ends.next()?.split_once(':')?.1, 16).ok();
    Some((port()?, port()?))
}

/// A namespace receives none of the packets that this nftables expression matches.
fn drop_in(namespace: &Namespace, matching: &str) {
    let rules = format!(
        "add table inet lost
            add chain inet lost in {{ type filter hook input priority 0; }}
            add rule inet lost in {matching} drop"
    );
    let nft = || Command::new("nft").arg(rules).output();
    let output = namespace.run(nft).expect("enter").expect("run nft");
    assert!(output.status.success(), "{output:?}");
}
