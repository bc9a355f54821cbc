//! What the service manager that started this process is told (sd_notify(3)), where there is one.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::Drain;
use crate::session::Worker;
use crate::sys;

/// A manager that hangs keeps nobody waiting for longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a drain may take beyond its limits: the last moment of its sessions, the log.
const MARGIN: Duration = Duration::from_secs(5);

/// Clients are accepted, or a reload is over.
pub(super) fn ready() {
    tell("READY=1");
}

/// A reload begins.
pub(super) fn reloading() {
    let now = sys::monotonic_micros();
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
}

/// A drain begins. It may take what is configured, whatever the manager's own limit is.
pub(super) fn stopping(drain: &Drain) {
    let longest = (drain.delay + drain.timeout + MARGIN).as_micros();
    tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={longest}"));
}

/// Tells the manager that this process moves, as long as it does: the event loop that this runs on, and
/// those of all workers. Returns at once where the manager does not want to know.
pub(super) async fn feed_watchdog(workers: Vec<Arc<Worker>>) {
    let Some(limit) = watchdog_limit() else {
        return;
    };
    let pause = limit / 3;
    let mut turns = interval(pause);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        for (index, worker) in workers.iter().enumerate() {
            let (moved, mut has_moved) = oneshot::channel();
            worker.spawn(async { moved.send(()).unwrap_or_default() });
            if timeout(pause, &mut has_moved).await.is_err() {
                tracing::error!(
                    "worker-{index} hangs: the service manager is not told that all is well"
                );
                let _moves_again = has_moved.await;
            }
        }
        tell("WATCHDOG=1");
    }
}

/// After what silence the manager ends this process (sd_watchdog_enabled(3)).
fn watchdog_limit() -> Option<Duration> {
    let own = std::process::id().to_string();
    let is_ours = env::var("WATCHDOG_PID").map_or(true, |pid| pid == own);
    let limit = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (is_ours && limit > 0).then_some(Duration::from_micros(limit))
}

fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!("the service manager at {socket:?} is not told {state:?}: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
