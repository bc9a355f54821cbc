//! Signals and the phases of the process: serving, draining, ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::config::Drain;
use crate::liveness::Turn;

/// What makes the process end.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hangups: Arc<Notify>,
}

impl EndSignals {
    /// Listens for SIGTERM, SIGINT and SIGHUP, and keeps SIGUSR1 and SIGUSR2 from killing the
    /// process. To be called on the runtime's thread, first of all: process 1 of a container does
    /// not get a signal that it has no handler for.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn install() -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangups: Arc::default(),
        };
        let hangups = signals.hangups();
        note(SignalKind::hangup(), move || hangups.notify_one())?;
        let ignored = |name| move || tracing::info!("{name} is ignored");
        note(SignalKind::user_defined1(), ignored("SIGUSR1"))?;
        note(SignalKind::user_defined2(), ignored("SIGUSR2"))?;
        Ok(signals)
    }

    /// Is notified of each SIGHUP, of one that came before anybody waited, too.
    #[must_use]
    pub fn hangups(&self) -> Arc<Notify> {
        self.hangups.clone()
    }

    /// Waits for the next one; returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn note(kind: SignalKind, say: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut coming = signal(kind)?;
    tokio::spawn(async move {
        while coming.recv().await.is_some() {
            say();
        }
    });
    Ok(())
}

/// What a drain acts on.
pub trait Drainable {
    /// Says "not ready" to whoever asks.
    fn refuse_readiness(&self);
    /// Stops accepting.
    fn stop_accepting(&self);
    /// How many sessions are left.
    fn sessions(&self) -> usize;
    /// Waits until none is left, and no accepted client is to become one.
    fn emptied(&self) -> impl Future<Output = ()>;
    /// Ends the sessions whose turn has come, those that are at rest.
    fn finish_quiet(&self, turn: Turn);
    /// Ends every session: what was received is delivered (bounded), then RST, or FIN by `on_end`.
    fn finish_all(&self);
    /// Ends every session by RST.
    fn abort_all(&self);
}

/// What began a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A signal.
    Signal,
    /// Somebody at the admin endpoint, such as a preStop hook.
    Admin,
    /// The next instance, which has taken over.
    Successor,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every session finished by itself.
    Clean,
    /// The time ran out; this many sessions were ended.
    TimedOut(usize),
    /// A signal during the drain ended this many sessions.
    Forced(usize),
}

/// How long sessions that were told to end may take before the process goes.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Drains: not ready, `drain.delay`, no more accepting, sessions finish, `drain.timeout`.
pub async fn drain(
    limits: &Drain,
    process: &impl Drainable,
    signals: &mut EndSignals,
    cause: Cause,
) -> Drained {
    process.refuse_readiness();
    let ended = tokio::select! {
        ended = wait_for_sessions(limits, process) => ended,
        name = told_to_hurry(signals, cause) => {
            tracing::warn!("{name} during the drain: ending every session now");
            process.stop_accepting();
            Drained::Forced(process.sessions())
        }
    };
    match ended {
        Drained::Clean => return ended,
        Drained::TimedOut(left) => {
            tracing::warn!(
                sessions = left,
                "drain.timeout is over: ending the sessions that are left"
            );
            process.finish_all();
        }
        Drained::Forced(_) => process.abort_all(),
    }
    tokio::select! {
        _ = tokio::time::timeout(LAST_MOMENT, process.emptied()) => {}
        _ = signals.next() => process.abort_all(),
    }
    ended
}

/// The first signal ends nothing where the drain was asked for at the admin endpoint: the kubelet sends SIGTERM
/// when the preStop hook is over, to whoever drains, too.
async fn told_to_hurry(signals: &mut EndSignals, cause: Cause) -> &'static str {
    if cause == Cause::Admin {
        let name = signals.next().await;
        tracing::info!("{name}: already draining; another one ends every session");
    }
    signals.next().await
}

async fn wait_for_sessions(limits: &Drain, process: &impl Drainable) -> Drained {
    tokio::time::sleep(limits.delay).await;
    process.stop_accepting();
    // Clients that were queued are still taken.
    tokio::select! {
        () = process.emptied() => Drained::Clean,
        () = in_turns(limits.timeout, |turn| process.finish_quiet(turn)) => {
            Drained::TimedOut(process.sessions())
        }
    }
}

/// Waits for as long as a drain may take. In its second half sessions are ended by and by, so that their
/// clients do not all come again in one instant.
pub async fn in_turns(timeout: Duration, end: impl Fn(Turn)) {
    const STEPS: u32 = 50;
    let half = timeout / 2;
    tokio::time::sleep(half).await;
    for step in 1..=STEPS {
        tokio::time::sleep(half / STEPS).await;
        end(Turn { step, steps: STEPS });
    }
}

/// A drain asked for by the admin endpoint.
#[derive(Debug, Default)]
pub struct DrainRequest(Notify);

impl DrainRequest {
    /// Asks for it.
    pub fn ask(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody asks.
    pub async fn asked(&self) {
        self.0.notified().await;
    }
}
