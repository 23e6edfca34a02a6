//! L7, L2, L9, A5, S5: a new process takes the place of the running one, and nobody notices.

mod load;
mod refused;
mod state;

use std::net::SocketAddr;

use crate::support::{
    Gate, Lineage,
    gate::{pool, tcp},
};

/// A plain listener in front of one backend; `more` is the rest of the configuration.
fn site(backend: SocketAddr, more: &str) -> String {
    format!("{}{}[timeouts]\ndrain = \"8s\"\n{more}", tcp(""), pool("", &[backend]))
}

fn start(toml: &str) -> Lineage {
    Lineage::start(Gate::plan(toml))
}
