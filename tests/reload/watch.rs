//! Files that are watched: what is written is put to work without being asked for, however it is written.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::pki_types::CertificateDer;

use super::{edit, messages, path, reloads, site};
use crate::support::{
    Authority, Backend, Gate, SOON,
    client::{self, ask, connect},
    gate::{Plan, https, pool},
    patient, wait_until,
};

fn watched(toml: &str) -> Plan {
    Gate::plan(toml).admin("socket = \"admin.sock\"")
}

/// Waits for this many reloads by the watch; nobody else orders any here.
#[track_caller]
fn wait_reloads(gate: &Gate, count: u64) {
    wait_until(SOON, &format!("reload {count}"), || reloads(gate, "applied") == count);
    assert!(messages(gate, "configuration reloaded").iter().all(|one| one["by"] == "watch"));
}

#[test]
fn l3_a_change_is_seen_however_it_is_written() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = watched(&site(&[("a", &a)])).start();
    let (file, folder) = (path(&gate), gate.directory.path().to_owned());
    let one = fs::read_to_string(&file).unwrap();
    let two = one.replace("name = \"a\"", "name = \"b\"").replace(&a.address.to_string(), &b.address.to_string());
    let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        put(&format!("{name}/sluicegate.toml"), text);
        symlink(name, folder.join("..data_next")).unwrap();
        fs::rename(folder.join("..data_next"), folder.join("..data")).unwrap();
    };
    let ways: [(&str, &dyn Fn()); 6] = [
        ("in place", &|| put("sluicegate.toml", &two)),
        ("moved over", &|| {
            put("next", &one);
            fs::rename(folder.join("next"), &file).unwrap();
        }),
        ("gone and back", &|| {
            fs::remove_file(&file).unwrap();
            put("sluicegate.toml", &two);
        }),
        ("piece by piece", &|| {
            use std::io::Write;
            let mut file = fs::File::create(&file).unwrap();
            for piece in one.as_bytes().chunks(one.len() / 4 + 1) {
                file.write_all(piece).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        }),
        ("a link to a directory", &|| {
            version("..v1", &two);
            symlink("..data/sluicegate.toml", folder.join("link")).unwrap();
            fs::rename(folder.join("link"), &file).unwrap();
        }),
        ("another directory behind the link", &|| version("..v2", &one)),
    ];
    for (number, (way, write)) in ways.into_iter().enumerate() {
        let begin = Instant::now();
        write();
        wait_reloads(&gate, number as u64 + 1);
        let took = begin.elapsed();
        println!("{way}: {took:?}");
        assert_eq!(ask(gate.address("tcp")), if number % 2 == 0 { "b" } else { "a" }, "{way}");
    }
    assert_eq!(reloads(&gate, "refused"), 0, "nothing half written is ever looked at");
    gate.finish();
}

#[test]
fn what_says_the_same_is_no_news() {
    let backend = Backend::named("a");
    let gate = watched(&site(&[("a", &backend)])).start();
    let text = fs::read_to_string(path(&gate)).unwrap();
    let said = gate.process.messages().len();
    for more in ["", "# a comment\n", "\n\n"] {
        fs::write(path(&gate), format!("{more}{text}")).unwrap();
        thread::sleep(Duration::from_millis(500));
    }
    // The next real change comes after all of them.
    edit(&gate, "[pool.web]", "[timeouts]\nidle = \"7s\"\n[pool.web]");
    wait_reloads(&gate, 1);
    assert_eq!(gate.process.messages().len(), said + 1);
    gate.finish();
}

