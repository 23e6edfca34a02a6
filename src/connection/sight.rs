//! A connection as an operator sees it.

use super::Connection;
use crate::drain::{
    Reason, Watcher,
    inquiry::{ConnectionId, Inquiry, Phase, Sight},
};

impl Connection {
    /// Answers a question, and ends if that is asked for.
    pub(super) fn answer(&self, inquiry: &Inquiry, watcher: &Watcher) {
        let is_meant = self.is_meant(inquiry);
        inquiry.answer(is_meant.then_some(|| self.sight()));
        if is_meant && inquiry.ends {
            watcher.end(Reason::Killed);
        }
    }

    fn is_meant(&self, inquiry: &Inquiry) -> bool {
        let filter = &inquiry.filter;
        let notes = self.notes.borrow();
        let is = |wanted: &Option<String>, name: Option<&str>| wanted.as_deref().is_none_or(|it| Some(it) == name);
        filter.id.is_none_or(|id| id == ConnectionId::new(self.id))
            && is(&filter.listener, Some(&self.frontend.name))
            && filter.client.is_none_or(|network| network.contains(self.client().ip()))
            && is(&filter.pool, Some(&self.frontend.pool.name))
            && is(&filter.backend, notes.backend.as_deref())
            // What is over cannot be ended.
            && !(inquiry.ends && self.meter.end().is_some())
    }

    fn sight(&self) -> Sight {
        let client = self.client();
        let notes = self.notes.borrow();
        let (received_bytes, sent_bytes) = self.meter.received_and_sent();
        let phase = match &self.frontend.tls {
            _ if self.meter.end().is_some() => Phase::Closing,
            _ if notes.connect.is_some() => Phase::Relaying,
            _ if self.frontend.proxy_protocol.is_some() && notes.arrival.is_none() => Phase::Handshake,
            Some(_) if notes.agreement().is_none() => Phase::Handshake,
            _ => Phase::Connecting,
        };
        Sight {
            id: ConnectionId::new(self.id).to_string(),
            listener: self.frontend.name.to_string(),
            client,
            sni: notes.agreement().and_then(|tls| tls.sni.as_deref()).map(str::to_owned),
            pool: self.frontend.pool.name.to_string(),
            backend: notes.backend.as_deref().map(str::to_owned),
            phase,
            age_seconds: self.accepted.elapsed().as_secs_f64(),
            received_bytes,
            sent_bytes,
        }
    }
}
