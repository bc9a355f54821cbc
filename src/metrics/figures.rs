//! Figures of a listener as they stand, for the overview.

use prometheus::IntCounter;
use serde::Serialize;
use strum::VariantArray;

use super::ListenerMetrics;
use super::series::{By, Label};
use crate::liveness::{CloseReason, LEGS};

/// A number for each leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PerLeg {
    /// Client to pulsegate.
    pub downstream: u64,
    /// Pulsegate to the legacy service.
    pub upstream: u64,
}

impl From<[u64; 2]> for PerLeg {
    fn from(legs: [u64; 2]) -> Self {
        let [downstream, upstream] = legs;
        Self {
            downstream,
            upstream,
        }
    }
}

/// The gauges are as of the last observation of each session. The totals are those since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListenerFigures {
    /// Sessions whose peer is suspected gone.
    pub half_open: PerLeg,
    /// Sessions whose peer answers but takes no data.
    pub stalled: PerLeg,
    /// Sessions whose peer is heard but acknowledges nothing.
    pub undelivered: PerLeg,
    /// Upstream connections that no application accepted.
    pub phantom: u64,
    /// Sessions in which one side has said FIN.
    pub half_closed: u64,
    /// Total of accepted clients.
    pub accepted: u64,
    /// Total of clients that were reset at once.
    pub rejected: u64,
    /// Total of sessions that ended.
    pub closed: u64,
    /// Total of peers proven gone.
    pub half_open_detected: PerLeg,
    /// Total of sessions that ended because a peer was gone, or hung.
    pub found: u64,
    /// Total of connects that failed.
    pub connect_failures: u64,
}

fn known(gauge: i64) -> u64 {
    u64::try_from(gauge).unwrap_or(0)
}

fn total<L: Label>(series: &By<L, IntCounter>) -> u64 {
    L::VARIANTS.iter().map(|word| series[*word].get()).sum()
}

impl ListenerMetrics {
    /// What it has counted.
    #[must_use]
    pub fn figures(&self) -> ListenerFigures {
        let series = &self.series;
        let reasons = CloseReason::VARIANTS.iter();
        let found = reasons.filter(|reason| reason.found_leg().is_some());
        ListenerFigures {
            half_open: LEGS.map(|leg| known(series.half_open[leg].get())).into(),
            stalled: LEGS.map(|leg| known(series.stalled[leg].get())).into(),
            undelivered: LEGS.map(|leg| known(series.undelivered[leg].get())).into(),
            phantom: known(series.phantom.get()),
            half_closed: known(series.half_closed.get()),
            accepted: series.accepted.get(),
            rejected: total(&series.rejected),
            closed: total(&series.closed),
            half_open_detected: LEGS
                .map(|leg| total(&series.half_open_detected[leg]))
                .into(),
            found: found.map(|reason| series.closed[*reason].get()).sum(),
            connect_failures: total(&series.connect_failures),
        }
    }
}
