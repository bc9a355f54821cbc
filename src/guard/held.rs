//! The connections that are guarded.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::{Mode, Orders};
use crate::liveness::{Policy, Span};
use crate::metrics::GuardMetrics;
use crate::scan::{self, Matching, Options, Processes, Refusal, Seen, Survey, Word};
use crate::sys::Foreign;
use crate::sys::sock_diag::SockDiag;

/// One whose peer was heard within this time may be over before it matters: it waits for the next look.
const NEW: Span = Span::ms(1000);

/// What was done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It was given keepalive; these are the options that it gets back.
    Guarded(Options),
    /// Its application has asked for as much.
    Strict,
    /// It is as it was.
    Unprotected,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    seen: Seen,
    standing: Standing,
    look: u64,
}

/// What is known of all of them, by the cookies of their sockets.
pub(super) struct Held {
    diag: SockDiag,
    matching: Vec<Matching>,
    policy: Policy,
    options: Options,
    mode: Mode,
    known: HashMap<u64, Known>,
    /// Who held them at the last look.
    processes: Processes,
    /// Refusals that were logged, by process.
    told: HashSet<(String, String)>,
    look: u64,
    metrics: Arc<GuardMetrics>,
}

impl Held {
    pub fn new(orders: &Orders, policy: Policy, metrics: Arc<GuardMetrics>) -> io::Result<Self> {
        Ok(Self {
            diag: SockDiag::open()?,
            matching: orders.matching.clone(),
            options: Options::to_keep(&policy),
            policy,
            mode: orders.mode,
            known: HashMap::new(),
            processes: Processes::default(),
            told: HashSet::new(),
            look: 0,
            metrics,
        })
    }

    /// What a connection is given.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Looks at all connections, and guards those that are new.
    pub fn look(&mut self) {
        self.look += 1;
        let metrics = self.metrics.clone();
        let series = &metrics.series;
        series.looks.inc();
        let survey = match self.survey() {
            Ok(survey) => survey,
            Err(error) => {
                series.failed_looks.inc();
                tracing::warn!(%error, "cannot look at the connections");
                return;
            }
        };
        for (why, n) in &survey.hidden {
            if self.told.insert((String::new(), why.clone())) {
                tracing::warn!("cannot look into {n} of the processes that are meant: {why}");
            }
        }
        let refused = survey.connections.iter();
        let refused = refused
            .filter(|seen| self.take(&survey, seen).is_err())
            .count();
        let look = self.look;
        self.known.retain(|_, known| {
            let is_there = known.look == look;
            let is_guarded = matches!(known.standing, Standing::Guarded(_));
            if !is_there && is_guarded && known.seen.unanswered > 0 {
                series.ended.inc();
                let (local, peer) = (known.seen.id.local(), known.seen.id.peer());
                tracing::info!(%local, %peer, silent = ?known.seen.silent, "the kernel ended a connection: its peer did not answer");
            }
            is_there
        });
        let unprotected = self.known.values();
        let unprotected = unprotected.filter(|known| known.standing == Standing::Unprotected);
        series.unprotected.set(count(unprotected.count()));
        let connections = survey.connections.len();
        series.matching.set(count(connections));
        if look == 1 {
            tracing::info!(connections, "looked for the first time");
            self.tell_whom_nobody_is();
        }
        // It may have been refused because another process holds it by now.
        if refused == 0 {
            self.processes = survey.processes;
        }
    }

    /// A process that is to be guarded may start later; a name that is wrong looks the same.
    fn tell_whom_nobody_is(&self) {
        let nobody = |rule: &&Matching| scan::has_holder(rule).is_ok_and(|is_there| !is_there);
        for rule in self.matching.iter().filter(nobody) {
            let (process, cgroup) = (rule.process.as_deref(), rule.cgroup.as_deref());
            let pid = rule.pid;
            tracing::warn!(process, pid, cgroup, "no process matches this --match yet");
        }
    }

    fn survey(&mut self) -> io::Result<Survey> {
        let known = std::mem::take(&mut self.processes);
        scan::survey(&mut self.diag, &self.matching, &self.policy, known)
    }

    /// `Err` if it was refused.
    fn take(&mut self, survey: &Survey, seen: &Seen) -> Result<(), ()> {
        let cookie = seen.id.cookie();
        let known = self.known.get(&cookie);
        let before = known.map(|known| known.standing);
        let taken = match before {
            None if seen.silent < NEW => return Ok(()),
            Some(standing @ (Standing::Guarded(_) | Standing::Strict))
                if is_kept(seen, known.map(|known| known.seen.word)) =>
            {
                Ok(standing)
            }
            _ => self.guard(survey, seen, before),
        };
        if let Err(refusal) = &taken {
            self.note_refusal(survey, seen, before, refusal);
        }
        // What cannot be read again is taken for what it was, as long as the kernel asks in time.
        let otherwise = match seen.word {
            Word::Unprotected | Word::Late => None,
            _ => before,
        };
        let otherwise = otherwise.unwrap_or(Standing::Unprotected);
        let known = Known {
            seen: *seen,
            standing: *taken.as_ref().unwrap_or(&otherwise),
            look: self.look,
        };
        self.known.insert(cookie, known);
        taken.map(drop).map_err(drop)
    }

