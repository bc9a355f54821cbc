//! The hosts of the demo and the links between them.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::sys::link::{Family, Link};
use crate::sys::netns::Namespace;

/// Where the proxy accepts.
pub const PROXY_PORT: u16 = 9000;
const SERVICE_PORT: u16 = 7000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Four hosts; the proxy is in the middle, and routes between the others.
#[derive(Debug)]
pub struct Stage {
    pub proxy: Namespace,
    office: Host,
    field: Host,
    service: Host,
}

#[derive(Debug)]
struct Host {
    namespace: Namespace,
    link: Link,
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Clients on a good link.
    Office,
    /// The client whose link will be cut.
    Field,
}

impl Stage {
    /// Builds everything with every link whole.
    pub fn build() -> io::Result<Self> {
        let proxy = Namespace::new()?;
        let host = |number| {
            let namespace = Namespace::new()?;
            let link = Link::connect(number, Family::V4, &proxy, &namespace)?;
            link.route_through(&namespace)?;
            io::Result::Ok(Host { namespace, link })
        };
        let (office, field, service) = (host(1)?, host(2)?, host(3)?);
        Ok(Self {
            proxy,
            office,
            field,
            service,
        })
    }

    pub fn service_address(&self) -> SocketAddr {
        (self.service.link.far(), SERVICE_PORT).into()
    }

    pub fn listen(&self) -> io::Result<TcpListener> {
        let address = self.service_address();
        self.service.namespace.run(|| TcpListener::bind(address))?
    }

    /// Connects to the proxy.
    pub fn connect(&self, from: From) -> io::Result<TcpStream> {
        let host = self.host(from);
        let to = (host.link.near(), PROXY_PORT).into();
        host.namespace
            .run(|| TcpStream::connect_timeout(&to, CONNECT_TIMEOUT))?
    }

    /// Connects the field client straight to the service, over the same link. The proxy's host
    /// is only a router on this way; that cannot be had where /proc/sys is read-only.
    pub fn connect_directly(&self) -> io::Result<TcpStream> {
        let forward = "/proc/sys/net/ipv4/ip_forward";
        self.proxy.run(|| fs::write(forward, "1"))??;
        let to = self.service_address();
        self.field
            .namespace
            .run(|| TcpStream::connect_timeout(&to, CONNECT_TIMEOUT))?
    }

    /// The field's link swallows everything.
    pub fn cut(&self) -> io::Result<()> {
        self.field.link.cut(&self.proxy, &self.field.namespace)
    }

    /// The field's link is whole again.
    pub fn heal(&self) -> io::Result<()> {
        self.field.link.heal(&self.proxy, &self.field.namespace)
    }

    /// How many connections with the field client the service's kernel has established.
    pub fn established_with_field(&self) -> io::Result<usize> {
        let IpAddr::V4(field) = self.field.link.far() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
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

    fn host(&self, from: From) -> &Host {
        match from {
            From::Office => &self.office,
            From::Field => &self.field,
        }
    }
}
