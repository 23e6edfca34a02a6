//! The part of TLS: which certificate answers, or why none does.

use std::sync::Arc;

use serde::Serialize;

use super::facts::{Fact, Question};
use crate::{
    config::{self, Listener},
    metrics::Label,
    tls::certificates::{Certificate, Certificates, normal},
};

#[derive(Debug, Serialize)]
pub(super) struct Tls {
    pub(super) min_version: Fact<&'static str>,
    /// Empty: ALPN is not negotiated.
    pub(super) alpn: Fact<Vec<String>>,
    pub(super) strict_sni: Fact<bool>,
    pub(super) answer: Answer,
    /// In the order they are tried: the first that the client can verify. None: the client is refused.
    pub(super) certificates: Vec<Fact<Candidate>>,
}

/// Why these certificates answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// They are for this name.
    Exact,
    /// They are for a wildcard that covers it.
    Wildcard,
    /// None is, so the first of the listener answers.
    First,
    /// None is, and the listener is strict.
    Refused,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Candidate {
    pub(super) file: String,
    pub(super) names: Vec<String>,
}

pub(super) fn tls(question: &Question<'_>, listener: &Listener, config: &config::Tls, loaded: &[Certificate]) -> Tls {
    let written = question.places.key("listener").key(&listener.name).key("tls");
    let certificates = Certificates::new(loaded, config.strict_sni);
    let name = question.sni.map(normal);
    let candidates = certificates.candidates(name.as_deref()).iter().filter_map(|key| {
        let index = loaded.iter().position(|certificate| Arc::ptr_eq(&certificate.key, key))?;
        let candidate = Candidate {
            file: config.certificates.get(index)?.cert.value.display().to_string(),
            names: loaded.get(index)?.names.clone(),
        };
        let short = if index == 0 { written.key("cert") } else { written.key("certificates").at(index) };
        Some(question.fact(candidate, &[short, written.key("certificates").at(index).key("cert")]))
    });
    let candidates: Vec<_> = candidates.collect();
    let answer = match (candidates.first(), &name) {
        (None, _) => Answer::Refused,
        (Some(_), None) => Answer::First,
        (Some(first), Some(name)) => how(&first.value.names, name),
    };
    Tls {
        min_version: question.fact(config.min_version.as_str(), &[written.key("min_version")]),
        alpn: question.fact(config.alpn.clone(), &[written.key("alpn")]),
        strict_sni: question.fact(config.strict_sni, &[written.key("strict_sni")]),
        answer,
        certificates: candidates,
    }
}

fn how(names: &[String], asked: &str) -> Answer {
    let parent = asked.split_once('.').map(|(_, parent)| parent);
    if names.iter().any(|name| name == asked) {
        Answer::Exact
    } else if parent.is_some_and(|parent| names.iter().any(|name| name.strip_prefix("*.") == Some(parent))) {
        Answer::Wildcard
    } else {
        Answer::First
    }
}
