//! Backends that fail: who notices, when, and what clients see of it.

mod faults;
mod mariadb;
pub mod namespace;
mod probes;
mod start;

use std::net::SocketAddr;

use crate::support::{Gate, Metrics};

/// Whether the full length is asked for (docs/reliability.md).
pub fn full() -> bool {
    std::env::var("SLUICEGATE_FULL").as_deref() == Ok("1")
}

/// Backends `b0`, `b1`, ... of the pool `web`.
pub fn backends(addresses: &[SocketAddr]) -> String {
    let list = addresses.iter().enumerate();
    list.map(|(index, address)| crate::support::gate::backend(&format!("b{index}"), *address, "")).collect()
}

pub fn is_up(metrics: &Metrics, backend: &str) -> bool {
    metrics.count("sluicegate_backend_up", &[("backend", backend)]) == 1
}

pub fn transitions(metrics: &Metrics, to: &str) -> u64 {
    metrics.count("sluicegate_backend_transitions_total", &[("to", to)])
}

/// The reasons of the lines that say that a backend is down.
pub fn reasons(gate: &Gate) -> Vec<String> {
    let messages = gate.process.messages();
    let down = messages.iter().filter(|message| message["message"] == "backend is down");
    down.map(|message| message["reason"].as_str().unwrap_or_default().to_owned()).collect()
}
