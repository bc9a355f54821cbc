//! What contradicts what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::bytes::Bytes;
use super::heartbeat::HeartbeatConfig;
use super::kind::DIAL;
use super::network::Network;
use super::read::{Reader, Role, Scope};
use super::tls::{ClientAuth, UpstreamTls};
use super::types::{
    Admin, Check, CheckKind, ControlAddress, Limits, ListenAddress, ListenerConfig, OnFull,
    ProxyProtocol, Upstream, UpstreamAddress, UpstreamEndpoint, WhenDown, listeners,
};
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

/// A session that ends for want of payload before its peer is asked is never asked.
pub(super) fn asked_too_late(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    heartbeat: Option<&HeartbeatConfig>,
    idle: Option<Duration>,
) {
    let asked = heartbeat.filter(|heartbeat| heartbeat.profile.is_some());
    let (Some(asked), Some(idle)) = (asked, idle) else {
        return;
    };
    if asked.after >= idle {
        let (after, idle, name) = (
            show(asked.after),
            show(idle),
            reader.name_of(&at.child("idle_timeout")),
        );
        let message = format!("{after} is not below {name} {idle}, which would always come first");
        reader.contradict(&at.child("heartbeat").child("after"), message);
    }
}

/// One source cannot have more sessions than there are.
pub(super) fn source_limit(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    of_source: Option<u32>,
    of_all: Option<u32>,
) {
    let place = at.child("max_connections_per_source");
    let (Some(of_source), Some(of_all)) = (of_source, of_all) else {
        return;
    };
    if of_source > of_all && place.is_beside(&at.child("max_connections")) {
        let name = reader.name_of(&at.child("max_connections"));
        let message = format!("{of_source} is above {name} {of_all}, which would always act first");
        reader.contradict(&place, message);
    }
}

/// What acts only at a limit needs one: a burst needs a rate, clients that wait need a number of places. With
/// `shed`, sessions make room when memory or descriptors are short, too.
pub(super) fn needs_limit(at: &Scope<'_>, reader: &mut Reader<'_>, on_full: Option<OnFull>) {
    let waits = matches!(
        on_full,
        Some(OnFull::Queue | OnFull::Verify | OnFull::Replace)
    );
    let needed: [(&str, &[&str], bool); 2] = [
        (
            "on_full",
            &["max_connections", "max_connections_per_source"],
            waits,
        ),
        ("burst_per_source", &["rate_per_source"], true),
    ];
    for (key, limits, acts_at_limit) in needed {
        let place = at.child(key);
        let is_limited = limits.iter().any(|limit| at.child(limit).given().is_some());
        // Of what is inherited, each listener sets what it needs.
        if acts_at_limit && place.is_own() && !is_limited && reader.role == Role::Value {
            let names: Vec<_> = limits
                .iter()
                .map(|l| reader.name_of(&at.child(l)))
                .collect();
            let message = format!("does nothing without {}", names.join(" or "));
            reader.contradict(&place, message);
        }
    }
}

/// A connect cannot be tried again when its time is over.
pub(super) fn connect_retry(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    pause: Option<Duration>,
    timeout: Option<Duration>,
) {
    let (Some(pause), Some(timeout)) = (pause, timeout) else {
        return;
    };
    let (place, limit) = (at.child("connect_retry"), at.child("connect_timeout"));
    // What is inherited may be cut short by the listener's own limit.
    if pause >= timeout && (place.is_own() || !limit.is_own()) {
        let (pause, timeout, name) = (show(pause), show(timeout), reader.name_of(&limit));
        let message =
            format!("{pause} is not below {name} {timeout}: no connect would be tried again");
        reader.contradict(&place, message);
    }
}

/// What a check needs.
pub(super) fn upstream_check(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    kind: Option<CheckKind>,
    send: Option<&Bytes>,
    expect: Option<&Bytes>,
) {
    let place = at.child("kind");
    let is_empty = |bytes: Option<&Bytes>| bytes.is_some_and(|bytes| bytes.0.is_empty());
    match kind {
        Some(CheckKind::Send) if is_empty(send) && is_empty(expect) => {
            let [send, expect] = ["send", "expect"].map(|key| reader.name_of(&at.child(key)));
            let message = format!("send needs {send} or {expect}; tcp only connects");
            reader.contradict(&place, message);
        }
        _ => {}
    }
}

