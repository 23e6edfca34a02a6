//! Certificate and key files that cannot serve.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::refused;
use crate::support::{
    Authority,
    certificates::Leaf,
    gate::{https, pool},
};

/// A TLS configuration with this pair for foobar.com.
fn with(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> TempDir {
    let directory = TempDir::new().unwrap();
    let toml = https("") + &pool("", &["127.0.0.1:1".parse().unwrap()]) + "[admin]\nbind = \"127.0.0.1:0\"\n";
    fs::write(directory.path().join("bad.toml"), toml).unwrap();
    fs::write(directory.path().join("foobar.com.pem"), certificate).unwrap();
    fs::write(directory.path().join("foobar.com.key"), key).unwrap();
    directory
}

fn good() -> Leaf {
    Authority::leaf(&["foobar.com"])
}

fn bad(directory: &Path, needles: &[&str]) {
    let said = refused(directory, "bad.toml", needles);
    assert!(said.contains("help"), "a cure: {said}");
    let key = fs::read_to_string(directory.join("foobar.com.key")).unwrap_or_default();
    let secret = key.lines().filter(|line| line.len() > 20 && !line.starts_with("-----"));
    assert!(!secret.into_iter().any(|line| said.contains(line)), "O6: nothing of a key is shown: {said}");
}

#[test]
fn a_missing_certificate_or_key() {
    for file in ["foobar.com.pem", "foobar.com.key"] {
        let leaf = good();
        let directory = with(leaf.certificate, leaf.key);
        fs::remove_file(directory.path().join(file)).unwrap();
        bad(directory.path(), &[file, "no such file"]);
    }
}

#[test]
fn an_empty_certificate_or_key() {
    let leaf = good();
    bad(with("", &leaf.key).path(), &["foobar.com.pem"]);
    bad(with(&leaf.certificate, "").path(), &["foobar.com.key"]);
}

#[test]
fn a_garbled_certificate_or_key() {
    let leaf = good();
    for garbage in [&b"\0\xff\xfe garbage"[..], b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"] {
        bad(with(garbage, &leaf.key).path(), &["foobar.com.pem"]);
    }
    bad(with(&leaf.certificate, b"\0\xff\xfe garbage").path(), &["foobar.com.key"]);
    let cut = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49\n-----END PRIVATE KEY-----\n";
    bad(with(&leaf.certificate, cut).path(), &["foobar.com.key"]);
}

#[test]
fn the_two_files_exchanged() {
    let leaf = good();
    bad(with(&leaf.key, &leaf.certificate).path(), &["foobar.com."]);
}

#[test]
fn an_encrypted_key() {
    let leaf = good();
    let encrypted = leaf.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    bad(with(&leaf.certificate, encrypted).path(), &["foobar.com.key", "encrypted", "openssl"]);
    let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0011\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    bad(with(&leaf.certificate, old).path(), &["foobar.com.key", "encrypted"]);
}

#[test]
fn t15_a_key_of_another_certificate() {
    bad(with(good().certificate, good().key).path(), &["foobar.com.key", "foobar.com.pem", "does not belong"]);
}

#[test]
fn t15_an_expired_certificate() {
    let leaf = Authority::expired_leaf(&["foobar.com"]);
    bad(with(leaf.certificate, leaf.key).path(), &["foobar.com.pem", "expired", "2021-01-01"]);
}

#[test]
fn a_certificate_path_that_is_a_directory() {
    let leaf = good();
    let directory = with(leaf.certificate, leaf.key);
    fs::remove_file(directory.path().join("foobar.com.pem")).unwrap();
    fs::create_dir(directory.path().join("foobar.com.pem")).unwrap();
    bad(directory.path(), &["foobar.com.pem", "directory"]);
}
