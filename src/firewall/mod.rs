//! Who may connect: ordered rules over sets of networks, where the first match decides.
//!
//! All rules that apply to a listener are compiled into one [`Table`], so a verdict costs one search whatever the number
//! of rules. [`parse_list`] reads files of networks.

mod class;
mod list;
mod ranges;
mod table;
#[cfg(test)]
mod tests;

pub use list::{LineError, List, ListErrors, find_in_list, parse_list};
pub use table::{Denied, MAX_RULES, Range, RuleSet, Table, Verdict};

/// What a rule does with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

impl Action {
    /// The word of the configuration and of metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}
