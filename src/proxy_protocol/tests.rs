//! Every vector at every split, random and mutated headers, and what is written read again.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::{
    Decoder, FIXED_V2, Failure, Header, LONGEST_V1, Origin, Version, encode,
    vectors::{FOUR, MOST, accepted, refused, whole, with_checksum},
};
use crate::address::canonical;

/// What came of some pieces: the header with its length, nothing yet, or why there is none.
type Verdict = Result<Option<(Header, usize)>, Failure>;

fn decode<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Verdict {
    let mut decoder = Decoder::new(MOST);
    let mut taken = 0;
    for piece in pieces {
        // No more is looked at than may belong to it.
        for looked_at in piece.chunks(decoder.appetite().max(1)) {
            let step = decoder.take(looked_at)?;
            taken += step.length;
            if let Some(header) = step.header {
                return Ok(Some((header, taken)));
            }
            assert_eq!(step.length, looked_at.len(), "what is not complete takes everything");
        }
    }
    Ok(None)
}

/// Every place where `length` bytes can be cut. In the middle of a long block one is like the other.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..=length).filter(move |cut| *cut < 250 || length - cut < 20 || cut % 512 == 0)
}

#[test]
fn p8_every_vector_is_accepted_at_every_split_with_and_without_payload() {
    for (header, origin) in accepted() {
        let version = if header[0] == b'P' { Version::V1 } else { Version::V2 };
        let expected = Ok(Some((Header { version, origin }, header.len())));
        for payload in [&b""[..], b"\r\n", b"\0", b"payload", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n", &[0x16, 3, 1]] {
            let bytes = [&header, payload].concat();
            assert_eq!(decode([&bytes[..]]), expected, "{bytes:?}");
            assert_eq!(decode(bytes.chunks(1)), expected, "{bytes:?}");
            for cut in cuts(bytes.len()) {
                assert_eq!(decode([&bytes[..cut], &bytes[cut..]]), expected, "{bytes:?} at {cut}");
            }
        }
        for end in cuts(header.len() - 1) {
            assert_eq!(decode([&header[..end]]), Ok(None), "{header:?} to {end}");
        }
    }
}

#[test]
fn p8_every_bad_vector_is_refused_at_every_split() {
    for (bytes, failure) in refused() {
        let expected = failure.map_or(Ok(None), Err);
        assert_eq!(decode([&bytes[..]]), expected, "{bytes:?}");
        assert_eq!(decode(bytes.chunks(1)), expected, "{bytes:?}");
        for cut in 0..=bytes.len() {
            assert_eq!(decode([&bytes[..cut], &bytes[cut..]]), expected, "{bytes:?} at {cut}");
        }
    }
}

#[test]
fn p2_a_line_without_end_is_refused_when_107_bytes_were_looked_at() {
    let endless = [b"PROXY ", &vec![b'A'; 1_000_000][..]].concat();
    let mut decoder = Decoder::new(MOST);
    let mut looked_at = 0;
    let failure = endless.iter().find_map(|byte| {
        assert!(decoder.appetite() <= LONGEST_V1 - looked_at);
        looked_at += 1;
        decoder.take(&[*byte]).err()
    });
    assert_eq!((failure, looked_at), (Some(Failure::TooLong), LONGEST_V1));
}

/// The appetite never goes past the end of the header, so nothing of the payload need be looked at once the length is known;
/// and the decoder is as small with a large block as with none.
#[test]
fn p7_memory_and_appetite_are_bounded() {
    assert!(size_of::<Decoder>() <= 160, "{}", size_of::<Decoder>());
    let header = whole(0x21, 0x00, &[7; MOST as usize]);
    let mut decoder = Decoder::new(MOST);
    for (index, byte) in header.iter().enumerate() {
        let left = if index < FIXED_V2 { LONGEST_V1.max(FIXED_V2) } else { header.len() - index };
        assert!(decoder.appetite() <= left, "{index}");
        assert!(decoder.take(&[*byte]).is_ok());
    }
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        any::<[u8; 4]>().prop_map(|four| IpAddr::V6(std::net::Ipv4Addr::from(four).to_ipv6_mapped())),
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| canonical(SocketAddr::new(ip, port)))
}

