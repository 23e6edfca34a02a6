//! Version 2: a fixed part, addresses, and extensions (TLVs).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Failure, Origin, crc32c::Crc32c};
use crate::address::canonical;

pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

pub const FIRST: u8 = b'\r';

/// Signature, version and command, family and protocol, length of the rest.
pub const FIXED: usize = 16;

/// The only extension that is looked into: the checksum of the whole header, counted as zeros itself.
pub const TYPE_CRC32C: u8 = 0x03;

const LONGEST_ADDRESSES: usize = 36;

/// A header that is not complete.
#[derive(Debug)]
pub struct Block {
    /// The fixed part and the addresses.
    head: [u8; FIXED + LONGEST_ADDRESSES],
    /// Bytes so far.
    seen: usize,
    /// Of the whole header; not known before the fixed part is there.
    length: usize,
    max_length: u16,
    shape: Shape,
    tlv: Tlv,
    crc: Crc32c,
    /// The checksum that the header has, if it has one.
    told: Option<u32>,
}

/// What the block behind the fixed part is, and what is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Skipped, whatever is in it.
    Local,
    Unspecified,
    /// The addresses of TCP over IPv4 and IPv6.
    Tcp4,
    Tcp6,
    /// Addresses of so many bytes that mean nothing here: of unix sockets, of datagrams.
    Foreign(usize),
}

/// Where the reading of extensions stands.
#[derive(Debug, Clone, Copy)]
enum Tlv {
    Type,
    HighLength { kind: u8 },
    LowLength { kind: u8, high: u8 },
    Value { kind: u8, left: usize },
}

impl Block {
    pub fn new(max_length: u16) -> Self {
        Self {
            head: [0; FIXED + LONGEST_ADDRESSES],
            seen: 0,
            length: FIXED,
            max_length,
            shape: Shape::Local,
            tlv: Tlv::Type,
            crc: Crc32c::new(),
            told: None,
        }
    }

    /// How many bytes have to come, as far as is known.
    pub fn left(&self) -> usize {
        self.length - self.seen
    }

    /// Takes one byte; with the last one comes what the header says.
    pub fn next(&mut self, byte: u8) -> Result<Option<Origin>, Failure> {
        if let Some(place) = self.head.get_mut(self.seen) {
            *place = byte;
        }
        self.seen += 1;
        match self.seen {
            1..=12 => {
                self.crc.add(byte);
                let is_right = SIGNATURE.get(self.seen - 1) == Some(&byte);
                return if is_right { Ok(None) } else { Err(Failure::Missing) };
            }
            13..=15 => {
                self.crc.add(byte);
                self.shape = self.shape()?;
                return Ok(None);
            }
            FIXED => {
                self.crc.add(byte);
                self.set_length()?;
            }
            _ => self.take_of_block(byte)?,
        }
        if self.left() > 0 { Ok(None) } else { self.origin().map(Some) }
    }

    /// What the fixed part asks for. Family and protocol of what the sender says of itself mean nothing.
    fn shape(&self) -> Result<Shape, Failure> {
        const VERSION_2: u8 = 0x20;
        const VERSION_2_PROXY: u8 = 0x21;
        let [.., command, family, _, _] = self.fixed();
        match (command, family) {
            (VERSION_2, _) => Ok(Shape::Local),
            // The family has not come yet.
            (VERSION_2_PROXY, _) if self.seen == 13 => Ok(Shape::Unspecified),
            (VERSION_2_PROXY, 0x00) => Ok(Shape::Unspecified),
            (VERSION_2_PROXY, 0x11) => Ok(Shape::Tcp4),
            (VERSION_2_PROXY, 0x21) => Ok(Shape::Tcp6),
            (VERSION_2_PROXY, 0x12) => Ok(Shape::Foreign(12)),
            (VERSION_2_PROXY, 0x22) => Ok(Shape::Foreign(36)),
            (VERSION_2_PROXY, 0x31 | 0x32) => Ok(Shape::Foreign(216)),
            _ => Err(Failure::Malformed),
        }
    }

