//! A point-to-point Ethernet between two namespaces that can be cut for real.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use pulsegate::sys::netlink::{Mac, NOBODY};
use pulsegate::sys::netns::Namespace;

/// The name of the interface at the far end; that at the near end is `link` and its number.
const FAR_INTERFACE: &str = "eth0";

/// A veth pair with fixed neighbours: `10.N.0.1/24` at the near end, `10.N.0.2/24` at the far
/// one, or `fd00:N::1/64` and `fd00:N::2/64`. It lives as long as the namespaces do, and knows
/// neither: they are given to each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    number: u8,
    family: Family,
}

/// Which addresses a link has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    const fn prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the far end sends.
    ToNear,
    /// What the near end sends.
    ToFar,
}

impl Link {
    /// Connects two namespaces. The number is the link's own in the near one; the far one can
    /// have one link only.
    pub fn connect(
        number: u8,
        family: Family,
        near: &Namespace,
        far: &Namespace,
    ) -> io::Result<Self> {
        let link = Self { number, family };
        let (name, prefix) = (link.near_interface(), family.prefix());
        let (mut here, mut there) = (near.netlink()?, far.netlink()?);
        let near_end = (name.as_str(), link.near_mac());
        here.add_veth(near_end, (FAR_INTERFACE, link.far_mac()), far.as_fd())?;
        for (netlink, interface, address) in [
            (&mut here, &*name, link.near()),
            (&mut there, FAR_INTERFACE, link.far()),
        ] {
            netlink.add_address(interface, address, prefix)?;
            netlink.set_up(interface)?;
        }
        link.heal(near, far)?;
        Ok(link)
    }

    /// The address of the near end.
    #[must_use]
    pub fn near(self) -> IpAddr {
        self.address(1)
    }

    /// The address of the far end.
    #[must_use]
    pub fn far(self) -> IpAddr {
        self.address(2)
    }

    /// From now on both directions swallow everything, silently.
    pub fn cut(self, near: &Namespace, far: &Namespace) -> io::Result<()> {
        self.cut_one_way(near, far, Direction::ToNear)?;
        self.cut_one_way(near, far, Direction::ToFar)
    }

    /// From now on one direction swallows everything, silently.
    pub fn cut_one_way(
        self,
        near: &Namespace,
        far: &Namespace,
        direction: Direction,
    ) -> io::Result<()> {
        self.point(near, far, direction, NOBODY)
    }

    /// The link is whole again.
    pub fn heal(self, near: &Namespace, far: &Namespace) -> io::Result<()> {
        self.point(near, far, Direction::ToNear, self.near_mac())?;
        self.point(near, far, Direction::ToFar, self.far_mac())
    }

    /// Says whom the sender of a direction takes for the receiver.
    fn point(
        self,
        near: &Namespace,
        far: &Namespace,
        direction: Direction,
        mac: Mac,
    ) -> io::Result<()> {
        match direction {
            Direction::ToNear => {
                let mut there = far.netlink()?;
                there.set_neighbour(FAR_INTERFACE, self.near(), mac)
            }
            Direction::ToFar => {
                let mut here = near.netlink()?;
                here.set_neighbour(&self.near_interface(), self.far(), mac)
            }
        }
    }

    fn address(self, end: u8) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(10, self.number, 0, end).into(),
            Family::V6 => {
                let [number, end] = [self.number, end].map(u16::from);
                Ipv6Addr::new(0xfd00, number, 0, 0, 0, 0, 0, end).into()
            }
        }
    }

    fn near_interface(self) -> String {
        format!("link{}", self.number)
    }

    fn near_mac(self) -> Mac {
        [2, 0, 0, 0, self.number, 1]
    }

    fn far_mac(self) -> Mac {
        [2, 0, 0, 0, self.number, 2]
    }
}
