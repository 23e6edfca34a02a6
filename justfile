# Short names for what CONTRIBUTING.md describes; each line is a plain command.

default: check

check:
    cargo fmt --check
    cargo clippy --all-targets -- --deny warnings
    cargo test

demo:
    cargo run --release -- demo

# Options reach the benchmark: just bench peers --work keep,tls1m --rounds 7
bench name *options:
    cargo bench --bench {{name}} -- {{options}}

bless:
    SLUICEGATE_BLESS=1 cargo test --test main diagnostics