/// A handshake is checked as sessions make it.
pub(super) fn tls_check(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    tls: Option<&Option<UpstreamTls>>,
    check: Option<&Check>,
) {
    if let (Some(None), Some(CheckKind::Tls)) = (tls, check.map(|check| check.kind)) {
        let message = "tls needs upstream.tls, which says who is trusted; tcp only connects";
        reader.contradict(&at.child("check").child("kind"), message.to_owned());
    }
}

/// What a service must prove to be.
pub(super) fn server_name(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    address: Option<&Option<UpstreamAddress>>,
    endpoints: Option<&Vec<UpstreamEndpoint>>,
    tls: Option<&Option<UpstreamTls>>,
) {
    let Some(Some(UpstreamTls {
        server_name: None, ..
    })) = tls
    else {
        return;
    };
    let several = endpoints.into_iter().flatten().map(|e| &e.address);
    let mut all = address.into_iter().flatten().chain(several);
    if let Some(local) = all.find(|to| matches!(to, UpstreamAddress::Unix(_))) {
        let message = format!("is missing: {local} has no host, so say what its certificate names");
        reader.contradict(&at.child("tls").child("server_name"), message);
    }
}

/// Who asks clients for certificates says who may have issued them, and the other way round.
pub(super) fn client_auth(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    ca: Option<&Option<PathBuf>>,
    auth: Option<Option<ClientAuth>>,
) {
    let client_ca = at.child("client_ca");
    if let Some(Some(file)) = ca
        && file.as_os_str() == "system"
    {
        let message = "must be a file: with the authorities of this host, whoever has any certificate could connect";
        return reader.contradict(&client_ca, message.to_owned());
    }
    let name = reader.name_of(&client_ca);
    let message = match (ca, auth) {
        (Some(None), Some(Some(auth))) => {
            format!("{auth} needs {name}: the authorities that issue the certificates of clients")
        }
        (Some(Some(_)), Some(None)) => {
            format!("none leaves {name} without use; leave one of them out")
        }
        _ => return,
    };
    reader.contradict(&at.child("client_auth"), message);
}

/// Neither is of use without the other.
pub(super) fn certificate_and_key(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    certificate: Option<&Option<PathBuf>>,
    key: Option<&Option<PathBuf>>,
) {
    let (given, missing) = match (certificate, key) {
        (Some(Some(_)), Some(None)) => ("certificate", "key"),
        (Some(None), Some(Some(_))) => ("key", "certificate"),
        _ => return,
    };
    let name = reader.name_of(&at.child(missing));
    reader.contradict(&at.child(given), format!("needs {name}, too"));
}

/// Only a port of its own can be closed for a while, and only checks say when.
pub(super) fn when_down(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    address: Option<&ListenAddress>,
    upstream: Option<&Upstream>,
) {
    let (Some(address), Some(upstream)) = (address, upstream) else {
        return;
    };
    let needs = match address {
        _ if upstream.when_down == WhenDown::Reset => return,
        ListenAddress::Socket(address) if address.port() > 0 => match upstream.check.kind {
            CheckKind::Off => "needs checks, which say when every endpoint is down",
            _ => return,
        },
        _ => "needs an address with a port of its own",
    };
    let place = at.child("upstream").child("when_down");
    reader.contradict(&place, format!("refuse {needs}"));
}

/// Checks must not use up a device that takes one connection.
pub(super) fn one_connection(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    upstream: Option<&Upstream>,
    limits: Option<&Limits>,
) {
    let (Some(upstream), Some(limits)) = (upstream, limits) else {
        return;
    };
    let check = &upstream.check;
    if check.kind != CheckKind::Off && check.port.is_none() && limits.max_connections == Some(1) {
        let place = at.child("upstream").child("check").child("kind");
        let (check, limit) = (at.child("upstream").child("check"), at.child("limits"));
        let port = reader.name_of(&check.child("port"));
        let limit = reader.name_of(&limit.child("max_connections"));
        let message = format!(
            "the check would take the one connection of {limit} 1; check another port ({port}), or not at all"
        );
        reader.contradict(&place, message);
    }
}

