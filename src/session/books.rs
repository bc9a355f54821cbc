//! The books of a session, closed when it has ended.

use std::time::Duration;

use super::facts::Facts;
use super::view::unmapped;
use super::{Phase, Session};
use crate::liveness::{Close, CloseReason, Evidence, LEGS, Leg, Span, Time, Traffic};
use crate::metrics::{End, wall_clock};
use crate::sys;
use crate::telemetry::{self, AccessRecord, TlsRecord};
use crate::tls::Established;
use crate::upstream::ActiveSession;

fn record(tls: &Established) -> TlsRecord<'_> {
    TlsRecord {
        version: tls.version.into(),
        cipher: tls.cipher,
        server_name: tls.server_name.as_deref(),
        alpn: tls.alpn.as_deref(),
        identity: tls.identity.as_deref(),
    }
}

/// What is left of a session.
struct Rest {
    duration: Duration,
    queued: Span,
    connect: Option<Span>,
    abandoned: bool,
    answered: [u8; 2],
    endpoint: Option<ActiveSession>,
    facts: Option<Box<Facts>>,
}

impl Session {
    /// Says that it has begun, if the log has such lines: who the client is is known by now.
    pub(super) fn log_start(&self) {
        telemetry::session_started(self.id, &self.params.name, || {
            let proxy = self.lock().facts.as_ref().and_then(|facts| facts.proxy);
            (self.shown_client(), proxy.map(unmapped))
        });
    }

    /// Settles the books of a session that has ended.
    pub(super) fn settle(&self, close: &Close) {
        let traffic = self.counters.traffic();
        let rest = self.clear(sys::now());
        let metrics = &self.params.metrics;
        let silent = Duration::from(close.silent_for);
        let found_dead = close.reason.dead_leg().zip(close.evidence);
        if let Some((leg, evidence)) = found_dead {
            metrics.half_open_found(leg, evidence, silent);
            let policy = &self.params.policy;
            if policy.probes[leg as usize] && close.silent_for > policy.late() {
                metrics.half_open_found_late(leg);
            }
            let talked = traffic.received[leg as usize] > 0 && rest.answered[leg as usize] == 0;
            if evidence == Evidence::Keepalive && talked {
                self.doubt_probes(leg);
            }
        }
        if let Some(endpoint) = &rest.endpoint {
            self.rate(endpoint, close.reason, &traffic);
        }
        let (upstream, upstream_name) = self.params.cluster.described(rest.endpoint.as_deref());
        // Whoever sees an end counted sees why.
        if let Some(leg) = close.reason.found_leg() {
            let upstream = upstream.map(ToString::to_string);
            metrics.found(self.found(leg, close, upstream, rest.duration, &traffic));
        }
        if self.lock().phase != Phase::Refused {
            metrics.closed(close.reason, rest.duration, &traffic);
        }
        let failed = rest
            .facts
            .as_ref()
            .and_then(|facts| facts.failed.as_deref());
        telemetry::access_log(&AccessRecord {
            id: self.id,
            listener: &self.params.name,
            reason: close.reason,
            evidence: close.evidence,
            dead_leg: found_dead.map(|(leg, _)| leg),
            downstream: self.shown_client(),
            proxy: rest
                .facts
                .as_ref()
                .and_then(|facts| facts.proxy)
                .map(unmapped),
            upstream,
            upstream_name: upstream_name.as_deref(),
            received: traffic.received,
            sent: traffic.sent,
            duration: rest.duration,
            queued: (rest.queued > Span::ZERO).then(|| rest.queued.into()),
            abandoned: rest.abandoned,
            connect: rest.connect.map(Duration::from),
            silent: found_dead.map(|_| silent),
            probes_answered: rest.answered,
            tls: LEGS.map(|leg| Some(record(rest.facts.as_ref()?.tls(leg)?))),
            tls_failure: failed.map(|failed| failed.failure.into()),
            asked_for: failed.and_then(|failed| failed.server_name.as_deref()),
        });
    }

    fn found(
        &self,
        leg: Leg,
        close: &Close,
        upstream: Option<String>,
        duration: Duration,
        traffic: &Traffic,
    ) -> End {
        let [down, up] = LEGS.map(|leg| leg as usize);
        End {
            at: wall_clock(),
            id: self.id,
            listener: self.params.name.to_string(),
            reason: close.reason.into(),
            evidence: close.evidence.map(Into::into),
            leg,
            downstream: self.shown_client(),
            upstream,
            silent_ms: (close.silent_for > Span::ZERO).then(|| close.silent_for.as_millis()),
            detect_within_ms: self.params.policy.detect_within.as_millis(),
            duration_ms: Span::from(duration).as_millis(),
            downstream_received: traffic.received[down],
            downstream_sent: traffic.sent[down],
            upstream_received: traffic.received[up],
            upstream_sent: traffic.sent[up],
        }
    }

    /// It has no socket and no task any more.
    fn clear(&self, now: Time) -> Rest {
        let mut state = self.lock();
        state.fds = [-1; 2];
        // The waker holds the task, which holds this session.
        state.waker = None;
        let machine = &state.machine;
        self.report_conditions(machine, None);
        let waited_since = machine.waits_since();
        Rest {
            duration: (now - machine.started()).into(),
            queued: match state.phase {
                Phase::Queued => now - waited_since,
                _ => self.queued(),
            },
            connect: machine.opened().map(|at| at - waited_since),
            abandoned: state.abandoned,
            answered: machine.probes_answered(),
            endpoint: state.endpoint.take(),
            facts: state.facts.take(),
        }
    }

    /// What its end says about the endpoint.
    fn rate(&self, endpoint: &ActiveSession, reason: CloseReason, traffic: &Traffic) {
        let cluster = &self.params.cluster;
        if reason.blames_upstream() {
            cluster.failed(endpoint, &reason);
        } else if !reason.is_broken_off() && traffic.received[Leg::Upstream as usize] > 0 {
            cluster.served(endpoint);
        }
    }

    /// A peer that had talked was called dead, and had not answered one probe.
    fn doubt_probes(&self, leg: Leg) {
        let params = &self.params;
        if params.probes[leg as usize].is_suspicious() {
            let key = format!("liveness.probes.{leg}");
            tracing::warn!(
                listener = &*params.name,
                leg = <&str>::from(leg),
                "a peer was ended as dead without ever answering a keepalive probe, and no other was seen to \
                 answer one; if something on the way drops probes, set {key}: false"
            );
        }
    }
}
