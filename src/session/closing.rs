//! Ending a session so that both ends learn the truth: an abort stays an abort, but only after
//! what was received has been delivered; a FIN is passed on only for a real FIN.
//!
//! A stream whose FIN has come is complete, whatever happens to its sender then: it is delivered
//! whole while the session is open still, and only the clocks of the machine and orders can cut
//! that short. Every other end is bounded.

use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Ended, Phase, Session, Watch};
use crate::config::{OnDead, OnEnd};
use crate::liveness::{Close, CloseHow, CloseReason, LEGS, Leg, Span, TcpState};
use crate::net::leg::LegStream;
use crate::net::{options, sample};
use crate::relay::{End, Relay};
use crate::sys::{self, sockopt};

/// Peers that take nothing of what is owed to them for this long are not waited for, ...
const PATIENCE: Span = Span::ms(1000);
/// ... and none is for longer than this, however little it takes at a time.
const FLUSH_LIMIT: Span = Span::ms(30_000);
/// How long both peers have to answer a FIN that pulsegate said on its own account.
const FINISH_LIMIT: Duration = Duration::from_secs(1);
/// Reads of what nobody wants any more before others get their turn.
const DISCARDED_AT_ONCE: usize = 64;

/// Ends both legs; returns what is written down as the reason.
pub(super) async fn end(
    session: &Session,
    mut relay: Relay,
    mut legs: [LegStream; 2],
    ended: Ended,
) -> Close {
    let mut fin_known = false;
    let mut close = match ended {
        Ended::Ordered(close) => close,
        Ended::Relay(End::Failed { leg, error }) => {
            fin_known = is_after_fin(&error);
            let close = session.fault(leg, &error);
            if close.reason == CloseReason::tls_failed(leg) {
                session.report_broken(leg, &error);
            }
            close
        }
        Ended::Relay(End::Finished { last }) if finish_now(session, &legs, last) => finished(),
        Ended::Relay(End::Finished { last }) => {
            match finish_later(session, &mut legs, last).await {
                Ok(()) => finished(),
                Err(close) => close,
            }
        }
    };
    if let CloseHow::AbortAfterFlush(gone) = close.how
        && [CloseReason::reset(gone), CloseReason::dead(gone)].contains(&close.reason)
        && (fin_known || relay.is_finished(gone) || session.lock().machine.said_fin(gone))
    {
        close.how = deliver_whole(session, &mut relay, &mut legs, gone, close.how).await;
    }
    {
        let mut state = session.lock();
        state.phase = Phase::Closing;
        // For those who look, and for orders that are harsher.
        state.order = Some(Box::new(close));
    }
    match close.how {
        _ if close.reason == CloseReason::Finished => {
            let_go_of_layers(session, &legs);
            drop_both(session, legs);
        }
        CloseHow::AbortAfterFlush(gone) => {
            flush(session, &mut relay, &mut legs, &[gone]).await;
            abort_gone(session, legs, gone, close.reason).await;
        }
        CloseHow::Flush => {
            flush(session, &mut relay, &mut legs, &LEGS).await;
            match session.params.on_end {
                OnEnd::Reset => abort_both(session, legs),
                OnEnd::Close => finish_both(session, &relay, legs).await,
            }
        }
        CloseHow::Abort => abort_both(session, legs),
    }
    close
}

/// An orderly end.
pub(super) fn finished() -> Close {
    Close {
        reason: CloseReason::Finished,
        how: CloseHow::Flush,
        evidence: None,
        silent_for: Span::ZERO,
    }
}

/// Whether a limit ended it, and no peer is to blame for the end.
fn is_own_decision(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::DownstreamStalled
            | CloseReason::UpstreamStalled
            | CloseReason::DownstreamUndelivered
            | CloseReason::UpstreamUndelivered
            | CloseReason::FirstResponseTimeout
            | CloseReason::DownstreamUnresponsive
            | CloseReason::UpstreamUnresponsive
    )
}

/// RST on a connection in CLOSE-WAIT is told as EPIPE, in every other state as ECONNRESET
/// (`tcp_reset`, net/ipv4/tcp_input.c).
pub(super) fn is_after_fin(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPIPE)
}

