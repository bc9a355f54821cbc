//! The overview, once and again and again. However many ask, it is made once a second at most, and no session
//! is looked at for it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Control;
use crate::liveness::{Span, Time};
use crate::sys;

/// Between two messages of a client.
const EVERY: Duration = Duration::from_secs(1);
/// An overview is told again while it is younger.
const FRESH: Span = Span::ms(900);
/// A client asks again after so many: a connection of the endpoint does not live much longer.
const MESSAGES: u32 = 50;

/// The overview, as JSON.
#[derive(Clone)]
pub(super) struct Summaries {
    control: Arc<dyn Control>,
    last: Arc<Mutex<Option<(Time, Bytes)>>>,
}

impl Summaries {
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self {
            control,
            last: Arc::default(),
        }
    }

    /// What was said a moment ago, or what is so now.
    pub fn json(&self) -> Bytes {
        let now = sys::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, json)) = &*last
            && now - *at < FRESH
        {
            return json.clone();
        }
        // Plain fields and text: there is nothing that could fail.
        let json = serde_json::to_string(&self.control.summary()).unwrap_or_default();
        let json = Bytes::from(json);
        *last = Some((now, json.clone()));
        json
    }
}

/// Server-sent events: one overview each second.
pub(super) struct Events {
    summaries: Summaries,
    ticks: Interval,
    left: u32,
}

impl Events {
    pub fn new(summaries: Summaries) -> Self {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            summaries,
            ticks,
            left: MESSAGES,
        }
    }

    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(Pin::new(&mut self.ticks).poll_tick(cx));
        self.left -= 1;
        let json = self.summaries.json();
        let message = [b"data: ", &json[..], b"\n\n"].concat();
        Poll::Ready(Some(message.into()))
    }
}
