//! `pulsegate guard`: connections of other processes are held to D with no proxy in their path. What
//! matches is given keepalive options by which the kernel alone ends a peer that vanished; nothing else is
//! judged, and nothing of the connection passes here.

mod control;
mod held;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::admin;
use crate::config::{Log, LogAccess, LogFormat, LogLevel};
use crate::exit::{self, Exit};
use crate::lifecycle::EndSignals;
use crate::metrics::GuardMetrics;
use crate::scan::{self, Matching};
use crate::telemetry;
use control::Endpoint;
use held::Held;

/// Whether options are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are.
    Act,
    /// It is only said what would be.
    DryRun,
}

/// What becomes of the options at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtTheEnd {
    /// They stay, and the kernel keeps the promise.
    Leave,
    /// They are what they were.
    Restore,
}

/// What to guard, and how.
#[derive(Clone, Debug)]
pub struct Orders {
    /// A connection is guarded if one of these matches.
    pub matching: Vec<Matching>,
    /// D, of 5 s or more.
    pub detect_within: Duration,
    /// Whether anything is changed.
    pub mode: Mode,
    /// What becomes of it at the end.
    pub at_the_end: AtTheEnd,
    /// Where metrics and health are served.
    pub admin: Option<SocketAddr>,
    /// The format of the log.
    pub log: LogFormat,
}

/// Guards until a signal comes.
#[must_use]
pub fn run(orders: Orders) -> Exit {
    let log = Log {
        level: LogLevel::Info,
        format: orders.log,
        access: LogAccess::End,
    };
    let outcome = telemetry::init(&log)
        .map_err(|error| (Exit::Failure, format!("cannot log: {error}")))
        .and_then(|_log| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(failed)?;
            runtime.block_on(guard(orders))
        });
    match outcome {
        Ok(()) => Exit::Ok,
        Err((exit, why)) => {
            exit::complain(&why);
            exit
        }
    }
}

fn failed(error: io::Error) -> (Exit, String) {
    (Exit::Failure, format!("cannot guard: {error}"))
}

async fn guard(orders: Orders) -> Result<(), (Exit, String)> {
    let mut signals = EndSignals::install().map_err(failed)?;
    let metrics = Arc::new(GuardMetrics::default());
    let asked_to_end = Arc::new(Notify::new());
    if let Some(address) = orders.admin {
        let busy = |error: io::Error| {
            let why = format!("cannot listen on {address} (--admin): {error}");
            (Exit::CannotListen, why)
        };
        let listener = TcpListener::bind(address).map_err(busy)?;
        listener.set_nonblocking(true).map_err(busy)?;
        let socket = admin::Socket::new(listener.into(), None).map_err(busy)?;
        let control = Endpoint {
            metrics: metrics.clone(),
            orders: format!("{orders:#?}\n"),
            asked_to_end: asked_to_end.clone(),
        };
        let forever = std::future::pending::<()>();
        tokio::spawn(admin::serve(socket, None, Arc::new(control), forever));
    }
    let policy = scan::policy(orders.detect_within);
    let every = Duration::from(policy.probe_interval);
    let mut held = Held::new(&orders, policy, metrics).map_err(failed)?;
    tracing::info!(
        detect_within = ?orders.detect_within,
        options = %held.options(),
        "guarding: looks for connections every {every:?}"
    );
    loop {
        held.look();
        tokio::select! {
            name = signals.next() => {
                tracing::info!("{name}: ending");
                break;
            }
            () = asked_to_end.notified() => {
                tracing::info!("the admin endpoint asked for it: ending");
                break;
            }
            () = sleep(every) => {}
        }
    }
    if orders.at_the_end == AtTheEnd::Restore {
        match held.restore() {
            Ok(restored) => tracing::info!(
                connections = restored.whole,
                others = restored.rest,
                "the connections have their own socket options again"
            ),
            Err(error) => tracing::warn!(%error, "cannot put the options back"),
        }
    }
    Ok(())
}
