//! Has the endpoints of a listener checked, and acts on those that go down.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Listener;
use super::workers::Pool;
use crate::config::{CheckKind, OnDown, WhenDown};
use crate::liveness::{Close, CloseHow, CloseReason, Method, Span};
use crate::session::Session;
use crate::upstream::{Change, Endpoint};

/// Sessions that are asked at a time when their endpoint went down. To ask one whose peer is gone takes 2 to 5 s.
const ASKED_AT_ONCE: usize = 512;

/// Checks for as long as the listener takes clients.
pub(super) fn start(pool: &Arc<Pool>, listener: &Arc<Listener>) {
    let cluster = &listener.params.cluster;
    if cluster.upstream().check.kind == CheckKind::Off {
        // They may have been checked before a reload.
        return cluster
            .endpoints()
            .iter()
            .for_each(|endpoint| endpoint.unchecked());
    }
    let Some(worker) = pool.balancer.workers().first() else {
        return;
    };
    let (pool, listener) = (pool.clone(), listener.clone());
    worker.spawn(async move {
        let mut stopped = listener.is_stopped();
        tokio::select! {
            // The sender is the listener's own.
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = rounds(&pool, &listener) => {}
        }
    });
}

async fn rounds(pool: &Arc<Pool>, listener: &Arc<Listener>) {
    let upstream = listener.params.cluster.upstream();
    let (interval, when_down) = (upstream.check.interval, upstream.when_down);
    loop {
        let mut checks = JoinSet::new();
        for endpoint in &*listener.params.cluster.endpoints() {
            checks.spawn(check(pool.clone(), listener.clone(), endpoint.clone()));
        }
        let mut passed = false;
        while let Some(result) = checks.join_next().await {
            passed |= result.unwrap_or_default();
        }
        let listened = match when_down {
            WhenDown::Refuse if !listener.params.cluster.is_up() => {
                listener.refuse_connects();
                Ok(())
            }
            // Of an endpoint that is new nothing is known: it opens no port that is closed.
            WhenDown::Refuse if !passed => listener.stay_open(),
            WhenDown::Refuse | WhenDown::Reset => listener.take_connects(),
        };
        // It is tried again after the next checks.
        listened.unwrap_or_else(|error| tracing::error!("cannot listen again: {error}"));
        tokio::time::sleep(jittered(interval)).await;
    }
}

/// 10 % more or less, so that many instances do not check at the same time.
fn jittered(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 201;
    let permille = 900 + u32::try_from(random).unwrap_or_default();
    interval * permille / 1000
}

/// Checks an endpoint, and acts if it goes up or down; whether it has passed.
async fn check(pool: Arc<Pool>, listener: Arc<Listener>, endpoint: Arc<Endpoint>) -> bool {
    let cluster = &listener.params.cluster;
    let result = cluster.check(&endpoint).await;
    let change = endpoint.checked(&result, &cluster.upstream().check);
    let (name, address) = (&*listener.params.name, endpoint.address());
    let why = || {
        result
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    match change {
        None => {}
        Some(Change::Up) => {
            tracing::info!(listener = name, endpoint = %address, "an endpoint is up");
        }
        Some(Change::Down) => {
            tracing::warn!(listener = name, endpoint = %address, "an endpoint is down: {}", why());
            went_down(&pool, &endpoint, cluster.upstream().check.on_down);
        }
        Some(Change::Cause) => {
            tracing::warn!(
                listener = name,
                endpoint = %address,
                "an endpoint is down for another reason now: {}",
                why()
            );
        }
    }
    result.is_ok()
}

fn went_down(pool: &Pool, endpoint: &Endpoint, on_down: OnDown) {
    let mut sessions: Vec<Arc<Session>> = Vec::new();
    pool.balancer.for_each(|session| {
        if session.is_at(endpoint) {
            sessions.push(session.clone());
        }
    });
    match on_down {
        OnDown::Keep => {}
        OnDown::Verify => {
            // Of many sessions that takes long, and the next checks do not wait for it.
            tokio::spawn(end_the_silent(sessions));
        }
        OnDown::Close => sessions.iter().for_each(|session| {
            session.order(Close {
                reason: CloseReason::UpstreamDown,
                how: CloseHow::Flush,
                evidence: None,
                silent_for: Span::ZERO,
            });
        }),
    }
}

/// Asks all of these sessions, however many they are, and ends those whose peer is proven gone. That a peer was heard
/// just before is no answer: its endpoint went down meanwhile.
async fn end_the_silent(sessions: Vec<Arc<Session>>) {
    let at_once = Arc::new(Semaphore::new(ASKED_AT_ONCE));
    let mut asking = JoinSet::new();
    for session in sessions {
        let turn = at_once.clone().acquire_owned().await;
        asking.spawn(async move {
            let _turn = turn;
            let asked = session.verify(Method::TAKEOVER).await;
            session.end_if_silent(&asked, None);
        });
    }
    asking.join_all().await;
}
