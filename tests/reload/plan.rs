//! What a reload would do, told without doing it.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use super::{append, edit, json, messages, path, reload, reloads, run, site, start};
use crate::support::{
    Backend, LATE, Process, SOON,
    client::{ask, connect, exchange},
    wait_until,
};

#[test]
fn a_plan_tells_everything_and_does_nothing() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = start(&(site(&[("a", &a), ("b", &b)]) + "[listener.old]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n"));
    let before = fs::read_to_string(path(&gate)).unwrap();
    let plan = json(&gate, &["plan"]);
    assert_eq!((&plan["result"], &plan["differences"]), (&"possible".into(), &json!([])));
    edit(&gate, "[listener.old]", "[listener.new]");
    edit(&gate, "[pool.web]\n", "[pool.web]\nbalance = \"maglev\"\nslow_start = \"1s\"\n");
    edit(&gate, "name = \"b\"\n", "name = \"b\"\nweight = 7\n");
    edit(&gate, "workers = ", "workers = 1");
    append(&gate, "[firewall]\nrules = [{ name = \"office\", allow = \"192.0.2.0/24\" }]\n");
    append(&gate, "[pool.more]\nbackends = [\"127.0.0.1:1\"]\n");
    let plan = json(&gate, &["plan"]);
    assert_eq!(
        plan["differences"],
        json!([
            { "part": "rule", "name": "office", "change": "added" },
            { "part": "listener", "name": "new", "change": "added" },
            { "part": "listener", "name": "old", "change": "removed" },
            { "part": "pool", "name": "web", "change": "changed", "keys": ["balance", "slow_start"] },
            { "part": "pool", "name": "more", "change": "added" },
            { "part": "backend", "name": "web/b", "change": "changed", "keys": ["weight"] },
            { "part": "backend", "name": "more/127.0.0.1:1", "change": "added" },
        ])
    );
    assert_eq!(
        (&plan["needs_restart"], &plan["diagnostics"][0]["code"]),
        (&json!(["[global] workers"]), &"W001".into())
    );
    // Another file, and the one of the process stays what it is.
    fs::write(gate.directory.path().join("other.toml"), before.replace("[pool.web]\n", "[pool.web]\nretries = 0\n"))
        .unwrap();
    let words = ["plan", "--socket", "admin.sock", "--config", "other.toml"];
    let other = Process::run(&words, gate.directory.path(), LATE);
    assert!(other.stdout.contains("other.toml would be applied\n  ~ pool web: retries"), "{}", other.stdout);
    assert_eq!(reloads(&gate, "applied") + reloads(&gate, "refused"), 0);
    assert_eq!(ask(gate.address("old")).len(), 1);
    fs::write(path(&gate), before).unwrap();
    assert!(reload(&gate).contains("nothing has changed"));
    gate.finish();
}

#[test]
fn a_process_that_stops_changes_nothing() {
    let backend = Backend::echo();
    let mut gate = start(&site(&[("a", &backend)]));
    let mut client = connect(gate.address("tcp"));
    exchange(&mut client, b"here");
    gate.process.signal(Signal::TERM);
    wait_until(SOON, "a drain", || !messages(&gate, "draining").is_empty());
    let late = run(&gate, &["reload"]);
    assert_eq!((late.code, late.stderr.as_str()), (Some(3), "error: the process is stopping"));
    drop(client);
    assert_eq!(gate.process.wait(SOON).and_then(|status| status.code()), Some(0));
    gate.ended();
}
