//! Everything together: sessions come, are disturbed and go, while links fail.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::links::{Clock, FaultyLink};
use crate::pair::{Deed, Pair};
use crate::rng::Rng;
use crate::support::{Endpoint, Host, Net, Options, Proxy, Service, Victim, eventually, ms};
use crate::verdicts::{DETECT_WITHIN, Verdict};

const SESSIONS: usize = 40;
const GREETING: u64 = 64;
/// Bytes that are still owed may be awaited for so many seconds before an abort.
const PATIENCE: f64 = 2.0;
/// How long everything may take to come to its end once all links are whole.
const SETTLE: Duration = ms(30_000);

/// A running soak.
pub struct Field<'a> {
    net: Arc<Net>,
    service: Service,
    proxy: &'a Proxy,
    rng: Rng,
    clock: Clock,
    links: [FaultyLink; 2],
    pairs: Vec<Pair>,
    /// Bytes of the log that were read.
    log_read: usize,
    opened: u64,
    deeds: BTreeMap<Deed, u64>,
    reasons: BTreeMap<String, u64>,
}

impl<'a> Field<'a> {
    pub fn new(net: &Arc<Net>, service: Service, proxy: &'a Proxy, rng: Rng) -> Self {
        Self {
            net: Arc::clone(net),
            service,
            proxy,
            rng,
            clock: Clock::start(),
            links: [
                FaultyLink::new(net, Host::Client, (0, 3)),
                // All sessions depend on this one.
                FaultyLink::new(net, Host::Service, (2, 8)),
            ],
            pairs: Vec::new(),
            log_read: 0,
            opened: 0,
            deeds: BTreeMap::new(),
            reasons: BTreeMap::new(),
        }
    }

    /// Opens, disturbs and ends sessions for a while.
    pub fn play(&mut self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until {
            for link in &mut self.links {
                link.advance(self.clock, &mut self.rng);
            }
            let whole = self.links.iter().all(FaultyLink::is_whole);
            let room = self.pairs.iter().filter(|p| p.is_running()).count() < SESSIONS;
            if whole && room && self.rng.one_in(2) {
                self.open();
            }
            for _ in 0..self.rng.range(0, 3) {
                self.disturb();
            }
            let now = Instant::now();
            let due = |p: &&mut Pair| p.until.is_some_and(|until| until <= now);
            self.pairs
                .iter_mut()
                .filter(due)
                .for_each(Pair::finish_both);
            thread::sleep(ms(self.rng.range(0, 40)));
        }
    }

    fn disturb(&mut self) {
        if self.pairs.is_empty() {
            return;
        }
        let index = self.rng.index(self.pairs.len());
        if let Some(deed) = self.pairs[index].disturb(&mut self.rng) {
            *self.deeds.entry(deed).or_default() += 1;
        }
    }

    /// Every link is whole at this moment, so the session comes about.
    fn open(&mut self) {
        let until = Instant::now() + ms(self.rng.range(200, 15_000));
        let pair = match self.rng.range(0, 11) {
            0 => self.open_victim(until),
            n => self.open_endpoint([Host::Client, Host::Healthy][usize::from(n > 7)], until),
        };
        self.opened += 1;
        self.pairs.push(pair);
    }

    fn open_endpoint(&mut self, host: Host, until: Instant) -> Pair {
        let options = Options {
            polite: self.rng.one_in(3),
            receive_buffer: self.rng.one_in(4).then_some(8192),
            ..Options::default()
        };
        let client = self.net.dial(host, options);
        client.send(GREETING);
        let service = self.next_at_service(GREETING);
        let mut pair = Pair::new(client, service, host, until);
        // It says FIN by itself whenever the other end does.
        pair.deeds.finished[0] = options.polite;
        pair
    }

    fn open_victim(&mut self, until: Instant) -> Pair {
        let before = self.clients_in_the_table();
        let mut victim = Victim::client(&self.net);
        let service = self.next_at_service(GREETING);
        let mut addresses = self.clients_in_the_table();
        addresses.retain(|address| !before.contains(address));
        assert_eq!(addresses.len(), 1, "exactly one client is new");
        service.send(GREETING);
        victim.wait_ready();
        Pair::with_victim(victim, addresses.remove(0), service, until)
    }

    fn next_at_service(&self, greeting: u64) -> Endpoint {
        let service = self.service.next();
        assert!(service.wait_received(greeting, ms(10_000)), "no greeting");
        service
    }

    fn clients_in_the_table(&self) -> Vec<String> {
        let (status, body) = self.proxy.get("/connections").expect("connections");
        assert_eq!(status, 200, "{body}");
        let table: Value = serde_json::from_str(&body).expect("JSON");
        let all = table["connections"].as_array().expect("a list");
        let peer = |c: &Value| c["downstream"]["peer"].as_str().map(str::to_owned);
        all.iter().filter_map(peer).collect()
    }

