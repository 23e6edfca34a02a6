//! Headers and what is none: from the specification, and from what other receivers got wrong. The tests of the decoder and
//! those of the whole program read them.

use super::{Failure, LONGEST_V1, Origin};

/// Most bytes behind the fixed part of version 2, wherever these are used.
pub const MOST: u16 = 4096;

fn client(source: &str, destination: &str) -> Origin {
    Origin::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// The fixed part of version 2 with these two bytes and this length, and a block.
pub fn v2(command: u8, family: u8, length: u16, block: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend(length.to_be_bytes());
    header.extend(block);
    header
}

/// As [`v2`], with the length that the block has.
pub fn whole(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    v2(command, family, u16::try_from(block.len()).unwrap(), block)
}

pub const FOUR: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x04, 0xd2, 0x16, 0x2e];

fn six() -> Vec<u8> {
    let ip = |last: u8| [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[last]].concat();
    [ip(1), ip(2), vec![0x04, 0xd2, 0x16, 0x2e]].concat()
}

pub fn with_checksum(mut block: Vec<u8>, wrong_by: u32) -> Vec<u8> {
    block.extend([3, 0, 4, 0, 0, 0, 0]);
    let mut header = whole(0x21, 0x11, &block);
    let crc = crc32c(&header) ^ wrong_by;
    let place = header.len() - 4;
    header[place..].copy_from_slice(&crc.to_be_bytes());
    header
}

/// Bit by bit, as RFC 3720 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Headers that are good, and what they say.
pub fn accepted() -> Vec<(Vec<u8>, Origin)> {
    let text = |line: &str| line.as_bytes().to_vec();
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 16));
    assert_eq!(longest.len(), LONGEST_V1);
    let four = client("192.0.2.1:1234", "192.0.2.2:5678");
    let authority = [&FOUR[..], &[2, 0, 5], b"12345"].concat();
    vec![
        (text("PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678\r\n"), four),
        (text("PROXY TCP6 ::1 ::1 0 65535\r\n"), client("[::1]:0", "[::1]:65535")),
        (text("PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.1 1 2\r\n"), client("127.0.0.1:1", "127.0.0.1:2")),
        (text("PROXY UNKNOWN\r\n"), Origin::Unknown),
        (text("PROXY UNKNOWN ffff:f...f:ffff 1 2 3\r\n"), Origin::Unknown),
        (b"PROXY UNKNOWN \xff\xfe\r\n".to_vec(), Origin::Unknown),
        (longest.into_bytes(), Origin::Unknown),
        (whole(0x21, 0x11, &FOUR), four),
        (whole(0x21, 0x21, &six()), client("[2001:db8::1]:1234", "[2001:db8::2]:5678")),
        (whole(0x20, 0x00, &[]), Origin::Local),
        (whole(0x20, 0x00, &[0, 0, 1, 0xff]), Origin::Local),
        (whole(0x20, 0x00, &[0, 0, 4, 10, 11, 12, 13]), Origin::Local),
        (whole(0x20, 0xff, &[1, 2, 3]), Origin::Local),
        (whole(0x20, 0x11, &[]), Origin::Local),
        (whole(0x21, 0x11, &authority), four),
        (with_checksum(FOUR.to_vec(), 0), four),
        (with_checksum(authority, 0), four),
        (whole(0x21, 0x00, &[]), Origin::Unknown),
        (whole(0x21, 0x00, &[7; 300]), Origin::Unknown),
        (whole(0x21, 0x31, &[b'a'; 216]), Origin::Unknown),
        (whole(0x21, 0x32, &[b'a'; 216]), Origin::Unknown),
        (whole(0x21, 0x12, &FOUR), Origin::Unknown),
        (whole(0x21, 0x22, &six()), Origin::Unknown),
        (whole(0x21, 0x11, &[&FOUR[..], &[0xea, 0x0f, 0xf1], &[9; 4081]].concat()), four),
        (whole(0x21, 0x00, &[7; MOST as usize]), Origin::Unknown),
    ]
}