/// Both sides said FIN, and one FIN is still owed to `last`. True if everything has arrived, so
/// that close(2) may say it.
pub(super) fn finish_now(session: &Session, legs: &[LegStream; 2], last: Leg) -> bool {
    // A layer has last words before it.
    let Some(socket) = legs[last as usize].as_plain() else {
        return false;
    };
    if !legs.iter().all(LegStream::is_delivered) {
        return false;
    }
    let_go(session, socket.raw_fd());
    let_go_of_layers(session, legs);
    true
}

/// What follows is up to the kernel: close(2) is no abort.
fn let_go(session: &Session, fd: RawFd) {
    if session.lock().watch != Watch::None {
        session.check_option(options::unwatch(fd));
    }
    session.check_option(sockopt::disarm_abort(fd));
}

/// The end of a layer is the end of the stream: the peer may say FIN later.
fn let_go_of_layers(session: &Session, legs: &[LegStream; 2]) {
    let layered = legs.iter().filter(|leg| leg.is_layered());
    layered.for_each(|leg| let_go(session, leg.socket().raw_fd()));
}

/// Both sides said FIN, but bytes or a FIN are still on their way. The session is open still: its
/// clocks run. Returns what came instead of their arrival, if something did.
async fn finish_later(
    session: &Session,
    legs: &mut [LegStream; 2],
    last: Leg,
) -> Result<(), Close> {
    // The descriptors are kept until everything has arrived: behind close(2) the kernel gives
    // up on a slow or briefly unreachable peer much sooner than the promise says.
    let finish = poll_fn(|cx| legs[last as usize].poll_finish(cx));
    let said_last = tokio::select! {
        biased;
        finished = finish => finished.is_ok(),
        close = poll_fn(|_| session.take_order()) => return Err(close),
    };
    let mut wait = Duration::from_millis(1);
    loop {
        let mut missing = false;
        for leg in LEGS {
            let fd = legs[leg as usize].socket().raw_fd();
            // In this order: an acknowledgement between the two is none of an older figure.
            let closed = is_closed(fd);
            let unacknowledged = legs[leg as usize].unacknowledged().unwrap_or(0);
            let fin = u32::from(leg != last || said_last);
            if !closed {
                missing |= unacknowledged > 0;
            } else if unacknowledged > fin + legs[leg as usize].last_words() {
                let error = sockopt::take_error(fd);
                let reset = || io::Error::from_raw_os_error(libc::ECONNRESET);
                return Err(session.fault(leg, &error.unwrap_or_else(reset)));
            }
        }
        if !missing {
            return Ok(());
        }
        tokio::select! {
            close = poll_fn(|_| session.take_order()) => return Err(close),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_millis(100)),
        }
    }
}

/// One peer is gone, but what it had sent is a complete stream: that is delivered whole, FIN
/// included, however slow the receiver is. Returns how the session is to be ended then; an order
/// cuts it short.
async fn deliver_whole(
    session: &Session,
    relay: &mut Relay,
    legs: &mut [LegStream; 2],
    gone: Leg,
    how: CloseHow,
) -> CloseHow {
    {
        let mut state = session.lock();
        if let Some(order) = state.order.as_deref().filter(|order| order.how != how) {
            return order.how;
        }
        state.machine.give_up(gone);
        session.take_back_order(&mut state);
    }
    let delivered = async {
        poll_fn(|cx| relay.poll_rest(gone, legs, &session.counters, cx)).await;
        delivered(&legs[gone.other() as usize]).await;
    };
    tokio::select! {
        biased;
        close = poll_fn(|_| session.take_order()) => close.how,
        () = delivered => how,
    }
}

