//! The TLS record layer after the handshake: records sealed and opened in place, a whole batch at a time.
//!
//! rustls does the handshake and derives every key; then it hands over the traffic secrets (its interface for kernel
//! TLS, `rustls::kernel`), and this module does what the kernel would: RFC 8446 section 5 for TLS 1.3, RFC 5246 section
//! 6.2 with RFC 5288 and RFC 7905 for TLS 1.2. Nothing is copied: the buffer that was read into is the one that is sent.
//! The AEAD itself is aws-lc-rs's.

use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType};

use crate::config::TlsVersion;

/// Content type, legacy version, length.
pub const HEADER: usize = 5;

/// The most plaintext of one record (RFC 8446, section 5.1).
pub const MAX_PLAIN: usize = 1 << 14;

/// The most a peer's record may hold behind its header (RFC 8446, section 5.2; RFC 5246, section 6.2.3).
const MAX_WIRE_1_3: usize = MAX_PLAIN + 256;
const MAX_WIRE_1_2: usize = MAX_PLAIN + 2048;

/// The authentication tag of every AEAD in use.
const TAG: usize = 16;

/// The nonce bytes that TLS 1.2 with AES-GCM sends in each record (RFC 5288, section 3).
const EXPLICIT_NONCE: usize = 8;

/// Records under one AES-GCM key before it is changed: 2^24 full ones are a forgery chance of 2^-57 (RFC 8446, section
/// 5.5). `ChaCha20` has no limit that a connection could reach.
const MAX_RECORDS: u64 = 1 << 24;

/// Encrypts what goes to the peer.
#[derive(Debug)]
pub struct Sealer(Half);

/// Decrypts what comes from the peer.
#[derive(Debug)]
pub struct Opener(Half);

/// How the records of a connection are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes before the plaintext.
    pub before: usize,
    /// Bytes behind it.
    pub behind: usize,
}

/// A record that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub content: ContentType,
    /// Where its plaintext is, in the record.
    pub plain: Range<usize>,
}

/// Why a record is refused. Each ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// Not a record, or one that is not allowed here.
    Unexpected,
    /// Longer than TLS allows.
    TooLong,
    /// Not written by who holds the key, or not in this place.
    Forged,
    /// Sealed too often under one key.
    Exhausted,
}

#[derive(Debug)]
struct Half {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    form: Form,
    limit: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Tls13,
    /// The nonce's second part travels with the record.
    Tls12Explicit,
    Tls12,
}

impl Sealer {
    /// From the secrets of the sending direction and the number of its next record.
    pub fn new(version: TlsVersion, secrets: &ConnectionTrafficSecrets, sequence: u64) -> Option<Self> {
        Half::new(version, secrets, sequence).map(Self)
    }

    /// Where the plaintext of a record goes.
    pub fn layout(&self) -> Layout {
        match self.0.form {
            Form::Tls13 => Layout { before: HEADER, behind: 1 + TAG },
            Form::Tls12Explicit => Layout { before: HEADER + EXPLICIT_NONCE, behind: TAG },
            Form::Tls12 => Layout { before: HEADER, behind: TAG },
        }
    }

    /// Whether the key has sealed nearly all it may: change it, or end the connection.
    pub fn is_worn(&self) -> bool {
        self.0.sequence >= self.0.limit
    }

    /// Seals one record in place. `record` has the layout's room around at most [`MAX_PLAIN`] bytes of plaintext.
    pub fn seal(&mut self, content: ContentType, record: &mut [u8]) -> Result<(), RecordError> {
        let Layout { before, behind } = self.layout();
        let half = &mut self.0;
        // A margin for the last words: an alert, a key update.
        if half.sequence >= half.limit.saturating_add(16) {
            return Err(RecordError::Exhausted);
        }
        let (head, body) = record.split_at_mut_checked(before).ok_or(RecordError::Unexpected)?;
        let plain = body.len().checked_sub(behind).filter(|&plain| plain <= MAX_PLAIN).ok_or(RecordError::TooLong)?;
        let nonce = half.nonce();
        let outer = if half.form == Form::Tls13 { ContentType::ApplicationData } else { content };
        let length = u16::try_from(before - HEADER + body.len()).map_err(|_| RecordError::TooLong)?;
        let (header, explicit) = head.split_at_mut_checked(HEADER).ok_or(RecordError::Unexpected)?;
        header.copy_from_slice(&header_of(outer, length));
        if half.form == Form::Tls12Explicit {
            explicit.copy_from_slice(nonce.get(NONCE_LEN - EXPLICIT_NONCE..).unwrap_or_default());
        }
        let sealed = if half.form == Form::Tls13 { plain + 1 } else { plain };
        let (text, tag) = body.split_at_mut_checked(sealed).ok_or(RecordError::Unexpected)?;
        let aad = half.associated(header, content, plain);
        if half.form == Form::Tls13
            && let Some(last) = text.last_mut()
        {
            *last = content.into();
        }
        let computed = half
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, text)
            .map_err(|_| RecordError::Forged)?;
        tag.copy_from_slice(computed.as_ref());
        half.sequence += 1;
        Ok(())
    }
}

