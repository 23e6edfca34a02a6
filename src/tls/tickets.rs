//! Session tickets whose keys another process can go on with: rustls has such tickets too, and keeps their keys to itself.
//!
//! A ticket is the name of its key, a nonce, and the session sealed with AES-256-GCM. Keys live in memory only. A key seals for
//! six hours and opens for six more (traps T5).

use std::{
    fmt,
    sync::{PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// The keys of one policy.
pub struct Tickets(RwLock<Keys>);

/// Keys on their way to another process.
#[derive(Clone, Serialize, Deserialize)]
pub struct SavedKeys(Vec<SavedKey>);

#[derive(Clone, Serialize, Deserialize)]
struct SavedKey {
    name: [u8; NAME],
    secret: [u8; SECRET],
    /// Since when it seals, in Unix seconds.
    since: u64,
}

/// The one that seals is the first; the others only open.
struct Keys(Vec<Key>);

struct Key {
    saved: SavedKey,
    cipher: RandomizedNonceKey,
}

const NAME: usize = 16;
const SECRET: usize = 32;

/// How long a key seals.
const SLOT: u64 = 6 * 60 * 60;

/// How long it opens.
const LIFETIME: u32 = 12 * 60 * 60;

/// Nobody gives more keys than one that seals and one that opens.
const MOST: usize = 2;

impl Tickets {
    /// With a key of its own.
    pub fn new() -> Result<Self, rustls::Error> {
        Ok(Self(RwLock::new(Keys(vec![Key::new(now())?]))))
    }

    /// The keys as they are now.
    pub fn save(&self) -> SavedKeys {
        let Keys(keys) = &*self.0.read().unwrap_or_else(PoisonError::into_inner);
        SavedKeys(keys.iter().map(|key| key.saved.clone()).collect())
    }

    /// Goes on with the keys of another process, if they are any.
    pub fn recall(&self, saved: &SavedKeys) {
        let keys: Option<Vec<_>> = saved.0.iter().take(MOST).map(|key| Key::open(key.clone())).collect();
        if let Some(keys) = keys.filter(|keys| !keys.is_empty()) {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = Keys(keys);
        }
    }

    fn seal(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if keys.is_fresh(now) {
            return keys.0.first()?.seal(session);
        }
        drop(keys);
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.turn(now)?;
        keys.0.first()?.seal(session)
    }

    fn unseal(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_first_chunk::<NAME>()?;
        let Keys(keys) = &*self.0.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().find(|key| key.saved.name == *name)?;
        let age = now.saturating_sub(key.saved.since);
        (age < u64::from(LIFETIME)).then(|| key.unseal(sealed))?
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.unseal(cipher, now())
    }
}

impl Keys {
    fn is_fresh(&self, now: u64) -> bool {
        self.0.first().is_some_and(|key| now.saturating_sub(key.saved.since) < SLOT)
    }

    /// A new key seals from now on, unless somebody else has seen to that.
    fn turn(&mut self, now: u64) -> Option<()> {
        if !self.is_fresh(now) {
            self.0.insert(0, Key::new(now).ok()?);
            self.0.truncate(MOST);
        }
        Some(())
    }
}

impl Key {
    fn new(since: u64) -> Result<Self, rustls::Error> {
        let mut saved = SavedKey { name: [0; NAME], secret: [0; SECRET], since };
        let filled = rand::fill(&mut saved.name).and_then(|()| rand::fill(&mut saved.secret));
        filled.map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        Self::open(saved).ok_or(rustls::Error::EncryptError)
    }

    fn open(saved: SavedKey) -> Option<Self> {
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &saved.secret).ok()?;
        Some(Self { saved, cipher })
    }

    fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = session.to_vec();
        let nonce = self.cipher.seal_in_place_append_tag(Aad::from(self.saved.name), &mut sealed).ok()?;
        Some([&self.saved.name, &nonce.as_ref()[..], &sealed].concat())
    }

    fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.cipher.open_in_place(nonce, Aad::from(self.saved.name), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

impl Drop for SavedKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// Nothing of a key is printed (traps O6).
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(..)")
    }
}

impl fmt::Debug for SavedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SavedKeys(..)")
    }
}

/// Unix seconds, as rustls judges tickets by them too.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t5_a_ticket_opens_for_one_more_slot_and_not_in_the_one_after() {
        let tickets = Tickets::new().unwrap();
        let begin = now();
        let first = tickets.seal(b"session", begin).unwrap();
        let at = |slots| begin + slots * SLOT;
        let second = tickets.seal(b"session", at(1)).unwrap();
        assert_ne!(first[..NAME], second[..NAME], "another key");
        assert_eq!(tickets.unseal(&first, at(1)).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets.unseal(&first, at(2)), None);
        tickets.seal(b"session", at(2)).unwrap();
        assert_eq!(tickets.unseal(&second, at(2)).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets.0.read().unwrap().0.len(), MOST);
    }

    #[test]
    fn a_ticket_that_was_changed_or_cut_is_none() {
        let tickets = Tickets::new().unwrap();
        let good = tickets.encrypt(b"a session").unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(tickets.decrypt(&bad), None, "byte {at}");
            assert_eq!(tickets.decrypt(&good[..at]), None, "the first {at}");
        }
        assert_eq!(Tickets::new().unwrap().decrypt(&good), None, "of another policy");
    }

    #[test]
    fn l6_o6_keys_go_on_in_another_process_and_are_not_printed() {
        let (old, new) = (Tickets::new().unwrap(), Tickets::new().unwrap());
        let ticket = old.encrypt(b"a session").unwrap();
        let saved = old.save();
        new.recall(&serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap());
        assert_eq!(new.decrypt(&ticket).as_deref(), Some(&b"a session"[..]));
        assert_eq!(format!("{saved:?} {new:?}"), "SavedKeys(..) Tickets(..)");
        new.recall(&SavedKeys(Vec::new()));
        assert!(new.decrypt(&ticket).is_some(), "none are no keys");
    }
}
