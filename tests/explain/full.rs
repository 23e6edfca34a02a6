//! `explain` on the example with every key, compared to the letter: one case for each rule. `SLUICEGATE_BLESS=1` rewrites
//! them.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Authority, LATE, Process, process::Ended};

/// Beside each other as in the repository: `config/` and the certificate it names.
fn site() -> TempDir {
    let directory = TempDir::new().unwrap();
    let (config, certs) = (directory.path().join("config"), directory.path().join("certs"));
    fs::create_dir(&config).unwrap();
    fs::create_dir(&certs).unwrap();
    for file in ["full.toml", "deny.txt"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file), config.join(file)).unwrap();
    }
    Authority::write(&certs, "foobar.com", &Authority::leaf(&["foobar.com", "*.foobar.com"]));
    directory
}

fn explain(directory: &Path, words: &str) -> Ended {
    let words: Vec<_> = "explain --config config/full.toml".split(' ').chain(words.split(' ')).collect();
    Process::start_after("export MYSQL_CHECK_PASSWORD=x", &words, directory).ended(LATE)
}

#[test]
fn each_rule_of_the_full_file_is_explained_as_written_down() {
    let directory = site();
    let bless = std::env::var_os("SLUICEGATE_BLESS").is_some();
    let mut wrong = Vec::new();
    for (case, words) in [
        ("office", "--from 203.0.113.9 --sni foobar.com --listener https"),
        ("office_v6", "--from 2001:db8:5::9 --sni www.foobar.com --listener https"),
        ("bad-nets", "--from 198.51.100.200 --listener https"),
        ("bad-nets_v6", "--from 2001:db8:bad::1 --listener www"),
        ("one-net", "--from 198.51.100.7"),
        ("partners", "--from ::ffff:192.0.2.5 --listener mysql"),
        ("default", "--from 8.8.8.8 --sni elsewhere.example --listener https"),
        ("behind", "--from 203.0.113.9 --proxied-by 10.0.8.4 --listener behind"),
        ("behind_denied", "--from 192.0.2.5 --proxied-by 10.0.8.4"),
        ("behind_peer", "--from 10.0.8.4 --listener behind"),
        ("behind_peer_denied", "--from 203.0.113.9 --proxied-by 192.0.2.5"),
        ("behind_untrusted", "--from 203.0.113.9 --listener behind"),
    ] {
        let ended = explain(directory.path(), words);
        assert_eq!(ended.code, Some(0), "{words}: {}", ended.stderr);
        let told = format!("$ sluicegate explain --config config/full.toml {words}\n{}\n", ended.stdout);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain/cases").join(format!("{case}.txt"));
        if bless {
            fs::write(&file, told).unwrap();
        } else if fs::read_to_string(&file).unwrap_or_default() != told {
            wrong.push(told);
        }
    }
    assert!(wrong.is_empty(), "not as written down:\n{}", wrong.join("\n"));
}

#[test]
fn json_says_the_same_with_places() {
    let directory = site();
    let ended = explain(directory.path(), "--from 192.0.2.5 --listener mysql --json");
    let value: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
    let firewall = &value["listeners"][0]["firewall"];
    assert_eq!((&firewall["action"], &firewall["rule"]["value"]), (&"deny".into(), &"bad-nets".into()), "{value}");
    let network = serde_json::json!({ "value": "192.0.2.0/24", "at": { "file": "config/deny.txt", "line": 2 } });
    assert_eq!(firewall["network"], network);
    assert_eq!(firewall["shadows"][0]["rule"]["value"], "partners");
    assert_eq!(value["listeners"][0]["admitted"], Value::Null);
    let ended = explain(directory.path(), "--from 8.8.8.8 --sni foobar.com --listener https --json");
    let value: Value = serde_json::from_str(&ended.stdout).unwrap();
    let admitted = &value["listeners"][0]["admitted"];
    assert_eq!(admitted["timeouts"]["idle"]["value"], 90.0);
    assert_eq!(admitted["tls"]["answer"], "exact");
    assert_eq!(admitted["limits"]["listener"]["value"], 50_000);
}

#[test]
fn wrong_questions_have_an_answer() {
    let directory = site();
    for (words, code, told) in [
        ("--from 10.0.0.0/8", 64, "one address, not a network"),
        ("--from fe80::1%eth0", 64, "interface"),
        ("--from 010.0.0.1", 64, "leading zeros"),
        ("--from 1.2.3.4 --sni a..b", 64, "not a host name"),
        ("--sni foobar.com", 64, "--from"),
        ("--from 1.2.3.4 --listener htps", 1, "did you mean `https`?"),
        ("--from 1.2.3.4 --proxied-by 10.0.8.0/24", 64, "one address, not a network"),
        ("--from 1.2.3.4 --proxied-by 10.0.8.4 --listener https", 1, "listener `https` takes no header"),
        ("--from 1.2.3.4 --config none.toml", 64, ""),
    ] {
        let ended = explain(directory.path(), words);
        assert_eq!(ended.code, Some(code), "{words}: {}", ended.stderr);
        assert!(ended.stderr.contains(told), "{words}: {}", ended.stderr);
    }
    let ended = Process::run(&["explain", "--from", "1.2.3.4", "--config", "none.toml"], directory.path(), LATE);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
}

/// The order of `explain` is the order of the process: it is asked for every client of a hash pool.
#[test]
fn the_order_of_a_hash_pool_is_the_one_that_clients_meet() {
    use std::net::{IpAddr, Ipv4Addr};

    use crate::support::{Backend, Gate, client, gate};

    let backends = ["a", "b", "c"].map(Backend::named);
    let list: String = backends
        .iter()
        .zip(["a", "b", "c"])
        .map(|(backend, name)| gate::backend(name, backend.address, if name == "b" { "weight = 3" } else { "" }))
        .collect();
    for balance in ["ip_hash", "maglev"] {
        let pool = format!("[pool.web]\nbalance = \"{balance}\"\n{list}");
        let gate = Gate::start(&[&gate::tcp(""), pool.as_str()].concat());
        let mut met = std::collections::BTreeSet::new();
        for last in 1..12 {
            let source: IpAddr = Ipv4Addr::new(127, 0, 0, last).into();
            let (greeting, _) = client::read_all(&mut client::connect_from(source, gate.address("tcp")));
            let words = ["explain", "--config", "sluicegate.toml", "--json", "--from", &source.to_string()];
            let ended = Process::run(&words, gate.directory.path(), LATE);
            let value: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
            let pool = &value["listeners"][0]["admitted"]["pool"];
            assert_eq!(pool["ordered"], true);
            let first = pool["backends"][0]["value"]["name"].as_str().unwrap().to_owned();
            assert_eq!(first.as_bytes(), greeting, "{balance} {source}");
            met.insert(first);
        }
        assert!(met.len() > 1, "{balance}: {met:?}: too few to tell");
        gate.finish();
    }
}