impl Opener {
    /// From the secrets of the receiving direction and the number of its next record.
    pub fn new(version: TlsVersion, secrets: &ConnectionTrafficSecrets, sequence: u64) -> Option<Self> {
        Half::new(version, secrets, sequence).map(Self)
    }

    /// The length of the record that `wire` begins with, header included; `None` while the header is not complete.
    pub fn length(&self, wire: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(&[_, major, _, high, low]) = wire.first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let most = if self.0.form == Form::Tls13 { MAX_WIRE_1_3 } else { MAX_WIRE_1_2 };
        match () {
            () if major != 3 => Err(RecordError::Unexpected),
            () if length > most => Err(RecordError::TooLong),
            () => Ok(Some(HEADER + length)),
        }
    }

    /// Opens one whole record in place.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let half = &mut self.0;
        let (header, body) = record.split_at_mut_checked(HEADER).ok_or(RecordError::Unexpected)?;
        let outer = ContentType::from(*header.first().ok_or(RecordError::Unexpected)?);
        if half.form == Form::Tls13 && outer != ContentType::ApplicationData {
            // A change_cipher_spec after the handshake is refused too (RFC 8446, section 5).
            return Err(RecordError::Unexpected);
        }
        let mut nonce = half.nonce();
        let explicit = if half.form == Form::Tls12Explicit { EXPLICIT_NONCE } else { 0 };
        let (sent, text) = body.split_at_mut_checked(explicit).ok_or(RecordError::Unexpected)?;
        if let Some(part) = nonce.get_mut(NONCE_LEN - explicit..) {
            part.copy_from_slice(sent);
        }
        let plain = text.len().checked_sub(TAG).ok_or(RecordError::Unexpected)?;
        let aad = half.associated(header, outer, plain);
        let text =
            half.key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, text).map_err(|_| RecordError::Forged)?;
        half.sequence = half.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        let (content, length) = match half.form {
            Form::Tls13 => unpadded(text)?,
            Form::Tls12 | Form::Tls12Explicit => (outer, text.len()),
        };
        if length > MAX_PLAIN {
            return Err(RecordError::TooLong);
        }
        let begin = HEADER + explicit;
        Ok(Opened { content, plain: begin..begin + length })
    }
}

impl Half {
    fn new(version: TlsVersion, secrets: &ConnectionTrafficSecrets, sequence: u64) -> Option<Self> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let is_gcm = !matches!(secrets, ConnectionTrafficSecrets::Chacha20Poly1305 { .. });
        let form = match (version, is_gcm) {
            (TlsVersion::V1_3, _) => Form::Tls13,
            (TlsVersion::V1_2, true) => Form::Tls12Explicit,
            (TlsVersion::V1_2, false) => Form::Tls12,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        let iv = iv.as_ref().try_into().ok()?;
        Some(Self { key, iv, sequence, form, limit: if is_gcm { MAX_RECORDS } else { u64::MAX - 16 } })
    }

    /// The static part and the record's number, combined (RFC 8446, section 5.3).
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        let number = self.sequence.to_be_bytes();
        nonce.iter_mut().skip(NONCE_LEN - number.len()).zip(number).for_each(|(byte, number)| *byte ^= number);
        nonce
    }

    /// What is authenticated beside the plaintext: in TLS 1.3 the header as sent, in TLS 1.2 number and true length.
    fn associated(&self, header: &[u8], content: ContentType, plain: usize) -> Aad<Associated> {
        let mut bytes = [0; 13];
        if self.form == Form::Tls13 {
            bytes.iter_mut().zip(header).for_each(|(byte, header)| *byte = *header);
            return Aad::from(Associated { bytes, length: HEADER });
        }
        let [high, low] = u16::try_from(plain).unwrap_or(u16::MAX).to_be_bytes();
        let tail = [content.into(), 3, 3, high, low];
        bytes.iter_mut().zip(self.sequence.to_be_bytes().into_iter().chain(tail)).for_each(|(byte, new)| *byte = new);
        Aad::from(Associated { bytes, length: bytes.len() })
    }
}

