//! TLS termination: PEM files, certificates by name, and the handshake.

pub mod acceptor;
pub mod certificates;
pub mod client;
pub mod crowd;
pub mod pem;
pub mod record;
pub mod tickets;
pub mod unbuffered;
