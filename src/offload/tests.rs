use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    banned::Banned,
    plan::{Door, Group, Plan, Set},
    script::{Inventory, Script, read_counts, read_inventory, read_tables},
};
use crate::{
    bans::{Ban, Bans},
    cidr::Cidr,
    config::DenyAction,
    metrics::BanKind,
    moment::Moment,
};

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
    listed(&Script::to_replace(plan, &Banned::default(), there))
}

fn listed(script: &Script<'_>) -> Vec<Value> {
    serde_json::to_value(script).unwrap()["nftables"].as_array().unwrap().clone()
}

fn added_set(commands: &[Value]) -> &Value {
    commands.iter().find_map(|command| command["add"].get("set")).unwrap()
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
fn who_is_banned_is_denied_for_as_long_as_the_ban_lasts() {
    let (bans, now) = (Bans::default(), Moment::from_millis(1_000));
    let ban = |end: Option<u64>| Ban {
        kind: BanKind::Manual,
        reason: String::new(),
        since: 0,
        end: end.map(|seconds| now.after(Duration::from_secs(seconds))),
    };
    let network = |text: &str| text.parse::<Cidr>().unwrap();
    let ends = [("192.0.2.7", None), ("198.51.100.0/24", Some(60)), ("2001:db8::/32", Some(5))];
    bans.add(ends.map(|(text, end)| (network(text), ban(end))), now);
    let banned = Banned::of(&bans, now);
    // What ends within five seconds is not worth it.
    assert_eq!((banned.change, banned.ranges(), banned.left_out), (1, 2, 0));
    let plan = plan();
    let set = json!([{"elem": {"val": {"range": ["198.51.100.0", "198.51.100.255"]}, "timeout": 55}}]);
    let whole = listed(&Script::to_replace(&plan, &banned, &Inventory::default()));
    assert_eq!(added_set(&whole)["elem"][0], "192.0.2.7");
    assert_eq!(added_set(&whole)["elem"][1], set[0]);
    assert_eq!(added_set(&whole)["name"], "bans-v4-a");
    let answer = br#"{"nftables": [{"set": {"name": "bans-v4-a"}}, {"set": {"name": "g0-rule-bad-v4-b"}}, {"chain": {"name": "bans"}}]}"#;
    let there = read_inventory(answer).unwrap();
    let changed = listed(&Script::to_ban(&plan, &banned, &there));
    assert_eq!(changed.iter().filter_map(|command| command.get("delete")).count(), 1, "the other sets stay");
    assert_eq!(added_set(&changed)["name"], "bans-v4-b");
    assert!(
        listed(&Script::to_replace(&plan, &banned, &there))
            .iter()
            .any(|command| { command["add"]["set"]["name"] == "g0-rule-bad-v4-a" })
    );
}

#[test]
fn of_too_many_bans_those_that_last_longest_are_given() {
    let (bans, now) = (Bans::default(), Moment::from_millis(1_000));
    let ban = |seconds| Ban {
        kind: BanKind::Manual,
        reason: String::new(),
        since: 0,
        end: Some(now.after(Duration::from_secs(seconds))),
    };
    let address = |n: u32| Cidr::from(IpAddr::from(Ipv4Addr::from_bits(n * 3)));
    bans.add((0..60_000_u32).map(|n| (address(n), ban(10 + u64::from(n % 6)))), now);
    let banned = Banned::of(&bans, now);
    assert_eq!((banned.ranges(), banned.left_out), (50_000, 10_000));
    assert_eq!(banned.v4.iter().map(|(.., left)| left.unwrap()).min(), Some(6), "5 is for those that are left out");
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
