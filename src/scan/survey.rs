//! All connections of a namespace, judged, with who holds them, and summed up by process.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::SocketAddr;

use serde::Serialize;
use strum::VariantArray;

use super::matching::Matching;
use super::processes::{self, Owner, Processes};
use super::verdict::{Word, judge};
use crate::liveness::{Leg, Policy, Span};
use crate::net::sample;
use crate::sys;
use crate::sys::sock_diag::{Connected, Id, Listening, SockDiag};

/// What is shown for a process that is not known.
pub const UNKNOWN: &str = "unknown process";

/// A connection that a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which one.
    pub id: Id,
    /// What is known of it.
    pub word: Word,
    /// Since the peer gave the last sign of life.
    pub silent: Span,
    /// Questions of the kernel that are unanswered.
    pub unanswered: u32,
    /// Of the user whose process made it.
    pub uid: u32,
    /// Who holds it, as far as that is known.
    pub owner: Option<Owner>,
}

/// A listening socket in whose queue connections wait to be accepted.
#[derive(Clone, Debug, Serialize)]
pub struct AcceptQueue {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who has it.
    pub process: String,
    /// How many wait.
    pub length: u32,
    /// Beyond this length the kernel drops new connections.
    pub limit: u32,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// In the order of the kernel.
    pub connections: Vec<Seen>,
    /// Those that are not empty.
    pub queues: Vec<AcceptQueue>,
    /// Who holds them.
    pub processes: Processes,
    /// Where it is not known who holds some: processes that are meant and must not be looked into, by why.
    pub hidden: BTreeMap<String, usize>,
}

/// The connections of the processes of one name.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Its name.
    pub process: String,
    /// Their numbers.
    pub pids: Vec<u32>,
    /// How many there are.
    pub connections: u64,
    /// How many there are of each word.
    #[serde(flatten)]
    pub words: BTreeMap<&'static str, u64>,
    /// The longest silence.
    pub oldest_silence_seconds: u64,
}

impl Row {
    /// How many there are of a word.
    #[must_use]
    pub fn of(&self, word: Word) -> u64 {
        let word: &'static str = word.into();
        self.words.get(word).copied().unwrap_or_default()
    }

    fn add(&mut self, seen: &Seen) {
        self.connections += 1;
        *self.words.entry(seen.word.into()).or_default() += 1;
        let silent = seen.silent / Span::ms(1000);
        self.oldest_silence_seconds = self.oldest_silence_seconds.max(silent);
        if let Some(owner) = seen.owner
            && !self.pids.contains(&owner.pid)
        {
            self.pids.push(owner.pid);
        }
    }

    fn named(process: &str) -> Self {
        Self {
            process: process.to_owned(),
            words: Word::VARIANTS.iter().map(|word| (word.into(), 0)).collect(),
            ..Self::default()
        }
    }
}

/// Asks the kernel for all connections that match and that a process holds, this one excepted: some 100
/// bytes each are kept. Holders that are `known` are not looked for again.
///
/// # Errors
/// What the kernel answers, or where `/proc` cannot be read.
pub fn survey(
    diag: &mut SockDiag,
    matching: &[Matching],
    policy: &Policy,
    known: Processes,
) -> io::Result<Survey> {
    let listening = diag.listening()?;
    let found = held(diag, matching, policy, &listening)?;
    let waiting = listening.iter().filter(|l| l.length > 0);
    let waiting = waiting.filter(|l| matching.iter().any(|m| m.ends(l.address, l.address)));
    let mut inodes: Vec<u32> = found.iter().map(|(_, inode)| *inode).collect();
    inodes.extend(waiting.clone().map(|l| l.inode));
    inodes.sort_unstable();
    let processes = known.updated(&inodes)?;
    let me = std::process::id();
    let holders = Holders::new(matching, &processes);
    let all_known = found.iter().all(|(_, n)| processes.owner(*n).is_some());
    let hidden = match all_known {
        true => BTreeMap::new(),
        false => processes.hidden(|pid, name| holders.mean(pid, name)),
    };
    let connections = found.into_iter().filter_map(|(mut seen, inode)| {
        seen.owner = processes.owner(inode);
        let is_foreign = seen.owner.is_none_or(|owner| owner.pid != me);
        (is_foreign && holders.match_any(&seen)).then_some(seen)
    });
    let connections = connections.collect();
    let queues = waiting.map(|l| AcceptQueue {
        address: l.address,
        process: processes
            .owner(l.inode)
            .map_or(UNKNOWN, |owner| processes.name(owner.pid))
            .to_owned(),
        length: l.length,
        limit: l.limit,
    });
    Ok(Survey {
        queues: queues.collect(),
        connections,
        processes,
        hidden,
    })
}