/// Bytes of one of two lengths.
#[derive(Debug, Clone, Copy)]
struct Associated {
    bytes: [u8; 13],
    length: usize,
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

fn header_of(content: ContentType, length: u16) -> [u8; HEADER] {
    let [high, low] = length.to_be_bytes();
    [content.into(), 3, 3, high, low]
}

/// The true content type is the last byte that is not zero; what follows it is padding (RFC 8446, section 5.4).
fn unpadded(text: &[u8]) -> Result<(ContentType, usize), RecordError> {
    let at = text.iter().rposition(|&byte| byte != 0).ok_or(RecordError::Unexpected)?;
    let content = text.get(at).copied().ok_or(RecordError::Unexpected)?;
    Ok((ContentType::from(content), at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(kind: usize) -> ConnectionTrafficSecrets {
        // Keys of tests: rustls makes them from arrays of the longest length.
        let iv = [7; NONCE_LEN].into();
        match kind {
            0 => ConnectionTrafficSecrets::Chacha20Poly1305 { key: [9; 32].into(), iv },
            _ => ConnectionTrafficSecrets::Aes256Gcm { key: [9; 32].into(), iv },
        }
    }

    fn pairs() -> impl Iterator<Item = (Sealer, Opener)> {
        [TlsVersion::V1_2, TlsVersion::V1_3].into_iter().flat_map(|version| {
            [0, 1].map(|kind| {
                let secrets = secrets(kind);
                (Sealer::new(version, &secrets, 5).unwrap(), Opener::new(version, &secrets, 5).unwrap())
            })
        })
    }

    fn sealed(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
        let Layout { before, behind } = sealer.layout();
        let mut record = vec![0; before + plain.len() + behind];
        record[before..before + plain.len()].copy_from_slice(plain);
        sealer.seal(ContentType::ApplicationData, &mut record).unwrap();
        record
    }

    #[test]
    fn what_is_sealed_is_opened_in_order() {
        for (mut sealer, mut opener) in pairs() {
            for length in [0, 1, 15, 16, 1000, MAX_PLAIN] {
                let plain: Vec<u8> = (0..length).map(|at| u8::try_from(at % 253).unwrap() + 1).collect();
                let mut record = sealed(&mut sealer, &plain);
                assert_eq!(opener.length(&record), Ok(Some(record.len())));
                let opened = opener.open(&mut record).unwrap();
                assert_eq!(opened.content, ContentType::ApplicationData);
                assert_eq!(record[opened.plain], plain);
            }
        }
    }

    #[test]
    fn a_changed_bit_a_repeat_and_a_gap_are_refused() {
        for (mut sealer, mut opener) in pairs() {
            let first = sealed(&mut sealer, b"first");
            // Behind the header, whose version and length TLS 1.2 does not authenticate as sent.
            for at in HEADER * 8..first.len() * 8 {
                let mut forged = first.clone();
                forged[at / 8] ^= 1 << (at % 8);
                assert_eq!(opener.open(&mut forged), Err(RecordError::Forged), "bit {at}");
            }
        }
        for (mut sealer, mut opener) in pairs() {
            let (first, second) = (sealed(&mut sealer, b"first"), sealed(&mut sealer, b"second"));
            assert_eq!(opener.open(&mut second.clone()), Err(RecordError::Forged));
            assert!(opener.open(&mut first.clone()).is_ok());
            assert_eq!(opener.open(&mut first.clone()), Err(RecordError::Forged));
            assert!(opener.open(&mut second.clone()).is_ok());
        }
    }

    #[test]
    fn lengths_that_tls_forbids_are_refused_before_they_are_read() {
        for (_, opener) in pairs() {
            assert_eq!(opener.length(&[23, 3, 3, 0xFF]), Ok(None));
            assert_eq!(opener.length(&[23, 3, 3, 0xFF, 0xFF]), Err(RecordError::TooLong));
            assert_eq!(opener.length(&[23, 4, 3, 0, 1]), Err(RecordError::Unexpected));
        }
    }

    #[test]
    fn padding_alone_is_no_message() {
        assert_eq!(unpadded(&[0, 0, 0]), Err(RecordError::Unexpected));
        assert_eq!(unpadded(&[1, 0, 23, 0, 0]), Ok((ContentType::ApplicationData, 2)));
    }

    #[test]
    fn a_key_is_not_used_beyond_its_limit() {
        let secrets = secrets(1);
        let mut sealer = Sealer::new(TlsVersion::V1_3, &secrets, MAX_RECORDS - 1).unwrap();
        assert!(!sealer.is_worn());
        sealed(&mut sealer, b"the last of many");
        assert!(sealer.is_worn());
        let mut refused = 0;
        for _ in 0..32 {
            let mut record = vec![0; HEADER + 1 + TAG];
            refused += usize::from(sealer.seal(ContentType::Alert, &mut record).is_err());
        }
        assert_eq!(refused, 16);
    }
}
