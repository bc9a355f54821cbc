//! Who holds which socket: `/proc/PID/fd`, or `/proc/PID/fdinfo`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use socket2::{Domain, Socket, Type};

use super::matching::Matching;
use super::refusal::Refusal;

/// One of those who hold a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The process.
    pub pid: u32,
    /// Its descriptor.
    pub fd: RawFd,
}

/// What `/proc` tells of the processes that can be seen.
#[derive(Debug, Default)]
pub struct Processes {
    owners: HashMap<u32, Owner>,
    names: HashMap<u32, String>,
    hidden: Vec<u32>,
}

impl Processes {
    /// The same, or read anew where a holder is missing: a look at every descriptor of the host.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn updated(self, inodes: &[u32]) -> io::Result<Self> {
        match inodes.iter().all(|inode| self.owners.contains_key(inode)) {
            true => Ok(self),
            false => Self::read(inodes),
        }
    }

    /// Finds out who holds these sockets (a microsecond for each descriptor of the host): their inodes, in
    /// order. Where several do, the one with the highest number is named: a child that works rather than
    /// the parent that listens.
    ///
    /// # Errors
    /// Where `/proc` cannot be read.
    pub fn read(inodes: &[u32]) -> io::Result<Self> {
        let mut found = Self::default();
        for pid in pids()? {
            found.add(pid, inodes);
        }
        Ok(found)
    }

    fn add(&mut self, pid: u32, inodes: &[u32]) {
        let sockets = match sockets(pid) {
            Ok(sockets) => sockets,
            Err(error) if is_refused(&error) => {
                self.hidden.push(pid);
                return;
            }
            // It has ended.
            Err(_) => return,
        };
        let held = |(_, inode): &(RawFd, u32)| inodes.binary_search(inode).is_ok();
        let mut sockets = sockets.into_iter().filter(held).peekable();
        if sockets.peek().is_none() {
            return;
        }
        let called = name(pid);
        // Another scan, or guard, copies a socket for some microseconds.
        let is_passing = called == name(std::process::id());
        for (fd, inode) in sockets {
            let owner = Owner { pid, fd };
            let known = self.owners.entry(inode).or_insert(owner);
            if known.pid < pid && !is_passing {
                *known = owner;
            }
        }
        self.names.insert(pid, called);
    }

    /// Who holds a socket, as far as that is known.
    #[must_use]
    pub fn owner(&self, inode: u32) -> Option<Owner> {
        self.owners.get(&inode).copied()
    }

    /// The name of a process that holds one of the sockets.
    #[must_use]
    pub fn name(&self, pid: u32) -> &str {
        self.names.get(&pid).map_or("", String::as_str)
    }

    /// How many of these processes must not be looked into, by why, with what to grant. They are told by
    /// number and name.
    #[must_use]
    pub fn hidden(&self, meant: impl Fn(u32, &str) -> bool) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for pid in self.hidden.iter().filter(|pid| meant(**pid, &name(**pid))) {
            let why = match Refusal::to_read(*pid) {
                Refusal::OtherUser(_) => {
                    "it belongs to another user: grant CAP_SYS_PTRACE".to_owned()
                }
                refusal => refusal.to_string(),
            };
            *reasons.entry(why).or_default() += 1;
        }
        reasons
    }
}

fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Whether a process runs that is meant by this number, name and control group.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn has_holder(matching: &Matching) -> io::Result<bool> {
    let is_meant = |pid| matching.holder(pid, &name(pid), || cgroup(pid));
    Ok(pids()?.any(is_meant))
}

/// The descriptors of a process that are sockets, with their inodes.
fn sockets(pid: u32) -> io::Result<Vec<(RawFd, u32)>> {
    match by_links(pid) {
        // To open that folder of another user takes CAP_DAC_READ_SEARCH, too.
        Err(error) if is_refused(&error) => by_fdinfo(pid),
        read => read,
    }
}

