//! What the metrics show and others own: a snapshot that the caller fills at each scrape.

/// Everything that is set rather than counted. What is left out of it is left out of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gauges {
    pub listeners: Vec<ListenerGauges>,
    pub pools: Vec<PoolGauges>,
    pub backends: Vec<BackendGauges>,
    pub certificates: Vec<CertificateGauges>,
    pub firewall: Vec<PrefixGauges>,
    pub sources: Option<SourceGauges>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerGauges {
    pub name: String,
    /// Live connections it may have: its own limit, or the one of the process.
    pub connections_limit: u64,
}

/// How many backends of a pool are in each state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolGauges {
    pub name: String,
    pub up: u64,
    pub down: u64,
    pub draining: u64,
    pub ejected: u64,
    /// Clients that wait for a backend with room.
    pub queued: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendGauges {
    pub pool: String,
    pub name: String,
    pub weight: u16,
    /// Live ones.
    pub connections: u64,
    pub up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateGauges {
    /// A configured name or path, never what a client sent.
    pub name: String,
    /// Unix seconds.
    pub not_after: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixGauges {
    pub rule: String,
    pub v4: u64,
    pub v6: u64,
}

/// What is known of sources and of bans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceGauges {
    /// Sources that the limits know, in all their tables.
    pub sources: u64,
    /// Bans in force.
    pub manual: u64,
    pub automatic: u64,
}
