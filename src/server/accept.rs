//! The accept loop of one worker on one address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use strum::VariantArray;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::admission::{self, Resources};
use super::workers::Pool;
use super::{Listener, Permit};
use crate::metrics::{AcceptErrorClass, RejectReason};
use crate::net::listen;
use crate::net::stream::TcpStream;
use crate::session::{Admission, Coming, Session, Task, Worker};
use crate::sys;
use crate::telemetry::Repeated;

/// Clients taken out of the queue before others get their turn.
const BATCH: usize = 64;
/// The longest pause after an error that waiting can help against.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Before a socket that does not listen is looked at again.
const CLOSED_PAUSE: Duration = Duration::from_millis(100);

/// Lines about errors of accept4(2), one for each [`AcceptErrorClass`]: what runs out is the
/// process's or the host's.
static ACCEPT_LINES: [Repeated; AcceptErrorClass::VARIANTS.len()] =
    [const { Repeated::new() }; AcceptErrorClass::VARIANTS.len()];
static DESCRIPTOR_LINES: Repeated = Repeated::new();

/// Accepts at the socket of one worker at one listener.
pub(super) struct Acceptor {
    pool: Arc<Pool>,
    worker: Arc<Worker>,
    listener: Arc<Listener>,
    /// The worker's own among the listener's; there until the drop.
    socket: Option<Arc<OwnedFd>>,
    _coming: Option<Coming>,
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.listener.close(self.socket.take());
    }
}

/// Accepts from the opening of the listener until it is told to stop; clients that are queued then
/// are still taken. Follows its worker as that is taken into use and given up.
pub(super) fn start(acceptor: Acceptor) {
    let here = acceptor.pool.balancer.acceptor(&acceptor.worker).clone();
    here.clone().spawn(async move {
        if let Some(acceptor) = accept(acceptor, &here).await {
            start(acceptor);
        }
    });
}

