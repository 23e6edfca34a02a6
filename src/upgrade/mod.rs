//! Upgrade: a new process takes the place of the running one, and no connection is lost (traps L7).
//!
//! The running process starts the binary again and gives it every listening socket. Both have the same sockets, not copies,
//! so whoever waits in an accept queue is served by one of them. The new process prepares everything, then waits for the
//! word; only when it accepts does the old one stop to, and drain. Until then nothing has changed, and the old one goes on
//! if anything goes wrong. While it drains it tells what it still counts.
//!
//! [`give`] is the running process, [`take`] the new one, [`message`] what they say, [`memory`] what is known of backends.

pub mod give;
pub mod memory;
pub mod message;
pub mod take;

pub use give::{Estate, Launch, Successor};
pub use take::{Inheritance, Predecessor, Summons};

/// The variable that tells a process that its standard input is the line to the one before it.
const VARIABLE: &str = "SLUICEGATE_UPGRADE";
