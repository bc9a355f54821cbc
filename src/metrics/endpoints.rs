//! The series of the endpoints of a listener: as many as are bounded, and one for all others.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{IntCounterVec, IntGaugeVec};

use super::series::{By, PerEndpoint, saturating};
use super::words::ConnectOutcome;

/// Endpoints of one listener that have series of their own. Beyond that they are added up.
const MOST: usize = 64;
/// The endpoint of the series of all others.
const OTHER: &str = "other";

/// What is known of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointFigures {
    /// Its address.
    pub endpoint: String,
    /// Sessions now.
    pub active: usize,
    /// Connects by [`ConnectOutcome`].
    pub connects: [u64; 2],
    /// Ejections.
    pub ejections: u64,
    /// Whether it is used as any other.
    pub up: bool,
}

/// Which endpoints have series of their own, and what was counted of each.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    is_own: bool,
    connects: [u64; 2],
    ejections: u64,
}

/// The series.
pub(super) struct EndpointSeries<'a> {
    pub active: &'a PerEndpoint<IntGaugeVec>,
    pub up: &'a PerEndpoint<IntGaugeVec>,
    pub connects: &'a By<ConnectOutcome, PerEndpoint<IntCounterVec>>,
    pub ejections: &'a PerEndpoint<IntCounterVec>,
}

impl EndpointSeries<'_> {
    /// Brings them up to date. Those of endpoints that have gone are removed.
    pub fn update(&self, known: &mut Known, figures: &[EndpointFigures]) {
        let present: BTreeSet<&str> = figures.iter().map(|f| f.endpoint.as_str()).collect();
        known.0.retain(|name, _| {
            let stays = present.contains(name.as_str());
            if !stays {
                self.remove(name);
            }
            stays
        });
        let mut own = known.0.values().filter(|seen| seen.is_own).count();
        let mut others = Vec::new();
        for figures in figures {
            let seen = known.0.entry(figures.endpoint.clone()).or_insert_with(|| {
                let is_own = own < MOST;
                own += usize::from(is_own);
                Seen {
                    is_own,
                    connects: [0; 2],
                    ejections: 0,
                }
            });
            let endpoint = match seen.is_own {
                true => figures.endpoint.as_str(),
                false => OTHER,
            };
            self.count(endpoint, seen, figures);
            if seen.is_own {
                self.show(endpoint, figures.active, usize::from(figures.up));
            } else {
                others.push(figures);
            }
        }
        if others.is_empty() {
            self.active.remove(OTHER);
            self.up.remove(OTHER);
        } else {
            let up = others.iter().filter(|figures| figures.up).count();
            self.show(OTHER, others.iter().map(|f| f.active).sum(), up);
        }
    }

    /// Adds what has come since the last time: the sum of several never falls.
    fn count(&self, endpoint: &str, seen: &mut Seen, now: &EndpointFigures) {
        for outcome in [ConnectOutcome::Connected, ConnectOutcome::Failed] {
            let n = outcome as usize;
            let more = now.connects[n].saturating_sub(seen.connects[n]);
            self.connects[outcome].of(endpoint).inc_by(more);
        }
        let more = now.ejections.saturating_sub(seen.ejections);
        self.ejections.of(endpoint).inc_by(more);
        (seen.connects, seen.ejections) = (now.connects, now.ejections);
    }

    fn show(&self, endpoint: &str, active: usize, up: usize) {
        self.active.of(endpoint).set(saturating(active as u64));
        self.up.of(endpoint).set(saturating(up as u64));
    }

    fn remove(&self, endpoint: &str) {
        self.active.remove(endpoint);
        self.up.remove(endpoint);
        self.ejections.remove(endpoint);
        for outcome in [ConnectOutcome::Connected, ConnectOutcome::Failed] {
            self.connects[outcome].remove(endpoint);
        }
    }
}