/// Those that match by their ends and that a process holds, with their inodes.
fn held(
    diag: &mut SockDiag,
    matching: &[Matching],
    policy: &Policy,
    listening: &[Listening],
) -> io::Result<Vec<(Seen, u32)>> {
    let ports: HashSet<u16> = listening.iter().map(|l| l.address.port()).collect();
    let now = sys::now();
    let mut found: Vec<(Seen, u32)> = Vec::new();
    // Where a new one moves the others along, the kernel tells of one twice.
    let mut told = HashSet::new();
    diag.each(|c: &Connected| {
        let ends = (c.id.local(), c.id.peer());
        let is_meant = matching.iter().any(|m| m.ends(ends.0, ends.1));
        if c.inode == 0 || !is_meant || !told.insert(c.id.cookie()) {
            return;
        }
        let leg = match ports.contains(&ends.0.port()) {
            true => Leg::Downstream,
            false => Leg::Upstream,
        };
        let sample = sample::from_info(&c.info);
        let expires = Span::ms(c.expires_ms.into());
        let seen = Seen {
            id: c.id,
            word: judge(now, leg, policy, &sample, (c.timer, expires)),
            silent: sample.last_heard_age(),
            unanswered: sample.probes + u32::from(c.info.retransmits),
            uid: c.uid,
            owner: None,
        };
        found.push((seen, c.inode));
    })?;
    Ok(found)
}

/// Tells connections of the processes that are meant from others.
struct Holders<'a> {
    matching: &'a [Matching],
    processes: &'a Processes,
    all_match: bool,
}

impl<'a> Holders<'a> {
    fn new(matching: &'a [Matching], processes: &'a Processes) -> Self {
        Self {
            matching,
            processes,
            all_match: !matching.iter().any(Matching::asks_for_process),
        }
    }

    fn mean(&self, pid: u32, name: &str) -> bool {
        let means = |m: &Matching| m.holder(pid, name, || processes::cgroup(pid));
        self.matching.iter().any(means)
    }

    fn match_any(&self, seen: &Seen) -> bool {
        let (local, peer) = (seen.id.local(), seen.id.peer());
        self.all_match
            || self.matching.iter().any(|m| {
                let by_holder = |Owner { pid, .. }| {
                    m.holder(pid, self.processes.name(pid), || processes::cgroup(pid))
                };
                m.ends(local, peer) && (!m.asks_for_process() || seen.owner.is_some_and(by_holder))
            })
    }
}

impl Survey {
    /// The name of the process that holds it.
    #[must_use]
    pub fn process(&self, seen: &Seen) -> &str {
        let name = |owner: Owner| self.processes.name(owner.pid);
        seen.owner.map_or(UNKNOWN, name)
    }

    /// By process, the one with the most connections that are not fine first.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        for seen in &self.connections {
            let name = self.process(seen);
            rows.entry(name)
                .or_insert_with(|| Row::named(name))
                .add(seen);
        }
        let mut rows: Vec<Row> = rows.into_values().collect();
        let bad = |row: &Row| row.connections - row.of(Word::Alive) - row.of(Word::Quiet);
        rows.sort_by_key(|row| std::cmp::Reverse((bad(row), row.connections)));
        rows
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> Row {
        let mut total = Row::named("all");
        self.connections.iter().for_each(|seen| total.add(seen));
        total
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Own sockets are left out; they are somebody's all the same.
    #[test]
    fn own_connections_are_none_of_its_business() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let _near = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let matching = [format!("port={port}").parse().expect("valid")];
        let mut diag = SockDiag::open().expect("opened");
        let policy = crate::scan::policy(Duration::from_secs(30));
        let found = survey(&mut diag, &matching, &policy, Processes::default());
        let found = found.expect("surveyed");
        assert!(found.connections.is_empty());
        let [queue] = &found.queues[..] else {
            panic!("{:?}", found.queues)
        };
        assert_eq!((queue.length, queue.address.port()), (1, port));
        assert!(queue.process.starts_with("pulsegate"), "{queue:?}");
    }

    #[test]
    fn rows_count_each_connection_once() {
        let mut row = Row::named("x");
        assert_eq!(row.words.len(), Word::VARIANTS.len());
        assert_eq!(row.of(Word::Suspect), 0);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let local = near.local_addr().expect("connected");
        let mut own = None;
        SockDiag::open()
            .and_then(|mut diag| {
                diag.each(|c| {
                    if c.id.local() == local {
                        own = Some(c.id);
                    }
                })
            })
            .expect("dumped");
        let id = own.expect("the own connection");
        for word in [Word::Suspect, Word::Unprotected, Word::Suspect] {
            row.add(&Seen {
                id,
                word,
                silent: Span::ms(5500),
                unanswered: 0,
                uid: 0,
                owner: Some(Owner { pid: 7, fd: 3 }),
            });
        }
        assert_eq!((row.connections, row.of(Word::Suspect)), (3, 2));
        assert_eq!((row.oldest_silence_seconds, row.pids), (5, vec![7]));
    }
}
