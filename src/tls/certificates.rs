//! Certificates and the choice among them by the name the client asks for.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use rustls::{
    SignatureAlgorithm,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::pem::{self, PemError};

/// A certificate with its key, checked and ready.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// DNS names and IP addresses it is for, as text in lower case; wildcards begin with `*.`.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

/// Why a pair of files is not a certificate. The text names what is wrong, [`Self::cure`] what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateError {
    Chain(PemError),
    Key(PemError),
    Unreadable(String),
    KeyKind(String),
    Mismatch,
    NoNames,
    Expired { not_after: i64 },
    NotYetValid { not_before: i64 },
}

/// Which of the two files an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Culprit {
    Chain,
    Key,
}

/// The certificates of one listener by name. One normalisation, one lookup (traps T3).
#[derive(Debug)]
pub struct Certificates {
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// Answers unknown names and clients that name none; none when the listener is strict.
    default: Vec<Arc<CertifiedKey>>,
}

impl Certificate {
    /// From the bytes of the two PEM files. `now` is seconds since 1970.
    pub fn from_pem(chain: &[u8], key: &[u8], now: i64, provider: &CryptoProvider) -> Result<Self, CertificateError> {
        let chain = pem::chain(chain).map_err(CertificateError::Chain)?;
        let key = pem::key(key).map_err(CertificateError::Key)?;
        let leaf = chain.first().ok_or(CertificateError::Chain(PemError::NoCertificate))?.clone();
        let (_, parsed) =
            X509Certificate::from_der(&leaf).map_err(|error| CertificateError::Unreadable(error.to_string()))?;
        let names = names(&parsed);
        let (not_before, not_after) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch,
            rustls::Error::InvalidCertificate(reason) => CertificateError::Unreadable(format!("{reason:?}")),
            other => CertificateError::KeyKind(other.to_string()),
        })?;
        match () {
            () if names.is_empty() => Err(CertificateError::NoNames),
            () if not_after < now => Err(CertificateError::Expired { not_after }),
            () if not_before > now => Err(CertificateError::NotYetValid { not_before }),
            () => Ok(Self { key: Arc::new(key), names, not_before, not_after }),
        }
    }
}

impl Certificates {
    /// `certificates` in the order they are written; the first is the default unless `strict`.
    pub fn new(certificates: &[Certificate], strict: bool) -> Self {
        let mut all = Self { exact: HashMap::new(), wildcard: HashMap::new(), default: Vec::new() };
        for certificate in certificates {
            for name in &certificate.names {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut all.wildcard, parent),
                    None => (&mut all.exact, name.as_str()),
                };
                table.entry(name.into()).or_default().push(Arc::clone(&certificate.key));
            }
        }
        if !strict && let Some(first) = certificates.first() {
            // Others for the very same names may suit a client that this one does not.
            all.default = certificates
                .iter()
                .filter(|other| other.names == first.names)
                .map(|other| Arc::clone(&other.key))
                .collect();
        }
        let keys = all.exact.values_mut().chain(all.wildcard.values_mut()).chain([&mut all.default]);
        // ECDSA signs twenty times cheaper than RSA: first, where the client can verify it.
        keys.for_each(|keys| keys.sort_by_key(|key| key.key.algorithm() != SignatureAlgorithm::ECDSA));
        all
    }

    /// Every name there is a certificate for, in order.
    pub fn names(&self) -> BTreeSet<String> {
        let wildcards = self.wildcard.keys().map(|parent| format!("*.{parent}"));
        self.exact.keys().map(ToString::to_string).chain(wildcards).collect()
    }

    /// Whether there is an answer for this name.
    pub fn knows(&self, name: Option<&str>) -> bool {
        !self.candidates(name).is_empty()
    }

    /// Those that may answer a client that asks for this name, in the order they are tried; none refuses it.
    pub fn candidates(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        name.and_then(|name| self.named(&normal(name))).map_or(self.default.as_slice(), Vec::as_slice)
    }

    /// Whether a certificate is for this name, which is in its normal form.
    pub fn covers(&self, name: &str) -> bool {
        self.named(name).is_some()
    }

    fn named(&self, name: &str) -> Option<&Vec<Arc<CertifiedKey>>> {
        self.exact.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.wildcard.get(parent)
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let candidates = self.candidates(name);
        ASKED.set(Some(Asked { name: name.map(|name| cut(name).into()), known: !candidates.is_empty() }));
        let suits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        // When none suits, the first: rustls then says in its alert what is missing.
        candidates.iter().find(suits).or(candidates.first()).cloned()
    }
}

/// What a client asked for, as [`Certificates`] was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Cut at 255 bytes: it is for the log.
    pub name: Option<Box<str>>,
    pub known: bool,
}

thread_local! {
    /// rustls's unbuffered interface does not tell the name, but it asks for the certificate in the middle of the call
    /// that processes the hello, on the thread that made it.
    static ASKED: Cell<Option<Asked>> = const { Cell::new(None) };
}

/// What the call that has just processed a hello on this thread was asked for.
pub fn take_asked() -> Option<Asked> {
    ASKED.take()
}

/// As much of a client's text as is kept for the log.
pub(super) fn cut(text: &str) -> &str {
    const KEPT: usize = 255;
    text.get(..text.floor_char_boundary(KEPT)).unwrap_or_default()
}

/// One spelling of a name: ASCII lower case, without the dot at the end.
pub fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(normal(name)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    };
    alternatives.value.general_names.iter().filter_map(text).collect()
}

impl CertificateError {
    /// The file to look into.
    pub fn culprit(&self) -> Culprit {
        match self {
            Self::Key(_) | Self::KeyKind(_) | Self::Mismatch => Culprit::Key,
            _ => Culprit::Chain,
        }
    }

    /// What to do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::Chain(error) | Self::Key(error) => error.cure().to_owned(),
            Self::Unreadable(_) => "issue the certificate again".to_owned(),
            Self::KeyKind(_) => "use an ECDSA P-256 or P-384, Ed25519 or RSA key of 2048 bits or more".to_owned(),
            Self::Mismatch => "write the key that this certificate was issued for, or the certificate of this key; \
                               `openssl x509 -noout -pubkey -in CERT` and `openssl pkey -pubout -in KEY` must agree"
                .to_owned(),
            Self::NoNames => "issue it with a subject alternative name; a common name alone is not used by clients \
                              any more"
                .to_owned(),
            Self::Expired { .. } => "renew the certificate".to_owned(),
            Self::NotYetValid { .. } => "wait, or check the clock of this host".to_owned(),
        }
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date =
            |seconds: &i64| jiff::Timestamp::from_second(*seconds).map_or(seconds.to_string(), |at| at.to_string());
        match self {
            Self::Chain(error) | Self::Key(error) => error.fmt(f),
            Self::Unreadable(reason) => write!(f, "the certificate cannot be read: {reason}"),
            Self::KeyKind(reason) => write!(f, "the key cannot be used: {reason}"),
            Self::Mismatch => f.write_str("the key does not belong to the certificate"),
            Self::NoNames => f.write_str("the certificate names no host"),
            Self::Expired { not_after } => write!(f, "the certificate expired at {}", date(not_after)),
            Self::NotYetValid { not_before } => write!(f, "the certificate is not valid before {}", date(not_before)),
        }
    }
}