/// Vectors with a few bytes changed, added or removed, and bytes that were never a header.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let vectors: Vec<Vec<u8>> =
        accepted().into_iter().map(|(header, _)| header).chain(refused().into_iter().map(|(bytes, _)| bytes)).collect();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..3_usize, any::<Option<u8>>()), 0..4);
    let mutated = (prop::sample::select(vectors), edits, any::<Vec<u8>>()).prop_map(|(mut bytes, edits, payload)| {
        for (at, removed, added) in edits {
            let at = at.index(bytes.len() + 1);
            let end = bytes.len().min(at + removed);
            bytes.splice(at..end, added);
        }
        [bytes, payload].concat()
    });
    prop_oneof![1 => any::<Vec<u8>>(), 8 => mutated]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// In whatever pieces, the same as at once; never more than the header; never a panic.
    #[test]
    fn p8_fragments_make_no_difference(bytes in hostile(), cuts in prop::collection::vec(1..9_usize, 1..20)) {
        let at_once = decode([&bytes[..]]);
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, more) = rest.split_at(rest.len().min(*cut));
            pieces.push(piece);
            rest = more;
        }
        prop_assert_eq!(&decode(pieces), &at_once);
        if let Ok(Some((header, length))) = at_once {
            prop_assert!(length <= bytes.len());
            match header.version {
                Version::V1 => {
                    prop_assert!(length <= LONGEST_V1 && bytes[..length].ends_with(b"\r\n"));
                    prop_assert!(!bytes[..length - 2].contains(&b'\n'));
                }
                Version::V2 => {
                    prop_assert_eq!(length, FIXED_V2 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]])));
                }
            }
            // What follows is nobody's business.
            prop_assert_eq!(decode([&bytes[..length]]), at_once);
        }
    }

    #[test]
    fn p9_what_is_written_is_read_again(
        source in address(),
        destination in address(),
        alpn in prop::option::of("[a-z/0-9.]{1,300}"),
        authority in prop::option::of("[a-z.]{1,300}"),
        tls in any::<bool>(),
    ) {
        let tls = tls.then(|| encode::Tls {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
            alpn: alpn.as_deref(),
            authority: authority.clone(),
        });
        let origin = Origin::Client { source, destination };
        for (version, header) in [
            (Version::V1, encode::v1(source, destination)),
            (Version::V2, encode::v2(source, destination, tls.as_ref())),
        ] {
            prop_assert_eq!(decode([&header[..]]), Ok(Some((Header { version, origin }, header.len()))));
            prop_assert!(version == Version::V2 || header.len() <= LONGEST_V1);
            // A changed byte of what is behind the fixed part does not go unnoticed.
            if version == Version::V2 {
                let mut changed = header.clone();
                changed[FIXED_V2 + 3] ^= 1;
                prop_assert_eq!(decode([&changed[..]]), Err(Failure::Checksum));
            }
        }
    }
}

#[test]
fn a_local_header_is_the_shortest_there_is() {
    let header = encode::local();
    let expected = Header { version: Version::V2, origin: Origin::Local };
    assert_eq!((header.len(), decode([&header[..]])), (FIXED_V2, Ok(Some((expected, FIXED_V2)))));
}

/// To the byte: what is inside the extension for TLS.
#[test]
fn p9_the_extensions_stand_where_the_specification_has_them() {
    let tls = encode::Tls {
        version: "TLSv1.3",
        cipher: "C".to_owned(),
        alpn: Some("h2"),
        authority: Some("foobar.com".to_owned()),
    };
    let [source, destination] = ["192.0.2.1:1234", "192.0.2.2:5678"].map(|address| address.parse().unwrap());
    let header = encode::v2(source, destination, Some(&tls));
    let mut block = FOUR.to_vec();
    block.extend([&[1, 0, 2][..], b"h2", &[2, 0, 10], b"foobar.com"].concat());
    block.extend([&[0x20, 0, 19, 1, 0, 0, 0, 1][..], &[0x21, 0, 7], b"TLSv1.3", &[0x23, 0, 1], b"C"].concat());
    assert_eq!(header, with_checksum(block, 0));
}
