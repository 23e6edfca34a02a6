//! Versions, suites, groups, resumption.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};

use super::Site;
use crate::support::{
    Backend, Gate, client,
    client::Tls,
    gate::{https, pool},
};

#[test]
fn openssl_is_served_over_both_versions() {
    let Some(site) = Site::start("") else { return };
    for (flag, version, label) in [("-tls1_2", "TLSv1.2", "1.2"), ("-tls1_3", "TLSv1.3", "1.3")] {
        let report = site.served(&[flag, "-servername", "foobar.com", "-verify_return_error"]);
        assert!(report.contains(&format!("New, {version}")), "{report}");
        assert!(report.contains("Verify return code: 0 (ok)"), "{report}");
        let labels = [("version", label), ("resumed", "false")];
        site.gate.wait_metrics("the handshake", |m| m.count("sluicegate_tls_handshakes_total", &labels) == 1);
    }
    let versions: Vec<_> = site.gate.wait_records(2).iter().map(|r| r["tls"]["version"].clone()).collect();
    assert_eq!(versions, ["1.2", "1.3"]);
}

#[test]
fn tls_1_1_is_refused() {
    let Some(site) = Site::start("") else { return };
    site.refused(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "SSL alert number");
    site.gate.wait_outcome("tls_error", 1);
}

#[test]
fn min_version_1_3_refuses_1_2() {
    let Some(site) = Site::start("min_version = \"1.3\"") else { return };
    site.served(&["-tls1_3", "-servername", "foobar.com"]);
    site.refused(&["-tls1_2", "-servername", "foobar.com"], "alert number 70");
    site.gate.wait_outcome("tls_error", 1);
}

#[test]
fn aes_128_comes_first_whatever_the_client_prefers() {
    let Some(site) = Site::start("") else { return };
    let report = site.served(&["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"]);
    assert!(report.contains("Cipher is TLS_AES_128_GCM_SHA256"), "{report}");
    let offer = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256";
    let report = site.served(&["-tls1_2", "-cipher", offer]);
    assert!(report.contains("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"), "{report}");
    let report = site.served(&["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"]);
    assert!(report.contains("Cipher is TLS_AES_256_GCM_SHA384"), "{report}");
}

#[test]
fn classic_groups_are_served() {
    let Some(site) = Site::start("") else { return };
    for group in ["X25519", "P-256", "P-384"] {
        site.served(&["-groups", group]);
    }
}

#[test]
fn a_session_is_resumed_in_both_versions() {
    let Some(site) = Site::start("") else { return };
    for (flag, version) in [("-tls1_2", "1.2"), ("-tls1_3", "1.3")] {
        let file = format!("session{flag}");
        let report = site.served(&[flag, "-servername", "foobar.com", "-sess_out", &file]);
        assert!(report.contains("New, "), "{report}");
        let report = site.served(&[flag, "-servername", "foobar.com", "-sess_in", &file]);
        assert!(report.contains("Reused, "), "{report}");
        let labels = [("version", version), ("resumed", "true")];
        site.gate.wait_metrics("a resumption", |m| m.count("sluicegate_tls_handshakes_total", &labels) == 1);
    }
    let resumed: Vec<_> = site.gate.wait_records(4).iter().map(|r| r["tls"]["resumed"].clone()).collect();
    assert_eq!(resumed, [false, true, false, true]);
}

fn echo_gate(backend: &Backend) -> Gate {
    Gate::start(&(https("") + &pool("", &[backend.address])))
}

fn end(mut stream: Tls) {
    client::Stream::finish_sending(&mut stream);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_with_post_quantum_keys_gets_them() {
    let backend = Backend::echo();
    let gate = echo_gate(&backend);
    let mut stream = client::connect_tls(gate.address("https"));
    client::exchange(&mut stream, b"hello");
    let group = stream.conn.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
    assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
    let suite = stream.conn.negotiated_cipher_suite().map(|suite| suite.suite());
    assert_eq!(suite, Some(CipherSuite::TLS13_AES_128_GCM_SHA256));
    end(stream);
    gate.wait_outcome("client_closed", 1);
    gate.finish();
}

/// T5: a ticket resumes, carries no early data, and each connection brings a new one.
#[test]
fn t5_tickets_resume_and_early_data_is_not_offered() {
    let backend = Backend::echo();
    let gate = echo_gate(&backend);
    let config = client::config_with(|config| config.enable_early_data = true);
    for round in 0..3 {
        let stream = client::connect(gate.address("https"));
        let mut stream = client::handshake(stream, "foobar.com", Arc::clone(&config)).unwrap();
        assert!(stream.conn.early_data().is_none() && !stream.conn.is_early_data_accepted());
        client::exchange(&mut stream, b"take the ticket");
        let kind = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(stream.conn.handshake_kind(), Some(kind), "round {round}");
        end(stream);
    }
    gate.finish();
}

#[test]
fn both_workers_know_each_others_tickets() {
    let backend = Backend::echo();
    let gate = echo_gate(&backend);
    let config = Arc::new(client::config(&[&rustls::version::TLS12]));
    for round in 0..12 {
        let stream = client::connect(gate.address("https"));
        let mut stream = client::handshake(stream, "foobar.com", Arc::clone(&config)).unwrap();
        stream.write_all(b"x").unwrap();
        assert_eq!(stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        assert_eq!(stream.conn.handshake_kind() == Some(HandshakeKind::Resumed), round > 0, "round {round}");
        stream.read_exact(&mut [0]).unwrap();
        end(stream);
    }
    gate.finish();
}
