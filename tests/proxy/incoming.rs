//! Every vector through the running program: in pieces, with payload glued to it, and with a `ClientHello`.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    Origin, brought_by,
    vectors::{accepted, refused},
};
use crate::support::{
    Backend, Gate,
    client::{self, read_all},
    gate::{https, pool, tcp, word},
    hello::Hello,
    tags::End,
};

const PAYLOAD: &[u8] = b"payload\r\nPROXY UNKNOWN\r\n\0";

/// Both listeners, for whom everyone is a balancer.
fn gate(backend: &Backend) -> Gate {
    let listeners = [tcp(""), brought_by("tcp", "0.0.0.0/0"), https(""), brought_by("https", "0.0.0.0/0")];
    Gate::start(&[listeners.concat(), pool("", &[backend.address])].concat())
}

/// Sends it cut at these places, slowly enough for each piece to come alone.
fn send(stream: &mut TcpStream, bytes: &[u8], cuts: &[usize]) {
    let mut ends: Vec<_> = cuts.iter().copied().filter(|cut| *cut < bytes.len()).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut begin = 0;
    for end in ends {
        stream.write_all(&bytes[begin..end]).unwrap();
        begin = end;
        thread::sleep(Duration::from_millis(2));
    }
}

/// In one piece; in the middle; before the last byte; behind the header; inside the payload; around the fixed part.
fn shapes(header: usize) -> [Vec<usize>; 6] {
    [vec![], vec![header / 2], vec![header - 1], vec![header], vec![header + 3], vec![1, 12, 13, 16, header]]
}

#[track_caller]
fn assert_client(gate: &Gate, count: usize, expected: SocketAddr, peer: SocketAddr) {
    let record = gate.wait_records(count).pop().unwrap();
    assert_eq!(word(&record, "client"), expected.to_string(), "{record}");
    let told = record.get("peer").map(|peer| peer.as_str().unwrap().to_owned());
    assert_eq!(told, (peer != expected).then(|| peer.to_string()), "{record}");
}

#[test]
fn p7_p8_every_good_header_is_taken_in_whatever_pieces_and_the_payload_is_exact() {
    let backend = Backend::echo();
    let gate = gate(&backend);
    let mut count = 0;
    for (header, origin) in accepted() {
        let bytes = [&header, PAYLOAD].concat();
        for cuts in shapes(header.len()) {
            let mut stream = client::connect(gate.address("tcp"));
            let peer = stream.local_addr().unwrap();
            send(&mut stream, &bytes, &cuts);
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut stream), (PAYLOAD.to_vec(), End::Eof), "{header:?} cut at {cuts:?}");
            count += 1;
            let Origin::Client { source, .. } = origin else {
                assert_client(&gate, count, peer, peer);
                continue;
            };
            assert_client(&gate, count, source, peer);
        }
    }
    let metrics = gate.metrics();
    let headers = metrics.count("sluicegate_proxy_headers_total", &[("listener", "tcp")]);
    assert_eq!((headers, metrics.count("sluicegate_proxy_header_failures_total", &[])), (count as u64, 0));
    assert!(metrics.count("sluicegate_proxy_headers_total", &[("version", "v1")]) > 0);
    gate.finish();
}

#[test]
fn p7_p8_a_client_hello_glued_to_a_header_is_a_whole_one() {
    let backend = Backend::echo();
    let gate = gate(&backend);
    let config = Arc::new(client::config(rustls::ALL_VERSIONS));
    let mut count = 0;
    for (header, origin) in accepted() {
        for cuts in
            [vec![], vec![header.len() - 1], vec![header.len()], vec![header.len() + 7], vec![7, header.len() + 1]]
        {
            let hello = Hello::new("foobar.com", Arc::clone(&config));
            let mut stream = client::connect(gate.address("https"));
            let peer = stream.local_addr().unwrap();
            send(&mut stream, &[header.clone(), hello.whole()].concat(), &cuts);
            let mut tls = hello.finish(stream).unwrap();
            client::exchange(&mut tls, PAYLOAD);
            drop(tls);
            count += 1;
            let Origin::Client { source, .. } = origin else {
                assert_client(&gate, count, peer, peer);
                continue;
            };
            assert_client(&gate, count, source, peer);
        }
    }
    gate.finish();
}

#[test]
fn p1_p2_p7_what_is_no_header_is_closed_and_no_backend_hears_of_it() {
    let backend = Backend::echo();
    let gate = gate(&backend);
    let mut count = 0;
    for (bytes, failure) in refused() {
        for cuts in [vec![], vec![bytes.len() / 2], vec![1, bytes.len() - 1]] {
            let mut stream = client::connect(gate.address("tcp"));
            // It may be refused while it is sent.
            let mut begin = 0;
            for end in cuts.into_iter().chain([bytes.len()]).filter(|end| *end > 0) {
                let _ = stream.write_all(&bytes[begin..end]);
                begin = end;
                thread::sleep(Duration::from_millis(1));
            }
            if failure.is_none() {
                let _ = stream.shutdown(Shutdown::Write);
            }
            let (said, _) = read_all(&mut stream);
            assert_eq!(said, b"", "{bytes:?}");
            count += 1;
        }
    }
    let metrics = gate.wait_outcome("bad_proxy_header", count);
    assert_eq!(metrics.count("sluicegate_proxy_header_failures_total", &[]), count);
    for reason in ["missing", "malformed", "too_long", "checksum", "incomplete"] {
        let expected = refused().iter().filter(|(_, failure)| word_for(*failure) == reason).count() as u64 * 3;
        assert_eq!(super::failures(&metrics, reason), expected, "{reason}");
    }
    assert_eq!(backend.accepted(), 0);
    for record in gate.wait_records(count as usize) {
        assert_eq!(
            (word(&record, "outcome"), &record["backend"]),
            ("bad_proxy_header".to_owned(), &serde_json::Value::Null)
        );
    }
    gate.finish();
}

fn word_for(failure: Option<super::Failure>) -> &'static str {
    use sluicegate::metrics::Label as _;
    failure.map_or("incomplete", |failure| failure.as_str())
}

/// Who closes before the first byte of a header is a port probe: counted, not logged, no failure (traps O8).
#[test]
fn o8_a_balancer_that_only_connects_is_no_failure() {
    let backend = Backend::echo();
    let gate = gate(&backend);
    for listener in client::PLAIN_AND_TLS {
        drop(client::connect(gate.address(listener)));
        client::reset(client::connect(gate.address(listener)));
    }
    let metrics = gate.wait_outcome("client_closed", 4);
    assert_eq!(metrics.count("sluicegate_proxy_header_failures_total", &[]), 0);
    assert_eq!((gate.records().len(), backend.accepted()), (0, 0));
    // One that checks our health says that it is only that, and nothing more.
    let mut stream = client::connect(gate.address("tcp"));
    stream.write_all(&sluicegate::proxy_protocol::encode::local()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let _ = stream.read(&mut [0]);
    gate.wait_outcome("client_closed", 5);
    assert_eq!(gate.records().len(), 0);
}
