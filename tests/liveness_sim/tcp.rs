//! One end of a TCP connection, as far as liveness can see it: what makes it send, what each
//! arriving segment does to the ages and counters of `TCP_INFO`, and its three timers.
//!
//! Modelled after Linux 6.18 as measured: a keepalive probe carries an old sequence number, so
//! its receiver answers it but dates nothing by it; keepalive is silent while anything is
//! unacknowledged or queued; the user timeout is so large that the kernel never gives up, but where
//! the window of a silent peer is closed: after so many probes, or sooner where data was on its way
//! to it.

use std::collections::VecDeque;

use pulsegate::liveness::{LegSample, Span, TcpState};

/// True time, milliseconds.
pub type Ms = u64;

const MIN_RTO: Ms = 200;
/// `net.ipv4.tcp_invalid_ratelimit`.
const PROBE_ANSWERS_APART: Ms = 500;
/// `net.ipv4.tcp_retries2`.
const RETRIES_2: u32 = 15;

/// What kernels differ in.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The tick of its clock: 1, 4 or 10 ms (HZ=1000, 250, 100).
    pub jiffy: Ms,
    /// Whether it has TCP_RTO_MAX_MS.
    pub has_rto_max: bool,
    pub rto_max: Ms,
    pub sack: Sack,
}

impl Kernel {
    /// When a timer armed at `now` for `delay` fires: the wheel gets coarser, up to 1/8, and is
    /// late.
    pub fn timer(self, now: Ms, delay: Ms) -> Ms {
        let expires = (now + delay).div_ceil(self.jiffy);
        let shift = match expires - now / self.jiffy {
            0..=63 => 0,
            64..=511 => 3,
            512..=4095 => 6,
            4096..=32767 => 9,
            _ => 12,
        };
        (((expires >> shift) + 1) << shift) * self.jiffy
    }

    /// In which tick a moment is.
    pub fn tick(self, at: Ms) -> Ms {
        at / self.jiffy
    }
}

/// Whether the sender's kernel begins with a loss probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sack {
    Off,
    /// `net.ipv4.tcp_early_retrans` is 0.
    WithoutLossProbe,
    WithLossProbe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A keepalive or window probe: to be answered, dates nothing.
    Probe,
    /// Data, FIN or a bare acknowledgement.
    Normal { seq: u64, end: u64, fin: bool },
    /// The sender does not know the connection.
    Rst,
}

#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub kind: Kind,
    ack: u64,
    /// The highest sequence number that the receiver would take.
    edge: u64,
}

impl Segment {
    pub const RST: Self = Self {
        kind: Kind::Rst,
        ack: 0,
        edge: 0,
    };

    /// Sequence numbers that it takes.
    pub fn len(&self) -> u64 {
        match self.kind {
            Kind::Normal { seq, end, .. } => end - seq,
            _ => 0,
        }
    }

