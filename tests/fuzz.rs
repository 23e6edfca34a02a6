//! What the fuzz targets ask, for a bounded time: the same properties, of the corpora and of inputs made from them.

#[path = "../fuzz/properties.rs"]
mod properties;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use sluicegate::firewall::find_in_list;

use crate::{
    proxy::vectors,
    support::{Random, client, full, hello::Hello},
};

impl Random {
    /// A few changes: bytes, pieces that are left out or come twice, pieces of another input, words that mean something.
    fn changed(&mut self, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(6) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(24)).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.draw() as u8,
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    let piece = other[from..(from + self.below(24)).min(other.len())].to_vec();
                    bytes.splice(at..end, piece);
                }
                _ => drop(bytes.splice(at..at, words[self.below(words.len())].bytes())),
            }
        }
        bytes
    }
}

/// Asks about each file of the corpus, then about changed ones for a second, or for a minute.
fn ask(corpus: &str, more: Vec<Vec<u8>>, words: &[&str], property: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut seeds: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty(), "{}", directory.display());
    seeds.extend(more);
    for seed in &seeds {
        property(seed);
    }
    // Another one each time, which a failure names.
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let (mut random, begin, mut asked) = (Random(seed), Instant::now(), 0_u64);
    let long = Duration::from_secs(if full() { 60 } else { 1 });
    while begin.elapsed() < long || asked < 100 {
        let input = random.changed(&seeds, words);
        let result = std::panic::catch_unwind(|| property(&input));
        assert!(result.is_ok(), "{corpus}, seed {seed}, input {asked}: {:?}", String::from_utf8_lossy(&input));
        asked += 1;
    }
    println!("S28: {corpus}: {asked} inputs after {} seeds, seed {seed}", seeds.len());
}

#[test]
fn s28_a_text_is_a_configuration_or_has_errors_with_a_place() {
    let read = |directory: &str| fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap();
    let files = read("config").chain(read("tests/diagnostics/cases")).map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let more = files.map(|path| fs::read(path).unwrap()).collect();
    let words =
        ["\"", "[", "]", "{", "}", "=", "\n", ",", ".", "0", "-1", "ä", "\0", "#", "'", "\\u", "[[", "\u{feff}"];
    ask("config", more, &words, properties::config);
}

#[test]
fn f3_s28_a_list_is_read_as_a_simple_reader_reads_it() {
    let words =
        ["0", "/", "::", ":", ".", "\n", "\r\n", "#", "ffff:", "::ffff:", "/0", "/32", "/128", "255", "%", " ", "01"];
    ask("networks", Vec::new(), &words, properties::networks);
}

#[test]
fn f1_s28_a_network_that_ends_among_mapped_addresses_holds_none_of_them() {
    for list in ["::/80\n", "::/0\n", "::fffe:0:0/95\n"] {
        properties::networks(list.as_bytes());
        let last = "::ffff:255.255.255.255".parse().unwrap();
        assert_eq!(find_in_list(list.as_bytes(), last), None, "{list}");
        assert!(find_in_list(format!("{list}255.0.0.0/8").as_bytes(), last).is_some());
    }
}

#[test]
fn p8_s28_a_header_is_decided_by_its_own_bytes_however_they_come() {
    let accepted = vectors::accepted().into_iter().map(|(header, _)| header);
    let more = accepted.chain(vectors::refused().into_iter().map(|(bytes, _)| bytes)).collect();
    let words = [
        "PROXY ",
        "TCP4",
        "TCP6",
        "UNKNOWN",
        " ",
        "\r\n",
        "\r\n\r\n\0\r\nQUIT\n",
        "!\u{11}\0\u{c}",
        "! \0\u{24}",
        " \0\0\0",
        "\u{3}\0\u{4}",
        "\u{2}\0\u{1}x",
        "::ffff:",
        "65535",
        "0",
    ];
    ask("proxy_protocol", more, &words, properties::header::proxy_protocol);
}

#[test]
fn s28_a_line_of_a_log_is_read_or_refused() {
    let words = [
        "{",
        "}",
        "\"",
        "client=",
        "outcome=",
        " outcome=denied",
        "\\",
        "denied",
        "null",
        ":",
        "\"event\":\"connection\"",
    ];
    ask("access_log", Vec::new(), &words, properties::access_log);
}

#[test]
fn t1_s28_a_hello_of_any_bytes_ends_the_handshake() {
    let config = Arc::new(client::config(rustls::ALL_VERSIONS));
    let hello = Hello::new("foobar.com", config);
    let more = vec![hello.whole(), hello.crumbs(), hello.records(&[hello.inside_the_name()])];
    let words = [
        "\u{16}\u{3}\u{1}",
        "\u{0}\u{0}",
        "\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}",
        "GET / HTTP/1.1\r\n",
        "\u{14}\u{3}\u{3}\0\u{1}\u{1}",
    ];
    ask("client_hello", more, &words, properties::client_hello);
}