/// What is no header, and why. `None`: more could make it one, so nothing but the end of the connection tells.
pub fn refused() -> Vec<(Vec<u8>, Option<Failure>)> {
    let line = |line: &str| line.as_bytes().to_vec();
    let malformed = |line: &str| (line.as_bytes().to_vec(), Some(Failure::Malformed));
    let missing = |text: &str| (text.as_bytes().to_vec(), Some(Failure::Missing));
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 15));
    let bad = |header: Vec<u8>| (header, Some(Failure::Malformed));
    let tlv = |bytes: &[u8]| whole(0x21, 0x11, &[&FOUR[..], bytes].concat());
    vec![
        (line("PROX"), None),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678"), None),
        (line("PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678\r"), None),
        malformed("PROXY \n"),
        malformed("PROXY UNKNOWN\n"),
        malformed("PROXY UNKNOWN\rx"),
        missing("PROXY\r\n"),
        malformed("PROXY SOMETHING\r\n"),
        malformed("PROXY UNKNOWNX\r\n"),
        malformed("PROXY  TCP4 192.0.2.1 192.0.2.2 1234 5678\r\n"),
        malformed("PROXY TCP4  192.0.2.1 192.0.2.2 1234 5678\r\n"),
        malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678 \r\n"),
        malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1234\r\n"),
        missing("proxy TCP4 192.0.2.1 192.0.2.2 1234 5678\r\n"),
        malformed("PROXY tcp4 192.0.2.1 192.0.2.2 1234 5678\r\n"),
        malformed("PROXY TCP4 192.0.2.1\x00192.0.2.2 1234 5678\r\n"),
        malformed("PROXY UNKNOWN \0\r\n"),
        (too_long.into_bytes(), Some(Failure::TooLong)),
        ([b"PROXY ", &[b'A'; 200][..]].concat(), Some(Failure::TooLong)),
        malformed("PROXY TCP4 ::1 ::1 1 2\r\n"),
        malformed("PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n"),
        malformed("PROXY TCP4 ::ffff:127.0.0.1 ::ffff:127.0.0.1 1 2\r\n"),
        malformed("PROXY TCP4 256.0.0.1 192.0.2.2 1 2\r\n"),
        malformed("PROXY TCP4 0300.0.0.1 192.0.2.2 1 2\r\n"),
        malformed("PROXY TCP4 192.0.2.1 192.0.2.2 01234 2\r\n"),
        malformed("PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n"),
        malformed("PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n"),
        malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1 +1\r\n"),
        malformed("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n"),
        missing("GET / HTTP/1.1\r\n\r\n"),
        (vec![0x16, 0x03, 0x01], Some(Failure::Missing)),
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), Some(Failure::Missing)),
        bad(v2(0x11, 0x11, 12, &FOUR)),
        bad(v2(0x31, 0x11, 12, &FOUR)),
        bad(v2(0x22, 0x11, 12, &FOUR)),
        bad(v2(0x23, 0x1f, 12, &FOUR)),
        bad(v2(0x2f, 0x11, 12, &FOUR)),
        bad(v2(0x21, 0x41, 12, &FOUR)),
        bad(v2(0x21, 0xf1, 12, &FOUR)),
        bad(v2(0x21, 0x13, 12, &FOUR)),
        bad(v2(0x21, 0x1f, 12, &FOUR)),
        bad(v2(0x21, 0x10, 12, &FOUR)),
        bad(v2(0x21, 0x01, 12, &FOUR)),
        bad(v2(0x21, 0x11, 4, &FOUR[..4])),
        bad(v2(0x21, 0x21, 12, &FOUR)),
        bad(v2(0x21, 0x31, 12, &FOUR)),
        bad(tlv(&[2, 0, 10, 1, 2, 3])),
        bad(tlv(&[2, 0xff, 0xff, 1, 2, 3])),
        bad(tlv(&[2, 0])),
        bad(tlv(&[2])),
        bad(tlv(&[3, 0, 3, 1, 2, 3])),
        bad(tlv(&[3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0])),
        (with_checksum(FOUR.to_vec(), 1), Some(Failure::Checksum)),
        (with_checksum(FOUR.to_vec(), 0x8000_0000), Some(Failure::Checksum)),
        (v2(0x21, 0x11, MOST + 1, &[]), Some(Failure::TooLong)),
        (v2(0x20, 0x00, u16::MAX, &[]), Some(Failure::TooLong)),
        (v2(0x21, 0x11, 12, &FOUR)[..15].to_vec(), None),
        (v2(0x21, 0x11, 12, &FOUR)[..27].to_vec(), None),
    ]
}