/// Whoever may send a header says who it is.
pub(super) fn proxy_protocol(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    how: Option<ProxyProtocol>,
    trusted: Option<&[Network]>,
) {
    if (how, trusted) == (Some(ProxyProtocol::Require), Some(&[])) {
        let key = reader.name_of(&at.child("proxy_protocol_trusted"));
        let message =
            format!("require needs {key}: the networks of the load balancers that send the header");
        reader.contradict(&at.child("proxy_protocol"), message);
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

/// A service is at one address or at several endpoints, each of them once.
pub(super) fn endpoints(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    address: Option<&Option<UpstreamAddress>>,
    endpoints: Option<&Vec<UpstreamEndpoint>>,
) {
    let (one, several) = (at.child("address"), at.child("endpoints"));
    let (Some(address), Some(endpoints)) = (address, endpoints) else {
        return;
    };
    match address {
        // What listeners inherit names no service.
        _ if reader.role == Role::Template => {}
        Some(address) if !endpoints.is_empty() => {
            let message = format!("excludes address, {address}: name it as one of the endpoints");
            reader.contradict(&several, message);
        }
        None if endpoints.is_empty() => {
            reader.missing::<()>(&one, &format!("{DIAL}; or endpoints, a list of several"));
        }
        _ => {}
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        if let Some(j) = endpoints[..i].iter().position(|other| other == endpoint) {
            let message = format!("{} is also endpoints[{j}]", endpoint.address);
            reader.contradict(&several.nth(i).child("address"), message);
        }
    }
}

/// Where addresses of this host are given, there must be one for each address that is dialled.
pub(super) fn sources(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    address: Option<&Option<UpstreamAddress>>,
    endpoints: Option<&Vec<UpstreamEndpoint>>,
    sources: Option<&Option<Vec<IpAddr>>>,
) {
    let Some(Some(sources)) = sources else {
        return;
    };
    let source_address = at.child("source_address");
    if sources.is_empty() {
        let message = "is empty; at least one address is needed, or none".to_owned();
        return reader.contradict(&source_address, message);
    }
    let several = endpoints.into_iter().flatten().map(|e| &e.address);
    for to in address.into_iter().flatten().chain(several) {
        let Some(literal) = to.literal() else {
            continue;
        };
        let fits = |source: &IpAddr| source.is_ipv4() == literal.ip().to_canonical().is_ipv4();
        if !sources.iter().any(fits) {
            let message = format!("has no address of the family of {to}");
            return reader.contradict(&source_address, message);
        }
    }
}

/// Refuses names and addresses that two listeners have, and upstreams that lead back.
pub(super) fn addresses(at: &Scope<'_>, reader: &mut Reader<'_>, admin: Option<&Option<Admin>>) {
    let list = at.child("listeners");
    // Read again one by one: a listener that is refused must not hide the clashes of the others.
    let all = listeners().each(&list, reader).unwrap_or_default();
    let admin = admin.and_then(Option::as_ref);
    let admin = admin.map_or_else(Vec::new, |admin| admin_addresses(at, reader, admin));
    for (i, listener) in all.iter().enumerate() {
        let Some(listener) = listener else { continue };
        let place = list.nth(i);
        let address = place.child("address");
        for (j, other) in all[..i].iter().enumerate() {
            let Some(other) = other else { continue };
            if other.name == listener.name {
                let message = same_name((&place, listener), (&list.nth(j), other));
                reader.contradict(&place.child("name"), message);
            }
            let name = format!("listeners[{j}]");
            match (other.address.socket(), listener.address.socket()) {
                (Some(theirs), Some(ours)) if clash(theirs, ours) => {
                    reader.contradict(&address, clash_message(ours, &name, theirs));
                }
                _ if other.address == listener.address && listener.address.socket().is_none() => {
                    let message = format!("{} is also {name}", listener.address);
                    reader.contradict(&address, message);
                }
                _ => {}
            }
        }
        for (admin, name) in &admin {
            if let Some(ours) = listener
                .address
                .socket()
                .filter(|ours| clash(*ours, *admin))
            {
                reader.contradict(&address, clash_message(ours, name, *admin));
            }
        }
        let upstream = place.child("upstream");
        for (n, to) in listener.upstream.addresses().enumerate() {
            let upstream = match listener.upstream.address {
                Some(_) => upstream.child("address"),
                None => upstream.child("endpoints").nth(n).child("address"),
            };
            for (_, name) in admin.iter().filter(|(admin, _)| reaches(to, *admin)) {
                reader.contradict(&upstream, format!("{to} is {name}"));
            }
            let message = match way_back(&all, i, to) {
                Some(j) if j == i => format!(
                    "{to} is this listener itself ({}): a loop",
                    listener.address
                ),
                Some(j) => format!("{to} leads to listeners[{j}], and back here: a loop"),
                None => continue,
            };
            reader.contradict(&upstream, message);
        }
    }
}

/// Two listeners have one name. Nobody finds a name in the file that is derived.
fn same_name(
    (here, listener): (&Scope<'_>, &ListenerConfig),
    (there, other): (&Scope<'_>, &ListenerConfig),
) -> String {
    let derived = |at: &Scope<'_>, listener: &ListenerConfig| match at.child("name").is_own() {
        true => String::new(),
        false => format!(" (derived from address {})", listener.address),
    };
    let (ours, theirs) = (derived(here, listener), derived(there, other));
    let advice = match ours.is_empty() && theirs.is_empty() {
        true => "",
        false => "; set name",
    };
    let (name, there) = (&listener.name, &there.path);
    format!("{name:?}{ours} is also the name of {there}{theirs}{advice}")
}

/// Where the admin endpoint listens, and how a message calls that.
fn admin_addresses(
    at: &Scope<'_>,
    reader: &Reader<'_>,
    admin: &Admin,
) -> Vec<(SocketAddr, String)> {
    let names = match reader.is_of_flags() {
        true => ["--admin", "--admin-control"],
        false => ["admin.address", "admin.control"],
    };
    let name = match at.child("admin").child("address").given() {
        Some(_) => format!("the address of {}", names[0]),
        None => format!("the default of {}", names[0]),
    };
    let mut addresses = vec![(admin.address, name)];
    if let Some(ControlAddress::Tcp(control)) = admin.control {
        addresses.push((control, format!("the address of {}", names[1])));
    }
    addresses
}

/// The two addresses of the endpoint are two.
pub(super) fn control_address(
    at: &Scope<'_>,
    reader: &mut Reader<'_>,
    address: Option<SocketAddr>,
    control: Option<&ControlAddress>,
) {
    if let (Some(address), Some(ControlAddress::Tcp(control))) = (address, control)
        && clash(*control, address)
    {
        let place = at.child("control");
        let name = reader.name_of(&at.child("address"));
        reader.contradict(&place, clash_message(*control, &name, address));
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
        UpstreamAddress::Unix(_) => false,
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

/// The listener that an upstream of listener `i` is, if the upstreams lead back to `i` from there.
fn way_back(listeners: &[Option<ListenerConfig>], i: usize, to: &UpstreamAddress) -> Option<usize> {
    let reached = |to: &UpstreamAddress| {
        let is_there = |n: &usize| {
            let listener = listeners[*n].as_ref();
            listener.is_some_and(|listener| match (&listener.address, to) {
                (ListenAddress::Socket(address), to) => reaches(to, *address),
                (ListenAddress::Unix(path), UpstreamAddress::Unix(to)) => path == to,
                _ => false,
            })
        };
        // A listener that reaches itself is the nearest loop.
        let itself = std::iter::once(i);
        itself.chain(0..listeners.len()).find(is_there)
    };
    let first = reached(to)?;
    let (mut seen, mut next) = (vec![false; listeners.len()], vec![first]);
    while let Some(at) = next.pop() {
        if at == i {
            return Some(first);
        }
        if !std::mem::replace(&mut seen[at], true) {
            let upstream = listeners[at].iter().flat_map(|l| l.upstream.addresses());
            next.extend(upstream.filter_map(reached));
        }
    }
    None
}