/// Returns what another worker is to go on with.
async fn accept(acceptor: Acceptor, here: &Arc<Worker>) -> Option<Acceptor> {
    let listener = &acceptor.listener;
    let (mut open, mut stop) = (listener.is_open(), listener.is_stopped());
    let mut refusing = listener.is_refusing();
    // The senders are the listener's own.
    let takes = async {
        drop(open.wait_for(|open| *open).await);
        drop(refusing.wait_for(|refuses| !refuses).await);
    };
    tokio::select! {
        biased;
        () = takes => {}
        // These clients were never ours.
        _ = stop.wait_for(|stop| *stop) => return None,
    }
    // A socket that was closed for a while is watched anew: that it was is never forgotten.
    let registered = sys::register(acceptor.socket.clone()?, Interest::READABLE);
    let failed = |error| tracing::error!("cannot watch a listening socket: {error}");
    let socket = registered.map_err(failed).ok()?;
    let mut pause = Duration::ZERO;
    loop {
        if !Arc::ptr_eq(acceptor.pool.balancer.acceptor(&acceptor.worker), here) {
            return Some(acceptor);
        }
        if *refusing.borrow_and_update() {
            return Some(acceptor);
        }
        let stopping = *stop.borrow();
        match acceptor.take_some(&socket) {
            Batch::Empty | Batch::Failed | Batch::Closed if stopping => return None,
            Batch::Full => tokio::task::yield_now().await,
            Batch::Empty => {
                pause = Duration::ZERO;
                tokio::select! {
                    _ = stop.changed() => {}
                    _ = readable(&socket) => {}
                }
            }
            Batch::Failed => {
                pause = (pause * 2).clamp(Duration::from_millis(5), LONGEST_PAUSE);
                tokio::select! {
                    _ = stop.changed() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
            Batch::Closed => {
                tokio::select! {
                    _ = stop.changed() => {}
                    () = tokio::time::sleep(CLOSED_PAUSE) => {}
                }
                // What failed is tried again.
                let opened = acceptor.listener.stay_open();
                opened.unwrap_or_else(|error| tracing::error!("cannot listen again: {error}"));
                return Some(acceptor);
            }
        }
    }
}

enum Batch {
    /// The queue is empty.
    Empty,
    /// There may be more.
    Full,
    /// Descriptors or memory ran out: pause.
    Failed,
    /// The socket does not listen: clients are refused, or an instance that shares it has closed it.
    Closed,
}

impl Acceptor {
    pub fn new(
        pool: Arc<Pool>,
        worker: Arc<Worker>,
        listener: Arc<Listener>,
        socket: Arc<OwnedFd>,
    ) -> Self {
        Self {
            _coming: worker.coming(),
            pool,
            worker,
            listener,
            socket: Some(socket),
        }
    }

    fn take_some(&self, socket: &AsyncFd<Arc<OwnedFd>>) -> Batch {
        let params = &self.listener.params;
        for _ in 0..BATCH {
            match listen::accept(socket.get_ref()) {
                Ok((fd, client)) => {
                    params.metrics.accepted();
                    self.admit(fd, client);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Batch::Empty;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Batch::Closed,
                Err(error) => {
                    let class = classify(&error);
                    params.metrics.accept_error(class);
                    if class != AcceptErrorClass::Connection {
                        report(&params.name, class, &error);
                        return Batch::Failed;
                    }
                }
            }
        }
        Batch::Full
    }

    /// Lets the client in, on the worker where it belongs; has it wait for what it lacks; or
    /// turns it away: the armed abort that its socket inherited makes the drop an RST.
    fn admit(&self, fd: OwnedFd, client: SocketAddr) {
        let (pool, metrics) = (&self.pool, &self.listener.params.metrics);
        let place = match &self.listener.header {
            None => self.place(client.ip()),
            // That is decided once it has said who it is; the mode of a unix socket says who may.
            Some(_) if client == listen::NO_ADDRESS => Ok(None),
            Some(header) if header.trusts(client.ip()) => Ok(None),
            Some(_) => Err(RejectReason::ProxyProtocolUntrusted),
        };
        let place = match place {
            Ok(place) => place,
            Err(reason) => {
                metrics.rejected(reason);
                return self.listener.report_refused(client.ip(), reason);
            }
        };
        let (granted, otherwise) = if *pool.out_of_memory.borrow() {
            (None, RejectReason::Memory)
        } else {
            let granted = pool.descriptors.try_acquire();
            if granted.is_none() {
                report_shortage(pool);
            }
            (granted, RejectReason::Descriptors)
        };
        let resources = match granted {
            Some(permit) => Resources::Granted(permit),
            None => match pool.waiting_room.try_acquire() {
                Some(permit) => Resources::Awaited(permit),
                None => return metrics.rejected(otherwise),
            },
        };
        self.start(fd, client, place, resources);
    }

    /// A place for a client that is let in by its address.
    fn place(&self, client: IpAddr) -> Result<Option<Permit>, RejectReason> {
        self.listener.admits(client)?;
        let place = self.listener.place(client)?;
        // Nobody holds one during a handshake. Who would be rejected is given none.
        Ok(place.filter(|_| self.listener.params.tls.is_none()))
    }

    fn start(&self, fd: OwnedFd, client: SocketAddr, place: Option<Permit>, resources: Resources) {
        let worker = self.pool.balancer.place(&self.worker);
        let registered = {
            let _there = worker.enter();
            TcpStream::new(fd)
        };
        let stream = match registered {
            Ok(stream) => stream,
            Err(error) => {
                self.listener
                    .params
                    .metrics
                    .rejected(RejectReason::LocalError);
                return tracing::error!(%client, "cannot watch a client: {error}");
            }
        };
        let id = self.pool.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let session = Session::new(id, self.listener.params.clone(), client, sys::now());
        let (pool, listener, client) = (self.pool.clone(), self.listener.clone(), session.clone());
        let preambles = admission::preambles(&listener);
        let admission = match (place, resources) {
            (Some(place), Resources::Granted(process)) => Admission::Now([place, process]),
            (_, resources) if !preambles.is_empty() => Admission::Wait(Box::pin(admission::admit(
                pool, listener, client, resources,
            ))),
            (place, resources) => {
                let wait = admission::wait(pool, listener, client, place, resources);
                Admission::Wait(Box::pin(wait))
            }
        };
        let (worker, stream) = (worker.clone(), self.listener.leg(stream));
        let task = Task::with_preambles(session, worker.clone(), stream, admission, preambles);
        worker.spawn(task);
    }
}

fn report(listener: &str, class: AcceptErrorClass, error: &io::Error) {
    let lines = &ACCEPT_LINES[class as usize];
    if !lines.begin() {
        return;
    }
    let advice = match error.raw_os_error() {
        Some(libc::EMFILE) => "; no descriptor is left: raise `ulimit -n` (systemd: LimitNOFILE=)",
        _ => "",
    };
    tracing::warn!(
        listener,
        "cannot accept: {error}{advice}; pausing before the next try"
    );
    tokio::spawn(lines.sum_up(move |more| {
        tracing::warn!(
            class = <&str>::from(class),
            "cannot accept: {more} more in the last 10 s"
        );
    }));
}

/// The descriptors that the limit leaves for sessions are all taken.
fn report_shortage(pool: &Pool) {
    if !DESCRIPTOR_LINES.begin() {
        return;
    }
    tracing::warn!(
        sessions = pool.descriptors.in_use(),
        "descriptors are short: this is as many sessions as the limit allows; raise ulimit -n \
         (systemd: LimitNOFILE=), or lower limits.max_connections"
    );
    tokio::spawn(DESCRIPTOR_LINES.sum_up(|more| {
        tracing::warn!("descriptors are short: {more} more clients in the last 10 s");
    }));
}

async fn readable(socket: &AsyncFd<Arc<OwnedFd>>) {
    // Cleared only here, after the queue was found empty; a client that came in between is
    // found by polling the queue once more.
    if let Ok(mut guard) = socket.readable().await {
        guard.clear_ready();
    }
}

/// Sorts an error of accept4(2) by what helps: nothing needs to be waited for where only that
/// client was concerned ("treat them like EAGAIN by retrying", accept(2)).
fn classify(error: &io::Error) -> AcceptErrorClass {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => AcceptErrorClass::Descriptors,
        Some(libc::ENOMEM | libc::ENOBUFS) => AcceptErrorClass::Memory,
        Some(
            libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EPERM
            | libc::EINTR,
        ) => AcceptErrorClass::Connection,
        _ if error.kind() == io::ErrorKind::ConnectionAborted => AcceptErrorClass::Connection,
        _ => AcceptErrorClass::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;
    use crate::server::admission::Places;

    /// What each idle session costs beside the runtime's own records: figures of the design.
    /// The runtime adds 104 bytes to a task and rounds up to 128, so 152 is a threshold.
    #[test]
    fn a_session_is_small() {
        assert!(
            size_of::<Task<Places>>() <= 152,
            "{}",
            size_of::<Task<Places>>()
        );
        assert!(size_of::<Session>() <= 320, "{}", size_of::<Session>());
    }
}