    pub fn carries_data(&self) -> bool {
        matches!(self.kind, Kind::Normal { seq, end, .. } if end > seq)
    }
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub kernel: Kernel,
    pub start: Ms,
    // Sending. The FIN is the last position of the stream.
    written: u64,
    fin: bool,
    snd_nxt: u64,
    snd_una: u64,
    /// Where the segments in flight end.
    ends: VecDeque<u64>,
    edge: u64,
    rto: Ms,
    /// From one retransmission to the next.
    gap: Ms,
    retransmits: u32,
    backoff: u32,
    probes: u32,
    /// Of these, the keepalive probes.
    pub keepalive_probes: u32,
    /// A loss probe is next, before the first timeout.
    tail_probe: bool,
    /// Since when it has been in timeouts.
    repeating_since: Option<Ms>,
    /// The kernel has given up.
    pub timed_out: bool,
    // Receiving.
    rcv_nxt: u64,
    read: u64,
    buffer: u64,
    /// The memory for what was not read suffices for so many bytes; they come in tiny segments.
    pub memory: Option<u64>,
    pub fin_received: bool,
    pub reset: bool,
    // Timers.
    rto_at: Option<Ms>,
    /// When it should fire.
    rto_due: Ms,
    persist_at: Option<Ms>,
    pub keepalive_at: Option<Ms>,
    pub idle: Ms,
    /// From one unanswered keepalive probe to the next.
    pub interval: Ms,
    // What TCP_INFO is made of.
    pub last_ack: Option<Ms>,
    pub last_data: Option<Ms>,
    pub last_sent: Option<Ms>,
    /// Without retransmissions.
    pub last_new_sent: Option<Ms>,
    /// When the other side last acknowledged a byte; a FIN is none.
    pub last_taken: Option<Ms>,
    /// Since when something has waited for it, and for how long before that.
    pub busy_since: Option<Ms>,
    busy: Ms,
    pub segs_in: u32,
    /// The last segment that moved nothing but `segs_in`.
    pub last_undated: Option<Ms>,
    /// Since when the other side has taken nothing although something is queued.
    pub shut_since: Option<Ms>,
    /// When a probe of the other side was last answered.
    probe_answered: Option<Ms>,
    /// Rows of questions: they begin with the first after an answer.
    pub rows: u64,
    /// Questions asked since the last answer, and when the first of them was.
    pub questions: u32,
    pub first_question: Ms,
    pub out: Vec<Segment>,
}

impl Endpoint {
    /// A connection just established, with the receive buffers of this and the other end;
    /// `keepalive` is its idle time, if on.
    pub fn new(
        now: Ms,
        rtt: Ms,
        kernel: Kernel,
        [buffer, edge]: [u64; 2],
        keepalive: Option<Ms>,
    ) -> Self {
        Self {
            kernel,
            start: now,
            written: 0,
            fin: false,
            snd_nxt: 0,
            snd_una: 0,
            ends: VecDeque::new(),
            edge,
            rto: MIN_RTO.max(rtt + rtt / 2),
            gap: MIN_RTO.max(rtt + rtt / 2),
            retransmits: 0,
            backoff: 0,
            probes: 0,
            keepalive_probes: 0,
            tail_probe: false,
            repeating_since: None,
            timed_out: false,
            rcv_nxt: 0,
            read: 0,
            buffer,
            memory: None,
            fin_received: false,
            reset: false,
            rto_at: None,
            rto_due: 0,
            persist_at: None,
            keepalive_at: keepalive.map(|idle| kernel.timer(now, idle)),
            idle: keepalive.unwrap_or(Ms::MAX),
            interval: 1000,
            last_ack: Some(now),
            last_data: None,
            last_sent: None,
            last_new_sent: None,
            last_taken: None,
            busy_since: None,
            busy: 0,
            segs_in: 1,
            last_undated: None,
            shut_since: None,
            probe_answered: None,
            rows: 0,
            questions: 0,
            first_question: 0,
            out: Vec::new(),
        }
    }

    pub fn total(&self) -> u64 {
        self.written + u64::from(self.fin)
    }

    pub fn unsent(&self) -> u64 {
        self.total() - self.snd_nxt
    }

    pub fn in_flight(&self) -> bool {
        self.snd_nxt > self.snd_una
    }

    /// Nothing of ours is under way or waits: only keepalive speaks.
    pub fn is_silent(&self) -> bool {
        !self.in_flight() && self.unsent() == 0
    }

    /// The other end has said FIN, and is owed nothing.
    pub fn is_complete(&self) -> bool {
        self.fin_received && !self.fin && self.is_silent()
    }

    pub fn is_quiet(&self) -> bool {
        self.is_silent() && self.probes == 0 && self.rto_at.is_none() && self.persist_at.is_none()
    }

    pub fn unread(&self) -> u64 {
        self.rcv_nxt - self.read - u64::from(self.fin_received)
    }

    pub fn zero_window(&self) -> bool {
        self.edge <= self.snd_nxt
    }

