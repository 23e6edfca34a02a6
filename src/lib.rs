//! sluicegate: a layer-4 TCP load balancer for Linux.
//!
//! Start reading at [`connection`]: one client's whole life. A **listener** is a bound address, a **frontend** the policy
//! it applies, a **pool** a set of **backends**; a **relay** moves bytes; an **outcome** is how a connection ended. The
//! words are explained in `docs/lexicon.md`, the floors in `docs/architecture.md`.
//!
//! A module imports only from the lines above its own; `tests/architecture.rs` checks it.

// floor 0: values. No tokio, no I/O, no clock, no atomics.
#[cfg(test)]
pub mod random;
pub mod moment;
pub mod address;
pub mod cidr;
pub mod firewall;
pub mod balance;
pub mod proxy_protocol;
pub mod outcome;
pub mod threshold;
pub mod config;
// floor 1: shared state. Atomics and Arc, still no I/O.
pub mod metrics;
pub mod sources;
pub mod limits;
pub mod bans;
pub mod backend;
pub mod pool;
// floor 2: the kernel. The only place where unsafe is allowed.
pub mod sys;
// floor 3: mechanisms. Async, ignorant of configuration files and pools.
pub mod alarm;
pub mod drain;
pub mod tls;
pub mod relay;
pub mod dial;
// floor 4: actors. Each owns a task or a thread.
pub mod load;
pub mod offence;
pub mod ledger;
pub mod frontend;
pub mod admission;
pub mod site;
pub mod ports;
pub mod spool;
pub mod access_log;
pub mod messages;
pub mod rejections;
pub mod local;
pub mod connection;
pub mod crew;
pub mod listener;
pub mod worker;
pub mod health;
pub mod running;
pub mod warden;
pub mod offload;
pub mod expiry;
pub mod watch;
pub mod admin;
pub mod doors;
pub mod service;
pub mod upgrade;
// floor 5: the process.
pub mod supervisor;
pub mod cli;
