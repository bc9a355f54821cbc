//! The series of `pulsegate guard`, a process of its own. `docs/SCAN.md` says more about each.

use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};

use super::series::{Registration, series};

series! {
    /// The series of a guard.
    GuardSeries {
        matching: IntGauge = "pulsegate_guard_connections",
            "Connections that match, at the last look.";
        unprotected: IntGauge = "pulsegate_guard_unprotected",
            "Of these, the ones whose peer can vanish without being found within detect_within.";
        protected: IntCounter = "pulsegate_guard_protected_total",
            "Connections that were given keepalive.";
        refused: IntCounter = "pulsegate_guard_refused_total",
            "Connections that could not be given keepalive when they were first seen.";
        ended: IntCounter = "pulsegate_guard_ended_total",
            "Guarded connections that are gone after their peer left questions of the kernel unanswered.";
        looks: IntCounter = "pulsegate_guard_looks_total",
            "How often all connections were looked at.";
        failed_looks: IntCounter = "pulsegate_guard_failed_looks_total",
            "Looks that sock_diag(7) or /proc did not allow.";
    }
}

/// Those of the process.
#[derive(Debug)]
pub struct GuardMetrics {
    registry: Registry,
    /// What it counts.
    pub series: GuardSeries,
}

impl Default for GuardMetrics {
    fn default() -> Self {
        let registry = Registry::new();
        let series = GuardSeries::register(&mut Registration::new(&registry, &[]));
        Self { registry, series }
    }
}

impl GuardMetrics {
    /// In the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        // As in `Metrics::render`.
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_list_what_is_served() {
        let docs = include_str!("../../docs/SCAN.md");
        let metrics = GuardMetrics::default();
        let served = metrics.registry.gather();
        for family in &served {
            let row = format!("| `{}` |", family.name());
            assert!(docs.contains(&row), "{row}");
        }
        let rows = docs
            .lines()
            .filter(|l| l.starts_with("| `pulsegate_guard_"));
        assert_eq!(rows.count(), served.len());
    }
}
