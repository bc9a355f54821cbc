//! How a series is declared: its handle, type, labels, name and help in one place.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Index;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry,
};
use strum::VariantArray;

/// Declares a struct of handles. Each line: `handle: type = name, help [, buckets]`.
macro_rules! series {
    ($(#[$meta:meta])* $struct:ident {
        $($handle:ident: $type:ty = $name:literal, $help:literal $(, $buckets:ident)?;)+
    }) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub struct $struct { $(#[doc = $help] pub $handle: $type,)+ }

        impl $struct {
            fn register(registry: &mut $crate::metrics::series::Registration<'_>) -> Self {
                Self {
                    $($handle: registry.add($name, $help, &[$($buckets)?]),)+
                }
            }
        }
    };
}
pub(super) use series;

/// A label whose values are the words of an enum.
pub trait Label: VariantArray + Copy + Debug + Into<&'static str> + 'static {
    /// The label.
    const NAME: &'static str;

    /// The place among the variants.
    fn index(self) -> usize;

    /// All labels that follow from the word.
    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(Self::NAME, self.into())]
    }
}

/// One series for each word of a label. All exist from the start.
#[derive(Debug)]
pub struct By<L, S>(Box<[S]>, std::marker::PhantomData<L>);

impl<L: Label, S> Index<L> for By<L, S> {
    type Output = S;

    fn index(&self, word: L) -> &S {
        &self.0[word.index()]
    }
}

/// A gauge without a series while its value is unknown.
#[derive(Debug)]
pub struct KnownGauge(IntGaugeVec);

impl KnownGauge {
    /// The value now, if it is known.
    pub fn set(&self, value: Option<u64>) {
        match value {
            Some(value) => self.0.with_label_values::<&str>(&[]).set(saturating(value)),
            None => self.0.reset(),
        }
    }
}

/// A counter without a series until its value is known.
#[derive(Debug)]
pub struct KnownCounter(IntCounterVec);

impl KnownCounter {
    /// The total now, if it is known. To be called from one thread.
    pub fn raise(&self, total: Option<u64>) {
        if let Some(total) = total {
            raise(&self.0.with_label_values::<&str>(&[]), total);
        }
    }
}

/// One series for each endpoint of a listener, as long as there is that endpoint.
#[derive(Debug)]
pub struct PerEndpoint<V>(V);

impl<B: MetricVecBuilder> PerEndpoint<MetricVec<B>> {
    /// The series of an endpoint, at 0 if it is new.
    pub(super) fn of(&self, endpoint: &str) -> B::M {
        self.0.with_label_values(&[endpoint])
    }

    /// An endpoint has gone.
    pub(super) fn remove(&self, endpoint: &str) {
        // It may have had none.
        let _ = self.0.remove_label_values(&[endpoint]);
    }
}

/// Brings a counter up to a total; a lower one is ignored. To be called from one thread.
pub(super) fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

pub(super) fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What has to be removed from the registry.
pub(super) type Collectors = Vec<Box<dyn Collector>>;

/// Adds series that have some labels in common.
pub(super) struct Registration<'a> {
    registry: &'a Registry,
    labels: HashMap<String, String>,
    collectors: Collectors,
}

impl<'a> Registration<'a> {
    pub(super) fn new(registry: &'a Registry, labels: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            registry,
            labels: labels.iter().map(owned).collect(),
            collectors: Vec::new(),
        }
    }

    /// What was added.
    pub(super) fn into_collectors(self) -> Collectors {
        self.collectors
    }

    /// `buckets` are those of a histogram.
    pub(super) fn add<S: Series>(&mut self, name: &str, help: &str, buckets: &[&[f64]]) -> S {
        let opts = HistogramOpts::new(name, help).const_labels(self.labels.clone());
        S::register(self, &opts.buckets(buckets.concat()))
    }

    /// Registration depends on constants and on the names of listeners, which are distinct; any
    /// test that makes a [`Metrics`](super::Metrics) proves that the constants are valid.
    #[expect(clippy::expect_used, reason = "constants only, see above")]
    pub(super) fn register<C: Collector + Clone + 'static>(
        &mut self,
        made: prometheus::Result<C>,
    ) -> C {
        let collector = made.expect("the names are valid");
        let registered = self.registry.register(Box::new(collector.clone()));
        registered.expect("the names are distinct");
        self.collectors.push(Box::new(collector.clone()));
        collector
    }
}

/// What a declaration can have as a type. `opts` has name, help, labels and buckets.
pub(super) trait Series: Sized {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self;
}

impl Series for IntCounter {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        to.register(Self::with_opts(opts.common_opts.clone()))
    }
}

impl Series for Counter {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        to.register(Self::with_opts(opts.common_opts.clone()))
    }
}

impl Series for Gauge {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        to.register(Self::with_opts(opts.common_opts.clone()))
    }
}

impl Series for IntGauge {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        to.register(Self::with_opts(opts.common_opts.clone()))
    }
}

impl Series for Histogram {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        to.register(Self::with_opts(opts.clone()))
    }
}

impl Series for KnownGauge {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        Self(to.register(IntGaugeVec::new(opts.common_opts.clone(), &[])))
    }
}

impl Series for KnownCounter {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        Self(to.register(IntCounterVec::new(opts.common_opts.clone(), &[])))
    }
}

impl Series for PerEndpoint<IntGaugeVec> {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        let opts = opts.common_opts.clone();
        Self(to.register(IntGaugeVec::new(opts, &["endpoint"])))
    }
}

impl Series for PerEndpoint<IntCounterVec> {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        let opts = opts.common_opts.clone();
        Self(to.register(IntCounterVec::new(opts, &["endpoint"])))
    }
}

impl<L: Label, S: Series> Series for By<L, S> {
    fn register(to: &mut Registration<'_>, opts: &HistogramOpts) -> Self {
        let of_word = |word: &L| {
            let mut opts = opts.clone();
            let pairs = word.pairs().into_iter();
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            opts.common_opts.const_labels.extend(pairs);
            S::register(to, &opts)
        };
        Self(
            L::VARIANTS.iter().map(of_word).collect(),
            std::marker::PhantomData,
        )
    }
}
