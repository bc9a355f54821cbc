//! Has the endpoints of a listener checked, and acts on those that go down.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Listener;
use super::workers::Pool;
use crate::config::{CheckKind, OnDown, WhenDown};
use crate::liveness::{Close, CloseHow, CloseReason, Span};
use crate::session::{self, Session};
use crate::upstream::{Change, Endpoint};
use crate::view::OnSilent;

/// Sessions that are asked at a time when their endpoint went down.
const ASKED_AT_ONCE: usize = 64;

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
            let at_once = Arc::new(Semaphore::new(ASKED_AT_ONCE));
            // Of many sessions that takes long, and the next checks do not wait for it.
            tokio::spawn(session::verify_all(sessions, OnSilent::End, at_once));
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
