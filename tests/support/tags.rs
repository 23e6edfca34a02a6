//! Payload whose every byte is a function of connection id and offset: a foreign, lost or doubled byte is named.

use std::{
    io::{ErrorKind, Read, Write},
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;
const CHUNK: usize = 64 * 1024;

pub type Hash = [u8; 32];

/// The payload of one connection and direction: noise from the id, each block stamped with its number.
#[derive(Debug, Clone)]
pub struct Tag {
    id: u64,
    noise: Vec<u8>,
}

impl Tag {
    pub fn new(id: u64) -> Self {
        let mut state = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        });
        Self { id, noise: noise.take(BLOCK).collect() }
    }

    /// The bytes that belong at `offset`.
    pub fn fill(&self, mut offset: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let within = (offset % BLOCK as u64) as usize;
            let count = out.len().min(BLOCK - within);
            let (part, rest) = out.split_at_mut(count);
            part.copy_from_slice(&self.noise[within..within + count]);
            let stamp = (self.id.rotate_left(40) ^ (offset / BLOCK as u64)).to_be_bytes();
            if within < stamp.len() {
                let stamped = &stamp[within..stamp.len().min(within + count)];
                part[..stamped.len()].copy_from_slice(stamped);
            }
            offset += count as u64;
            out = rest;
        }
    }

    pub fn bytes(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(0, &mut bytes);
        bytes
    }

    /// Names the first byte that does not belong here.
    pub fn check(&self, offset: u64, got: &[u8]) -> Result<(), String> {
        let mut expected = vec![0; got.len()];
        self.fill(offset, &mut expected);
        if expected == got {
            return Ok(());
        }
        let at = expected.iter().zip(got).position(|(a, b)| a != b).unwrap_or(0);
        let end = got.len().min(at + 16);
        let (expected, found) = (&expected[at..end], &got[at..end]);
        Err(format!(
            "connection {}, offset {}: expected {expected:02x?}, found {found:02x?}",
            self.id,
            offset + at as u64
        ))
    }
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As much as was asked for.
    Complete,
    Eof,
    Reset,
    Failed(ErrorKind),
}

impl End {
    pub fn of(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset => Self::Reset,
            kind => Self::Failed(kind),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub bytes: u64,
    pub hash: Hash,
    /// The first byte that does not belong to this connection.
    pub foreign: Option<String>,
    pub end: End,
}

impl Received {
    /// All of it, and nothing else.
    #[track_caller]
    pub fn assert_is(&self, bytes: u64, hash: Hash, end: End) {
        assert_eq!(self.foreign, None);
        assert_eq!((self.bytes, self.end), (bytes, end));
        assert_eq!(self.hash, hash, "the same bytes");
    }
}

/// Sends `total` tagged bytes; their hash.
pub fn send(to: &mut impl Write, id: u64, total: u64) -> std::io::Result<Hash> {
    let (tag, mut hash, mut sent) = (Tag::new(id), Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK];
    while sent < total {
        let count = (total - sent).min(CHUNK as u64) as usize;
        tag.fill(sent, &mut buffer[..count]);
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        sent += count as u64;
    }
    to.flush()?;
    Ok(hash.finalize().into())
}

/// The hash of `total` tagged bytes.
pub fn hash(id: u64, total: u64) -> Hash {
    send(&mut std::io::sink(), id, total).expect("a sink takes everything")
}

/// Receives at most `total` tagged bytes, with a pause after each read to be a slow reader.
pub fn receive(from: &mut impl Read, id: u64, total: u64, pause: Option<Duration>) -> Received {
    let (tag, mut hash, mut bytes, mut foreign) = (Tag::new(id), Sha256::new(), 0, None);
    let mut buffer = vec![0; CHUNK];
    let end = loop {
        let room = (total - bytes).min(CHUNK as u64) as usize;
        if room == 0 {
            break End::Complete;
        }
        match from.read(&mut buffer[..room]) {
            Ok(0) => break End::Eof,
            Ok(count) => {
                foreign = foreign.or_else(|| tag.check(bytes, &buffer[..count]).err());
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) => break End::of(&error),
        }
        if let Some(pause) = pause {
            thread::sleep(pause);
        }
    };
    Received { bytes, hash: hash.finalize().into(), foreign, end }
}

#[test]
fn a_tagged_stream_is_its_own_witness() {
    let mut stream = Vec::new();
    let sent = send(&mut stream, 7, 100_000).unwrap();
    assert_eq!(sent, hash(7, 100_000));
    receive(&mut &stream[..], 7, 100_000, None).assert_is(100_000, sent, End::Complete);
    assert!(receive(&mut &stream[..], 8, 100_000, None).foreign.is_some());
    let mut swapped = stream.clone();
    swapped[..BLOCK].copy_from_slice(&stream[BLOCK..2 * BLOCK]);
    assert!(receive(&mut &swapped[..], 7, 100_000, None).foreign.unwrap().contains("connection 7, offset 7"));
    for cut in [1, 3, 8, BLOCK - 1, BLOCK + 5] {
        Tag::new(7).check(cut as u64, &stream[cut..cut + 9000]).unwrap();
    }
}
