//! One series for each certificate in force.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{HistogramOpts, IntGaugeVec};

use super::series::{Registration, Series};

/// Until when a certificate is good.
#[derive(Clone, Debug)]
pub struct CertificateFigure {
    /// Empty: of the admin address.
    pub listener: String,
    /// To whom it is shown: `downstream`, `upstream`; empty: of the admin address.
    pub leg: String,
    /// Its file as it is configured.
    pub file: String,
    /// Seconds since the Unix epoch.
    pub not_after: i64,
}

/// The series.
#[derive(Debug)]
pub struct Certificates {
    gauges: IntGaugeVec,
    known: Mutex<BTreeSet<[String; 3]>>,
}

impl Certificates {
    /// These are all. The series of others are removed.
    pub(super) fn set(&self, figures: Vec<CertificateFigure>) {
        let mut now = BTreeSet::new();
        for figure in figures {
            let labels = [figure.listener, figure.leg, figure.file];
            self.gauges.with_label_values(&labels).set(figure.not_after);
            now.insert(labels);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(&now) {
            // It was there.
            let _ = self.gauges.remove_label_values(gone);
        }
        *known = now;
    }
}

impl Series for Certificates {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        let labels = ["listener", "leg", "certificate"];
        let gauges = IntGaugeVec::new(opts.common_opts.clone(), &labels);
        Self {
            gauges: to.register(gauges),
            known: Mutex::default(),
        }
    }
}
