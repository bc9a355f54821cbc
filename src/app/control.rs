//! What the admin endpoint shows and does.

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{App, environment, explain};
use crate::admin::{Control, NotReloaded, Readiness};
use crate::config::{self, Ready};
use crate::host::{self, checks::Check};
use crate::lifecycle::Drainable;
use crate::liveness::{Close, CloseHow, CloseReason, Span, Traffic};
use crate::metrics::{End, EndpointFigures, ListenerMetrics, wall_clock};
use crate::server::Listener;
use crate::session::{self, Session};
use crate::sys;
use crate::upstream::{Endpoint, LastCheck, Standing};
use crate::view::{
    AskedBy, ByLeg, CheckView, EndpointState, EndpointView, ListenerSummary, OnSilent, Reload,
    ReloadReport, Shown, Summary, VerifiedSession,
};

/// What the listeners of one name add up to: one that was removed or changed may have a session
/// yet.
struct Total {
    /// One that serves, if there is one.
    listener: Arc<Listener>,
    metrics: Arc<ListenerMetrics>,
    active: usize,
    /// They share the limiter.
    queued: usize,
    moved: Traffic,
}

impl App {
    /// By name. Calls `each` once for every session.
    fn totals(
        &self,
        listeners: &[Arc<Listener>],
        each: impl Fn(&Session),
    ) -> BTreeMap<Arc<str>, Total> {
        let mut totals: BTreeMap<Arc<str>, Total> = BTreeMap::new();
        for listener in listeners {
            let params = &listener.params;
            let total = totals.entry(params.name.clone()).or_insert_with(|| Total {
                listener: listener.clone(),
                metrics: params.metrics.clone(),
                active: 0,
                queued: listener.limiter.queued(),
                moved: params.metrics.settled(),
            });
            total.active += params.sessions.load(Ordering::Relaxed);
            if !*listener.is_stopped().borrow() {
                total.listener = listener.clone();
            }
        }
        self.balancer().for_each(|session| {
            each(session);
            if let Some(total) = totals.get_mut(&session.params.name) {
                total.moved += session.traffic();
            }
        });
        totals
    }
}

impl Total {
    fn summary(&self) -> ListenerSummary {
        let Listener {
            config,
            bound,
            params,
            ..
        } = &*self.listener;
        let (accept_queue, accept_queue_limit) = self.listener.queue();
        let endpoints = params.cluster.endpoints();
        let is_up = |endpoint: &&Arc<Endpoint>| endpoint.standing() == Standing::Up;
        ListenerSummary {
            listener: config.name.clone(),
            address: bound.to_string(),
            upstream: config.upstream.to_string(),
            detect_within_ms: Span::from(config.liveness.detect_within).as_millis(),
            active: self.active,
            limit: config.limits.max_connections,
            in_use: self.listener.limiter.in_use(),
            on_full: config.limits.on_full.to_string(),
            queue_timeout_ms: config
                .limits
                .queue_timeout
                .map(|t| Span::from(t).as_millis()),
            proxy_protocol: ByLeg {
                downstream: config.proxy_protocol.to_string(),
                upstream: config.upstream.proxy_protocol.to_string(),
            },
            certificate_not_after: ByLeg {
                downstream: params.tls.as_ref().and_then(|tls| tls.not_after()),
                upstream: params.cluster.tls().and_then(|tls| tls.not_after()),
            },
            queued: self.queued,
            accept_queue,
            accept_queue_limit,
            endpoints: endpoints.len(),
            endpoints_up: endpoints.iter().filter(is_up).count(),
            received_bytes: self.moved.received.into(),
            sent_bytes: self.moved.sent.into(),
            figures: self.metrics.figures(),
        }
    }
}

impl Control for App {
    fn metrics(&self) -> String {
        let now = sys::now();
        let listeners = self.registry.listeners();
        let totals = self.totals(&listeners, |session| session.refresh(now));
        for total in totals.values() {
            total.metrics.set_active(total.active);
            total.metrics.set_queued(total.queued);
            total.metrics.set_bytes(&total.moved);
        }
        for listener in &listeners {
            // Of one that was replaced the endpoints are the same ones, as far as they stay.
            if !*listener.is_stopped().borrow() {
                let endpoints = listener.params.cluster.endpoints();
                let figures: Vec<_> = endpoints.iter().map(endpoint_figures).collect();
                listener.params.metrics.set_endpoints(&figures);
                let limit = listener.config.limits.max_connections.map(u64::from);
                let detect_within = listener.params.policy.detect_within.into();
                listener.params.metrics.set_settings(detect_within, limit);
            }
        }
        environment::refresh(&listeners, self.metrics.host());
        self.metrics
            .set_descriptors(open_descriptors(), self.descriptor_limit);
        self.metrics
            .set_usage(sys::process_time(), host::resident_memory().ok());
        self.metrics.set_workers_in_use(self.balancer().in_use());
        if let Some(log) = &self.log {
            self.metrics.set_log_lines_dropped(log.dropped());
        }
        self.metrics.render()
    }

    fn summary(&self) -> Summary {
        let totals = self.totals(&self.registry.listeners(), |_| ());
        Summary {
            version: env!("CARGO_PKG_VERSION"),
            now: wall_clock(),
            monotonic_ms: sys::now().as_millis(),
            draining: self.readiness() == Readiness::Draining,
            sessions: totals.values().map(|total| total.active).sum(),
            listeners: totals.values().map(Total::summary).collect(),
        }
    }

