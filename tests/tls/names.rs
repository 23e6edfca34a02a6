//! Which certificate a name gets, and which protocol.

use super::Site;

const LISTENER: &str = "[listener.https]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n[listener.https.tls]\n";

/// foobar.com first, then a wildcard, then an exact name that the wildcard covers too.
fn start(strict: bool) -> Option<Site> {
    let pair = |name| format!("{{ cert = \"{name}.pem\", key = \"{name}.key\" }}");
    let tls = format!("certificates = [{}, {}, {}]", pair("foobar.com"), pair("wild"), pair("exact"));
    let listener = format!("{LISTENER}strict_sni = {strict}\n{tls}\n");
    Site::over(&listener, |plan| {
        plan.certificate("wild", &["*.example.com"]).certificate("exact", &["api.example.com"])
    })
}

/// The common name of the certificate this name gets.
#[track_caller]
fn assert_gets(site: &Site, name: &str, subject: &str) {
    let report = site.served(&["-servername", name]);
    assert!(report.contains(&format!("subject=CN = {subject}\n")), "{name}: {report}");
}

#[test]
fn t3_a_name_is_folded_once_and_meets_one_certificate() {
    for strict in [false, true] {
        let Some(site) = start(strict) else { return };
        for (name, subject) in [
            ("foobar.com", "foobar.com"),
            ("FooBar.COM", "foobar.com"),
            ("foobar.com.", "foobar.com"),
            ("www.foobar.com", "foobar.com"),
            ("api.example.com", "api.example.com"),
            ("API.Example.com.", "api.example.com"),
            ("shop.example.com", "*.example.com"),
            ("SHOP.EXAMPLE.COM.", "*.example.com"),
        ] {
            assert_gets(&site, name, subject);
        }
        site.gate.wait_records(8);
    }
}

#[test]
fn an_unknown_name_gets_the_first_certificate() {
    let Some(site) = start(false) else { return };
    for name in ["nobody.net", "example.com", "a.b.example.com"] {
        assert_gets(&site, name, "foobar.com");
    }
    let report = site.served(&["-noservername"]);
    assert!(report.contains("subject=CN = foobar.com\n"), "{report}");
}

#[test]
fn t9_strict_sni_refuses_names_it_does_not_have() {
    let Some(site) = start(true) else { return };
    for version in ["-tls1_2", "-tls1_3"] {
        for name in ["nobody.net", "example.com", "a.b.example.com"] {
            site.refused(&[version, "-servername", name], "alert number 112");
        }
        site.refused(&[version, "-noservername"], "alert number 112");
    }
    let metrics = site.gate.wait_outcome("unknown_sni", 8);
    assert_eq!(metrics.count("sluicegate_tls_handshake_failures_total", &[]), 8);
}

#[test]
fn t9_a_shared_protocol_is_chosen_in_our_order() {
    let Some(site) = Site::start("alpn = [\"h2\", \"http/1.1\"]") else { return };
    for (offer, chosen) in [("http/1.1,h2", "h2"), ("h2", "h2"), ("ftp,http/1.1", "http/1.1")] {
        let report = site.served(&["-alpn", offer]);
        assert!(report.contains(&format!("ALPN protocol: {chosen}")), "{offer}: {report}");
    }
}

#[test]
fn t9_no_offer_is_served_and_no_overlap_is_refused() {
    let Some(site) = Site::start("alpn = [\"h2\", \"http/1.1\"]") else { return };
    let report = site.served(&[]);
    assert!(report.contains("No ALPN negotiated"), "{report}");
    for version in ["-tls1_2", "-tls1_3"] {
        site.refused(&[version, "-alpn", "ftp"], "alert number 120");
    }
    site.gate.wait_outcome("no_shared_alpn", 2);
}

#[test]
fn without_alpn_of_ours_an_offer_is_no_reason_to_refuse() {
    let Some(site) = Site::start("") else { return };
    let report = site.served(&["-alpn", "ftp,h2"]);
    assert!(report.contains("No ALPN negotiated"), "{report}");
}
