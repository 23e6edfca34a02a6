//! End-to-end tests: the real binary, real peers, port 0, conditions with deadlines instead of sleeps.
//!
//! `support` is the harness. Every other module is one capability; its tests are named as facts, and a test for an
//! entry of the list of known failures carries the entry's id.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod architecture;
mod bad_input;
mod diagnostics;
mod balance;
mod firewall;
mod fuzz;
mod explain;
mod health;
mod https;
mod kernel;
mod limits;
mod metrics;
mod networks;
mod offload;
mod operate;
mod overload;
mod pressure;
mod proxy;
mod rejections;
mod relay;
mod reload;
mod renewal;
mod sources;
mod spread;
mod support;
mod tls;
mod up_check;
mod upgrade;