/// Delivers what was received from `sources`, as far as the receivers take it in time.
async fn flush(session: &Session, relay: &mut Relay, legs: &mut [LegStream; 2], sources: &[Leg]) {
    // What comes after this is not waited for: it may never end.
    let mut left = legs.each_ref().map(LegStream::unread);
    let fds = legs.each_ref().map(|leg| leg.socket().raw_fd());
    let mut draining = sources.to_vec();
    let flushed = async {
        poll_fn(|cx| {
            draining.retain(|source| {
                let left = &mut left[*source as usize];
                let drained = relay.poll_drain(*source, legs, &session.counters, left, cx);
                drained.is_pending()
            });
            if draining.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        for source in sources {
            delivered(&legs[source.other() as usize]).await;
        }
    };
    tokio::select! {
        biased;
        () = flushed => {}
        () = too_slow(session, fds, sources) => {
            tracing::debug!(id = session.id, "undelivered bytes are dropped");
        }
    }
}

/// Returns when the receivers have taken nothing of what is owed to them for [`PATIENCE`], at
/// [`FLUSH_LIMIT`], or when RST is ordered.
async fn too_slow(session: &Session, fds: [RawFd; 2], sources: &[Leg]) {
    let began = sys::now();
    let (mut last, mut since) = (None, began);
    loop {
        let owed = fds.map(|fd| sockopt::send_queue_bytes(fd).unwrap_or(0));
        let progress = (owed, session.counters.traffic().sent);
        let now = sys::now();
        if last.replace(progress) != Some(progress) {
            since = now;
        }
        let receiver = |source: &Leg| fds[source.other() as usize];
        if now >= since + PATIENCE
            || now >= began + FLUSH_LIMIT
            || session.is_to_abort()
            || sources.iter().map(receiver).all(is_closed)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns when the peer has acknowledged everything that was written, or is gone.
pub(super) async fn delivered(leg: &LegStream) {
    let mut wait = Duration::from_millis(1);
    while !leg.is_delivered() && !is_closed(leg.socket().raw_fd()) {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_millis(50));
    }
}

/// RST on the leg whose peer is gone, and RST or FIN on the other one.
async fn abort_gone(session: &Session, mut legs: [LegStream; 2], gone: Leg, reason: CloseReason) {
    let params = &session.params;
    let says_fin = if is_own_decision(reason) {
        params.on_end == OnEnd::Close
    } else {
        params.on_dead == OnDead::Close
    };
    let live = gone.other();
    if says_fin {
        let live = &mut legs[live as usize];
        if live.is_layered() {
            // Without its last words it would be an abort.
            let finish = poll_fn(|cx| live.poll_finish(cx));
            let _best_effort = tokio::time::timeout(FINISH_LIMIT, finish).await;
        }
        let_go(session, live.socket().raw_fd());
    } else {
        params.metrics.reset_sent(live);
    }
    params.metrics.reset_sent(gone);
    drop_both(session, legs);
}

fn abort_both(session: &Session, legs: [LegStream; 2]) {
    LEGS.into_iter()
        .for_each(|leg| session.params.metrics.reset_sent(leg));
    drop_both(session, legs);
}

/// FIN on both legs, RST on what has not answered it in time. A leg to which bytes are still owed
/// is reset: after a FIN it would take the cut stream for a whole one.
async fn finish_both(session: &Session, relay: &Relay, mut legs: [LegStream; 2]) {
    let mut unsaid = LEGS.map(|leg| !relay.owes(leg));
    let mut open = [true; 2];
    let answered = poll_fn(|cx| {
        for leg in LEGS.map(|leg| leg as usize) {
            unsaid[leg] = unsaid[leg] && legs[leg].poll_finish(cx).is_pending();
            open[leg] = open[leg] && !poll_discard(&mut legs[leg], cx);
        }
        if open == [false; 2] {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    if tokio::time::timeout(FINISH_LIMIT, answered).await.is_ok() {
        let_go_of_layers(session, &legs);
        drop_both(session, legs);
    } else {
        abort_both(session, legs);
    }
}

/// Throws away what comes in; true at the peer's FIN or RST.
fn poll_discard(leg: &mut LegStream, cx: &mut Context<'_>) -> bool {
    let mut bytes = [0; 4096];
    for _ in 0..DISCARDED_AT_ONCE {
        match leg.poll_read(cx, &mut bytes) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0) | Err(_)) => return true,
            Poll::Ready(Ok(_)) => {}
        }
    }
    cx.waker().wake_by_ref();
    false
}

pub(super) fn drop_both(session: &Session, legs: [LegStream; 2]) {
    session.lock().fds = [-1; 2];
    drop(legs);
}

fn is_closed(fd: RawFd) -> bool {
    sample::sample(fd).is_none_or(|s| s.state == TcpState::Closed)
}
