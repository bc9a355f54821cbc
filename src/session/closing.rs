//! Ending a session so that both ends learn the truth: an abort stays an abort, but only after
//! what was received has been delivered; a FIN is passed on only for a real FIN.

use std::future::poll_fn;
use std::os::fd::RawFd;
use std::task::Poll;
use std::time::Duration;

use super::{Ended, Phase, Session};
use crate::config::OnDead;
use crate::liveness::{Close, CloseHow, CloseReason, LEGS, Leg, Millis, TcpState};
use crate::net::stream::TcpStream;
use crate::net::{options, sample};
use crate::relay::{End, Relay};
use crate::sys::{self, sockopt};

/// A peer that takes nothing of what is owed to it for this long is not waited for.
const PATIENCE: Millis = 1000;
/// How long both peers have to answer a FIN that pulsegate said on its own account.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// Ends both legs; returns what is written down as the reason.
pub(super) async fn end(
    session: &Session,
    mut relay: Relay,
    legs: [TcpStream; 2],
    ended: Ended,
) -> Close {
    let close = match ended {
        Ended::Ordered(close) => close,
        Ended::Relay(End::Failed { leg, error }) => session.fault(leg, &error),
        Ended::Relay(End::Finished { last }) if finish_now(session, &legs, last) => finished(),
        Ended::Relay(End::Finished { last }) => match finish_later(session, &legs, last).await {
            Ok(()) => finished(),
            Err(close) => close,
        },
    };
    {
        let mut state = session.lock();
        state.phase = Phase::Closing;
        // For those who look; an order that comes now is too late.
        state.order.get_or_insert(close);
    }
    match close {
        Close {
            reason: CloseReason::Finished,
            ..
        } => drop_both(session, legs),
        Close {
            how: CloseHow::AbortAfterFlush(gone),
            ..
        } => {
            abort_after_flush(session, &mut relay, legs, gone).await;
        }
        Close {
            how: CloseHow::Abort,
            ..
        } => {
            LEGS.into_iter()
                .for_each(|leg| session.service.metrics.reset_sent(leg));
            drop_both(session, legs);
        }
        Close {
            how: CloseHow::Finish,
            ..
        } => finish_both(session, &relay, legs).await,
    }
    close
}

/// An orderly end.
pub(super) fn finished() -> Close {
    Close {
        reason: CloseReason::Finished,
        how: CloseHow::Finish,
        evidence: None,
        silent_for: 0,
    }
}

/// Both sides said FIN, and one FIN is still owed to `last`. True if everything has arrived, so
/// that close(2) may say it.
pub(super) fn finish_now(session: &Session, legs: &[TcpStream; 2], last: Leg) -> bool {
    if !legs.iter().all(is_delivered) {
        return false;
    }
    let fd = legs[last as usize].raw_fd();
    if session.is_old() {
        session.check_option(options::unwatch(fd));
    }
    session.check_option(sockopt::disarm_abort(fd));
    true
}

/// Both sides said FIN, but bytes or a FIN are still on their way. Returns the order that came
/// instead of their arrival, if one did.
async fn finish_later(session: &Session, legs: &[TcpStream; 2], last: Leg) -> Result<(), Close> {
    // The descriptors are kept until everything has arrived: behind close(2) the kernel gives
    // up on a slow or briefly unreachable peer much sooner than the promise says.
    let _gone_already = legs[last as usize].finish();
    let mut wait = Duration::from_millis(1);
    loop {
        if legs
            .iter()
            .all(|leg| is_delivered(leg) || is_closed(leg.raw_fd()))
        {
            return Ok(());
        }
        tokio::select! {
            close = poll_fn(|_| session.take_order()) => return Err(close),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_millis(100)),
        }
    }
}

/// One leg is gone: RST on it at once; on the other one RST (or FIN, `on_dead: close`) after
/// everything that the gone one had sent has been delivered.
async fn abort_after_flush(
    session: &Session,
    relay: &mut Relay,
    [downstream, upstream]: [TcpStream; 2],
    gone: Leg,
) {
    {
        let legs = [&downstream, &upstream];
        let drained = poll_fn(|cx| relay.poll_drain(gone, legs, &session.counters, cx));
        let live = legs[gone.other() as usize].raw_fd();
        tokio::select! {
            biased;
            () = drained => {}
            () = stuck(session, live, gone.other()) => {}
        }
    }
    let (gone_stream, live_stream) = match gone {
        Leg::Downstream => (downstream, upstream),
        Leg::Upstream => (upstream, downstream),
    };
    session.release(gone);
    session.service.metrics.reset_sent(gone);
    drop(gone_stream);
    tokio::select! {
        biased;
        () = delivered(&live_stream) => {}
        () = stuck(session, live_stream.raw_fd(), gone.other()) => {}
    }
    match session.service.on_dead {
        OnDead::Reset => session.service.metrics.reset_sent(gone.other()),
        OnDead::Close => {
            let fd = live_stream.raw_fd();
            session.check_option(options::unwatch(fd));
            session.check_option(sockopt::disarm_abort(fd));
        }
    }
    session.release(gone.other());
    drop(live_stream);
}

/// Returns when the leg has taken nothing of what is owed to it for [`PATIENCE`], or has failed.
async fn stuck(session: &Session, fd: RawFd, leg: Leg) {
    let mut last = None;
    let mut since = sys::now();
    loop {
        let owed = (
            sockopt::send_queue_bytes(fd).unwrap_or(0),
            session.counters.traffic().sent,
        );
        let now = sys::now();
        if last.replace(owed) != Some(owed) {
            since = now;
        }
        if is_closed(fd) || now >= since + PATIENCE {
            tracing::debug!(
                id = session.id,
                leg = leg.as_str(),
                "undelivered bytes are dropped"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns when the peer has acknowledged everything that was written.
async fn delivered(leg: &TcpStream) {
    let mut wait = Duration::from_millis(1);
    while !is_delivered(leg) {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_millis(50));
    }
}

/// FIN on both legs, RST on what has not answered it in time. A leg to which bytes are still owed
/// is reset: after a FIN it would take the cut stream for a whole one.
async fn finish_both(session: &Session, relay: &Relay, legs: [TcpStream; 2]) {
    for leg in LEGS {
        if !relay.owes(leg) {
            let _gone_already = legs[leg as usize].finish();
        }
    }
    let answered = poll_fn(|cx| {
        let open = legs.iter().filter(|leg| !poll_discard(leg, cx)).count();
        if open == 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    let in_time = tokio::time::timeout(FINISH_LIMIT, answered).await.is_ok();
    if !in_time {
        LEGS.into_iter()
            .for_each(|leg| session.service.metrics.reset_sent(leg));
    }
    drop_both(session, legs);
}

/// Throws away what comes in; true at the peer's FIN or RST.
fn poll_discard(leg: &TcpStream, cx: &mut std::task::Context<'_>) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match leg.poll_read(cx, &mut bytes) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0) | Err(_)) => return true,
            Poll::Ready(Ok(_)) => {}
        }
    }
}

pub(super) fn drop_both(session: &Session, legs: [TcpStream; 2]) {
    session.lock().fds = [-1; 2];
    drop(legs);
}

fn is_delivered(leg: &TcpStream) -> bool {
    sockopt::send_queue_bytes(leg.raw_fd()).is_ok_and(|bytes| bytes == 0)
}

fn is_closed(fd: RawFd) -> bool {
    sample::sample(fd).is_none_or(|s| s.state == TcpState::Closed)
}
