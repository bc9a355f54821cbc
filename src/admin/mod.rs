//! The HTTP endpoint for metrics and administration.
//!
//! It serves operators, probes and Prometheus. It bounds what any client can hold: connections,
//! header size and time, request bodies, the age of a connection, and the memory of an answer
//! (`answer`). It runs on its own thread and waits for the data plane only in [`Control`].

mod answer;
pub mod client;
mod console;
mod guard;
mod live;
mod notice;
mod patience;
mod query;
mod routes;
mod server;
mod table;
mod tls;
mod trust;
pub use crate::view;

pub use guard::TokenFile;
pub use notice::Notice;
pub use server::{MAX_CONNECTIONS, Socket, serve};

use std::pin::Pin;
use std::sync::Arc;

use crate::host::checks::Check;
use crate::metrics::End;
use view::{EndpointView, OnSilent, Reload, ReloadReport, Shown, Summary, VerifiedSession};

/// The status of the answer to a request at a loopback address, for the fuzz target.
#[cfg(fuzzing)]
pub async fn status(
    control: Arc<dyn Control>,
    request: hyper::Request<String>,
) -> hyper::StatusCode {
    let guard = guard::Guard {
        reach: guard::Reach::Host,
        scheme: guard::Scheme::Http,
        token: None,
    };
    let router = routes::Router::new(control, guard);
    router.answer(request).await.status()
}

/// Whether the process takes new clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Listening.
    Ready,
    /// Draining; no way back.
    Draining,
}

/// Why a configuration was not taken up. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReloaded {
    /// The process follows no file, or drains.
    Impossible(String),
    /// What is wrong with it, one line each.
    Refused(Vec<String>),
}

/// What the endpoint needs of the rest of the process. Methods may block for some milliseconds;
/// they are called on a thread that moves no client bytes.
pub trait Control: Send + Sync + 'static {
    /// Fresh figures in the Prometheus text format.
    fn metrics(&self) -> String;
    /// What `/` shows in place of the routes and the console, of a process that has no sessions.
    fn index(&self) -> Option<&'static str> {
        None
    }
    /// What an overview needs, without a look at any session.
    fn summary(&self) -> Summary;
    /// Whether the process takes new clients.
    fn readiness(&self) -> Readiness;
    /// A listener that cannot serve because no endpoint of it is up, where that counts.
    fn without_endpoint(&self) -> Option<String> {
        None
    }
    /// Whether a listener of this name serves, or has a session yet.
    fn knows_listener(&self, name: &str) -> bool;
    /// Every session, in no order.
    fn sessions(&self) -> Vec<Arc<dyn Shown>>;
    /// Ends these sessions for an operator, who may have given a `reason` for the log. Returns how many of
    /// them there are.
    fn close(&self, ids: &[u64], reason: Option<&str>) -> usize;
    /// Asks the peers of these sessions. Ids that no session has, and sessions whose turn did not come in time, are left out.
    /// The order is not that of `ids`. Takes some seconds at most.
    fn verify(
        &self,
        ids: &[u64],
        on_silent: OnSilent,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>>;
    /// The endpoints of all listeners.
    fn upstreams(&self) -> Vec<EndpointView>;
    /// The last ends because a peer was gone, or hung; the newest is the first.
    fn found(&self) -> Vec<End>;
    /// The running configuration as YAML, defaults filled in.
    fn config(&self) -> String;
    /// Has the configuration file read again and be in force, like SIGHUP.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>>;
    /// The last reloads, and attempts at one; the newest is the first.
    fn reloads(&self) -> Vec<Reload> {
        Vec::new()
    }
    /// What `pulsegate explain` says of the running configuration.
    fn explain(&self) -> String {
        String::new()
    }
    /// What `pulsegate doctor` says of this process on its host.
    fn doctor(&self) -> Vec<Check> {
        Vec::new()
    }
    /// Starts the drain, like SIGTERM.
    fn drain(&self);
}