    /// Heals and finishes everything, and judges what became of it.
    pub fn calm_down(&mut self) {
        for link in &mut self.links {
            link.calm_down(self.clock);
        }
        self.pairs.iter_mut().for_each(Pair::finish_both);
        let active = || {
            let metrics = self.proxy.metrics();
            metrics.value("pulsegate_connections_active", &[])
        };
        let over = eventually(SETTLE, || active() == 0.0);
        assert!(over, "{:?}", self.proxy.get("/connections"));
        assert!(self.clients_in_the_table().is_empty());
        self.judge();
        self.pairs.clear();
    }

    /// Each session has one line in the log; its reason is judged by what was done to it.
    fn judge(&mut self) {
        let mut verdicts = self.verdicts();
        for pair in &self.pairs {
            // A port may have been used again; the lines are in order, and so are the pairs.
            let verdict = verdicts.get_mut(&pair.client).and_then(VecDeque::pop_front);
            let verdict = verdict.unwrap_or_else(|| panic!("no line for {}", pair.describe()));
            let may_be_dead = |host: Host, at: f64| {
                let link = self.link(host);
                link.is_some_and(|link| link.may_be_dead(at, DETECT_WITHIN))
            };
            let objection = verdict.objection(&pair.deeds, may_be_dead);
            assert_eq!(objection, None, "a wrong verdict");
            self.expect_everybody_knows(pair, &verdict);
            // The last FIN of a session that was too young to be watched gives up sooner.
            let whole = verdict.reason == "finished" && verdict.duration_ms > 500;
            if whole {
                // The kernel repeats a FIN ever more rarely.
                eventually(SETTLE, || pair.unaware().next().is_none());
            }
            let bytes = pair.check_bytes(whole);
            assert_eq!(bytes, Ok(()), "{verdict:?}");
            let by = if verdict.is_by_reset() {
                " by reset"
            } else {
                ""
            };
            *self.reasons.entry(verdict.reason + by).or_default() += 1;
        }
        assert!(verdicts.values().all(VecDeque::is_empty), "{verdicts:?}");
    }

    /// An end that could be reached has heard that the session is over. RST is said once: whoever
    /// was away at that moment learns of it only when it sends something.
    fn expect_everybody_knows(&self, pair: &Pair, verdict: &Verdict) {
        let said = (verdict.at - PATIENCE, verdict.at + 0.2);
        let unaware = || {
            pair.unaware().find(|host| {
                let link = self.link(*host);
                link.is_none_or(|link| link.was_whole(said.0, said.1))
            })
        };
        let known = eventually(ms(5000), || unaware().is_none());
        assert!(
            known,
            "{:?} does not know: {verdict:?}\n{}",
            unaware(),
            pair.describe()
        );
    }

    fn link(&self, host: Host) -> Option<&FaultyLink> {
        self.links.iter().find(|link| link.host == host)
    }

    /// What the log says since the last time, by client.
    fn verdicts(&mut self) -> HashMap<String, VecDeque<Verdict>> {
        let expected = self.pairs.len();
        let read = || -> Vec<Verdict> {
            let output = self.proxy.output();
            // The last line may be half written.
            let end = output.rfind('\n').map_or(0, |at| at + 1);
            let new = output.get(self.log_read..end).unwrap_or_default();
            new.lines()
                .filter_map(|l| Verdict::read(l, self.clock))
                .collect()
        };
        // The log has a thread of its own.
        eventually(ms(5000), || read().len() >= expected);
        let mut all: HashMap<String, VecDeque<Verdict>> = HashMap::new();
        for verdict in read() {
            all.entry(verdict.client.clone())
                .or_default()
                .push_back(verdict);
        }
        self.log_read = self.proxy.output().len();
        all
    }

    pub fn summary(&self) -> String {
        let faults = self.links.iter().map(|l| l.faults).sum::<u64>();
        let deeds: u64 = self.deeds.values().sum();
        format!(
            "{} sessions, {faults} link faults, {deeds} deeds, {} KiB; {:?}",
            self.opened,
            self.proxy.resident(),
            self.reasons
        )
    }

    /// A soak in which nothing happened proves nothing.
    pub fn expect_variety(&self, length: Duration) {
        assert!(
            self.opened > 10 * length.as_secs() / 20,
            "{}",
            self.summary()
        );
        assert!(
            self.links.iter().any(|l| l.faults > 0),
            "{}",
            self.summary()
        );
        println!("soak: {:?}", self.deeds);
    }
}
