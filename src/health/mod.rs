//! Whether backends are well: checks, their verdicts, and who is told.
//!
//! [`probe`] asks one backend one question, and [`attempt`] gives it its time. [`crate::threshold`] turns answers into a
//! state. [`checker`] owns a task for each backend, on the control runtime: it asks, counts, sets the backend's health and
//! says when that changes.

pub mod attempt;
pub mod checker;
mod hindrances;
pub mod pace;
mod post;
pub mod probe;

pub use checker::{Checkers, Close, FirstVerdicts, Report, Watch, Watched, tell_mode};
