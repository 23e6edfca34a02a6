//! What has to hold for the decoder of PROXY headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sluicegate::proxy_protocol::{Decoder, FIXED_V2, Failure, Header, LONGEST_V1, Origin, Version, encode};

/// Most bytes behind the fixed part of version 2: the default.
const MOST: u16 = 4096;

/// No header is longer, so no decision needs more bytes.
const LONGEST: usize = FIXED_V2 + MOST as usize;

/// Cuts up to here are asked about one by one: lines, fixed parts, addresses, the first extensions; of others, one in so many.
const EACH: usize = LONGEST_V1 + 4;
const STEP: usize = 509;

/// The header and its length, why there is none, or nothing yet.
type Verdict = Result<Option<(Header, usize)>, Failure>;

/// The verdict is the same in whatever pieces the bytes come, stands with more behind it, is that of a simple reader, and
/// comes in time; what is told can be told on.
pub fn proxy_protocol(bytes: &[u8]) {
    let (verdict, decided) = one_by_one(bytes);
    let cuts = (0..=bytes.len()).filter(|cut| *cut <= EACH || cut.abs_diff(decided) < 3 || cut % STEP == 0);
    for cut in cuts {
        let (before, after) = bytes.split_at(cut);
        let expected = if cut < decided { Ok(None) } else { verdict };
        assert_eq!(decode(&[before]), expected, "of {cut} bytes");
        assert_eq!(decode(&[before, after]), verdict, "cut at {cut}");
    }
    let (header, behind) = bytes.split_at(decided);
    for more in [&b""[..], b"\0", b"\r\n", b"PROXY UNKNOWN\r\n", behind] {
        let expected = if verdict == Ok(None) && !more.is_empty() { continue } else { verdict };
        assert_eq!(decode(&[&[header, more].concat()]), expected, "with {more:?} behind it");
    }
    match (verdict, simply(bytes)) {
        (Ok(Some((header, length))), Some(Ok((origin, end)))) => {
            assert_eq!((header.origin, length), (origin, end));
            assert_eq!(header.version == Version::V1, bytes[0] == b'P');
            is_told_on(origin);
        }
        (Ok(None), None) | (Err(_), Some(Err(())) | None) => {}
        (ours, simple) => panic!("{ours:?}, but {simple:?}"),
    }
}

/// Each byte alone; with the verdict comes how many it took.
fn one_by_one(bytes: &[u8]) -> (Verdict, usize) {
    let mut decoder = Decoder::new(MOST);
    for (index, byte) in bytes.iter().enumerate() {
        assert!(decoder.appetite() > 0, "it waits for nothing");
        assert!(index + decoder.appetite() <= LONGEST, "it waits for more than there may be");
        let seen = index + 1;
        match decoder.take(&[*byte]) {
            Ok(taken) => {
                assert_eq!(taken.length, 1);
                if let Some(header) = taken.header {
                    return (Ok(Some((header, seen))), seen);
                }
            }
            Err(failure) => return (Err(failure), seen),
        }
        assert!(seen < LONGEST && (bytes[0] != b'P' || seen < LONGEST_V1), "undecided after {seen} bytes");
    }
    (Ok(None), bytes.len())
}

fn decode(pieces: &[&[u8]]) -> Verdict {
    let mut decoder = Decoder::new(MOST);
    let mut before = 0;
    for piece in pieces {
        let taken = decoder.take(piece)?;
        assert!(taken.length <= piece.len(), "more than was given");
        before += taken.length;
        if let Some(header) = taken.header {
            return Ok(Some((header, before)));
        }
        assert_eq!(taken.length, piece.len(), "what is not complete takes everything");
    }
    Ok(None)
}

/// What our encoder says of an origin is read as the same one.
fn is_told_on(origin: Origin) {
    let read = |header: &[u8], version, origin| {
        assert_eq!(decode(&[header]), Ok(Some((Header { version, origin }, header.len()))));
    };
    if let Origin::Client { source, destination } = origin {
        let tls = encode::Tls {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
            alpn: Some("h2"),
            authority: Some("foobar.com".to_owned()),
        };
        read(&encode::v1(source, destination), Version::V1, origin);
        read(&encode::v2(source, destination, None), Version::V2, origin);
        read(&encode::v2(source, destination, Some(&tls)), Version::V2, origin);
    }
    read(&encode::local(), Version::V2, Origin::Local);
}

