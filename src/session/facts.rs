//! What is known of a session beyond what all have. Most have nothing of it, so it is in a box.

use std::net::SocketAddr;

use super::State;
use super::asking::Asked;
use crate::liveness::{LEGS, Leg, LegSample, Observation, Traffic};
use crate::net::{listen, sample};
use crate::relay::Counters;
use crate::sys::sockopt;
use crate::tls::{Established, HandshakeFailure};

/// The box.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The peer of the client's connection, which told who the client is.
    pub proxy: Option<SocketAddr>,
    /// What the client said before its payload, bytes: the kernel counts them, the relay does not.
    pub preamble: u64,
    /// What is known of TLS, for each leg that speaks it.
    pub tls: [Option<Box<Established>>; 2],
    /// Why there is no TLS on a leg, or none any more.
    pub failed: Option<Box<Failed>>,
    /// What is known of the heartbeats of each leg.
    pub asked: [Option<Asked>; 2],
}

/// TLS that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub failure: HandshakeFailure,
    /// What the client asked for (SNI).
    pub server_name: Option<String>,
}

impl Facts {
    /// What is known of TLS on a leg.
    pub fn tls(&self, leg: Leg) -> Option<&Established> {
        self.tls[leg as usize].as_deref()
    }

    /// Whether the payload of a leg is wrapped.
    fn is_layered(&self, leg: Leg) -> bool {
        self.tls(leg).is_some() || self.asked[leg as usize].is_some()
    }

    /// Whether the last bytes on a leg may be those of a heartbeat.
    fn is_asked(&self, leg: Leg, traffic: &Traffic) -> bool {
        let asked = self.asked[leg as usize].as_ref();
        asked.is_some_and(|asked| asked.is_alone(leg, traffic))
    }
}

impl State {
    pub(super) fn tls(&self, leg: Leg) -> Option<&Established> {
        self.facts.as_ref()?.tls(leg)
    }

    pub(super) fn facts_mut(&mut self) -> &mut Facts {
        self.facts.get_or_insert_default()
    }

    /// The client said so many bytes about itself, and that it is somebody else than the peer of its
    /// connection.
    pub(super) fn told_of(&mut self, client: Option<SocketAddr>, preamble: usize) {
        let peer = SocketAddr::from(self.client);
        let facts = self.facts_mut();
        facts.preamble += preamble as u64;
        if let Some(client) = client {
            facts.proxy = Some(peer).filter(|peer| *peer != listen::NO_ADDRESS);
            self.client = (client.ip(), client.port());
        }
    }

    pub(super) fn observe(&self, counters: &Counters) -> Observation {
        // Before the kernel is asked: a request that is written meanwhile, on another thread, must
        // not be taken for the older one of which the kernel told.
        let (mut traffic, answers_before) = (counters.traffic(), counters.answers_before());
        let mut legs = [None; 2];
        for (leg, at) in LEGS.map(|leg| (leg as usize, leg)) {
            let fd = self.fds[leg];
            if fd < 0 {
                continue;
            }
            legs[leg] = match &self.facts {
                Some(facts) if facts.is_layered(at) => {
                    // Bytes that the relay takes between the two are counted twice: as read, and as unread.
                    let unread = sockopt::receive_queue_bytes(fd).unwrap_or(0);
                    let read = counters.traffic().received[leg];
                    sample::sample(fd).map(|sample| LegSample {
                        bytes_received: read + u64::from(unread),
                        is_layered: true,
                        is_asked: facts.is_asked(at, &traffic),
                        ..sample
                    })
                }
                _ => sample::sample(fd),
            };
        }
        let is_plain = |facts: &&Facts| !facts.is_layered(Leg::Downstream);
        if let Some(facts) = self.facts.as_deref().filter(is_plain) {
            traffic.received[0] += facts.preamble;
        }
        Observation {
            legs,
            traffic,
            answers_before,
        }
    }
}
