//! Watches the memory, and ends sessions before the kernel ends the process.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::admission;
use super::workers::Pool;
use crate::host::MemoryMeter;
use crate::liveness::{Pressure, Reading};
use crate::metrics::{HostSource, Metrics, Shortage};
use crate::sys;

/// Between two readings.
const TICK: Duration = Duration::from_secs(1);
/// Readings to skip after a round that found nobody to end: a round is expensive.
const REST: u32 = 5;

/// What watches.
pub(super) struct Watch {
    pub meter: MemoryMeter,
    pub pool: Arc<Pool>,
    pub metrics: Arc<Metrics>,
}

impl Watch {
    /// On a thread of its own, since reading the figures can take the kernel long where groups are
    /// many.
    pub fn start(self, mut quit: watch::Receiver<bool>) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let thread = thread::Builder::new().name("memory".to_owned());
        thread.spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // The sender lives as long as the data plane.
                    _ended = quit.wait_for(|quit| *quit) => {}
                    () = self.run() => {}
                }
            });
        })
    }

    async fn run(&self) {
        let mut known: Option<Pressure> = None;
        let (mut ended, mut rest) = (0, 0_u32);
        loop {
            if known.is_some_and(|pressure| pressure != Pressure::Calm) {
                // What ended sessions have freed is to show in the reading.
                sys::release_free_memory();
            }
            if let Some(now) = self.read() {
                let pressure = match known {
                    Some(before) => before.next(now, ended),
                    None => Pressure::new(now),
                };
                report(known, pressure, now);
                self.set_full(pressure.is_full(now));
                let most = pressure.most(now);
                // The first thing to go is what nobody uses, and that may be enough.
                let just_begun = known.is_none_or(|before| before.most(now) == 0);
                known = Some(pressure);
                rest = rest.saturating_sub(1);
                ended = 0;
                if most > 0 && !just_begun && rest == 0 {
                    ended = self.shed(most).await;
                    rest = if ended == 0 { REST } else { 0 };
                }
            }
            sleep(TICK).await;
        }
    }

    async fn shed(&self, most: usize) -> usize {
        let _one_at_a_time = self.pool.shedding.lock().await;
        admission::shed(&self.pool, None, Shortage::Memory, most).await
    }

    /// `None` where it cannot be read; then nobody has to wait for it.
    fn read(&self) -> Option<Reading> {
        let (host, limit) = (self.metrics.host(), self.meter.limit());
        let used = self.meter.used();
        host.memory_used.set(used.as_ref().ok().copied());
        host.memory_limit.set(Some(limit));
        match used {
            Ok(used) => Some(Reading {
                used,
                limit,
                sessions: self.pool.served(),
            }),
            Err(error) => {
                host.read_errors[HostSource::Memory].inc();
                tracing::debug!("cannot read how much memory is in use: {error}");
                self.set_full(false);
                None
            }
        }
    }

    fn set_full(&self, full: bool) {
        self.pool
            .out_of_memory
            .send_if_modified(|was| std::mem::replace(was, full) != full);
    }
}

fn report(before: Option<Pressure>, after: Pressure, now: Reading) {
    use Pressure::{Calm, Short, Vain};
    let (used, limit) = (now.used, now.limit);
    match (before, after) {
        (Some(Short { .. } | Calm), Vain { up_to: u64::MAX }) => {
            tracing::warn!(used, limit, "memory is short without any session");
        }
        (None, Vain { .. }) => {
            tracing::warn!(
                used,
                limit,
                "the memory limit leaves no room for sessions: none is ended for it"
            );
        }
        (Some(Calm | Vain { .. }), Short { .. }) => {
            tracing::warn!(used, limit, "memory is short: shedding");
        }
        (Some(Short { .. } | Calm), Vain { .. }) => {
            tracing::warn!(
                used,
                limit,
                "memory stays short although sessions were ended: no more are ended until use rises"
            );
        }
        (Some(Short { .. } | Vain { .. }), Calm) => {
            tracing::info!(used, limit, "memory is not short any more");
        }
        _ => {}
    }
}
