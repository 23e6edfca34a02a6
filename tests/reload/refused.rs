//! L3, S6: what cannot be used changes nothing, and says why.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{append, edit, json, messages, path, refused, reload, reloads, run, site, start, times};
use crate::support::{
    Authority, Backend, SOON, WebServer,
    client::{ask, connect_tls, exchange},
    gate::{https, pool, tcp, word},
    load::{Load, faults},
    patient, wait_until,
};

/// S6, L4: whatever is wrong, the old configuration serves as if nothing had happened.
#[test]
fn s6_refused_reloads_under_load_change_nothing() {
    let Some(web) = WebServer::start() else { return };
    let gate = start(&(tcp("") + &pool("", &[web.address])));
    let good = fs::read_to_string(path(&gate)).unwrap();
    let load = Load::start(gate.address("tcp"), 200, 4);
    let rounds = times(30, 100);
    for round in 0..rounds {
        let (bad, code) = match round % 4 {
            0 => (good.clone() + "[pool.web.x]\n", "E0"),
            1 => (good.replace("[pool.web]", "[pool.web"), "E001"),
            2 => (good.clone() + "[firewall]\nrules = [{ name = \"a\", deny_file = \"none.txt\" }]\n", "E100"),
            _ => (good.replace("pool = \"web\"", "pool = \"wbe\""), "E044"),
        };
        fs::write(path(&gate), bad).unwrap();
        let said = refused(&gate);
        assert!(said.contains(code) && said.contains("the configuration before goes on"), "{said}");
    }
    let (count, faulty) = (load.count(), load.finish());
    println!("{rounds} refused reloads, {count} connections: {} failed", faults(&faulty).len());
    assert!(faults(&faulty).is_empty(), "{:?}", faults(&faulty).first());
    assert_eq!((reloads(&gate, "refused"), reloads(&gate, "applied")), (rounds as u64, 0));
    assert_eq!(gate.metrics().count("sluicegate_config_last_reload_successful", &[]), 0);
    assert_eq!(gate.metrics().count("sluicegate_config_snapshots", &[]), 1);
    let last = json(&gate, &["status"])["last_reload"].clone();
    assert_eq!((&last["result"], &last["by"]), (&"refused".into(), &"operator".into()));
    let audit = messages(&gate, "configuration refused: the one before goes on");
    assert_eq!((audit.len(), &audit[0]["level"]), (rounds, &"WARN".into()));
    assert!(word(&audit[1], "error").starts_with("E001: "), "{}", audit[1]);
    fs::write(path(&gate), good).unwrap();
    reload(&gate);
    assert_eq!(gate.metrics().count("sluicegate_config_last_reload_successful", &[]), 1);
    gate.finish();
}