    fn set_length(&mut self) -> Result<(), Failure> {
        let [.., high, low] = self.fixed();
        let length = u16::from_be_bytes([high, low]);
        if length > self.max_length {
            return Err(Failure::TooLong);
        }
        if usize::from(length) < self.shape.addresses() {
            return Err(Failure::Malformed);
        }
        self.length = FIXED + usize::from(length);
        Ok(())
    }

    fn take_of_block(&mut self, byte: u8) -> Result<(), Failure> {
        let is_tlv = self.shape.has_tlvs() && self.seen > FIXED + self.shape.addresses();
        let is_checksum = is_tlv && matches!(self.tlv, Tlv::Value { kind: TYPE_CRC32C, .. });
        self.crc.add(if is_checksum { 0 } else { byte });
        if is_tlv { self.take_of_tlv(byte) } else { Ok(()) }
    }

    fn take_of_tlv(&mut self, byte: u8) -> Result<(), Failure> {
        self.tlv = match self.tlv {
            Tlv::Type => Tlv::HighLength { kind: byte },
            Tlv::HighLength { kind } => Tlv::LowLength { kind, high: byte },
            Tlv::LowLength { kind, high } => {
                let left = usize::from(u16::from_be_bytes([high, byte]));
                if left > self.left() {
                    return Err(Failure::Malformed);
                }
                if kind == TYPE_CRC32C {
                    // Two of them could not both be counted as zeros and be right.
                    if left != size_of::<u32>() || self.told.is_some() {
                        return Err(Failure::Malformed);
                    }
                    self.told = Some(0);
                }
                if left == 0 { Tlv::Type } else { Tlv::Value { kind, left } }
            }
            Tlv::Value { kind, left } => {
                if kind == TYPE_CRC32C {
                    self.told = self.told.map(|told| told << 8 | u32::from(byte));
                }
                if left == 1 { Tlv::Type } else { Tlv::Value { kind, left: left - 1 } }
            }
        };
        Ok(())
    }

    /// The end of the block is there.
    fn origin(&self) -> Result<Origin, Failure> {
        if !matches!(self.tlv, Tlv::Type) {
            return Err(Failure::Malformed);
        }
        if self.told.is_some_and(|told| told != self.crc.value()) {
            return Err(Failure::Checksum);
        }
        Ok(match self.shape {
            Shape::Local => Origin::Local,
            Shape::Unspecified | Shape::Foreign(_) => Origin::Unknown,
            Shape::Tcp4 => {
                let [source, destination] = [0, 4].map(|at| Ipv4Addr::from(self.address(at)));
                self.client(SocketAddr::new(source.into(), 0), SocketAddr::new(destination.into(), 0), 8)
            }
            Shape::Tcp6 => {
                let [source, destination] = [0, 16].map(|at| Ipv6Addr::from(self.address(at)));
                self.client(SocketAddr::new(source.into(), 0), SocketAddr::new(destination.into(), 0), 32)
            }
        })
    }

    /// With the ports that stand at `ports`.
    fn client(&self, mut source: SocketAddr, mut destination: SocketAddr, ports: usize) -> Origin {
        source.set_port(u16::from_be_bytes(self.address(ports)));
        destination.set_port(u16::from_be_bytes(self.address(ports + 2)));
        Origin::Client { source: canonical(source), destination: canonical(destination) }
    }

    fn fixed(&self) -> [u8; FIXED] {
        self.head.first_chunk().copied().unwrap_or_default()
    }

    /// `N` bytes of the addresses, which are there.
    fn address<const N: usize>(&self, at: usize) -> [u8; N] {
        self.head.get(FIXED + at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
}

impl Shape {
    /// How long the addresses are.
    fn addresses(self) -> usize {
        match self {
            Self::Local | Self::Unspecified => 0,
            Self::Tcp4 => 12,
            Self::Tcp6 => LONGEST_ADDRESSES,
            Self::Foreign(length) => length,
        }
    }

    /// Whether extensions follow the addresses.
    fn has_tlvs(self) -> bool {
        !matches!(self, Self::Local | Self::Unspecified)
    }
}
