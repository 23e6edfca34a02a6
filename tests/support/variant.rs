//! The off switches: the same scenario has to pass under each of them.

use std::{env, sync::LazyLock};

/// Names the [`Variant::chosen`] one.
const VARIABLE: &str = "SLUICEGATE_VARIANT";

#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// `[global] zero_copy`.
    pub zero_copy: &'static str,
    /// `[global] workers`.
    pub workers: usize,
    /// False is `--no-reuseport`: every worker shares one socket per bind.
    pub reuseport: bool,
    /// True is `--rustls-records`: no record layer of our own.
    pub rustls_records: bool,
    /// True: as the user `nobody`.
    pub unprivileged: bool,
}

impl Variant {
    pub const AUTO: Self =
        Self { zero_copy: "auto", workers: 2, reuseport: true, rustls_records: false, unprivileged: false };
    pub const COPY: Self = Self { zero_copy: "off", ..Self::AUTO };
    pub const SPLICE: Self = Self { zero_copy: "splice", ..Self::AUTO };
    pub const ONE_WORKER: Self = Self { workers: 1, ..Self::AUTO };
    pub const SHARED_SOCKET: Self = Self { reuseport: false, ..Self::AUTO };
    pub const RUSTLS: Self = Self { rustls_records: true, ..Self::AUTO };
    pub const UNPRIVILEGED: Self = Self { unprivileged: true, ..Self::AUTO };

    /// What can be chosen, by name.
    const NAMED: [(&str, Self); 7] = [
        ("auto", Self::AUTO),
        ("copy", Self::COPY),
        ("splice", Self::SPLICE),
        ("one-worker", Self::ONE_WORKER),
        ("shared-socket", Self::SHARED_SOCKET),
        ("rustls", Self::RUSTLS),
        ("unprivileged", Self::UNPRIVILEGED),
    ];

    /// What every test uses that does not need a certain one: `SLUICEGATE_VARIANT`, or `auto`.
    #[track_caller]
    pub fn chosen() -> Self {
        static CHOSEN: LazyLock<Option<Variant>> = LazyLock::new(|| {
            let name = env::var(VARIABLE).unwrap_or_else(|_| "auto".to_owned());
            Variant::NAMED.iter().find(|(known, _)| *known == name).map(|(_, variant)| *variant)
        });
        CHOSEN.unwrap_or_else(|| panic!("{VARIABLE} is one of {:?}", Self::NAMED.map(|(name, _)| name)))
    }

    /// Every off switch, for a scenario that tries them in turn; only the chosen one when one is chosen.
    pub fn all() -> Vec<Self> {
        if env::var_os(VARIABLE).is_some() {
            return vec![Self::chosen()];
        }
        vec![Self::AUTO, Self::COPY, Self::SPLICE, Self::ONE_WORKER, Self::SHARED_SOCKET, Self::RUSTLS]
    }
}
