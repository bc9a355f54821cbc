//! A session as its two ends see it, and what can be done to them.

use std::time::Instant;

use crate::rng::Rng;
use crate::support::{End, Endpoint, Host, Victim, ms};
use crate::verdicts::Deeds;

/// The two ends of a session, client first. An end that was let go is `None`.
pub struct Pair {
    ends: [Option<Endpoint>; 2],
    /// A client in a process of its own, in place of the first end.
    victim: Option<Victim>,
    /// What an end that was let go had sent.
    had_sent: [u64; 2],
    pub deeds: Deeds,
    pub client: String,
    /// When it is to be finished in good order.
    pub until: Option<Instant>,
}

/// What can be done to one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    Send,
    Trickle,
    HalfClose,
    Stall,
    GoOn,
    Reset,
    Abandon,
}

/// How likely each is: most of the time bytes flow.
const DEEDS: [(Deed, u64); 7] = [
    (Deed::Send, 50),
    (Deed::Trickle, 20),
    (Deed::HalfClose, 4),
    (Deed::Stall, 8),
    (Deed::GoOn, 12),
    (Deed::Reset, 3),
    (Deed::Abandon, 3),
];

impl Pair {
    pub fn new(client: Endpoint, service: Endpoint, host: Host, until: Instant) -> Self {
        let address = client.local.to_string();
        Self::of(address, [Some(client), Some(service)], None, host, until)
    }

    /// The client is a process.
    pub fn with_victim(victim: Victim, address: String, service: Endpoint, until: Instant) -> Self {
        let ends = [None, Some(service)];
        let mut pair = Self::of(address, ends, Some(victim), Host::Client, until);
        pair.had_sent[0] = crate::support::VICTIM_HELLO as u64;
        pair
    }

    fn of(
        client: String,
        ends: [Option<Endpoint>; 2],
        victim: Option<Victim>,
        host: Host,
        until: Instant,
    ) -> Self {
        Self {
            ends,
            victim,
            had_sent: [0; 2],
            deeds: Deeds {
                host,
                finished: [false; 2],
                let_go: [false; 2],
            },
            client,
            until: Some(until),
        }
    }

    /// Does something at random to one of the ends; says what.
    pub fn disturb(&mut self, rng: &mut Rng) -> Option<Deed> {
        if rng.one_in(8)
            && let Some(victim) = self.victim.take()
        {
            victim.kill();
            self.deeds.let_go[0] = true;
            return Some(Deed::Abandon);
        }
        let end = rng.index(2);
        let endpoint = self.ends[end].as_ref()?;
        let (deed, _) = DEEDS[rng.weighted(&DEEDS.map(|(_, weight)| weight))];
        let finished = self.deeds.finished[end];
        match deed {
            Deed::Send | Deed::Trickle if finished => return None,
            Deed::Send => endpoint.send(rng.spread(1, 2 << 20)),
            Deed::Trickle => endpoint.send_every(rng.spread(1, 4096), ms(rng.range(20, 900))),
            Deed::HalfClose => self.finish(end),
            Deed::Stall => endpoint.pause(),
            Deed::GoOn => endpoint.resume(),
            Deed::Reset => self.let_go(end, Endpoint::reset),
            Deed::Abandon => self.let_go(end, Endpoint::close),
        }
        Some(deed)
    }

    /// Has every end read what is left, and say FIN.
    pub fn finish_both(&mut self) {
        if let Some(victim) = self.victim.take() {
            victim.kill();
            self.deeds.let_go[0] = true;
        }
        for end in 0..2 {
            self.finish(end);
        }
        self.until = None;
    }

    fn finish(&mut self, end: usize) {
        if let Some(endpoint) = &self.ends[end] {
            endpoint.resume();
            endpoint.stop_sending();
            endpoint.finish();
            self.deeds.finished[end] = true;
        }
    }

    fn let_go(&mut self, end: usize, how: fn(Endpoint) -> u64) {
        if let Some(endpoint) = self.ends[end].take() {
            self.had_sent[end] = how(endpoint);
            self.deeds.let_go[end] = true;
        }
    }

    /// Whether nobody has ended the session yet, as far as the ends know.
    pub fn is_running(&self) -> bool {
        let open = |e: &Option<Endpoint>| e.as_ref().is_some_and(|e| e.ended().is_none());
        let client = self.victim.is_some() || open(&self.ends[0]);
        client && open(&self.ends[1])
    }

    /// Hosts of ends that have not heard of the end of the session.
    pub fn unaware(&self) -> impl Iterator<Item = Host> {
        let hosts = [self.deeds.host, Host::Service];
        let ends = self.ends.iter().zip(hosts);
        ends.filter_map(|(end, host)| end.as_ref()?.ended().is_none().then_some(host))
    }

    pub fn describe(&self) -> String {
        format!("{}: {:?} {:?}", self.client, self.deeds, self.ends)
    }

    /// What the ends received must be what the others had sent: a beginning of it, and all of it
    /// if the stream ended with FIN. `whole` says that the session has to have ended so.
    pub fn check_bytes(&self, whole: bool) -> Result<(), String> {
        for end in 0..2 {
            let other = 1 - end;
            let Some(endpoint) = &self.ends[end] else {
                continue;
            };
            let sent = self.ends[other]
                .as_ref()
                .map_or(self.had_sent[other], Endpoint::sent);
            let said_fin = self.deeds.finished[other] || self.deeds.let_go[other];
            let received = endpoint.received();
            let finished = matches!(endpoint.ended(), Some((_, End::Finished)));
            let wrong = if let Some(at) = endpoint.corrupt_at() {
                format!("the byte at {at} is wrong")
            } else if received > sent {
                format!("{received} bytes came of {sent}")
            } else if finished && !said_fin {
                "FIN came, and nobody said it".to_owned()
            } else if finished && received != sent {
                format!("a complete stream of {received} bytes came of {sent}")
            } else if whole && self.deeds.let_go == [false; 2] && !finished {
                "a stream ended without FIN".to_owned()
            } else {
                continue;
            };
            return Err(format!("end {end}: {wrong}\n{}", self.describe()));
        }
        Ok(())
    }
}
