//! What the admin endpoint of a guard shows and does. There are no sessions.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::admin::view::{EndpointView, OnSilent, ReloadReport, Shown, Summary, VerifiedSession};
use crate::admin::{Control, NotReloaded, Readiness};
use crate::metrics::{End, GuardMetrics, wall_clock};
use crate::sys;

pub(super) struct Endpoint {
    pub metrics: Arc<GuardMetrics>,
    pub orders: String,
    pub asked_to_end: Arc<Notify>,
}

impl Control for Endpoint {
    fn metrics(&self) -> String {
        self.metrics.render()
    }

    fn index(&self) -> Option<&'static str> {
        Some(
            "This is pulsegate guard. It has no sessions, and no console.\n\n\
             GET     /metrics   what is guarded, unprotected and ended\n\
             GET     /livez     200 as long as the process runs\n\
             GET     /readyz    the same\n\
             GET     /config    what it was told to guard\n\
             POST    /drain     end it\n",
        )
    }

    fn summary(&self) -> Summary {
        Summary {
            version: env!("CARGO_PKG_VERSION"),
            now: wall_clock(),
            monotonic_ms: sys::now().as_millis(),
            draining: false,
            sessions: 0,
            listeners: Vec::new(),
        }
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn knows_listener(&self, _name: &str) -> bool {
        false
    }

    fn sessions(&self) -> Vec<Arc<dyn Shown>> {
        Vec::new()
    }

    fn close(&self, _ids: &[u64], _reason: Option<&str>) -> usize {
        0
    }

    fn verify(
        &self,
        _ids: &[u64],
        _on_silent: OnSilent,
    ) -> Pin<Box<dyn Future<Output = Vec<VerifiedSession>> + Send>> {
        Box::pin(async { Vec::new() })
    }

    fn upstreams(&self) -> Vec<EndpointView> {
        Vec::new()
    }

    fn found(&self) -> Vec<End> {
        Vec::new()
    }

    fn config(&self) -> String {
        self.orders.clone()
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<ReloadReport, NotReloaded>> + Send>> {
        let why = "guard has no configuration file: start it again with other flags".to_owned();
        Box::pin(async { Err(NotReloaded::Impossible(why)) })
    }

    fn drain(&self) {
        self.asked_to_end.notify_one();
    }
}
