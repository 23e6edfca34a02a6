//! A secret as it may be written: itself, or where it is. Printing one prints nothing of it (traps O6).

use std::{fmt, path::PathBuf};

use zeroize::Zeroizing;

use crate::config::Located;

/// Where a secret comes from; reading it is not the business of the configuration.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Inline(Zeroizing<String>),
    /// An environment variable.
    Env(Located<String>),
    /// A file whose first line it is.
    File(Located<PathBuf>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => formatter.write_str("Inline(..)"),
            Self::Env(name) => write!(formatter, "Env({})", name.value),
            Self::File(path) => write!(formatter, "File({})", path.value.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o6_a_secret_is_not_printed() {
        let secret = Secret::Inline(Zeroizing::new("hunter2".to_owned()));
        assert_eq!(format!("{secret:?}"), "Inline(..)");
    }
}
