//! What the allocator is told about large blocks.
#![allow(unsafe_code, reason = "mallopt has no safe wrapper")]

/// Blocks of this size and more come from the system one by one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 1 << 20;

/// Has large blocks come from the system, zeroed and untouched, and go back to it when they are freed. Without it glibc keeps what was
/// freed once, and clears all of it for the next who asks: each connection then costs its whole buffers instead of what it uses of them.
pub(crate) fn take_large_blocks_from_the_system() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call sets a number of the allocator, under its own lock, and has no other effect; a value that it doesn't like is
    // refused.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
