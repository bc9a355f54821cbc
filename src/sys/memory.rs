//! The allocator's settings, and memory that it keeps.

/// Two arenas: threads that allocate much are few, and each arena keeps pages of its own. What is
/// freed is given back after a second at most, and at once to the kernel rather than marked for it.
/// Read by jemalloc when it starts (jemalloc(3), TUNING).
// SAFETY: no other definition of this symbol is linked; jemalloc's own is weak. It is a pointer to a
// string that ends with NUL, as jemalloc reads it; the string is never written.
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
pub static SETTINGS: &[u8; 47] = b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

/// Gives memory that the allocator keeps for later back to the kernel. It takes each arena's lock for
/// a moment: for times of need only.
pub fn release_free_memory() {
    // `MALLCTL_ARENAS_ALL` is 4096.
    const PURGE: &std::ffi::CStr = c"arena.4096.purge";
    let none = std::ptr::null_mut();
    let (length, new, new_length) = (std::ptr::null_mut(), none, 0);
    let name = PURGE.as_ptr();
    // SAFETY: the name ends with NUL, and this control neither reads nor writes a value (jemalloc(3)).
    // Any thread may call it at any time; no block that is in use moves.
    let _error = unsafe { tikv_jemalloc_sys::mallctl(name, none, length, new, new_length) };
}
