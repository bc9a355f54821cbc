//! What happens to a client when there is no place for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::worker::Worker;
use super::{Entrance, Pass};
use crate::config::OnFull;
use crate::liveness::{Close, CloseHow, CloseReason, Method};
use crate::metrics::{Shortage, Takeover};
use crate::session::Session;
use crate::sys;

/// Holders that are asked at once, the longest quiet first.
const ASKED_AT_ONCE: usize = 64;
/// While a newcomer waits, the holders are asked again this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a newcomer waits for descriptors and memory.
const RESOURCES_WAIT: Duration = Duration::from_secs(3);

/// What a session holds while it lives: a place at its listener, and two descriptors' worth of
/// the process.
pub(super) type Places = [Pass; 2];

/// What a newcomer needs of the process.
#[derive(Debug)]
pub(super) enum Resources {
    /// Descriptors for both legs, and memory is not short.
    Granted(Pass),
    /// One descriptor, of the reserve; the client has to wait for what is missing.
    Awaited(Pass),
}

/// What a newcomer does once it has its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is served.
    IsServed,
    /// It waits for a place: it is the last in line, so nobody is ended for it but the dead.
    Waits,
}

/// Waits for what a newcomer lacks, and lets it in unless it has gone meanwhile.
pub(super) async fn wait(
    worker: Arc<Worker>,
    entrance: Arc<Entrance>,
    newcomer: Arc<Session>,
    listener: Option<Pass>,
    resources: Resources,
) -> Result<Places, CloseReason> {
    let process = match resources {
        Resources::Granted(process) => process,
        Resources::Awaited(_waiting_room) => {
            let then = match entrance.limits.on_full {
                OnFull::Queue | OnFull::Verify if listener.is_none() => Then::Waits,
                _ => Then::IsServed,
            };
            let granted = timeout(RESOURCES_WAIT, wait_for_resources(&worker, then)).await;
            granted.map_err(|_elapsed| CloseReason::Rejected)?
        }
    };
    let listener = match listener {
        Some(listener) => {
            newcomer.until_client_answers().await;
            listener
        }
        None => wait_for_place(&worker, &entrance, &newcomer).await?,
    };
    Ok([listener, process])
}

/// Makes room for descriptors; memory has a watch of its own.
async fn wait_for_resources(worker: &Worker, then: Then) -> Pass {
    worker.wait_for_memory().await;
    if let Some(pass) = worker.descriptors.enter() {
        return pass;
    }
    let make_room = async {
        loop {
            let made_room = {
                let _one_at_a_time = worker.shedding.lock().await;
                match then {
                    Then::IsServed => shed(worker, None, Shortage::Descriptors, 1).await,
                    Then::Waits => shed_the_dead(worker, None, Shortage::Descriptors).await,
                }
            };
            if made_room > 0 {
                // One newcomer makes room once.
                return std::future::pending::<()>().await;
            }
            sleep(ASK_AGAIN).await;
        }
    };
    tokio::select! {
        biased;
        pass = worker.descriptors.queue() => pass,
        // It never ends by itself.
        () = make_room => std::future::pending().await,
    }
}

async fn wait_for_place(
    worker: &Worker,
    entrance: &Entrance,
    newcomer: &Session,
) -> Result<Pass, CloseReason> {
    let _counted = entrance.gate.count_queued();
    let timeout = async {
        match entrance.limits.queue_timeout {
            Some(timeout) => sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let mut in_line = worker.line.join();
    let mut outcome = Outcome {
        entrance,
        served: false,
    };
    let place = tokio::select! {
        biased;
        pass = take_turn(entrance, newcomer) => Ok(pass),
        reason = make_room(worker, entrance) => Err(reason),
        () = timeout => Err(CloseReason::QueueTimeout),
        why = in_line.turned_away() => {
            entrance.service.metrics.shed(why);
            Err(CloseReason::Rejected)
        }
    };
    outcome.served = place.is_ok();
    place
}

/// Queues for a place. A client that does not answer when its turn comes leaves it to the next in
/// line, and queues again once it is heard: until then nobody knows whether it has gone.
async fn take_turn(entrance: &Entrance, newcomer: &Session) -> Pass {
    loop {
        let pass = entrance.gate.queue().await;
        if newcomer.client_answers().await {
            return pass;
        }
        drop(pass);
        newcomer.until_client_is_heard().await;
    }
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
                    holder.order(over(CloseReason::Replaced));
                    // One newcomer replaces one holder.
                    return std::future::pending().await;
                }
            }
            OnFull::Shed => {
                if shed(worker, Some(entrance), Shortage::Places, 1).await > 0 {
                    return std::future::pending().await;
                }
                return CloseReason::Rejected;
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Ends the proven dead; where these are fewer than `most`, the last in line as well, and then the
/// first sessions in the shedding order. Returns how many: 0 if every session is active. Under
/// pressure of the process (no `entrance`) only listeners that shed by policy lose sessions that
/// are merely quiet.
pub(super) async fn shed(
    worker: &Worker,
    entrance: Option<&Entrance>,
    why: Shortage,
    most: usize,
) -> usize {
    let mut ended = shed_the_dead(worker, entrance, why).await;
    if entrance.is_none() {
        while ended < most && worker.line.turn_away_last(why) {
            ended += 1;
        }
    }
    if ended >= most {
        return ended;
    }
    let now = sys::now();
    let ranked = holders(worker, entrance).into_iter().filter_map(|session| {
        let rank = session.candidate(now)?.rank()?;
        let by_policy = session.service.sheds || !rank.is_quiet();
        by_policy.then_some((rank, session))
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.truncate(most - ended);
    for (_, session) in &ranked {
        session.order(over(CloseReason::Shed));
        session.service.metrics.shed(why);
    }
    ended + ranked.len()
}

async fn shed_the_dead(worker: &Worker, entrance: Option<&Entrance>, why: Shortage) -> usize {
    let dead = end_the_dead(holders(worker, entrance), Method::CHECK).await;
    for session in &dead {
        session.service.metrics.shed(why);
    }
    dead.len()
}

/// Asks all of these, and ends those that are proven gone; returns them.
async fn end_the_dead(mut holders: Vec<Arc<Session>>, method: Method) -> Vec<Arc<Session>> {
    holders.truncate(ASKED_AT_ONCE);
    let mut asking = JoinSet::new();
    for session in holders {
        asking.spawn(async move {
            let answers = session.verify(method).await;
            let ended = session.end_if_silent(&answers, Some(CloseHow::Abort));
            ended.then_some(session)
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

/// The sessions that hold a place, the longest quiet first.
fn holders(worker: &Worker, entrance: Option<&Entrance>) -> Vec<Arc<Session>> {
    let now = sys::now();
    let mut holders = Vec::new();
    worker.for_each_session(|session| {
        let here = entrance.is_none_or(|e| Arc::ptr_eq(&e.service, &session.service));
        if let Some(candidate) = session.candidate(now).filter(|_| here) {
            holders.push((std::cmp::Reverse(candidate.idle), session.clone()));
        }
    });
    holders.sort_by_key(|(idle, _)| *idle);
    holders.into_iter().map(|(_, session)| session).collect()
}

fn over(reason: CloseReason) -> Close {
    Close {
        reason,
        how: CloseHow::Finish,
        evidence: None,
        silent_for: 0,
    }
}
