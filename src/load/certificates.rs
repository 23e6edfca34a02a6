//! Certificates and keys, pair by pair.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::crypto::CryptoProvider;
use zeroize::Zeroizing;

use super::{Before, Loaded, files::Files, unreadable};
use crate::{
    config::{
        self, Config, Diagnostic, Located,
        code::{BAD_CERTIFICATE, BAD_KEY, CERTIFICATE_KEPT, EXPIRED, EXPIRED_SERVED, KEY_MISMATCH},
        diagnostic::{Origin, Severity},
        difference::Part,
    },
    tls::certificates::{Certificate, CertificateError, Culprit},
};

/// Larger files are somebody's mistake.
pub(super) const PEM_LIMIT: u64 = 1 << 20;

/// The certificates of every listener, in the order they are written.
pub(super) fn read_certificates(
    config: &Config,
    provider: &CryptoProvider,
    files: &mut Files,
    before: Option<Before<'_>>,
    found: &mut Vec<Diagnostic>,
) -> Vec<Vec<Certificate>> {
    let mut read_one = |named: &config::CertificateFiles| match read(named, provider, files, before, found) {
        Ok(certificate) => Some(certificate),
        Err(problems) => {
            let kept = before.filter(|before| before.keep_certificates).and_then(|before| served(before.loaded, named));
            found.extend(
                problems.into_iter().map(|problem| if kept.is_some() { kept_instead(problem) } else { problem }),
            );
            kept
        }
    };
    let listeners = config.listeners.iter().map(|listener| {
        let named = listener.tls.iter().flat_map(|tls| &tls.certificates);
        named.filter_map(&mut read_one).collect()
    });
    listeners.collect()
}

/// The certificate that the same two files held.
fn served(loaded: &Loaded, named: &config::CertificateFiles) -> Option<Certificate> {
    let listeners = loaded.config.listeners.iter().zip(&loaded.listeners);
    let mut pairs = listeners.flat_map(|(listener, materials)| {
        listener.tls.iter().flat_map(|tls| &tls.certificates).zip(&materials.certificates)
    });
    let is_same =
        |known: &config::CertificateFiles| known.cert.value == named.cert.value && known.key.value == named.key.value;
    pairs.find(|(known, _)| is_same(known)).map(|(_, certificate)| certificate.clone())
}

/// The same as a warning.
fn kept_instead(problem: Diagnostic) -> Diagnostic {
    let message = format!("{}; what was there before is still served", problem.message);
    Diagnostic { severity: Severity::Warning, code: CERTIFICATE_KEPT, message, ..problem }
}

fn read(
    named: &config::CertificateFiles,
    provider: &CryptoProvider,
    files: &mut Files,
    before: Option<Before<'_>>,
    found: &mut Vec<Diagnostic>,
) -> Result<Certificate, Vec<Diagnostic>> {
    let Pair { chain, key } = read_pair(named, files)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let read = |now| Certificate::from_pem(&chain, &key, now, provider);
    let is_served = before.is_some_and(|before| before.loaded.files.has_same(files, &named.cert.value));
    let certificate = match read(now) {
        // Refusing it would not take it back from the clients, and would keep every other change from them.
        Err(CertificateError::Expired { not_after }) if is_served => {
            found.push(about_expired(named, &CertificateError::Expired { not_after }));
            read(not_after)
        }
        read => read,
    };
    certificate.map_err(|error| vec![about_certificate(named, &error)])
}

/// The bytes of two files.
struct Pair {
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

fn read_pair(named: &config::CertificateFiles, files: &mut Files) -> Result<Pair, Vec<Diagnostic>> {
    let mut read = |file: &Located<PathBuf>, what| {
        files.read(Part::Certificate, &file.value, PEM_LIMIT).map_err(|error| {
            let message = format!("cannot use {what} `{}`: {error}", file.value.display());
            Box::new(unreadable(message, Origin::File { path: file.value.clone(), span: Some(file.span.clone()) }))
        })
    };
    match (read(&named.cert, "certificate"), read(&named.key, "key").map(Zeroizing::new)) {
        (Ok(chain), Ok(key)) => Ok(Pair { chain, key }),
        (chain, key) => Err([chain.err(), key.err()].into_iter().flatten().map(|problem| *problem).collect()),
    }
}

fn about_expired(named: &config::CertificateFiles, error: &CertificateError) -> Diagnostic {
    let at = Origin::File { path: named.cert.value.clone(), span: Some(named.cert.span.clone()) };
    let message = format!("`{}` is served although {error}", named.cert.value.display());
    Diagnostic::warning(EXPIRED_SERVED, message).from(at).help(error.cure())
}

fn about_certificate(files: &config::CertificateFiles, error: &CertificateError) -> Diagnostic {
    let (file, code) = match error.culprit() {
        Culprit::Chain => (&files.cert, BAD_CERTIFICATE),
        Culprit::Key => (&files.key, BAD_KEY),
    };
    let code = match error {
        CertificateError::Mismatch => KEY_MISMATCH,
        CertificateError::Expired { .. } | CertificateError::NotYetValid { .. } => EXPIRED,
        _ => code,
    };
    let at = Origin::File { path: file.value.clone(), span: Some(file.span.clone()) };
    let diagnostic =
        Diagnostic::error(code, format!("`{}`: {error}", file.value.display())).from(at).help(error.cure());
    match error {
        CertificateError::Mismatch => diagnostic.note(format!("the certificate is `{}`", files.cert.value.display())),
        _ => diagnostic,
    }
}
