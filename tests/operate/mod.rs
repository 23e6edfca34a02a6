//! What an operator does to a running process: end it, look at it, change it.

mod control;
mod leave;
mod service;

use std::net::SocketAddr;

use crate::support::gate::{pool, tcp};

/// A plain listener in front of one backend, with this much time to drain.
fn site(backend: SocketAddr, drain: &str) -> String {
    format!("{}{}[timeouts]\ndrain = \"{drain}\"\n", tcp(""), pool("", &[backend]))
}
