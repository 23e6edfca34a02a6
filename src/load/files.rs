//! The files that a configuration names, and what they held when it was loaded.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{self, Digest, SHA256};

use crate::{
    config::{
        Check, Config, Networks,
        difference::{Change, Difference, Part},
    },
    sys::file::{ReadError, read_bounded},
};

/// By path. Contents are told apart by their hash.
#[derive(Default)]
pub struct Files(BTreeMap<PathBuf, (Part, Digest)>);

impl Files {
    /// The bytes of a file, noted.
    pub fn read(&mut self, part: Part, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        let bytes = read_bounded(path, limit)?;
        self.note(part, path, &bytes);
        Ok(bytes)
    }

    /// A file that has changed between two looks is like none that will be read later: the next reload takes it again.
    fn note(&mut self, part: Part, path: &Path, bytes: &[u8]) {
        let now = digest::digest(&SHA256, bytes);
        let (_, known) = self.0.entry(path.to_owned()).or_insert((part, now));
        if known.as_ref() != now.as_ref() {
            *known = digest::digest(&SHA256, &[known.as_ref(), now.as_ref()].concat());
        }
    }

    /// Whether both have the file, with the same content.
    pub fn has_same(&self, other: &Self, path: &Path) -> bool {
        let digest = |files: &Self| files.0.get(path).map(|(_, digest)| digest.as_ref().to_vec());
        digest(self).is_some_and(|own| digest(other) == Some(own))
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Files that only one of them has, or that hold something else.
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let tell =
            |part, path: &Path, change| Difference { part, name: path.display().to_string(), change, keys: Vec::new() };
        let now = new.0.iter().filter_map(|(path, (part, _))| match self.0.contains_key(path) {
            true if self.has_same(new, path) => None,
            true => Some(tell(*part, path, Change::Changed)),
            false => Some(tell(*part, path, Change::Added)),
        });
        let gone = self.0.iter().filter(|(path, _)| !new.0.contains_key(*path));
        now.chain(gone.map(|(path, (part, _))| tell(*part, path, Change::Removed))).collect()
    }
}

/// Every file that a configuration names.
pub fn named(config: &Config) -> impl Iterator<Item = &Path> {
    let lists = config.firewall.rules.iter().filter_map(|rule| match &rule.networks {
        Networks::File(file) => Some(file.value.as_path()),
        Networks::Inline(_) => None,
    });
    let tls = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let certificates = tls.flat_map(|tls| &tls.certificates).flat_map(|files| [&files.cert, &files.key]);
    let checks = config.pools.iter().filter_map(|pool| pool.check.as_ref()).flat_map(Check::files);
    lists.chain(certificates.map(|file| file.value.as_path())).chain(checks)
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_between_two_looks_is_read_again_by_the_next_reload() {
        let noted = |looks: &[&[u8]]| {
            let mut files = Files::default();
            for bytes in looks {
                files.note(Part::File, Path::new("a.pem"), bytes);
            }
            files
        };
        let is_same = |a: &[&[u8]], b: &[&[u8]]| noted(a).has_same(&noted(b), Path::new("a.pem"));
        assert!(is_same(&[b"one", b"one"], &[b"one"]));
        assert!(!is_same(&[b"one", b"two"], &[b"two"]) && !is_same(&[b"one", b"two"], &[b"one"]));
    }
}
