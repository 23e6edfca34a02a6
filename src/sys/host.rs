//! What this host allows: descriptors, pipe pages, the accept backlog.

use super::pipe;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft descriptor limit to the hard one and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Where the call is forbidden the soft limit stays, and the number we return says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX))
}

/// Pipes that this process may use: just under half of the user's budget of pages, so that an old and a new process fit
/// side by side (traps R10; `fs.pipe-user-pages-soft` in `Documentation/admin-guide/sysctl/fs.rst`).
pub fn pipe_budget() -> usize {
    const PAGES_PER_PIPE: usize = pipe::SIZE / 4096;
    const DEFAULT_PAGES: usize = 16_384;
    const AT_MOST: usize = 4_096;
    let pages = sysctl("fs/pipe-user-pages-soft").unwrap_or(DEFAULT_PAGES);
    // 0 means that the kernel sets no limit.
    let pages = if pages == 0 { AT_MOST * PAGES_PER_PIPE * 2 } else { pages };
    (pages / PAGES_PER_PIPE / 2).saturating_sub(8).min(AT_MOST)
}

/// The longest accept queue the kernel will give.
pub fn backlog() -> i32 {
    const DEFAULT: usize = 4_096;
    i32::try_from(sysctl("net/core/somaxconn").unwrap_or(DEFAULT)).unwrap_or(i32::MAX)
}

/// Cores this process may run on.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A number below `/proc/sys`; `None` where it is hidden or is not a number.
fn sysctl(name: &str) -> Option<usize> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}
