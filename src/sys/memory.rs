//! The allocator of the C library, told to give large blocks back.

/// Blocks of 1 MiB and more go back to the kernel when they are freed, instead of staying in the heap of a thread.
///
/// glibc raises the bound for that up to 32 MiB by itself, with each large block that is freed: then the lists and tables of
/// every reload would stay with the process, in pieces (traps F6). For the beginning of a program: no other thread may be
/// there yet (`mallopt(3)`). Another C library is left alone.
pub fn give_large_blocks_back() {
    #[cfg(target_env = "gnu")]
    gnu::set_mmap_threshold(1 << 20);
}

#[cfg(target_env = "gnu")]
mod gnu {
    use std::ffi::c_int;

    /// `M_MMAP_THRESHOLD` of `malloc.h`.
    const MMAP_THRESHOLD: c_int = -3;

    #[expect(unsafe_code, reason = "rustix has no name for mallopt")]
    pub(super) fn set_mmap_threshold(bytes: c_int) {
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: it is the function of `malloc.h` by its own signature; it takes two numbers and keeps no pointer.
        unsafe { mallopt(MMAP_THRESHOLD, bytes) };
    }
}
