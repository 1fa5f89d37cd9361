//! How a process that runs for long asks the C library to manage its memory.
//!
//! glibc gives every thread a heap of its own, keeps what is freed in each, and with every large block that is freed it learns to keep larger
//! ones. A server allocates what it keeps for hours between what requests need for microseconds, on a dozen threads, and after
//! some thousand tasks a third of its memory was holes. Two heaps and fixed bounds keep them small; each thread has a cache of its own
//! before them. Measured side by side with jemalloc and mimalloc (`hack/decisions/0021-two-heaps.md`). What must never happen here: a
//! setting that anything but size depends on. Tested by glibc taking all of them.

/// Asks for it. To be called before there are threads; with another C library it does nothing.
pub fn keep_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if !glibc::set() {
        tracing::warn!("the C library does not know its own settings; memory may grow larger than it needs to");
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use libc::c_int;

    /// Heaps: as many threads work in a process of ours, the others wait.
    const HEAPS: c_int = 2;

    /// Blocks of this many bytes are mapped and given back one by one. Buffers of lists and watches are smaller, because mapping them anew costs
    /// more than filling them.
    const MAPPED_BYTES: c_int = 1 << 20;

    /// What may be free at the end of a heap before it is given back.
    const SPARE_BYTES: c_int = 2 << 20;

    /// Whether glibc knew all of it.
    pub(super) fn set() -> bool {
        let settings = [
            (libc::M_ARENA_MAX, HEAPS),
            (libc::M_MMAP_THRESHOLD, MAPPED_BYTES),
            (libc::M_TRIM_THRESHOLD, SPARE_BYTES),
        ];
        settings.into_iter().all(|(what, value)| {
            #[expect(unsafe_code, reason = "there is no safe wrapper")]
            // SAFETY: numbers go in, any of them is allowed, and glibc takes its own lock.
            let taken = unsafe { libc::mallopt(what, value) };
            taken == 1
        })
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    #[test]
    fn the_c_library_takes_every_setting() {
        assert!(super::glibc::set());
    }
}
