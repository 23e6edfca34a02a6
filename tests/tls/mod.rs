//! TLS from outside: openssl as users have it, rustls for what openssl cannot do, bytes by hand for the rest.

mod ends;
mod hostile;
mod keys;
mod names;
mod versions;

use std::path::PathBuf;

use crate::support::{
    Backend, Gate,
    gate::{Plan, https, pool},
    programs::{Output, require, s_client},
};

/// An HTTP backend behind a TLS listener, and openssl to look at it.
struct Site {
    gate: Gate,
    openssl: PathBuf,
    backend: Backend,
}

impl Site {
    /// The listener for foobar.com with these further lines of its `tls` table.
    fn start(tls: &str) -> Option<Self> {
        Self::over(&https(tls), |plan| plan)
    }

    fn over(listener: &str, change: impl FnOnce(Plan) -> Plan) -> Option<Self> {
        let openssl = require("openssl")?;
        let backend = Backend::http("a body from behind");
        let gate = change(Gate::plan(&(listener.to_owned() + &pool("", &[backend.address])))).start();
        Some(Self { gate, openssl, backend })
    }

    #[track_caller]
    fn visit(&self, more: &[&str]) -> Output {
        s_client(&self.openssl, self.gate.address("https"), self.gate.directory.path(), more)
    }

    /// A visit that works; its report.
    #[track_caller]
    fn served(&self, more: &[&str]) -> String {
        let report = self.visit(more).stdout;
        assert!(report.contains("a body from behind"), "{more:?}: {report}");
        report
    }

    /// A visit that ends with this alert; no backend hears of it.
    #[track_caller]
    fn refused(&self, more: &[&str], alert: &str) {
        let before = self.backend.accepted();
        let report = self.visit(more);
        assert!(!report.success && report.stdout.contains(alert), "{more:?}: {}", report.stdout);
        assert_eq!(self.backend.accepted(), before);
    }
}
