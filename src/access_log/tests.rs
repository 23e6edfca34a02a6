use std::{
    io::{BufRead, BufReader, Read, Write},
    sync::{Mutex, atomic::Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use super::*;
use crate::{config::TlsVersion, metrics::RelayPath, outcome::Outcome};

fn record() -> Record {
    Record {
        ts: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_206_667_412),
        id: 0xffff_6f1c_0a9e_2b41,
        listener: "https".into(),
        client: "203.0.113.7:51234".parse().unwrap(),
        peer: None,
        sni: Some("foobar.com".into()),
        tls: Some(TlsDetails {
            version: TlsVersion::V1_3,
            cipher: "TLS13_AES_128_GCM_SHA256",
            alpn: Some("http/1.1".into()),
            resumed: true,
        }),
        rule: "default".into(),
        pool: "web".into(),
        backend: Some("web-01".into()),
        attempts: 1,
        received_bytes: 1234,
        sent_bytes: 567_890,
        path: Some(RelayPath::Tls),
        seconds: Seconds {
            handshake: Some(Duration::from_micros(2100)),
            queue: Duration::ZERO,
            connect: Some(Duration::from_nanos(400_499)),
            first_byte: Some(Duration::from_micros(12_100)),
            total: Duration::from_micros(3_420_100),
        },
        outcome: Outcome::ClientClosed,
    }
}

fn bare() -> Record {
    let seconds = Seconds::default();
    Record { sni: None, tls: None, backend: None, path: None, seconds, ..record() }
}

fn json(record: &Record) -> String {
    let mut line = Vec::new();
    record.write_json(&mut line).unwrap();
    String::from_utf8(line).unwrap()
}

fn text(record: &Record) -> String {
    let mut line = Vec::new();
    record.write_text(&mut line).unwrap();
    String::from_utf8(line).unwrap()
}

#[test]
fn o7_a_record_is_the_line_of_the_contract() {
    let line = concat!(
        r#"{"ts":"2026-11-20T20:31:07.412Z","event":"connection","id":"6f1c0a9e2b41","listener":"https","#,
        r#""client":"203.0.113.7:51234","sni":"foobar.com","tls":{"version":"1.3","cipher":"TLS13_AES_128_GCM_SHA256","#,
        r#""alpn":"http/1.1","resumed":true},"rule":"default","pool":"web","backend":"web-01","attempts":1,"#,
        r#""received_bytes":1234,"sent_bytes":567890,"path":"tls","seconds":{"handshake":0.0021,"queue":0.0,"#,
        r#""connect":0.0004,"first_byte":0.0121,"total":3.4201},"outcome":"client_closed"}"#,
    );
    assert_eq!(json(&record()), line);
}

#[test]
fn what_did_not_happen_is_null() {
    let value: Value = serde_json::from_str(&json(&bare())).unwrap();
    for key in ["sni", "tls", "backend", "path"] {
        assert_eq!(value.get(key), Some(&Value::Null), "{key}");
    }
    assert_eq!(value["seconds"]["connect"], Value::Null);
}

#[test]
fn text_says_the_same_in_one_line() {
    let line = concat!(
        "2026-11-20T20:31:07.412Z 6f1c0a9e2b41 https client=203.0.113.7:51234 rule=default pool=web backend=web-01 ",
        "attempts=1 received=1234 sent=567890 path=tls sni=foobar.com tls=1.3 cipher=TLS13_AES_128_GCM_SHA256 ",
        "resumed=true alpn=http/1.1 handshake=0.0021 queue=0 connect=0.0004 first_byte=0.0121 total=3.4201 ",
        "outcome=client_closed",
    );
    assert_eq!(text(&record()), line);
    assert!(text(&bare()).contains("backend=- attempts=1 received=1234 sent=567890 path=- handshake=- queue=0 "));
}

/// The key is there only when it says something, and the line can be read again.
#[test]
fn p6_who_brought_a_client_is_its_peer() {
    assert!(!json(&record()).contains("peer") && !text(&record()).contains("peer"));
    let brought = Record { peer: Some("10.0.8.4:999".parse().unwrap()), ..record() };
    assert!(json(&brought).contains(r#""client":"203.0.113.7:51234","peer":"10.0.8.4:999","sni""#));
    assert!(text(&brought).contains(" client=203.0.113.7:51234 peer=10.0.8.4:999 rule=default "));
    for line in [json(&brought), text(&brought)] {
        assert_eq!(read_line(line.as_bytes()).unwrap().unwrap().client, brought.client);
    }
}

#[test]
fn o4_what_a_client_sends_stays_in_its_line_and_its_field() {
    let wild = ["a\r\nb", "\u{1b}[31mred", "\"}\n{\"event\":\"x\"", "a b=c", "\\", "-", "\0\u{7f}\u{85}", "ünï"];
    for sni in wild {
        let record = Record { sni: Some(sni.into()), ..record() };
        let (json, text) = (json(&record), text(&record));
        assert!(!json.bytes().any(|b| b < 0x20), "{json:?}");
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["sni"], *sni);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.contains(&format!(" sni={sni:?} ")), "{text}");
    }
    let long = "é".repeat(40_000);
    let mut record = Record { sni: Some(long.clone().into()), ..record() };
    record.tls.as_mut().unwrap().alpn = Some(long.into());
    let value: Value = serde_json::from_str(&json(&record)).unwrap();
    assert_eq!(value["sni"].as_str().map(str::len), Some(254));
    assert_eq!(value["tls"]["alpn"].as_str().map(str::len), Some(254));
    assert!(text(&record).len() < 1000);
}

#[test]
fn o9_a_blocked_destination_blocks_nobody_and_the_drop_counter_is_exact() {
    const SENT: u64 = 30_000;
    let (input, output) = io::pipe().unwrap();
    let dropped = Arc::new(AtomicU64::new(0));
    let (log, guard) = AccessLog::start_to(output, LogFormat::Json, Arc::clone(&dropped)).unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..SENT {
        let begun = Instant::now();
        log.write(record());
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "a sender waited {slowest:?}");
    let lost = dropped.load(Ordering::Relaxed);
    assert!(lost > 0, "nothing blocked");
    // Now somebody reads: everything that was not dropped is there.
    let reader = thread::spawn(move || {
        let lines = BufReader::new(input).lines().map(|line| line.unwrap());
        lines.filter(|line| serde_json::from_str::<Value>(line).is_ok()).count() as u64
    });
    drop(guard);
    drop(log);
    assert_eq!(reader.join().unwrap(), SENT - lost);
    assert_eq!(dropped.load(Ordering::Relaxed), lost);
}

#[test]
fn o9_a_full_disk_costs_the_records_and_nothing_else() {
    let dropped = Arc::new(AtomicU64::new(0));
    let full = config::AccessLog::File("/dev/full".into());
    let (log, guard) = AccessLog::start(&full, LogFormat::Text, Arc::clone(&dropped)).unwrap().unwrap();
    for _ in 0..100 {
        log.write(record());
    }
    drop(guard);
    assert_eq!(dropped.load(Ordering::Relaxed), 100);
    log.write(record());
    assert_eq!(dropped.load(Ordering::Relaxed), 101, "after the end nothing is written");
}

#[test]
fn o9_a_stop_does_not_wait_for_ever_for_a_blocked_destination() {
    let (input, mut output) = io::pipe().unwrap();
    let fill = output.try_clone().unwrap();
    let (log, guard) = AccessLog::start_to(fill, LogFormat::Json, Arc::default()).unwrap();
    for _ in 0..2000 {
        log.write(record());
    }
    let begun = Instant::now();
    drop(guard);
    assert!(begun.elapsed() < Duration::from_secs(6));
    drop(input);
    assert!(output.write(b"x").is_err(), "nobody reads any more");
}

/// Takes `room` bytes, fails once, and goes on with more room.
struct Flaky {
    taken: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

impl Write for Flaky {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            self.room = 300;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let n = bytes.len().min(self.room);
        self.room -= n;
        self.taken.lock().unwrap().extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_that_fails_half_way_leaves_whole_lines_and_an_exact_count() {
    for batch in 1..6_u64 {
        for room in [0, 1, 100, 420, 700] {
            let (taken, dropped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
            let output = Flaky { taken: Arc::clone(&taken), room };
            let mut writer = Writer::new(output, LogFormat::Json, Arc::clone(&dropped));
            for n in 0..60 {
                writer.push(&record());
                if n % batch == 0 {
                    writer.flush();
                }
            }
            writer.finish();
            let taken = taken.lock().unwrap();
            let mut lines: Vec<_> = taken.split(|b| *b == b'\n').collect();
            // The last line may lack its end: there was no later write to bring it.
            lines.pop();
            assert!(lines.iter().all(|line| serde_json::from_slice::<Value>(line).is_ok()), "{batch} {room}");
            assert_eq!(lines.len() as u64 + dropped.load(Ordering::Relaxed), 60, "{batch} {room}");
            assert!(!lines.is_empty());
        }
    }
}

#[test]
fn a_file_is_appended_to_and_off_is_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    for _ in 0..2 {
        let file = config::AccessLog::File(path.clone());
        let (log, guard) = AccessLog::start(&file, LogFormat::Json, Arc::default()).unwrap().unwrap();
        let clone = log.clone();
        thread::spawn(move || (0..100).for_each(|_| clone.write(record()))).join().unwrap();
        drop(guard);
    }
    let mut text = String::new();
    File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 200);
    assert!(AccessLog::start(&config::AccessLog::Off, LogFormat::Json, Arc::default()).unwrap().is_none());
}