    fn readiness(&self) -> Readiness {
        if self.readiness.load(Ordering::Relaxed) == Readiness::Draining as u8 {
            Readiness::Draining
        } else {
            Readiness::Ready
        }
    }

    fn without_endpoint(&self) -> Option<String> {
        let ready = self.running().admin.as_ref().map(|admin| admin.ready);
        if ready != Some(Ready::Upstream) {
            return None;
        }
        let serving = self.registry.serving();
        let lacks = |listener: &&Arc<Listener>| !listener.params.cluster.is_up();
        serving
            .iter()
            .find(lacks)
            .map(|listener| listener.config.name.clone())
    }

    fn knows_listener(&self, name: &str) -> bool {
        let listeners = self.registry.listeners();
        listeners
            .iter()
            .any(|listener| listener.config.name == name)
    }

    fn sessions(&self) -> Vec<Arc<dyn Shown>> {
        let mut sessions: Vec<Arc<dyn Shown>> = Vec::with_capacity(self.balancer().sessions());
        self.balancer()
            .for_each(|session| sessions.push(session.clone()));
        sessions
    }

    fn close(&self, ids: &[u64], reason: Option<&str>) -> usize {
        let wanted: HashSet<u64> = ids.iter().copied().collect();
        let mut ended = 0;
        self.balancer().for_each(|session| {
            if !wanted.contains(&session.id) {
                return;
            }
            ended += 1;
            session.order(Close {
                reason: CloseReason::Admin,
                // Who asks twice does not want to wait.
                how: if session.is_ending() {
                    CloseHow::Abort
                } else {
                    CloseHow::Flush
                },
                evidence: None,
                silent_for: Span::ZERO,
            });
        });
        tracing::info!(
            sessions = ended,
            id = (ids.len() == 1).then(|| ids[0]),
            reason,
            "an operator ends sessions"
        );
        ended
    }

    fn verify(
        &self,
        ids: &[u64],
        on_silent: OnSilent,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>> {
        let ids: HashSet<u64> = ids.iter().copied().collect();
        let mut sessions = Vec::new();
        self.balancer().for_each(|session| {
            if ids.contains(&session.id) {
                sessions.push(session.clone());
            }
        });
        Box::pin(session::verify_all(
            sessions,
            on_silent,
            self.verifying.clone(),
        ))
    }

    fn upstreams(&self) -> Vec<EndpointView> {
        let listeners = self.registry.serving();
        let of_listener = |listener: &Arc<Listener>| {
            let params = listener.params.clone();
            let endpoints = params.cluster.endpoints();
            let view = |endpoint: &Arc<Endpoint>| endpoint_view(&params.name, endpoint);
            endpoints.iter().map(view).collect::<Vec<_>>()
        };
        listeners.iter().flat_map(of_listener).collect()
    }

    fn found(&self) -> Vec<End> {
        self.metrics.found().ends()
    }

    fn config(&self) -> String {
        config::to_yaml(&self.running())
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>> {
        let requests = self.reloads.clone();
        Box::pin(async move { requests.ask(AskedBy::Admin).await })
    }

    fn reloads(&self) -> Vec<Reload> {
        self.history.list()
    }

    fn explain(&self) -> String {
        explain::explain(&self.running())
    }

    fn doctor(&self) -> Vec<Check> {
        self.checks()
    }

    fn drain(&self) {
        self.refuse_readiness();
        self.drain.ask();
    }
}

fn endpoint_view(listener: &str, endpoint: &Endpoint) -> EndpointView {
    let now = sys::now();
    let check_view = |check: LastCheck| CheckView {
        ago_ms: (now - check.at).as_millis(),
        error: check.error,
    };
    EndpointView {
        listener: listener.to_owned(),
        endpoint: endpoint.address().to_string(),
        name: endpoint.name().map(ToString::to_string),
        state: match endpoint.standing() {
            Standing::Up => EndpointState::Up,
            Standing::Ejected => EndpointState::Ejected,
            Standing::Down => EndpointState::Down,
        },
        since_ms: (now - endpoint.stands_since()).as_millis(),
        active_sessions: endpoint.active(),
        connects: endpoint.connects(),
        failures: endpoint.failures(),
        consecutive_failures: endpoint.consecutive_failures(),
        ejections: endpoint.ejections(),
        ejected_for_ms: endpoint.ejected_for().map(Span::as_millis),
        cause: endpoint.cause(),
        last_check: endpoint.last_check().map(check_view),
    }
}

fn endpoint_figures(endpoint: &Arc<Endpoint>) -> EndpointFigures {
    EndpointFigures {
        endpoint: endpoint.address().to_string(),
        active: endpoint.active(),
        connects: [endpoint.connects(), endpoint.failures()],
        ejections: endpoint.ejections(),
        up: endpoint.standing() == Standing::Up,
    }
}

/// Descriptors that the process holds; `None` where that cannot be found out.
fn open_descriptors() -> Option<u64> {
    const OWN: &str = "/proc/self/fd";
    // The kernel says so from 6.2 on. Before, the directory has to be read, which takes a descriptor.
    let said = std::fs::metadata(OWN).map_or(0, |directory| directory.len());
    let counted = || Some(std::fs::read_dir(OWN).ok()?.count() as u64);
    (said > 0).then_some(said).or_else(counted)
}
