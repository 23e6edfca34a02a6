//! The TLS path: the client's side is encrypted, the backend's is not.
//!
//! Both directions work in place in the worker's scratch buffer: [`open`] from the client, [`seal`] towards it. What a
//! slow end does not take is parked, at most one batch.

mod open;
mod seal;

use std::{
    io,
    task::{Context, Poll},
};

use rustls::{ContentType, kernel::KernelConnection, server::ServerConnectionData};

use self::open::{SMALL_READ, UPDATE_BURST};
use crate::{
    config::TlsVersion,
    sys::socket::Socket,
    tls::{
        record::{Layout, Opener, RecordError, Sealer},
        unbuffered::Session,
    },
};

/// Bytes relayed in one direction in one poll, at the most; then other connections have their turn (traps R12).
const SHARE: usize = 256 << 10;

/// The alert that ends a direction (RFC 8446, section 6.1), and the message that changes a key (section 4.6.3).
const CLOSE_NOTIFY: u8 = 0;
const KEY_UPDATE: u8 = 24;

/// Levels of alerts.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A client behind TLS, after the handshake.
pub struct TlsClient {
    socket: Socket,
    version: TlsVersion,
    sealer: Sealer,
    opener: Opener,
    keys: KernelConnection<ServerConnectionData>,
    /// Records that the socket would not take, and how much of them it has taken since.
    outgoing: Vec<u8>,
    sent: usize,
    /// Plaintext bytes in `outgoing`, counted when it is gone.
    in_flight: usize,
    /// The beginning of a record whose rest has not come.
    incoming: Vec<u8>,
    /// `incoming` may hold a whole record that was not looked at: what came with the handshake.
    unread: bool,
    slots: usize,
    read_length: usize,
    /// Key updates the client may still ask for (traps T13).
    updates_left: u32,
    update_credit: usize,
}

impl TlsClient {
    /// Takes over a connection whose handshake is complete.
    pub fn new(socket: Socket, session: Session) -> Self {
        let Session { version, sealer, opener, keys, incoming } = session;
        Self {
            socket,
            version,
            sealer,
            opener,
            keys,
            outgoing: Vec::new(),
            sent: 0,
            in_flight: 0,
            unread: !incoming.is_empty(),
            incoming,
            slots: 1,
            read_length: SMALL_READ,
            updates_left: UPDATE_BURST,
            update_credit: 0,
        }
    }

    pub(in crate::relay) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(in crate::relay) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Whether it said more than its handshake.
    pub(in crate::relay) fn has_unread(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Whether records wait for the socket.
    pub(in crate::relay) fn wants_write(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Queues the alert that says "the end, and no truncation".
    pub(in crate::relay) fn send_close_notify(&mut self) {
        self.queue_alert(CLOSE_NOTIFY);
    }

    /// Sends what waits; ready when nothing is left.
    pub(in crate::relay) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.poll_send(cx, rest) {
                Poll::Ready(Ok(sent)) => self.sent += sent,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // Given back: a connection that keeps up owns no buffer.
        self.outgoing = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Changes our key, and says so under the old one.
    fn update_own_keys(&mut self) -> Result<(), RecordError> {
        self.queue(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0])?;
        let (sequence, secrets) = self.keys.update_tx_secret().map_err(|_| RecordError::Unexpected)?;
        self.sealer = Sealer::new(self.version, &secrets, sequence).ok_or(RecordError::Unexpected)?;
        Ok(())
    }

    fn queue_alert(&mut self, description: u8) {
        let level = if description == CLOSE_NOTIFY { WARNING } else { FATAL };
        // Without its alert the end is an abrupt one, which is right when not even an alert can be sealed.
        let _ = self.queue(ContentType::Alert, &[level, description]);
    }

    /// Seals a short message behind what waits already.
    fn queue(&mut self, content: ContentType, message: &[u8]) -> Result<(), RecordError> {
        let Layout { before, behind } = self.sealer.layout();
        let mut record = vec![0; before + message.len() + behind];
        self.seal_message(content, message, &mut record)?;
        self.outgoing.append(&mut record);
        Ok(())
    }

    /// Seals a short message at the beginning of `place`, and says how long its record is.
    fn seal_message(&mut self, content: ContentType, message: &[u8], place: &mut [u8]) -> Result<usize, RecordError> {
        let Layout { before, behind } = self.sealer.layout();
        let record = place.get_mut(..before + message.len() + behind).ok_or(RecordError::TooLong)?;
        record.get_mut(before..before + message.len()).ok_or(RecordError::TooLong)?.copy_from_slice(message);
        self.sealer.seal(content, record)?;
        Ok(record.len())
    }
}

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsClient")
            .field("socket", &self.socket)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
