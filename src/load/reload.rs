//! A configuration that is to follow one that runs.

use std::{collections::HashMap, path::Path};

use rustls::crypto::CryptoProvider;

use super::{Before, Loaded, Text, load_after};
use crate::config::{
    Diagnostic, Located, Networks,
    code::LIST_SHRANK,
    diagnostic::Origin,
    difference::{self, Difference},
};

/// As [`super::load`], with what only shows beside the configuration `before`: a list that has lost most of its networks was
/// cut off, more likely than meant. With `force` it is taken.
pub fn reload(
    source: &Text,
    provider: &CryptoProvider,
    before: Before<'_>,
    force: bool,
) -> Result<Loaded, Vec<Diagnostic>> {
    let loaded = load_after(source, provider, Some(before))?;
    let shrunk = if force { Vec::new() } else { shrunk_lists(before.loaded, &loaded) };
    if shrunk.is_empty() { Ok(loaded) } else { Err(loaded.warnings.into_iter().chain(shrunk).collect()) }
}

impl Loaded {
    /// What a reload from this to `new` changes, and what a restart alone would.
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let mut found = difference::differences(&self.config, &new.config);
        found.extend(self.files.differences(&new.files));
        found
    }

    /// Whether `new` says the same, in the same files and in all that they name.
    pub fn is_same(&self, new: &Self) -> bool {
        self.config == new.config && self.files.differences(&new.files).is_empty()
    }

    /// Whether a file that both name holds the same.
    pub fn has_same_file(&self, new: &Self, path: &Path) -> bool {
        self.files.has_same(&new.files, path)
    }

    /// The files that are named, as they are named.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.paths()
    }

    /// Each list with the number of its networks.
    fn lists(&self) -> HashMap<&Path, (&Located<std::path::PathBuf>, usize)> {
        let rules = self.config.firewall.rules.iter().zip(&self.prefixes);
        let lists = rules.filter_map(|(rule, (v4, v6))| match &rule.networks {
            Networks::File(file) => Some((file.value.as_path(), (file, v4 + v6))),
            Networks::Inline(_) => None,
        });
        lists.collect()
    }
}

fn shrunk_lists(before: &Loaded, new: &Loaded) -> Vec<Diagnostic> {
    let old = before.lists();
    let shrunk = new.lists().into_iter().filter_map(|(path, (file, count))| {
        let (_, known) = *old.get(path)?;
        (count * 2 < known).then(|| {
            let message = format!("`{}` shrank from {known} networks to {count}", path.display());
            Diagnostic::error(LIST_SHRANK, message)
                .from(Origin::File { path: path.to_owned(), span: Some(file.span.clone()) })
                .note("a list that loses more than half at once was more likely cut off than meant so")
                .help("if it is meant: `sluicegate reload --force`")
        })
    });
    shrunk.collect()
}
