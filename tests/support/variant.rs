//! The off switches: the same scenario has to pass under each of them.

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
}

impl Variant {
    pub const AUTO: Self = Self { zero_copy: "auto", workers: 2, reuseport: true, rustls_records: false };
    pub const COPY: Self = Self { zero_copy: "off", ..Self::AUTO };
    pub const SPLICE: Self = Self { zero_copy: "splice", ..Self::AUTO };
    pub const ONE_WORKER: Self = Self { workers: 1, ..Self::AUTO };
    pub const SHARED_SOCKET: Self = Self { reuseport: false, ..Self::AUTO };

    pub const RUSTLS: Self = Self { rustls_records: true, ..Self::AUTO };

    pub const ALL: [Self; 6] =
        [Self::AUTO, Self::COPY, Self::SPLICE, Self::ONE_WORKER, Self::SHARED_SOCKET, Self::RUSTLS];
}
