//! Which backend of a pool a connection goes to.
//!
//! A [`Picker`] is built once for a policy and a set of members and never changes. What changes from pick to pick (load,
//! health, tickets, randomness) comes in as arguments, so every pick can be repeated in a test.

mod hash;
mod ip_hash;
mod least_conn;
mod maglev;
mod p2c;
mod round_robin;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use hash::{draw, mix};
use ip_hash::Rendezvous;
use least_conn::LeastConn;
use maglev::Maglev;
pub use maglev::{MAX_MEMBERS, TABLE_SIZE};
use p2c::P2c;
use round_robin::RoundRobin;

/// The key of `ip_hash` and `maglev` unless one is configured. Fixed, so that nodes and restarts agree; a client who knows
/// it can choose addresses that meet on one backend, which a key of one's own prevents.
pub const DEFAULT_KEY: [u8; 16] = *b"sluicegate-hash1";

/// A balance policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Balance {
    /// In turn, in proportion to weight.
    RoundRobin,
    /// The fewest live connections for its weight.
    LeastConn,
    /// By the client's address; a change of members moves only the share it has to.
    IpHash,
    /// As `IpHash`, by a table: constant time, and moves a little more.
    Maglev,
    /// The less loaded of two drawn at random.
    P2c,
}

impl Balance {
    pub const ALL: [Self; 5] = [Self::RoundRobin, Self::LeastConn, Self::IpHash, Self::Maglev, Self::P2c];

    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastConn => "least_conn",
            Self::IpHash => "ip_hash",
            Self::Maglev => "maglev",
            Self::P2c => "p2c",
        }
    }

    /// The policy that a word names, in exactly this spelling.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|balance| balance.as_str() == word)
    }
}

/// One of those to choose from. Picks are indices into the slice of members.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// What hashing knows it by: the same on every node and after every restart, and unique among the members.
    pub name: &'a str,
    /// Share of the traffic; 0 takes none.
    pub weight: u16,
}

/// All that a pick may depend on besides load and health.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The client, in any spelling.
    pub source: IpAddr,
    /// One more for each connection of the process, from one shared counter: workers then share one order (B13).
    pub ticket: u64,
    /// Uniform over all 64 bits.
    pub random: u64,
}

/// A policy made ready for its members. Immutable; picking allocates nothing.
#[derive(Debug)]
pub struct Picker {
    policy: Policy,
    /// For each member the most often that it may take part in a pick while it is new, in parts of `u32::MAX`; empty where
    /// nothing prefers the idle.
    ceilings: Box<[u32]>,
}

#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
    LeastConn(LeastConn),
    IpHash(Rendezvous),
    Maglev(Maglev),
    P2c(P2c),
}

impl Picker {
    /// `key` is for `ip_hash` and `maglev`. May take milliseconds for hundreds of members.
    #[must_use]
    pub fn build(balance: Balance, members: &[Member<'_>], key: &[u8; 16]) -> Self {
        let policy = match balance {
            Balance::RoundRobin => Policy::RoundRobin(RoundRobin::build(members)),
            Balance::LeastConn => Policy::LeastConn(LeastConn::build(members)),
            Balance::IpHash => Policy::IpHash(Rendezvous::build(members, key)),
            Balance::Maglev => Policy::Maglev(Maglev::build(members, key)),
            Balance::P2c => Policy::P2c(P2c::build(members)),
        };
        Self { policy, ceilings: ceilings(balance, members) }
    }

    /// Whether a member that has just begun takes part in this pick. `warmth` is how much of its share it may take, in
    /// parts of `u32::MAX`.
    ///
    /// The least loaded would get everything when it is new, whatever its share: it takes part so seldom that it gets at
    /// most twice its share of all picks (B7). Hashing decides by the client, who then changes over once and stays.
    #[must_use]
    pub fn welcomes(&self, request: &Request, index: usize, warmth: u32) -> bool {
        let luck = match &self.policy {
            Policy::RoundRobin(_) | Policy::LeastConn(_) | Policy::P2c(_) => request.random,
            Policy::IpHash(policy) => policy.hash(request.source),
            Policy::Maglev(policy) => policy.hash(request.source),
        };
        let most = self.ceilings.get(index).map_or(warmth, |most| warmth.min(*most));
        // Numbers of its own for each member: what a pick has drawn already says nothing about them.
        (draw(mix(luck), index as u64) >> 32) < u64::from(most)
    }

    /// The index of an eligible member with a weight, or `None` if there is none.
    ///
    /// `load` is a member's live connections. `eligible` may be asked more than once, and its answers may change meanwhile;
    /// then a member that has just become eligible may be missed.
    pub fn pick(
        &self,
        request: &Request,
        load: impl Fn(usize) -> u32,
        eligible: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match &self.policy {
            Policy::RoundRobin(policy) => policy.pick(request.ticket, eligible),
            Policy::LeastConn(policy) => policy.pick(request.ticket, load, eligible),
            Policy::IpHash(policy) => policy.pick(request.source, eligible),
            Policy::Maglev(policy) => policy.pick(request.source, eligible),
            Policy::P2c(policy) => policy.pick(request.random, load, eligible),
        }
    }
}

/// Twice a member's share, over how often the policy would look at it. Under `least_conn` that is always, under `p2c` when
/// it is one of the two that are drawn.
fn ceilings(balance: Balance, members: &[Member<'_>]) -> Box<[u32]> {
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let shares = || members.iter().map(|member| f64::from(member.weight) / total.max(1.0));
    // Of a second draw: for each other member that came first, its share of what is left.
    let left: f64 = shares().filter(|share| *share < 1.0).map(|share| share / (1.0 - share)).sum();
    let seen = |share: f64| match balance {
        Balance::LeastConn => 1.0,
        _ if share < 1.0 => share + share * (left - share / (1.0 - share)),
        _ => 1.0,
    };
    let ceiling = |share: f64| {
        let most = if share > 0.0 { (2.0 * share / seen(share)).min(1.0) } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and u32::MAX")]
        let parts = (most * f64::from(u32::MAX)) as u32;
        parts
    };
    match balance {
        Balance::LeastConn | Balance::P2c => shares().map(ceiling).collect(),
        Balance::RoundRobin | Balance::IpHash | Balance::Maglev => Box::default(),
    }
}
