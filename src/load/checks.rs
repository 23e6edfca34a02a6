//! What checks need from files and the environment.

use std::{path::PathBuf, sync::Arc};

use rustls::{ClientConfig, crypto::CryptoProvider, pki_types::CertificateDer};
use zeroize::Zeroizing;

use super::{certificates::PEM_LIMIT, files::Files, unreadable};
use crate::{
    config::{
        self, CheckKind, CheckTls, Config, Diagnostic, Located, Secret,
        code::{BAD_CERTIFICATE, BAD_TEXT, UNREADABLE},
        diagnostic::Origin,
        difference::Part,
    },
    tls::{client::client, pem},
};

/// A longer password is somebody's mistake.
const SECRET_LIMIT: u64 = 64 << 10;

/// What the checks of one pool need beside the configuration.
#[derive(Default)]
pub struct CheckMaterials {
    /// For checks over TLS.
    pub tls: Option<Arc<ClientConfig>>,
    pub password: Zeroizing<String>,
}

impl std::fmt::Debug for CheckMaterials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CheckMaterials").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// In the order of the pools.
pub fn read_checks(
    config: &Config,
    provider: &CryptoProvider,
    files: &mut Files,
    found: &mut Vec<Diagnostic>,
) -> Vec<CheckMaterials> {
    let provider = Arc::new(provider.clone());
    let mut read = |pool: &config::Pool| pool.check.as_ref().map(|check| materials(check, &provider, files, found));
    config.pools.iter().map(|pool| read(pool).unwrap_or_default()).collect()
}

fn materials(
    check: &config::Check,
    provider: &Arc<CryptoProvider>,
    files: &mut Files,
    found: &mut Vec<Diagnostic>,
) -> CheckMaterials {
    let mut materials = CheckMaterials::default();
    match &check.kind {
        CheckKind::Tls(tls) => materials.tls = tls_client(tls, provider, files, found),
        CheckKind::Http(asked) => {
            materials.tls = asked.tls.as_ref().and_then(|tls| tls_client(tls, provider, files, found));
        }
        CheckKind::Mysql { password, .. } => match secret(password, files) {
            Ok(password) => materials.password = password,
            Err(problem) => found.push(*problem),
        },
        CheckKind::Tcp | CheckKind::SendExpect { .. } => {}
    }
    materials
}

fn tls_client(
    tls: &CheckTls,
    provider: &Arc<CryptoProvider>,
    files: &mut Files,
    found: &mut Vec<Diagnostic>,
) -> Option<Arc<ClientConfig>> {
    let roots = match tls.ca.as_ref().map(|file| authorities(file, files)).transpose() {
        Ok(roots) => roots,
        Err(problem) => {
            found.push(*problem);
            return None;
        }
    };
    let client = client(roots.as_deref(), provider).map_err(|error| {
        let problem = Diagnostic::error(BAD_CERTIFICATE, format!("checks over TLS cannot be set up: {error}"));
        found.push(match &tls.ca {
            Some(file) => problem.from(at(file)).help("each certificate of `ca` must be one of an authority"),
            None => problem,
        });
    });
    client.ok().map(Arc::new)
}

fn authorities(file: &Located<PathBuf>, files: &mut Files) -> Result<Vec<CertificateDer<'static>>, Box<Diagnostic>> {
    let bytes = files
        .read(Part::File, &file.value, PEM_LIMIT)
        .map_err(|error| unreadable(format!("cannot use authorities `{}`: {error}", file.value.display()), at(file)))?;
    pem::chain(&bytes).map_err(|error| {
        let message = format!("`{}`: {error}", file.value.display());
        Diagnostic::error(BAD_CERTIFICATE, message).from(at(file)).help(error.cure()).into()
    })
}

fn at(file: &Located<PathBuf>) -> Origin {
    Origin::File { path: file.value.clone(), span: Some(file.span.clone()) }
}

fn secret(secret: &Secret, files: &mut Files) -> Result<Zeroizing<String>, Box<Diagnostic>> {
    match secret {
        Secret::Inline(text) => Ok(text.clone()),
        Secret::Env(name) => std::env::var(&name.value).map(Zeroizing::new).map_err(|error| {
            let message = match error {
                std::env::VarError::NotPresent => format!("the environment has no variable `{}`", name.value),
                std::env::VarError::NotUnicode(_) => format!("the variable `{}` is not UTF-8", name.value),
            };
            let help =
                format!("set it for this process: `{}=... sluicegate run`, Environment= in a unit file", name.value);
            Diagnostic::error(UNREADABLE, message).at(name.span.clone()).label("named here").help(help).into()
        }),
        Secret::File(file) => {
            let bytes = files.read(Part::File, &file.value, SECRET_LIMIT).map(Zeroizing::new).map_err(|error| {
                unreadable(format!("cannot use password file `{}`: {error}", file.value.display()), at(file))
            })?;
            let text = std::str::from_utf8(&bytes).map_err(|_| {
                let message = format!("password file `{}` is not UTF-8", file.value.display());
                Diagnostic::error(BAD_TEXT, message).from(at(file)).help("write the password alone in its first line")
            })?;
            Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_password_is_the_first_line_of_its_file_and_is_not_printed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"hunter2\nmore\n").unwrap();
        let path = Located { value: file.path().to_owned(), span: 0..1 };
        let password = secret(&Secret::File(path), &mut Files::default()).unwrap();
        assert_eq!(password.as_str(), "hunter2");
        let materials = CheckMaterials { password, ..CheckMaterials::default() };
        assert!(!format!("{materials:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_cure() {
        let name = Located { value: "SLUICEGATE_NO_SUCH".to_owned(), span: 3..9 };
        let problem = secret(&Secret::Env(name), &mut Files::default()).unwrap_err();
        assert!(problem.message.contains("SLUICEGATE_NO_SUCH") && problem.span() == Some(&(3..9)), "{problem:?}");
        let path = Located { value: "/nonexistent/password".into(), span: 0..1 };
        assert_eq!(secret(&Secret::File(path), &mut Files::default()).unwrap_err().code, UNREADABLE);
    }
}
