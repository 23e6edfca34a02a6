//! Headers for backends. Each is one piece, to be sent before anything else (traps P9).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    crc32c::checksum,
    v2::{FIXED, SIGNATURE, TYPE_CRC32C},
};

/// What is told of the TLS between the client and this balancer. Everything is what was agreed and checked here, nothing
/// only what a client said.
#[derive(Debug, Clone)]
pub struct Tls<'a> {
    /// `TLSv1.3`
    pub version: &'a str,
    /// The name in the IANA registry.
    pub cipher: String,
    pub alpn: Option<&'a str>,
    /// The host name that the client asked for, if a certificate is for it.
    pub authority: Option<String>,
}

/// Version 1. An address of each family makes it TCP6, with the IPv4 one mapped.
pub fn v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source_port, destination_port) = (source.port(), destination.port());
    let line = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            format!("PROXY TCP4 {source} {destination} {source_port} {destination_port}\r\n")
        }
        (source, destination) => {
            let (source, destination) = (six(source), six(destination));
            format!("PROXY TCP6 {source} {destination} {source_port} {destination_port}\r\n")
        }
    };
    line.into_bytes()
}

/// Version 2 with a checksum, and what is known of TLS. Families as in [`v1`].
pub fn v2(source: SocketAddr, destination: SocketAddr, tls: Option<&Tls<'_>>) -> Vec<u8> {
    const TCP_OVER_V4: u8 = 0x11;
    const TCP_OVER_V6: u8 = 0x21;
    let mut block = Vec::with_capacity(128);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            block.extend([source.octets(), destination.octets()].as_flattened());
            TCP_OVER_V4
        }
        (source, destination) => {
            block.extend([six(source).octets(), six(destination).octets()].as_flattened());
            TCP_OVER_V6
        }
    };
    block.extend(source.port().to_be_bytes());
    block.extend(destination.port().to_be_bytes());
    if let Some(tls) = tls {
        add_tls(&mut block, tls);
    }
    tlv(&mut block, TYPE_CRC32C, &[0; size_of::<u32>()]);
    let mut header = fixed(COMMAND_PROXY, family, &block);
    header.extend(block);
    let crc = checksum(&header).to_be_bytes();
    let place = header.len() - crc.len();
    header.truncate(place);
    header.extend(crc);
    header
}

/// Version 2 for a connection of our own, such as a check: the receiver takes the addresses of the socket.
pub fn local() -> Vec<u8> {
    const COMMAND_LOCAL: u8 = 0x20;
    const UNSPECIFIED: u8 = 0x00;
    fixed(COMMAND_LOCAL, UNSPECIFIED, &[])
}

const COMMAND_PROXY: u8 = 0x21;

// Types of extensions, and of those inside `TYPE_SSL`.
const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_VERSION: u8 = 0x21;
const SUBTYPE_SSL_CIPHER: u8 = 0x23;

/// The client came over TLS.
const CLIENT_SSL: u8 = 0x01;

/// Not zero: no certificate of the client's was verified.
const NOT_VERIFIED: u32 = 1;

/// No text in an extension is longer: names are not, and more than one of these has to fit beside the others.
const LONGEST_TEXT: usize = 255;

fn fixed(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(FIXED + block.len());
    header.extend(SIGNATURE);
    header.extend([command, family]);
    header.extend(length(block));
    header
}

fn add_tls(block: &mut Vec<u8>, tls: &Tls<'_>) {
    if let Some(alpn) = tls.alpn {
        tlv(block, TYPE_ALPN, alpn.as_bytes());
    }
    if let Some(authority) = &tls.authority {
        tlv(block, TYPE_AUTHORITY, authority.as_bytes());
    }
    let mut ssl = vec![CLIENT_SSL];
    ssl.extend(NOT_VERIFIED.to_be_bytes());
    tlv(&mut ssl, SUBTYPE_SSL_VERSION, tls.version.as_bytes());
    tlv(&mut ssl, SUBTYPE_SSL_CIPHER, tls.cipher.as_bytes());
    block.push(TYPE_SSL);
    block.extend(length(&ssl));
    block.extend(ssl);
}

fn tlv(block: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let value = value.get(..LONGEST_TEXT).unwrap_or(value);
    block.push(kind);
    block.extend(length(value));
    block.extend(value);
}

/// All that is ever in a block is far below the most it may have.
fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn six(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}
