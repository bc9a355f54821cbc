//! Memory that malloc(3) keeps.

/// Gives memory that malloc(3) keeps for later back to the kernel. It takes each arena's lock for
/// a moment: for times of need only.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim(3) may be called at any time, by any thread (MT-Safe). No block that
        // is in use moves.
        let _anything_released = unsafe { libc::malloc_trim(0) };
    }
    // musl gives free pages back by itself, and has no such call.
}