/// What a header says and its length, for a reader that sees all of it at once; `None`: it is not complete.
fn simply(bytes: &[u8]) -> Option<Result<(Origin, usize), ()>> {
    const LINE: &[u8] = b"PROXY ";
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    if bytes.starts_with(LINE) {
        let longest = &bytes[..bytes.len().min(LONGEST_V1)];
        let Some(end) = longest.windows(2).position(|pair| pair == b"\r\n") else {
            return (longest.len() == LONGEST_V1).then_some(Err(()));
        };
        return Some(line(&longest[LINE.len()..end]).map(|origin| (origin, end + 2)).ok_or(()));
    }
    if bytes.starts_with(SIGNATURE) {
        let (fixed, rest) = bytes.split_at_checked(FIXED_V2)?;
        let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        if length > usize::from(MOST) {
            return Some(Err(()));
        }
        let block = rest.get(..length)?;
        return Some(self::block(fixed, block).map(|origin| (origin, FIXED_V2 + length)).ok_or(()));
    }
    let can_become_one = LINE.starts_with(bytes) || SIGNATURE.starts_with(bytes);
    (!can_become_one).then_some(Err(()))
}

fn line(words: &[u8]) -> Option<Origin> {
    if words.iter().any(|byte| b"\r\n\0".contains(byte)) {
        return None;
    }
    if words == b"UNKNOWN" || words.starts_with(b"UNKNOWN ") {
        return Some(Origin::Unknown);
    }
    let words: Vec<_> = str::from_utf8(words).ok()?.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = words[..] else { return None };
    let address = |ip: &str, port: &str| {
        let ip: IpAddr = ip.parse().ok().filter(|ip: &IpAddr| family == if ip.is_ipv4() { "TCP4" } else { "TCP6" })?;
        let port = port.parse().ok().filter(|number: &u16| number.to_string() == port)?;
        Some(SocketAddr::new(ip.to_canonical(), port))
    };
    let (source, destination) = (address(source, source_port)?, address(destination, destination_port)?);
    Some(Origin::Client { source, destination })
}

fn block(fixed: &[u8], block: &[u8]) -> Option<Origin> {
    let length = match (fixed[12], fixed[13]) {
        (0x20, _) => return Some(Origin::Local),
        (0x21, 0x00) => return Some(Origin::Unknown),
        (0x21, 0x11 | 0x12) => 12,
        (0x21, 0x21 | 0x22) => 36,
        (0x21, 0x31 | 0x32) => 216,
        _ => return None,
    };
    let (addresses, mut rest) = block.split_at_checked(length)?;
    let mut checksum = None;
    while !rest.is_empty() {
        let (head, more) = rest.split_at_checked(3)?;
        let (value, more) = more.split_at_checked(usize::from(u16::from_be_bytes([head[1], head[2]])))?;
        if head[0] == 3 {
            let at = FIXED_V2 + block.len() - more.len() - value.len();
            if checksum.replace((at, <[u8; 4]>::try_from(value).ok()?)).is_some() {
                return None;
            }
        }
        rest = more;
    }
    if let Some((at, told)) = checksum {
        let mut header = [fixed, block].concat();
        header[at..at + told.len()].fill(0);
        if crc32c(&header) != u32::from_be_bytes(told) {
            return None;
        }
    }
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let pair = match fixed[13] {
        0x11 => [0, 4].map(|at| Ipv4Addr::from(<[u8; 4]>::try_from(&addresses[at..at + 4]).expect("four")).into()),
        0x21 => [0, 16].map(|at| {
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(&addresses[at..at + 16]).expect("sixteen"))).to_canonical()
        }),
        _ => return Some(Origin::Unknown),
    };
    let [source, destination]: [IpAddr; 2] = pair;
    Some(Origin::Client {
        source: SocketAddr::new(source, port(length - 4)),
        destination: SocketAddr::new(destination, port(length - 2)),
    })
}

/// Bit by bit, as RFC 3720 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
