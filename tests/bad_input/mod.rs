//! Wrong input gets a clear error that names the file and a cure, or an outcome; nothing panics, nothing leaks.

mod certificates;
mod configuration;
mod traffic;

use std::path::Path;

use crate::support::{LATE, Process};

/// `check` and `run` refuse it in the same way; what they said.
#[track_caller]
fn refused(directory: &Path, config: &str, needles: &[&str]) -> String {
    let [checked, run] = ["check", "run"].map(|verb| {
        let ended = Process::run(&[verb, "--config", config], directory, LATE);
        assert_eq!(ended.code, Some(1), "{verb}: {}{}", ended.stdout, ended.stderr);
        let said = ended.stderr;
        assert!(!said.contains("panicked"), "{verb}: {said}");
        assert!(said.len() < 64 * 1024, "{verb} floods the terminal with {} bytes", said.len());
        for needle in needles {
            assert!(said.to_lowercase().contains(&needle.to_lowercase()), "{verb} does not say `{needle}`: {said}");
        }
        said
    });
    assert!(checked.contains("error"), "{checked}");
    run
}
