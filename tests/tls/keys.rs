//! What happens to keys after the handshake: updates, limits, suites and versions of the record layer.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use rustls::{ClientConfig, SupportedCipherSuite, crypto::aws_lc_rs};

use crate::support::{
    Authority, Backend, Gate, Variant,
    client::{self, Tls, read_all},
    gate::{https, pool},
    tags::End,
};

/// A client that offers this suite alone, through a gate in this variant.
fn connected(gate: &Gate, suite: SupportedCipherSuite) -> Tls {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![suite];
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(Authority::roots())
        .with_no_client_auth();
    client::handshake(client::connect(gate.address("https")), "foobar.com", Arc::new(config)).unwrap()
}

/// Sends `length` bytes of a pattern in pieces of every size and expects them back.
fn echoes(client: &mut Tls, length: usize) {
    let pattern: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
    let (mut sent, mut piece) = (0, 1);
    while sent < length {
        let end = (sent + piece).min(length);
        client.write_all(&pattern[sent..end]).unwrap();
        client.flush().unwrap();
        let mut back = vec![0; end - sent];
        client.read_exact(&mut back).unwrap();
        assert!(back == pattern[sent..end], "bytes {sent} to {end}");
        (sent, piece) = (end, piece * 3);
    }
}

#[test]
fn every_suite_of_both_versions_carries_every_size_of_write() {
    let backend = Backend::echo();
    for variant in [Variant::AUTO, Variant::RUSTLS] {
        let gate = Gate::plan(&(https("") + &pool("", &[backend.address]))).variant(variant).start();
        let suites: Vec<_> = aws_lc_rs::ALL_CIPHER_SUITES
            .iter()
            // The certificate of the harness is an ECDSA one.
            .filter(|suite| !format!("{:?}", suite.suite()).contains("_RSA_"))
            .collect();
        assert_eq!(suites.len(), 6);
        for &&suite in &suites {
            let mut client = connected(&gate, suite);
            echoes(&mut client, 300_000);
            client.conn.send_close_notify();
            client.flush().unwrap();
            assert_eq!(read_all(&mut client), (Vec::new(), End::Eof), "{suite:?}");
        }
        gate.wait_outcome("client_closed", suites.len() as u64);
        gate.finish();
    }
}

#[test]
fn t13_key_updates_among_data_are_followed() {
    let backend = Backend::echo();
    let gate = Gate::start(&(https("") + &pool("", &[backend.address])));
    let mut client = connected(&gate, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256);
    for _ in 0..20 {
        client.conn.refresh_traffic_keys().unwrap();
        echoes(&mut client, 100_000);
    }
    client.conn.send_close_notify();
    client.flush().unwrap();
    assert_eq!(read_all(&mut client), (Vec::new(), End::Eof));
    gate.wait_outcome("client_closed", 1);
    gate.finish();
}

#[test]
fn t13_a_storm_of_key_updates_is_ended() {
    let backend = Backend::echo();
    let gate = Gate::start(&(https("") + &pool("", &[backend.address])));
    let mut client = connected(&gate, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256);
    for _ in 0..1_000 {
        if client.conn.refresh_traffic_keys().is_err() || client.flush().is_err() {
            break;
        }
    }
    let (bytes, _) = read_all(&mut client);
    assert!(bytes.is_empty());
    gate.wait_outcome("tls_error", 1);
    gate.finish();
}