#[test]
fn a_refusal_is_told_as_check_tells_it() {
    let backend = Backend::named("a");
    let gate = start(&site(&[("a", &backend)]));
    append(&gate, "[pool.web.timeouts]\nconect = \"1s\"\n");
    let (checked, told) = (run(&gate, &["check"]), refused(&gate));
    assert_eq!(checked.code, Some(1));
    assert!(told.starts_with(checked.stderr.trim_end()), "check:\n{}\nreload:\n{told}", checked.stderr);
    let answer = run(&gate, &["reload", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((&answer["result"], &answer["diagnostics"][0]["code"]), (&"refused".into(), &"E021".into()));
    assert_eq!(run(&gate, &["plan"]).code, Some(3));
    gate.finish();
}

/// Who waits for a reload keeps nobody else away from the admin socket.
#[test]
fn waiting_reloads_leave_seats_for_others() {
    let (backend, mute) = (Backend::named("a"), Backend::stall());
    let pool = "[pool.web]\ncheck = \"tcp\"\n".to_owned() + &super::member("a", backend.address);
    let gate = super::plan(&(tcp("") + &pool)).checked().start();
    // Whose first verdict takes two seconds.
    let check = "check = { type = \"send_expect\", expect = \"x\", timeout = \"20s\", every = \"30s\" }";
    let slow = super::member("b", mute.address).replace("pool.web", "pool.slow");
    let slow = format!("[pool.slow]\n{check}\n{slow}");
    append(&gate, &slow);
    let words = ["reload", "--config", "sluicegate.toml"];
    let start = || crate::support::Process::start(&words, gate.directory.path());
    let waiting: Vec<_> = (0..20).map(|_| start()).collect();
    let mut most = std::time::Duration::ZERO;
    while gate.metrics().count("sluicegate_config_reloads_total", &[("result", "applied")]) == 0 {
        let begin = std::time::Instant::now();
        json(&gate, &["status"]);
        most = most.max(begin.elapsed());
    }
    println!("20 reloads wait: status within {most:?}");
    assert!(most < patient(std::time::Duration::from_millis(1500)), "{most:?}");
    let ended: Vec<_> = waiting.into_iter().map(|process| process.ended(crate::support::LATE)).collect();
    let codes = |code| ended.iter().filter(|ended| ended.code == Some(code)).count();
    assert!(codes(0) >= 8 && codes(0) + codes(1) == 20, "{ended:?}");
    assert!(ended.iter().filter(|ended| ended.code == Some(1)).all(|ended| ended.stderr.contains("try again")));
    // It is still being asked.
    edit(&gate, &slow, "");
    reload(&gate);
    gate.finish();
}

/// L3: the file is exchanged while it is read, or is none.
#[test]
fn l3_a_file_that_is_no_file_is_refused_in_time() {
    let backend = Backend::named("a");
    let gate = start(&site(&[("a", &backend)]));
    let (file, good) = (path(&gate), fs::read(path(&gate)).unwrap());
    let beside = |name: &str| gate.directory.path().join(name);
    let put_back = || {
        let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
        fs::write(&file, &good).unwrap();
    };
    let break_it: [(&str, &dyn Fn()); 5] = [
        ("FIFO", &|| {
            fs::remove_file(&file).unwrap();
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
        ("directory", &|| {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }),
        ("too large", &|| fs::File::create(&file).unwrap().set_len(1 << 30).unwrap()),
        ("empty", &|| fs::write(&file, "").unwrap()),
        ("missing", &|| fs::remove_file(&file).unwrap()),
    ];
    for (what, act) in break_it {
        act();
        let ended = crate::support::Process::run(
            &["reload", "--socket", "admin.sock"],
            gate.directory.path(),
            crate::support::SOON,
        );
        assert_eq!(ended.code, Some(3), "{what}: {}{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains("error[E"), "{what}: {}", ended.stderr);
        assert_eq!(ask(gate.address("tcp")), "a", "{what}");
        put_back();
    }
    fs::rename(&file, beside("real.toml")).unwrap();
    symlink("real.toml", &file).unwrap();
    reload(&gate);
    gate.finish();
}

/// Two whole configurations take turns at one name: each reload sees one of them, none sees a mixture.
#[test]
fn l3_a_file_that_is_exchanged_is_read_as_one_or_the_other() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = start(&site(&[("a", &a)]));
    let one = fs::read_to_string(path(&gate)).unwrap();
    let two = one.replace("name = \"a\"", "name = \"b\"").replace(&a.address.to_string(), &b.address.to_string());
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = thread::spawn({
        let (stop, file, next) = (Arc::clone(&stop), path(&gate), gate.directory.path().join("next"));
        move || {
            for text in [&two, &one].into_iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                fs::write(&next, text).unwrap();
                fs::rename(&next, &file).unwrap();
            }
        }
    });
    let rounds = times(30, 300);
    let mut seen = [0; 2];
    for _ in 0..rounds {
        reload(&gate);
        match ask(gate.address("tcp")).as_str() {
            "a" => seen[0] += 1,
            "b" => seen[1] += 1,
            other => panic!("{other}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    println!("{rounds} reloads of a file that is exchanged all the time: {seen:?}");
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    gate.finish();
}

/// L3, T15: a certificate that does not fit its key, or is none.
#[test]
fn l3_a_bad_certificate_is_refused_and_the_old_one_is_served() {
    let backend = Backend::echo();
    let text = https("") + &pool("", &[backend.address]);
    let gate = super::plan(&text).certificate("other", &["foobar.com"]).start();
    let beside = |name: &str| gate.directory.path().join(name);
    let (chain, key) = (fs::read(beside("foobar.com.pem")).unwrap(), fs::read(beside("foobar.com.key")).unwrap());
    for (what, file, bytes) in [
        ("the key of another", "foobar.com.key", fs::read(beside("other.key")).unwrap()),
        ("half of the key", "foobar.com.key", key[..key.len() / 2].to_vec()),
        ("no certificate", "foobar.com.pem", b"-----BEGIN CERTIFICATE-----\nnot base64!\n".to_vec()),
        ("nothing", "foobar.com.pem", Vec::new()),
    ] {
        fs::write(beside(file), bytes).unwrap();
        let said = refused(&gate);
        assert!(said.contains(file) && said.contains("sluicegate.toml:"), "{what}: {said}");
        exchange(&mut connect_tls(gate.address("https")), b"as before");
        fs::write(beside("foobar.com.pem"), &chain).unwrap();
        fs::write(beside("foobar.com.key"), &key).unwrap();
    }
    assert_eq!(run(&gate, &["plan"]).code, Some(0));
    fs::rename(beside("other.pem"), beside("foobar.com.pem")).unwrap();
    fs::rename(beside("other.key"), beside("foobar.com.key")).unwrap();
    assert!(reload(&gate).contains("~ certificate"));
    exchange(&mut connect_tls(gate.address("https")), b"the new one");
    gate.finish();
}

/// A certificate that expires while it is served stays; one that comes expired does not come in.
#[test]
fn t15_an_expired_certificate_does_not_stop_other_changes() {
    let backend = Backend::echo();
    let gate = super::plan(&(https("") + &pool("", &[backend.address])));
    Authority::write(gate.path(), "foobar.com", &Authority::leaf_for(&["foobar.com"], Duration::from_secs(3)));
    let begin = Instant::now();
    let gate = gate.start();
    Authority::write(gate.directory.path(), "old", &Authority::expired_leaf(&["foobar.com"]));
    edit(&gate, "certificates = [", "certificates = [{ cert = \"old.pem\", key = \"old.key\" }, ");
    assert!(refused(&gate).contains("E106"));
    edit(&gate, "{ cert = \"old.pem\", key = \"old.key\" }, ", "");
    wait_until(SOON, "the end of the certificate", || {
        begin.elapsed() > Duration::from_secs(4) && run(&gate, &["check"]).code == Some(1)
    });
    append(&gate, "[timeouts]\nidle = \"7s\"\n");
    let ended = run(&gate, &["reload"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("warning[W101]") && ended.stdout.contains("timeouts.idle"), "{ended:?}");
    gate.finish();
}

#[test]
fn a_list_that_loses_most_of_its_networks_needs_force() {
    let backend = Backend::named("a");
    let rules = "[firewall]\nrules = [{ name = \"list\", deny_file = \"deny.txt\" }]\n";
    let list = |count: usize| {
        (0..count).flat_map(|n| ["10.", &n.to_string(), ".0.0/16\n"].concat().into_bytes()).collect::<Vec<_>>()
    };
    let gate = super::plan(&(site(&[("a", &backend)]) + rules)).file("deny.txt", list(100)).start();
    let prefixes = || gate.metrics().count("sluicegate_firewall_prefixes", &[("rule", "list")]);
    let write = |text: Vec<u8>| fs::write(gate.directory.path().join(Path::new("deny.txt")), text).unwrap();
    write(list(49));
    let said = refused(&gate);
    assert!(said.contains("E110") && said.contains("from 100 networks to 49") && said.contains("--force"), "{said}");
    assert_eq!((prefixes(), run(&gate, &["check"]).code, run(&gate, &["plan"]).code), (100, Some(0), Some(3)));
    assert_eq!(run(&gate, &["plan", "--force"]).code, Some(0));
    assert_eq!(run(&gate, &["reload", "--force"]).code, Some(0));
    assert_eq!(prefixes(), 49);
    write(list(25));
    assert!(reload(&gate).contains("~ list"), "half of it may go");
    assert_eq!(prefixes(), 25);
    gate.finish();
}
