//! Every kind of check against a peer that is well and one that is not.

use std::{io::Write, net::SocketAddr};

use super::{is_up, reasons};
use crate::support::{
    Backend, Gate, WebServer,
    backend::{Refusing, Unanswering},
    gate::{backend, tcp},
};

/// What the first check makes of a backend: `None` when it is up, else the reason.
#[track_caller]
fn verdict(check: &str, address: SocketAddr) -> Option<String> {
    let pool = format!("[pool.web]\non_all_down = \"close\"\n{}", backend("b0", address, ""));
    let check = format!("[pool.web.check]\n{check}\nevery = \"10s\"\n");
    let gate = Gate::plan(&(tcp("") + &pool + &check)).checked().file("password", "from-a-file\n").start();
    let metrics = gate.metrics();
    let asked: f64 = metrics.select("sluicegate_health_checks_total", &[]).map(|series| series.value).sum();
    // The second one comes at any moment of the time between two.
    assert!(asked > 0.9, "{asked} checks");
    let reasons = reasons(&gate);
    assert_eq!(is_up(&metrics, "b0"), reasons.is_empty(), "{reasons:?}");
    reasons.first().cloned()
}

#[test]
fn tcp_asks_whether_connections_are_accepted() {
    assert_eq!(verdict("type = \"tcp\"", Backend::stall().address), None);
    assert_eq!(verdict("type = \"tcp\"", Refusing::new().address).unwrap(), "connect: connection refused");
    let full = Unanswering::new();
    assert_eq!(verdict("type = \"tcp\"\ntimeout = \"300ms\"", full.address).unwrap(), "no answer within 300ms");
}

#[test]
fn another_port_can_be_asked() {
    let (dead, well) = (Refusing::new(), Backend::stall());
    let check = format!("type = \"tcp\"\nport = {}\naddress = \"127.0.0.1\"", well.address.port());
    assert_eq!(verdict(&check, dead.address), None);
}

#[test]
fn http_asks_for_a_status_and_a_body() {
    let Some(web) = WebServer::start() else { return };
    let http = |more: &str| verdict(&format!("type = \"http\"\n{more}"), web.address);
    assert_eq!(http(""), None);
    let told = http("method = \"HEAD\"\npath = \"/x?y=1\"\nhost = \"foobar.com\"\nbody = \"\\n\"").unwrap();
    assert!(told.contains("body"), "the answer to HEAD has none: {told}");
    assert_eq!(http("body = \"of the\""), None);
    assert_eq!(http("path = \"/sick\"").unwrap(), "HTTP status 503, 200-299 expected");
    assert_eq!(http("path = \"/sick\"\nexpect = \"500-599\""), None);
    let told = http("body = \"healthy\"").unwrap();
    assert!(told.contains("does not contain \"healthy\"") && told.contains("all of the answer"), "{told}");
    let told = verdict("type = \"http\"", Backend::greeting(b"220 mail\r\n").address).unwrap();
    assert!(told.starts_with("HTTP: "), "{told}");
    let told = verdict("type = \"http\"\ntimeout = \"300ms\"", Backend::stall().address).unwrap();
    assert_eq!(told, "connected, but no answer within 300ms");
}

#[test]
fn tls_asks_for_a_handshake_and_a_certificate_if_wanted() {
    let Some(web) = WebServer::start() else { return };
    let ask = |kind: &str, more: &str| verdict(&format!("type = \"{kind}\"\n{more}"), web.tls);
    assert_eq!(ask("tls", ""), None);
    assert_eq!(ask("tls", "verify = true\nca = \"ca.pem\"\nserver_name = \"foobar.com\""), None);
    let told = ask("tls", "ca = \"ca.pem\"\nserver_name = \"www.foobar.com\"").unwrap();
    assert!(told.starts_with("TLS handshake: ") && told.contains("certificate"), "{told}");
    let told = ask("tls", "ca = \"ca.pem\"").unwrap();
    assert!(told.contains("certificate"), "no name, so the address has to be in it: {told}");
    let told = verdict("type = \"tls\"", web.address).unwrap();
    assert!(told.starts_with("TLS handshake: "), "{told}");
    assert_eq!(ask("http", "tls = true\nca = \"ca.pem\"\nserver_name = \"foobar.com\"\nbody = \"answer\""), None);
    assert_eq!(ask("http", "tls = true\npath = \"/sick\"").unwrap(), "HTTP status 503, 200-299 expected");
    assert_eq!(ask("http", "").unwrap(), "HTTP status 400, 200-299 expected");
}