    /// The other side has closed it, and not only filled it.
    fn zero_window_told(&self) -> bool {
        self.edge <= self.snd_una
    }

    /// It has done so while data was on its way.
    pub fn is_shrunk(&self) -> bool {
        self.in_flight() && self.zero_window_told()
    }

    pub fn last_dated(&self) -> Ms {
        self.last_ack.max(self.last_data).unwrap_or(self.start)
    }

    pub fn finished(&self) -> bool {
        self.fin_received && self.fin && self.snd_una == self.total()
    }

    /// Not reset, and not both FINs through: only then do its timers run.
    pub fn is_open(&self) -> bool {
        !self.reset && !self.timed_out && !self.finished()
    }

    pub fn has_fin(&self) -> bool {
        self.fin
    }

    pub fn write(&mut self, now: Ms, bytes: u64) {
        if !self.fin && !self.reset {
            self.written += bytes;
            self.push(now);
        }
    }

    pub fn shutdown(&mut self, now: Ms) {
        if !self.fin && !self.reset {
            self.fin = true;
            self.push(now);
        }
    }

    /// The application takes everything that has come.
    pub fn read_all(&mut self) -> u64 {
        let bytes = self.unread();
        let was_shut = self.room() == 0 || self.is_out_of_memory();
        self.read += bytes;
        if was_shut && bytes > 0 {
            self.acknowledge();
        }
        bytes
    }

    /// `setsockopt(TCP_KEEPIDLE)`: counts from the last dated sign of life.
    pub fn set_idle(&mut self, now: Ms, idle: Ms) {
        self.idle = idle;
        let elapsed = now - self.last_dated();
        self.keepalive_at = Some(self.kernel.timer(now, idle.saturating_sub(elapsed)));
    }