fn by_links(pid: u32) -> io::Result<Vec<(RawFd, u32)>> {
    each_of(&format!("/proc/{pid}/fd"), |descriptor| {
        Ok(socket(&fs::read_link(descriptor)?))
    })
}

/// From Linux 5.14 on, whoever may trace the process may read this. It is slower.
fn by_fdinfo(pid: u32) -> io::Result<Vec<(RawFd, u32)>> {
    static SOCKETS: OnceLock<Option<String>> = OnceLock::new();
    let sockets = SOCKETS.get_or_init(|| mount_of_sockets().ok().flatten());
    each_of(&format!("/proc/{pid}/fdinfo"), |descriptor| {
        let text = fs::read_to_string(descriptor)?;
        // A file may have the same number.
        let is_socket = sockets.is_some() && field(&text, "mnt_id:") == sockets.as_deref();
        let inode = field(&text, "ino:").and_then(|inode| inode.parse().ok());
        Ok(inode.filter(|_| is_socket))
    })
}

fn each_of(
    folder: &str,
    inode: impl Fn(&Path) -> io::Result<Option<u32>>,
) -> io::Result<Vec<(RawFd, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let inode = match inode(&entry.path()) {
            Err(error) if is_refused(&error) => return Err(error),
            // It was closed.
            read => read.ok().flatten(),
        };
        let name = entry.file_name();
        let fd = name.to_str().and_then(|name| name.parse().ok());
        found.extend(fd.zip(inode));
    }
    Ok(found)
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What `mnt_id` of each socket is.
fn mount_of_sockets() -> io::Result<Option<String>> {
    let any = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", any.as_raw_fd()))?;
    Ok(field(&text, "mnt_id:").map(str::to_owned))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.map(str::trim)
}

/// Every process may see it, and choose its own.
fn name(pid: u32) -> String {
    printable(&fs::read(format!("/proc/{pid}/comm")).unwrap_or_default())
}

fn printable(comm: &[u8]) -> String {
    let text = String::from_utf8_lossy(comm.trim_ascii_end());
    text.replace(char::is_control, "?")
}

fn socket(link: &Path) -> Option<u32> {
    let inside = link.to_str()?.strip_prefix("socket:[")?;
    inside.strip_suffix(']')?.parse().ok()
}

/// The control group of a process, `/` if there is none to be seen.
#[must_use]
pub fn cgroup(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified.unwrap_or("/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `/proc/PID/fd` says, and no file.
    #[test]
    fn sockets_are_found_by_fdinfo_too() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let file = fs::File::open("/proc/self/status").unwrap();
        let me = std::process::id();
        let of = |fd: RawFd, all: Vec<(RawFd, u32)>| all.into_iter().find(|(of, _)| *of == fd);
        let by_links = of(socket.as_raw_fd(), by_links(me).unwrap());
        assert!(by_links.is_some());
        assert_eq!(of(socket.as_raw_fd(), by_fdinfo(me).unwrap()), by_links);
        assert_eq!(of(file.as_raw_fd(), by_fdinfo(me).unwrap()), None);
    }

    #[test]
    fn a_name_does_nothing_to_a_terminal() {
        assert_eq!(printable(b"redis-server\n"), "redis-server");
        assert_eq!(printable(b"a\x1b[2J\nb\xff\n"), "a?[2J?b\u{fffd}");
    }

    /// Inode 0 stands for a socket that came later.
    #[test]
    fn holders_that_are_known_are_not_read_anew() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let inode = rustix::fs::fstat(&socket).expect("asked").st_ino;
        let inode = u32::try_from(inode).expect("an inode of sockfs");
        let known = Processes::read(&[inode]).expect("read");
        let me = std::process::id();
        assert_eq!(known.owner(inode).map(|owner| owner.pid), Some(me));
        drop(socket);
        let known = known.updated(&[inode]).expect("read");
        assert!(known.owner(inode).is_some());
        let known = known.updated(&[0, inode]).expect("read");
        assert!(known.owner(inode).is_none());
    }
}