#[test]
fn send_expect_asks_for_bytes_text_or_a_pattern() {
    let ask = |more: &str, address| verdict(&format!("type = \"send_expect\"\n{more}"), address);
    let mail = Backend::greeting(b"220 mail.foobar.com ESMTP\r\n");
    assert_eq!(ask("expect = \"ESMTP\"", mail.address), None);
    assert_eq!(ask("expect = \"regex:^220 \"", mail.address), None);
    assert_eq!(ask("expect = \"hex:0d0a\"", mail.address), None);
    let echo = Backend::echo();
    assert_eq!(ask("send = \"hex:00ff\"\nexpect = \"hex:00ff\"", echo.address), None);
    let told = ask("expect = \"regex:^250 \"", Backend::named("421 \u{1b}[31m busy").address).unwrap();
    assert_eq!(told, "the answer \"421 \\u{1b}[31m busy\" is not what is expected");
    let locked = Backend::greeting(b"-NOAUTH Authentication required.\r\n");
    let told = ask("expect = \"+PONG\"\ntimeout = \"300ms\"", locked.address).unwrap();
    assert_eq!(told, "\"-NOAUTH Authentication required.\\r\\n\" is all that came within 300ms");
    let silent = Backend::start(|mut stream, _| drop(stream.flush()));
    assert_eq!(ask("expect = \"x\"", silent.address).unwrap(), "connection closed without an answer");
    let told = ask("send = \"QUIT\"\nexpect = \"x\"\ntimeout = \"300ms\"", Backend::stall().address).unwrap();
    assert_eq!(told, "connected, but no answer within 300ms");
}

#[test]
fn mysql_refuses_what_does_not_speak_it() {
    let ask = |address| verdict("type = \"mysql\"\nuser = \"u\"\npassword = \"file:password\"", address);
    for hostile in [&b"\x00\x00\x00\x00"[..], b"\x01\x00\x00\x00\x0a", b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xff; 64]]
    {
        let answers = Backend::start(move |mut stream, _| drop(stream.write_all(hostile)));
        assert!(ask(answers.address).is_some(), "{hostile:?}");
    }
    assert_eq!(ask(Refusing::new().address).unwrap(), "mysql: connection refused");
}

#[test]
fn o6_a_password_is_in_no_message() {
    let toml = tcp("")
        + &backend("b0", Refusing::new().address, "")
        + "[pool.web.check]\ntype = \"mysql\"\nuser = \"u\"\npassword = \"hunter2\"\nevery = \"100ms\"\n";
    let gate = Gate::plan(&(toml + "[log]\nlevel = \"debug\"\n")).checked().start();
    gate.wait_metrics("a few checks", |m| m.count("sluicegate_health_checks_total", &[("result", "refused")]) > 3);
    assert!(!gate.process.stderr.text().contains("hunter2"));
}

#[test]
fn b4_a_check_goes_on_and_says_nothing_more() {
    let backend = Backend::stall();
    let check = "[pool.web]\ncheck = { type = \"tcp\", every = \"50ms\" }\n";
    let gate = Gate::plan(&(tcp("") + check + &super::backends(&[backend.address]))).checked().start();
    let lines = gate.process.stderr.all().len();
    gate.wait_metrics("20 checks", |m| m.count("sluicegate_health_checks_total", &[("result", "ok")]) > 20);
    assert_eq!(gate.process.stderr.all().len(), lines, "a check is no event: {}", gate.process.stderr.text());
    drop(backend);
    gate.wait_metrics("down", |m| !is_up(m, "b0"));
    let more: Vec<_> = gate.process.stderr.all().split_off(lines);
    assert!(more.len() <= 2 && more[0].contains("backend is down"), "{more:?}");
}
