//! One binary for every integration test: linked once, and tests of different rooms can share the harness.

mod diagnostics;
mod architecture;
