//! PEM files. The only module that names rustls-pemfile (docs/decisions: leaving it is a change to this file).

use std::fmt;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_pemfile::Item;

/// Why a PEM file is not what it should be. The text ends with the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PemError {
    Empty,
    NoCertificate,
    KeyInsteadOfCertificate,
    NoKey,
    CertificateInsteadOfKey,
    SeveralKeys(usize),
    EncryptedKey,
    Damaged(String),
}

/// The chain of a certificate file, leaf first. A key in the same file is allowed, as HAProxy writes them together.
pub fn chain(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let items = items(bytes)?;
    let has_key = items.iter().any(is_key);
    let chain: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            Item::X509Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    match (chain.is_empty(), has_key) {
        (false, _) => Ok(chain),
        (true, true) => Err(PemError::KeyInsteadOfCertificate),
        (true, false) => Err(PemError::NoCertificate),
    }
}

/// The one key of a key file: PKCS#8, PKCS#1 or SEC1.
pub fn key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    if is_encrypted(bytes) {
        return Err(PemError::EncryptedKey);
    }
    let items = items(bytes)?;
    let has_certificate = items.iter().any(|item| matches!(item, Item::X509Certificate(_)));
    let mut keys = items.into_iter().filter_map(|item| match item {
        Item::Pkcs8Key(key) => Some(PrivateKeyDer::Pkcs8(key)),
        Item::Pkcs1Key(key) => Some(PrivateKeyDer::Pkcs1(key)),
        Item::Sec1Key(key) => Some(PrivateKeyDer::Sec1(key)),
        _ => None,
    });
    match (keys.next(), keys.count()) {
        (Some(key), 0) => Ok(key),
        (Some(_), more) => Err(PemError::SeveralKeys(more + 1)),
        (None, _) if has_certificate => Err(PemError::CertificateInsteadOfKey),
        (None, _) => Err(PemError::NoKey),
    }
}

fn items(mut bytes: &[u8]) -> Result<Vec<Item>, PemError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(PemError::Empty);
    }
    rustls_pemfile::read_all(&mut bytes).collect::<Result<_, _>>().map_err(|error| PemError::Damaged(error.to_string()))
}

fn is_key(item: &Item) -> bool {
    matches!(item, Item::Pkcs8Key(_) | Item::Pkcs1Key(_) | Item::Sec1Key(_))
}

/// Both ways of saying it: PKCS#8 by its label, the older form by a header line.
fn is_encrypted(bytes: &[u8]) -> bool {
    ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|marker| bytes.windows(marker.len()).any(|window| window == marker.as_bytes()))
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file is empty"),
            Self::NoCertificate => f.write_str("there is no certificate in it"),
            Self::KeyInsteadOfCertificate => f.write_str("it holds a private key and no certificate"),
            Self::NoKey => f.write_str("there is no private key in it"),
            Self::CertificateInsteadOfKey => f.write_str("it holds a certificate and no private key"),
            Self::SeveralKeys(count) => write!(f, "it holds {count} private keys; there must be one"),
            Self::EncryptedKey => f.write_str("the private key is encrypted"),
            Self::Damaged(reason) => write!(f, "the PEM text is damaged: {reason}"),
        }
    }
}

impl PemError {
    /// What to do about it.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Empty | Self::NoCertificate => {
                "write the chain as PEM, leaf first: -----BEGIN CERTIFICATE----- ... -----END CERTIFICATE-----"
            }
            Self::KeyInsteadOfCertificate | Self::CertificateInsteadOfKey => "`cert` and `key` may be exchanged",
            Self::NoKey => "write the key as PEM: PKCS#8 (BEGIN PRIVATE KEY), PKCS#1 or SEC1",
            Self::SeveralKeys(_) => "keep only the key that belongs to the certificate",
            Self::EncryptedKey => {
                "keys with a passphrase are not supported: `openssl pkey -in FILE -out PLAIN` writes it without one; \
                 protect it by its file mode"
            }
            Self::Damaged(_) => "copy the file again, with its BEGIN and END lines",
        }
    }
}
