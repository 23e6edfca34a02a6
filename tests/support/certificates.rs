//! Certificates made at run time: one authority for the whole test binary, leaves on demand.

use std::{
    path::Path,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;

static AUTHORITY: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, "test authority");
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
});

/// A leaf and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

#[derive(Debug)]
pub struct Authority;

impl Authority {
    pub fn pem() -> String {
        AUTHORITY.pem()
    }

    pub fn roots() -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(AUTHORITY.der().clone()).unwrap();
        roots
    }

    /// A certificate for these names; the first one is its common name.
    pub fn leaf(names: &[&str]) -> Leaf {
        Self::sign(&parameters(names))
    }

    pub fn expired_leaf(names: &[&str]) -> Leaf {
        let mut parameters = parameters(names);
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
        Self::sign(&parameters)
    }

    /// A leaf that is valid for so long from now.
    pub fn leaf_for(names: &[&str], time: Duration) -> Leaf {
        let mut parameters = parameters(names);
        parameters.not_after = (SystemTime::now() + time).into();
        Self::sign(&parameters)
    }

    fn sign(parameters: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &AUTHORITY).unwrap();
        Leaf { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub fn write(directory: &Path, name: &str, leaf: &Leaf) {
        std::fs::write(directory.join(format!("{name}.pem")), &leaf.certificate).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), &leaf.key).unwrap();
    }

    /// The same as renewal tools do it: each file is written aside and renamed.
    pub fn replace(directory: &Path, name: &str, leaf: &Leaf) {
        Self::replace_one(directory, &format!("{name}.key"), &leaf.key);
        Self::replace_one(directory, &format!("{name}.pem"), &leaf.certificate);
    }

    pub fn replace_one(directory: &Path, name: &str, text: &str) {
        let aside = directory.join(format!("{name}.new"));
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(&aside, directory.join(name)).unwrap();
    }
}

fn parameters(names: &[&str]) -> CertificateParams {
    let mut parameters = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, names[0]);
    parameters
}
