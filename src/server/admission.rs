//! What happens to a client when there is no place for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::worker::Worker;
use super::{Entrance, Pass};
use crate::config::OnFull;
use crate::liveness::{Close, CloseHow, CloseReason, Method};
use crate::metrics::Takeover;
use crate::session::Session;
use crate::sys;

/// Holders that are asked at once, the longest quiet first.
const ASKED_AT_ONCE: usize = 64;
/// While a newcomer waits, the holders are asked again this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a newcomer waits for a descriptor.
const DESCRIPTOR_WAIT: Duration = Duration::from_secs(3);

/// What a session holds while it lives: a place at its listener, and two descriptors' worth of
/// the process.
pub(super) type Places = [Pass; 2];

/// The descriptors of a newcomer.
#[derive(Debug)]
pub(super) enum Descriptors {
    /// There are enough for both legs.
    Both(Pass),
    /// There is one, of the reserve; the client has to wait for the other.
    Reserve(Pass),
}

/// Waits for what a newcomer lacks.
pub(super) async fn wait(
    worker: Arc<Worker>,
    entrance: Arc<Entrance>,
    listener: Option<Pass>,
    descriptors: Descriptors,
) -> Result<Places, CloseReason> {
    let process = match descriptors {
        Descriptors::Both(process) => process,
        Descriptors::Reserve(_waits) => wait_for_descriptors(&worker).await?,
    };
    let listener = match listener {
        Some(listener) => listener,
        None => wait_for_place(&worker, &entrance).await?,
    };
    Ok([listener, process])
}

async fn wait_for_descriptors(worker: &Worker) -> Result<Pass, CloseReason> {
    let make_room = async {
        loop {
            let made_room = {
                let _one_at_a_time = worker.shedding.lock().await;
                shed(worker, None).await
            };
            if made_room {
                // One newcomer makes room once.
                return std::future::pending::<()>().await;
            }
            sleep(ASK_AGAIN).await;
        }
    };
    tokio::select! {
        biased;
        pass = worker.descriptors.queue() => Ok(pass),
        () = sleep(DESCRIPTOR_WAIT) => Err(CloseReason::Rejected),
        () = make_room => Err(CloseReason::Rejected),
    }
}

async fn wait_for_place(worker: &Worker, entrance: &Entrance) -> Result<Pass, CloseReason> {
    let timeout = async {
        match entrance.limits.queue_timeout {
            Some(timeout) => sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let mut outcome = Outcome {
        entrance,
        served: false,
    };
    let place = tokio::select! {
        biased;
        pass = entrance.gate.queue() => Ok(pass),
        reason = make_room(worker, entrance) => Err(reason),
        () = timeout => Err(CloseReason::QueueTimeout),
    };
    outcome.served = place.is_ok();
    place
}

/// What came of a newcomer; counted on drop, since it may leave at any moment.
struct Outcome<'a> {
    entrance: &'a Entrance,
    served: bool,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let how = if self.served {
            self.entrance.freed_by()
        } else {
            Takeover::NotServed
        };
        self.entrance.service.metrics.takeover(how);
    }
}

/// Makes room by the listener's policy until the newcomer has its place; returns only when that
/// is hopeless.
async fn make_room(worker: &Worker, entrance: &Entrance) -> CloseReason {
    // One newcomer makes room at a time: the one that has waited longest.
    let _turn = entrance.making_room.lock().await;
    loop {
        match entrance.limits.on_full {
            OnFull::Reject | OnFull::Queue => return std::future::pending().await,
            OnFull::Verify => {
                end_the_dead(holders(worker, Some(entrance)), Method::TAKEOVER).await;
            }
            OnFull::Replace => {
                if let Some(holder) = holders(worker, Some(entrance)).first() {
                    holder.order(ended(CloseReason::Replaced));
                    // One newcomer replaces one holder.
                    return std::future::pending().await;
                }
            }
            OnFull::Shed => {
                if shed(worker, Some(entrance)).await {
                    return std::future::pending().await;
                }
                return CloseReason::Rejected;
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Ends the proven dead, or else the first session in the shedding order. False if every session
/// is active. Under pressure of the process (no `entrance`) only listeners that shed by policy
/// lose sessions that are merely quiet.
async fn shed(worker: &Worker, entrance: Option<&Entrance>) -> bool {
    if end_the_dead(holders(worker, entrance), Method::CHECK).await > 0 {
        return true;
    }
    let now = sys::now();
    let ranked = holders(worker, entrance).into_iter().filter_map(|session| {
        let rank = session.candidate(now)?.rank()?;
        let by_policy = session.service.sheds || !rank.is_quiet();
        by_policy.then_some((rank, session))
    });
    let first = ranked.min_by_key(|(rank, _)| *rank);
    if let Some((_, session)) = &first {
        session.order(ended(CloseReason::Shed));
    }
    first.is_some()
}

/// Asks all of these, and ends those that are proven gone; returns how many.
async fn end_the_dead(mut holders: Vec<Arc<Session>>, method: Method) -> usize {
    holders.truncate(ASKED_AT_ONCE);
    let mut asking = JoinSet::new();
    for session in holders {
        asking.spawn(async move {
            let answers = session.verify(method).await;
            session.end_if_silent(&answers, Some(CloseHow::Abort))
        });
    }
    asking
        .join_all()
        .await
        .into_iter()
        .filter(|ended| *ended)
        .count()
}

/// The sessions that hold a place, the longest quiet first.
fn holders(worker: &Worker, entrance: Option<&Entrance>) -> Vec<Arc<Session>> {
    let now = sys::now();
    let mut holders = Vec::new();
    for table in worker.tables() {
        table.for_each(|session| {
            let here = entrance.is_none_or(|e| Arc::ptr_eq(&e.service, &session.service));
            if let Some(candidate) = session.candidate(now).filter(|_| here) {
                holders.push((std::cmp::Reverse(candidate.idle), session.clone()));
            }
        });
    }
    holders.sort_by_key(|(idle, _)| *idle);
    holders.into_iter().map(|(_, session)| session).collect()
}

fn ended(reason: CloseReason) -> Close {
    Close {
        reason,
        how: CloseHow::Finish,
        evidence: None,
        silent_for: 0,
    }
}
