//! The kernel: sockets, pipes, limits, files. The only place where `unsafe` is allowed; everything it offers is safe.

pub mod clock;
pub mod directory;
pub mod file;
pub mod host;
pub mod listen;
pub mod packets;
pub mod passed;
pub mod pipe;
pub mod presence;
pub mod probe;
pub mod reserve;
pub mod socket;
pub mod timer;
