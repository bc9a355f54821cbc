//! The hosts of the demo and the links between them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys::netlink::{Mac, NOBODY};
use crate::sys::netns::Namespace;

/// Where the proxy accepts.
pub const PROXY_PORT: u16 = 9000;
const SERVICE_PORT: u16 = 7000;
/// A host's end of its link.
const INTERFACE: &str = "eth0";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Four hosts; the proxy is in the middle, and routes between the others.
#[derive(Debug)]
pub struct Stage {
    pub proxy: Namespace,
    /// Clients on a good link.
    pub office: Host,
    /// The client whose link will be cut.
    pub field: Host,
    service: Host,
}

/// `10.N.0.2/24`, at the other end of a link from the proxy's `10.N.0.1`.
#[derive(Debug)]
pub struct Host {
    number: u8,
    namespace: Namespace,
}

impl Stage {
    /// Builds everything with every link whole.
    pub fn build() -> io::Result<Self> {
        let proxy = Namespace::new()?;
        Ok(Self {
            office: Host::attach(1, &proxy)?,
            field: Host::attach(2, &proxy)?,
            service: Host::attach(3, &proxy)?,
            proxy,
        })
    }

    pub fn service_address(&self) -> SocketAddr {
        (self.service.address(), SERVICE_PORT).into()
    }

    pub fn listen(&self) -> io::Result<TcpListener> {
        let address = self.service_address();
        self.service.namespace.run(|| TcpListener::bind(address))?
    }

    /// Connects the field client straight to the service, over the same link. The proxy's host
    /// is only a router on this way; that cannot be had where /proc/sys is read-only.
    pub fn connect_directly(&self) -> io::Result<TcpStream> {
        let forward = "/proc/sys/net/ipv4/ip_forward";
        self.proxy.run(|| fs::write(forward, "1"))??;
        self.field.connect_to(self.service_address())
    }

    /// The field's link swallows everything, silently.
    pub fn cut(&self) -> io::Result<()> {
        self.field.set_neighbours(&self.proxy, [NOBODY; 2])
    }

    /// The field's link is whole again.
    pub fn heal(&self) -> io::Result<()> {
        self.field.set_neighbours(&self.proxy, self.field.macs())
    }

    /// How many connections with the field client the service's kernel has established.
    pub fn established_with_field(&self) -> io::Result<usize> {
        let field = self.field.address();
        let read = || fs::read_to_string("/proc/thread-self/net/tcp");
        let table = self.service.namespace.run(read)??;
        // Fields of proc_net_tcp: the remote address in hexadecimal and the state, 01.
        let remote = format!("{:08X}:", u32::from_ne_bytes(field.octets()));
        let is_one = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next().is_some_and(|f| f.starts_with(&remote)) && fields.next() == Some("01")
        };
        Ok(table.lines().filter(is_one).count())
    }
}

impl Host {
    /// A new host that reaches everything through the proxy.
    fn attach(number: u8, proxy: &Namespace) -> io::Result<Self> {
        let namespace = Namespace::new()?;
        let host = Self { number, namespace };
        let (interface, [gateway_mac, mac]) = (host.proxy_interface(), host.macs());
        let (mut here, mut there) = (proxy.netlink()?, host.namespace.netlink()?);
        let other = host.namespace.as_fd();
        here.add_veth((&interface, gateway_mac), (INTERFACE, mac), other)?;
        here.add_address(&interface, host.gateway().into(), 24)?;
        here.set_up(&interface)?;
        there.add_address(INTERFACE, host.address().into(), 24)?;
        there.set_up(INTERFACE)?;
        there.add_default_route(host.gateway().into())?;
        Ok(host)
    }

    /// Connects to the proxy.
    pub fn connect(&self) -> io::Result<TcpStream> {
        self.connect_to((self.gateway(), PROXY_PORT).into())
    }

    fn connect_to(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&to, CONNECT_TIMEOUT);
        self.namespace.run(connect)?
    }

    /// Says which hardware addresses the proxy's end and the host's end are sent to.
    fn set_neighbours(&self, proxy: &Namespace, [gateway, host]: [Mac; 2]) -> io::Result<()> {
        let (mut here, mut there) = (proxy.netlink()?, self.namespace.netlink()?);
        there.set_neighbour(INTERFACE, self.gateway().into(), gateway)?;
        here.set_neighbour(&self.proxy_interface(), self.address().into(), host)
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 1)
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 2)
    }

    fn proxy_interface(&self) -> String {
        format!("link{}", self.number)
    }

    /// Of the proxy's end and of the host's.
    fn macs(&self) -> [Mac; 2] {
        [1, 2].map(|end| [2, 0, 0, 0, self.number, end])
    }
}
