# Short names for what CONTRIBUTING.md describes; each line is a plain command.

default: check

check:
    cargo fmt --check
    cargo clippy --all-targets -- --deny warnings
    cargo test

demo:
    cargo run --release -- demo

bench name:
    cargo bench --bench {{name}}

bless:
    SLUICEGATE_BLESS=1 cargo test --test main diagnostics
