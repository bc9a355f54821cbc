//! Who holds which socket: `/proc/PID/fd`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use super::refusal::{Refusal, Status};

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
    /// Finds out who holds these sockets (a microsecond for each descriptor of the host): their inodes, in
    /// order. Where several do, the one with the highest number is named: a child that works rather than
    /// the parent that listens.
    ///
    /// # Errors
    /// Where `/proc` cannot be read.
    pub fn read(inodes: &[u32]) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir("/proc")?.flatten() {
            if let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                found.add(pid, inodes);
            }
        }
        Ok(found)
    }

    fn add(&mut self, pid: u32, inodes: &[u32]) {
        let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(descriptors) => descriptors,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.hidden.push(pid);
                return;
            }
            // It has ended.
            Err(_) => return,
        };
        let mut holds = false;
        for entry in descriptors.flatten() {
            let inode = match fs::read_link(entry.path()) {
                Ok(link) => socket(&link),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.hidden.push(pid);
                    return;
                }
                Err(_) => None,
            };
            let Some(inode) = inode else {
                continue;
            };
            let fd = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (Some(fd), Ok(_)) = (fd, inodes.binary_search(&inode)) {
                let owner = Owner { pid, fd };
                let known = self.owners.entry(inode).or_insert(owner);
                *known = if known.pid < pid { owner } else { *known };
                holds = true;
            }
        }
        if holds {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            self.names.insert(pid, name.trim_end().to_owned());
        }
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

    /// How many processes must not be looked into, by why, with what to grant.
    #[must_use]
    pub fn hidden(&self) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for pid in &self.hidden {
            let why = match Status::read(*pid).refusal_to_read() {
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