#[test]
fn a_mistake_is_refused_and_told_until_it_is_put_right() {
    let backend = Backend::named("a");
    let gate = watched(&site(&[("a", &backend)])).start();
    edit(&gate, "[pool.web]", "[pool.web]\nbalence = \"p2c\"");
    wait_until(SOON, "a refusal", || reloads(&gate, "refused") == 1);
    assert_eq!(messages(&gate, "configuration refused: the one before goes on")[0]["by"], "watch");
    assert_eq!(ask(gate.address("tcp")), "a");
    edit(&gate, "balence = \"p2c\"", "");
    wait_reloads(&gate, 1);
    assert_eq!(gate.metrics().count("sluicegate_config_last_reload_successful", &[]), 1);
    // A list that is not there yet is waited for.
    edit(&gate, "[pool.web]", "[firewall]\nrules = [{ name = \"l\", deny_file = \"new/deny.txt\" }]\n[pool.web]");
    wait_until(SOON, "a refusal", || reloads(&gate, "refused") == 2);
    fs::create_dir(gate.directory.path().join("new")).unwrap();
    fs::write(gate.directory.path().join("new/deny.txt"), "192.0.2.0/24\n").unwrap();
    wait_until(Duration::from_secs(15), "the list", || reloads(&gate, "applied") == 2);
    gate.finish();
}

#[test]
fn nothing_is_watched_where_that_is_switched_off() {
    let backend = Backend::named("a");
    let gate = watched(&site(&[("a", &backend)])).global("watch = false").start();
    edit(&gate, "[pool.web]", "[pool.web]\nretries = 1");
    thread::sleep(Duration::from_secs(1));
    assert_eq!((reloads(&gate, "applied"), reloads(&gate, "refused")), (0, 0));
    // It takes a reload to switch it on, and from then on it is.
    edit(&gate, "watch = false", "watch = true");
    super::reload(&gate);
    edit(&gate, "retries = 1", "retries = 3");
    wait_until(SOON, "a reload", || reloads(&gate, "applied") == 2);
    gate.finish();
}

/// T15: the new certificate is served within a second of its being whole, and no handshake fails meanwhile.
#[test]
fn t15_a_new_certificate_is_served_soon() {
    let backend = Backend::echo();
    let gate = watched(&(https("") + &pool("", &[backend.address]))).start();
    let folder = gate.directory.path();
    let served = || -> CertificateDer<'static> {
        let config = Arc::new(client::config(rustls::ALL_VERSIONS));
        let tls = client::handshake(connect(gate.address("https")), "foobar.com", config).expect("a handshake");
        tls.conn.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let before = served();
    let mut handshakes = 0;
    for round in 1..=3 {
        let last = served();
        Authority::write(folder, "next", &Authority::leaf(&["foobar.com", "www.foobar.com", "localhost"]));
        // As tools renew: one file after the other, so that for a moment they do not belong together.
        fs::rename(folder.join("next.pem"), folder.join("foobar.com.pem")).unwrap();
        fs::rename(folder.join("next.key"), folder.join("foobar.com.key")).unwrap();
        let begin = Instant::now();
        wait_until(SOON, "the new certificate", || {
            handshakes += 1;
            served() != last
        });
        println!("renewal {round}: served after {:?}", begin.elapsed());
        assert!(begin.elapsed() < patient(Duration::from_secs(2)), "{:?}", begin.elapsed());
    }
    println!("{handshakes} handshakes, none failed");
    assert_ne!(served(), before);
    assert_eq!(reloads(&gate, "refused"), 0);
    gate.finish();
}

/// Many changes in a row are few reloads.
#[test]
fn a_restless_file_is_read_now_and_then() {
    let backend = Backend::named("a");
    let gate = watched(&site(&[("a", &backend)])).start();
    let text = fs::read_to_string(path(&gate)).unwrap();
    let begin = Instant::now();
    let mut writes = 0;
    while begin.elapsed() < Duration::from_secs(5) {
        writes += 1;
        let next = gate.directory.path().join("next");
        fs::write(&next, format!("{text}[timeouts]\nidle = \"{writes}s\"\n")).unwrap();
        fs::rename(Path::new(&next), path(&gate)).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let applied = reloads(&gate, "applied");
    println!("{writes} changes in 5 s: {applied} reloads");
    assert!((1..=4).contains(&applied), "{applied}");
    gate.finish();
}