    pub fn next_timer(&self) -> Option<Ms> {
        [self.rto_at, self.persist_at, self.keepalive_at]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn fire(&mut self, now: Ms) {
        if self.rto_at.is_some_and(|at| at <= now) {
            self.retransmit(now);
        }
        if self.persist_at.is_some_and(|at| at <= now) {
            self.persist(now);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive(now);
        }
    }

    pub fn receive(&mut self, now: Ms, segment: Segment) {
        self.segs_in = self.segs_in.wrapping_add(1);
        let Kind::Normal { seq, end, fin } = segment.kind else {
            self.last_undated = Some(now);
            match segment.kind {
                Kind::Probe => self.answer_probe(now),
                _ => self.reset = true,
            }
            return;
        };
        let has_payload = end > seq;
        if has_payload && (end <= self.rcv_nxt || self.room() == 0) {
            // Out of the window: answered and dropped before its acknowledgement is looked at.
            self.last_undated = Some(now);
            self.acknowledge();
            return;
        }
        self.take_ack(now, segment.ack, segment.edge);
        if has_payload {
            if seq > self.rcv_nxt {
                // It has to come again after what was lost.
                return self.acknowledge();
            }
            let payload = end - u64::from(fin);
            if payload > self.rcv_nxt && self.is_out_of_memory() {
                return self.acknowledge();
            }
            if payload > self.rcv_nxt {
                self.last_data = Some(now);
            }
            self.rcv_nxt = end;
            self.fin_received |= fin;
            self.acknowledge();
        }
    }

    /// What `getsockopt(TCP_INFO)` says. Ages of what never happened count from boot.
    pub fn sample(&self, now: Ms, rtt: Ms) -> LegSample {
        let age = |at: Option<Ms>| match at {
            Some(at) => {
                Span::ms((self.kernel.tick(now) - self.kernel.tick(at)) * self.kernel.jiffy)
            }
            None => Span::ms(now),
        };
        LegSample {
            state: self.state(),
            unacked: u32::from(self.in_flight()),
            retransmits: self.retransmits,
            // One byte in the kernel.
            probes: self.probes & 0xFF,
            backoff: self.backoff as u8,
            notsent: self.unsent() as u32,
            zero_window: self.zero_window_told(),
            last_ack_age: age(self.last_ack),
            last_data_age: age(self.last_data.or(Some(self.start))),
            last_sent_age: age(self.last_sent),
            // The gap between window probes is doubled apart from it.
            rto: Span::ms(if self.in_flight() { self.gap } else { self.rto }),
            busy: Span::ms(self.busy + self.busy_since.map_or(0, |at| now - at)),
            segs_in: self.segs_in,
            bytes_acked: 1 + self.snd_una,
            bytes_received: self.rcv_nxt,
            rtt_us: (rtt * 1000) as u32,
            rttvar_us: 0,
            is_local: false,
            is_layered: false,
            is_asked: false,
        }
    }

    fn state(&self) -> TcpState {
        // A FIN that is still queued counts (`tcp_shutdown`, net/ipv4/tcp.c).
        let fin_acked = self.fin && self.snd_una == self.total();
        match (self.fin_received, self.fin, fin_acked) {
            _ if self.reset || self.timed_out => TcpState::Closed,
            (false, false, _) => TcpState::Established,
            (true, false, _) => TcpState::CloseWait,
            (false, true, false) => TcpState::FinWait1,
            (false, true, true) => TcpState::FinWait2,
            (true, true, false) => TcpState::LastAck,
            (true, true, true) => TcpState::Closed,
        }
    }

    fn is_out_of_memory(&self) -> bool {
        self.memory.is_some_and(|bytes| self.unread() >= bytes)
    }

    fn room(&self) -> u64 {
        self.buffer.saturating_sub(self.unread())
    }

    fn emit(&mut self, kind: Kind) {
        let room = if self.is_out_of_memory() {
            0
        } else {
            self.room()
        };
        self.out.push(Segment {
            kind,
            ack: self.rcv_nxt,
            edge: self.rcv_nxt + room,
        });
    }

    /// `tcp_oow_rate_limited`, net/ipv4/tcp_input.c: bare probes are answered once in 500 ms.
    fn answer_probe(&mut self, now: Ms) {
        if self
            .probe_answered
            .is_none_or(|at| now >= at + PROBE_ANSWERS_APART)
        {
            self.probe_answered = Some(now);
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        let (seq, end) = (self.snd_nxt, self.snd_nxt);
        self.emit(Kind::Normal {
            seq,
            end,
            fin: false,
        });
    }

    fn send_range(&mut self, now: Ms, seq: u64, end: u64) {
        let fin = self.fin && end == self.total();
        // A bare FIN is not data.
        if end - u64::from(fin) > seq {
            self.last_sent = Some(now);
        }
        self.emit(Kind::Normal { seq, end, fin });
    }

    /// Sends what the window allows and arms the timer that will ask.
    fn push(&mut self, now: Ms) {
        let end = self.total().min(self.edge);
        // After a timeout the congestion window holds what is repeated, and nothing else.
        if end > self.snd_nxt && self.retransmits == 0 {
            let seq = self.snd_nxt;
            self.snd_nxt = end;
            self.ends.push_back(end);
            self.send_range(now, seq, end);
            self.last_new_sent = self.last_new_sent.max(self.last_sent);
        }
        if self.in_flight() {
            self.persist_at = None;
            if self.rto_at.is_none() {
                self.gap = self.gap.min(self.kernel.rto_max);
                self.arm(now, self.gap);
                self.tail_probe =
                    self.kernel.sack == Sack::WithLossProbe && self.repeating_since.is_none();
            }
        } else if self.unsent() > 0 && self.persist_at.is_none() {
            self.persist_at = Some(self.kernel.timer(now, self.probe_gap()));
        }
        if self.is_silent() {
            self.busy += self.busy_since.take().map_or(0, |at| now - at);
        } else {
            self.busy_since.get_or_insert(now);
        }
        let shut = self.unsent() > 0 && self.zero_window() && !self.in_flight();
        let shut = shut || self.is_shrunk();
        self.shut_since = shut.then(|| self.shut_since.unwrap_or(now));
    }

    fn probe_gap(&self) -> Ms {
        (self.rto << self.backoff.min(16)).min(self.kernel.rto_max)
    }

    fn question(&mut self, now: Ms) {
        if self.questions == 0 {
            self.rows += 1;
            self.first_question = now;
        }
        self.questions += 1;
    }

    fn retransmit(&mut self, now: Ms) {
        let withdrawn = self.is_shrunk();
        let heard = self.last_ack.unwrap_or(self.start);
        if withdrawn && self.rto_due > heard + 2 * self.kernel.rto_max {
            self.timed_out = true;
            return;
        }
        self.question(now);
        let mut delay = self.gap;
        if std::mem::take(&mut self.tail_probe) {
            self.repeat(now, self.ends.len() - 1);
        } else if withdrawn {
            self.repeat(now, 0);
            self.repeating_since.get_or_insert(now);
            delay = self.double();
        } else {
            self.repeat(now, 0);
            self.repeating_since.get_or_insert(now);
            self.retransmits += 1;
            delay = self.double();
        }
        self.arm(now, delay);
    }

    fn arm(&mut self, now: Ms, delay: Ms) {
        self.rto_due = now + delay;
        self.rto_at = Some(self.kernel.timer(now, delay));
    }

    fn double(&mut self) -> Ms {
        self.backoff += 1;
        self.gap = (2 * self.gap).min(self.kernel.rto_max);
        self.gap
    }

    /// Sends one of the segments in flight again.
    fn repeat(&mut self, now: Ms, index: usize) {
        let begin = index.checked_sub(1).map_or(self.snd_una, |i| self.ends[i]);
        self.send_range(now, begin, self.ends[index]);
    }

    fn persist(&mut self, now: Ms) {
        if self.probes >= RETRIES_2 {
            self.timed_out = true;
            return;
        }
        self.question(now);
        self.probes += 1;
        self.backoff += 1;
        self.emit(Kind::Probe);
        self.persist_at = Some(self.kernel.timer(now, self.probe_gap()));
    }

    fn keepalive(&mut self, now: Ms) {
        let elapsed = now - self.last_dated();
        let delay = if !self.is_silent() {
            self.idle
        } else if elapsed >= self.idle {
            self.question(now);
            self.probes += 1;
            self.keepalive_probes += 1;
            self.emit(Kind::Probe);
            self.interval
        } else {
            self.idle - elapsed
        };
        self.keepalive_at = Some(self.kernel.timer(now, delay));
    }

    fn take_ack(&mut self, now: Ms, ack: u64, edge: u64) {
        self.last_ack = Some(now);
        self.questions = 0;
        self.probes = 0;
        self.keepalive_probes = 0;
        if ack > self.snd_una {
            if self.snd_una < self.written {
                self.last_taken = Some(now);
            }
            self.snd_una = ack;
            self.ends.retain(|end| *end > ack);
            self.retransmits = 0;
            self.backoff = 0;
            self.gap = self.rto;
            self.rto_at = None;
            self.shut_since = None;
            if !self.in_flight() {
                self.repeating_since = None;
            } else if self.repeating_since.is_some() && self.unsent() == 0 {
                // New data would go first (F-RTO, RFC 5682).
                self.repeat(now, 0);
            }
        }
        // No window at all is believed even where it takes one back (`tcp_may_update_window`).
        self.edge = if edge <= ack {
            ack
        } else {
            self.edge.max(edge)
        };
        if !self.zero_window() && !self.in_flight() {
            self.backoff = 0;
            self.persist_at = None;
        } else if self.persist_at.is_some() {
            // An answered window probe: the next one is a whole gap away.
            self.persist_at = Some(self.kernel.timer(now, self.probe_gap()));
        }
        self.push(now);
    }
}
