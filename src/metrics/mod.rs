//! What is counted: plain cells that each worker writes alone, summed when somebody asks.
//!
//! [`cells`] is what the data path touches, [`labels`] the closed vocabularies, [`registry`] where cells live under their
//! configured names. Nothing here does I/O, locks on the data path or knows a client address.

pub mod cells;
mod exposition;
pub mod gauges;
mod histogram;
pub mod labels;
mod panics;
mod proxy;
pub mod registry;
mod render;
mod sources;
mod totals;

pub use cells::{
    BackendCells, BanCells, CheckCells, Counter, Family, Level, ListenerCells, OffloadCells, Padded, PerWorker,
    PoolCells, RuleCells, WorkerCells,
};
pub use exposition::Format;
pub use gauges::{BackendGauges, CertificateGauges, Gauges, ListenerGauges, PoolGauges, PrefixGauges, SourceGauges};
pub use histogram::{Histogram, Snapshot};
pub use labels::{
    AcceptError, CheckResult, ConnectFailure, Direction, Fallback, HandshakeFailure, Label, RelayPath, Resumption,
    RuleAction, Transition,
};
pub use panics::count_panic;
pub use registry::{Generation, Registry, Reloads};
pub use render::render;
pub use sources::{BanKind, LimitReason};
pub use totals::Totals;
