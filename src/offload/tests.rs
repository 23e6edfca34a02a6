use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    plan::{Door, Group, Plan, Set},
    script::{Inventory, Script, read_counts, read_inventory, read_tables},
};
use crate::config::DenyAction;

fn plan() -> Plan {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    Plan {
        table: "sluicegate".to_owned(),
        deny_action: DenyAction::Drop,
        groups: vec![Group {
            sets: vec![Set {
                rule: "bad".to_owned(),
                v4: vec![(0x0a00_0000, 0x0aff_ffff), (0xc000_0207, 0xc000_0207)],
                v6: vec![],
            }],
        }],
        doors: vec![
            Door { address: address("192.0.2.1:80"), group: 0 },
            Door { address: address("0.0.0.0:443"), group: 0 },
            Door { address: address("[::]:443"), group: 0 },
        ],
        left_out: Vec::new(),
    }
}

fn commands(plan: &Plan, there: &Inventory) -> Vec<Value> {
    let script = serde_json::to_value(Script::to_replace(plan, there)).unwrap();
    script["nftables"].as_array().unwrap().clone()
}

#[test]
fn ranges_and_single_addresses_become_elements() {
    let commands = commands(&plan(), &Inventory::default());
    let set = commands.iter().find_map(|command| command["add"].get("set")).unwrap();
    assert_eq!(set["elem"], json!([{"range": ["10.0.0.0", "10.255.255.255"]}, "192.0.2.7"]));
    assert_eq!((&set["name"], &set["type"]), (&json!("g0-rule-bad-v4-a"), &json!("ipv4_addr")));
    assert_eq!(commands.iter().filter(|command| command["add"].get("set").is_some()).count(), 1, "no empty set");
}

#[test]
fn what_is_there_goes_and_counters_stay() {
    let answer = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "sluicegate"}},
        {"counter": {"name": "rule-bad", "packets": 7}}, {"counter": {"name": "rule-gone", "packets": 0}},
        {"set": {"name": "g0-rule-bad-v4-a"}}, {"chain": {"name": "input"}}, {"rule": {"chain": "input", "handle": 3}}]}"#;
    let commands = commands(&plan(), &read_inventory(answer).unwrap());
    let deleted: Vec<_> = commands.iter().filter_map(|command| command.get("delete")).collect();
    let names: Vec<_> =
        deleted.iter().flat_map(|one| one.as_object().unwrap().values().map(|one| &one["name"])).collect();
    assert_eq!(names, ["input", "g0-rule-bad-v4-a", "rule-gone"]);
    let set = commands.iter().find_map(|command| command["add"].get("set")).unwrap();
    assert_eq!(set["name"], "g0-rule-bad-v4-b", "another name each time");
    assert_eq!(read_counts(answer).unwrap(), [("bad".to_owned(), 7), ("gone".to_owned(), 0)]);
    assert!(read_tables(answer).unwrap().contains("sluicegate"));
}

#[test]
fn an_answer_that_is_none_is_no_panic() {
    assert!(read_tables(b"").unwrap().is_empty());
    for bad in [&b"nonsense"[..], b"{\"nftables\": 1}", b"[", b"\xff"] {
        assert!(read_tables(bad).is_err());
    }
    assert!(
        read_counts(b"{\"nftables\": [{\"counter\": {\"name\": \"x\", \"packets\": -1}}, {\"counter\": 7}]}")
            .unwrap()
            .is_empty()
    );
}
