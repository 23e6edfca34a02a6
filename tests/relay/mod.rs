//! The relay: every byte, in order, both ways, and each end passed on as what it was.

mod bulk;
mod cuts;
mod half_close;
mod resets;
mod slow_readers;
mod tagged;
mod timeouts;

use crate::support::{
    Backend, Gate, Variant,
    gate::{Plan, https, pool, tcp},
};

/// The same pool behind a plain and a TLS listener.
fn plan(variant: Variant, backend: &Backend) -> Plan {
    Gate::plan(&[tcp(""), https(""), pool("", &[backend.address])].concat()).variant(variant)
}

fn gate(variant: Variant, backend: &Backend) -> Gate {
    plan(variant, backend).start()
}
