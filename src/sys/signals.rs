//! Signals that come before anybody can take them.

/// Has SIGTERM and SIGINT wait until [`release_end_signals`]. Process 1 of a container is never
/// given a signal that it has no handler for, but one that is blocked is kept for it.
pub fn hold_end_signals() {
    mask(libc::SIG_BLOCK);
}

/// Has them come, to the handlers if there are any by now. To be called on the same thread, before
/// it starts another one.
pub fn release_end_signals() {
    mask(libc::SIG_UNBLOCK);
}

fn mask(how: libc::c_int) {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set, and the others get pointers to it that are valid
    // for the call; the old mask is not asked for. With valid arguments none of them fails.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use tokio::signal::unix::{SignalKind, signal};

    #[tokio::test]
    async fn a_signal_waits_for_its_handler() {
        super::hold_end_signals();
        // SAFETY: it only sends this thread a signal, which is blocked.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        let mut handled = signal(SignalKind::terminate()).expect("a handler");
        super::release_end_signals();
        let within = std::time::Duration::from_secs(10);
        let heard = tokio::time::timeout(within, handled.recv()).await;
        assert!(heard.is_ok_and(|signal| signal.is_some()));
    }
}
