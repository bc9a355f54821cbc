//! What contradicts what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::read::{Reader, Scope};
use super::types::{Admin, ListenerConfig, UpstreamAddress, listeners};
use super::units::show;

/// A limit: its key and its value.
type Limit = (&'static str, Option<Option<Duration>>);

/// Refuses limits that could never act, because another one would always come first.
pub(super) fn shadowed(at: &Scope<'_>, reader: &mut Reader<'_>, inner: &[Limit], outer: &[Limit]) {
    for (short, a) in inner {
        for (long, b) in outer {
            let (short, long) = (at.child(short), at.child(long));
            let (Some(Some(a)), Some(Some(b))) = (a, b) else {
                continue;
            };
            // A default, or what is inherited, may be cut short by the listener's own limit.
            if a > b && short.is_beside(&long) {
                let (a, b, name) = (show(*a), show(*b), reader.name_of(&long));
                let message =
                    format!("{a} is longer than {name} {b}, which would always come first");
                reader.contradict(&short, message);
            }
        }
    }
}

/// A peer must be asked before it is judged.
pub(super) fn probe_interval(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    probe: Option<Duration>,
    detect: Option<Duration>,
) {
    let (Some(probe), Some(detect)) = (probe, detect) else {
        return;
    };
    if probe >= detect {
        let why = "a peer must be asked before it is judged";
        let probe = ("probe_interval", probe, "is not below");
        let detect = ("detect_within", detect, "is not above");
        blame_one(at, reader, [probe, detect], why);
    }
}

/// Two probes must fit into the time after which a NAT forgets, for one may be lost.
pub(super) fn nat_timeout(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    nat: Option<Duration>,
    probe: Option<Duration>,
) {
    let (Some(nat), Some(probe)) = (nat, probe) else {
        return;
    };
    let half = Duration::from_secs(nat.as_secs() / 2);
    if probe > half {
        let (name, half) = (reader.name_of(&at.child("probe_interval")), show(half));
        let why = format!(
            "one lost probe and the connection is forgotten; set {name} to {half} or less, or leave it out"
        );
        let probe = ("probe_interval", probe, "is above half of");
        let nat = ("nat_timeout", nat, "is below twice");
        blame_one(at, reader, [probe, nat], &why);
    }
}

/// Two keys contradict each other: the first, unless only the second is the listener's own.
fn blame_one(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    [first, second]: [(&str, Duration, &str); 2],
    why: &str,
) {
    let is_own = |name| at.child(name).is_own();
    let (blamed, other) = if is_own(second.0) && !is_own(first.0) {
        (second, first)
    } else {
        (first, second)
    };
    let (name, value, relation) = blamed;
    let other_name = reader.name_of(&at.child(other.0));
    let (value, other) = (show(value), show(other.1));
    let message = format!("{value} {relation} {other_name} {other}; {why}");
    reader.contradict(&at.child(name), message);
}

/// Refuses names and addresses that two listeners have, and upstreams that lead back.
pub(super) fn addresses(at: &Scope<'_>, reader: &mut Reader<'_>, admin: Option<&Option<Admin>>) {
    let list = at.child("listeners");
    // Read again one by one: a listener that is refused must not hide the clashes of the others.
    let all = listeners().each(&list, reader).unwrap_or_default();
    let admin = admin
        .and_then(Option::as_ref)
        .map(|admin| (admin.address, admin_name(at, reader)));
    for (i, listener) in all.iter().enumerate() {
        let Some(listener) = listener else { continue };
        let place = list.nth(i);
        let address = place.child("address");
        for (j, other) in all[..i].iter().enumerate() {
            let Some(other) = other else { continue };
            if other.name == listener.name {
                let message = format!("{:?} is also the name of listeners[{j}]", other.name);
                reader.contradict(&place.child("name"), message);
            }
            if clash(other.address, listener.address) {
                let message =
                    clash_message(listener.address, &format!("listeners[{j}]"), other.address);
                reader.contradict(&address, message);
            }
        }
        let upstream = place.child("upstream").child("address");
        let to = &listener.upstream.address;
        if let Some((admin, name)) = &admin {
            if clash(listener.address, *admin) {
                reader.contradict(&address, clash_message(listener.address, name, *admin));
            }
            if reaches(to, *admin) {
                reader.contradict(&upstream, format!("{to} is {name}"));
            }
        }
        match way_back(&all, i) {
            Some(j) if j == i => {
                let message = format!(
                    "{to} is this listener itself ({}): a loop",
                    listener.address
                );
                reader.contradict(&upstream, message);
            }
            Some(j) => {
                let message = format!("{to} leads to listeners[{j}], and back here: a loop");
                reader.contradict(&upstream, message);
            }
            None => {}
        }
    }
}

fn admin_name(at: &Scope<'_>, reader: &Reader<'_>) -> String {
    let address = at.child("admin").child("address");
    let name = if reader.is_of_flags() {
        "--admin"
    } else {
        "admin.address"
    };
    match address.given() {
        Some(_) => format!("the address of {name}"),
        None => format!("the default of {name}"),
    }
}

fn clash_message(address: SocketAddr, other: &str, other_address: SocketAddr) -> String {
    if address == other_address {
        return format!("{address} is also {other}");
    }
    let why = if address.is_ipv4() == other_address.is_ipv4() {
        ""
    } else {
        "; an IPv6 socket takes IPv4 clients, too"
    };
    format!("{address} overlaps {other}, {other_address}{why}")
}

/// Whether two addresses cannot both be listened on.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = takes(a, b.ip()) || takes(b, a.ip());
    a.port() == b.port() && a.port() != 0 && overlap
}

/// Whether what listens there gets the connections to an address of this host. `[::]` takes those
/// over IPv4, too.
fn takes(listening: SocketAddr, ip: IpAddr) -> bool {
    let (own, ip) = (listening.ip().to_canonical(), ip.to_canonical());
    own == ip || (own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4()))
}

/// Whether a connection to `to` would certainly arrive at `listening`.
fn reaches(to: &UpstreamAddress, listening: SocketAddr) -> bool {
    match to {
        UpstreamAddress::Socket(to) => {
            let ip = to.ip().to_canonical();
            let here = ip.is_loopback() || ip == listening.ip().to_canonical();
            to.port() == listening.port() && here && takes(listening, ip)
        }
        UpstreamAddress::Name { host, port } => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            let here = name == "localhost" || name.ends_with(".localhost");
            let loopback = [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                Ipv6Addr::LOCALHOST.into(),
            ];
            *port == listening.port() && here && loopback.iter().any(|ip| takes(listening, *ip))
        }
    }
}

/// The listener that the upstream of listener `i` is, if the upstreams lead back to `i` from there.
fn way_back(listeners: &[Option<ListenerConfig>], i: usize) -> Option<usize> {
    let next = |i: usize| {
        let upstream = &listeners[i].as_ref()?.upstream.address;
        let reached = |to: &Option<ListenerConfig>| {
            let to = to.as_ref();
            to.is_some_and(|to| reaches(upstream, to.address))
        };
        if reached(&listeners[i]) {
            return Some(i);
        }
        listeners.iter().position(reached)
    };
    let first = next(i)?;
    let mut at = first;
    for _ in 0..listeners.len() {
        if at == i {
            return Some(first);
        }
        at = next(at)?;
    }
    None
}