    fn guard(
        &self,
        survey: &Survey,
        seen: &Seen,
        before: Option<Standing>,
    ) -> Result<Standing, Refusal> {
        let socket = scan::copy(seen)?;
        let own = read(&socket)?;
        if own.keep(self.policy.detect_within) {
            return Ok(match before {
                Some(guarded @ Standing::Guarded(_)) => guarded,
                _ => Standing::Strict,
            });
        }
        // A scan puts them back within seconds, unless it was killed.
        if self.mode == Mode::Act && scan::is_asking(&own) && scan::is_underway() {
            return Ok(before.unwrap_or(Standing::Unprotected));
        }
        let wanted = self.wanted(&own);
        let (local, peer, process) = (seen.id.local(), seen.id.peer(), survey.process(seen));
        let pid = seen.owner.map(|owner| owner.pid);
        if self.mode == Mode::DryRun {
            if before.is_none() {
                tracing::info!(%local, %peer, process, pid, had = %own, "would be guarded");
            }
            return Ok(Standing::Unprotected);
        }
        if let Err(error) = wanted.give(socket.as_raw_fd(), &own) {
            let _ = own.give(socket.as_raw_fd(), &wanted);
            return Err(Refusal::Other(error.to_string()));
        }
        drop(socket);
        self.metrics.series.protected.inc();
        tracing::info!(%local, %peer, process, pid, had = %own, "guarded");
        Ok(Standing::Guarded(match before {
            Some(Standing::Guarded(first)) => self.returned(&own, &first),
            _ => own,
        }))
    }

    /// What a guarded connection that has these options gets back.
    fn returned(&self, has: &Options, first: &Options) -> Options {
        let given = self.wanted(first);
        let has = match scan::is_question(has) {
            true => &given,
            false => has,
        };
        has.returned(&given, first, self.policy.detect_within)
    }

    fn wanted(&self, own: &Options) -> Options {
        Options {
            rto_max: own.rto_max.and(self.options.rto_max),
            ..self.options
        }
    }

    /// Each reason is logged once for the processes of a name.
    fn note_refusal(
        &mut self,
        survey: &Survey,
        seen: &Seen,
        before: Option<Standing>,
        refusal: &Refusal,
    ) {
        if *refusal == Refusal::Gone {
            return;
        }
        if before.is_none() {
            self.metrics.series.refused.inc();
        }
        let process = survey.process(seen);
        if self.told.insert((process.to_owned(), refusal.to_string())) {
            let (local, peer) = (seen.id.local(), seen.id.peer());
            tracing::warn!(%local, %peer, process, "cannot be guarded: {refusal}");
        }
    }

    /// Gives every connection its own options back, those excepted that another has changed since.
    ///
    /// # Errors
    /// What sock_diag(7) or `/proc` say.
    pub fn restore(&mut self) -> io::Result<Restored> {
        // A process that held one may have ended, and left it to another.
        self.processes = Processes::default();
        let survey = self.survey()?;
        let mut restored = Restored::default();
        for seen in &survey.connections {
            let known = self.known.get(&seen.id.cookie());
            if let Some(Standing::Guarded(first)) = known.map(|known| known.standing) {
                match self.give_back(seen, &first) {
                    Ok(back) if back == first => restored.whole += 1,
                    _ => restored.rest += 1,
                }
            }
        }
        Ok(restored)
    }

    /// The options that it has then.
    fn give_back(&self, seen: &Seen, first: &Options) -> Result<Options, Refusal> {
        let socket = scan::copy(seen)?;
        let has = read(&socket)?;
        let back = self.returned(&has, first);
        back.give(socket.as_raw_fd(), &has)
            .map_err(|error| Refusal::Other(error.to_string()))?;
        Ok(back)
    }
}

/// How many connections were given their options back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restored {
    /// They have those that they had.
    pub whole: usize,
    /// Another has changed some since, or they could not be put back.
    pub rest: usize,
}

/// Whether nothing tells that options that were given, or strict, have been changed since. Once in each silence, and
/// while questions are unanswered, that is to be read: the next timer does not tell when the kernel gives up.
fn is_kept(seen: &Seen, before: Option<Word>) -> bool {
    match seen.word {
        Word::Unprotected | Word::Late | Word::Suspect => false,
        Word::Quiet => before == Some(Word::Quiet),
        _ => true,
    }
}

fn read(socket: &Foreign) -> Result<Options, Refusal> {
    Options::read(socket.as_raw_fd()).map_err(|error| Refusal::Other(error.to_string()))
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
