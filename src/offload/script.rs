//! What `nft` is told, and what it tells, as JSON: `libnftables-json(5)`.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    banned::{Banned, Timed},
    plan::{Door, Plan, Set},
};
use crate::config::{BAN, DenyAction};

/// In front of the name of a rule: so it is a word that the packet filter has no other meaning for.
const RULE: &str = "rule-";

/// Where packets come in. Everything else has names of its own.
const INPUT: &str = "input";

/// What every listener asks first, and how its sets begin.
const BANS: &str = "bans";

/// Before the rules of the host, which have priority 0.
const PRIORITY: i32 = -10;

/// What is in a table of the packet filter already.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    counters: BTreeSet<String>,
    sets: BTreeSet<String>,
    chains: BTreeSet<String>,
}

/// Commands that are carried out all together or not at all.
#[derive(Debug, Serialize)]
pub struct Script<'p> {
    nftables: Vec<Command<'p>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Command<'p> {
    Add(Object<'p>),
    Flush(Object<'p>),
    Delete(Object<'p>),
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Object<'p> {
    Plain(Value),
    Set { set: ElementSet<'p> },
}

#[derive(Debug, Serialize)]
struct ElementSet<'p> {
    family: &'static str,
    table: &'p str,
    name: String,
    r#type: &'static str,
    flags: &'static [&'static str],
    elem: Elements<'p>,
}

/// Written one by one: as a tree of values they would take a hundred times the memory.
#[derive(Debug)]
enum Elements<'p> {
    V4(&'p [(u32, u32)]),
    V6(&'p [(u128, u128)]),
    BannedV4(&'p [Timed<u32>]),
    BannedV6(&'p [Timed<u128>]),
}

/// The answer to a question.
#[derive(Debug, Deserialize)]
struct Answer {
    nftables: Vec<HashMap<String, Value>>,
}

impl<'p> Script<'p> {
    /// The table becomes what the plan says, and who is banned. Counters go on; what is `there` beside them goes.
    pub fn to_replace(plan: &'p Plan, banned: &'p Banned, there: &Inventory) -> Self {
        let table = plan.table.as_str();
        let mut script = Self { nftables: vec![Command::Add(plain("table", table, &[]))] };
        let to = &mut script.nftables;
        to.extend(there.chains.iter().map(|chain| Command::Flush(plain("chain", table, &[("name", json!(chain))]))));
        to.extend(there.chains.iter().map(|chain| Command::Delete(plain("chain", table, &[("name", json!(chain))]))));
        to.extend(there.sets.iter().map(|set| Command::Delete(plain("set", table, &[("name", json!(set))]))));
        let counters: BTreeSet<_> = plan.rules().chain([BAN]).map(counter_of).collect();
        let gone = there.counters.difference(&counters);
        to.extend(gone.map(|name| Command::Delete(plain("counter", table, &[("name", json!(name))]))));
        to.extend(counters.iter().map(|name| Command::Add(plain("counter", table, &[("name", json!(name))]))));
        to.push(Command::Add(plain("chain", table, &[("name", json!(BANS))])));
        script_bans(plan, banned, there, to);
        let turn = there.turn(false);
        for (number, group) in plan.groups.iter().enumerate() {
            to.push(Command::Add(plain("chain", table, &[("name", json!(chain_of(number)))])));
            to.push(rule(table, &chain_of(number), &[json!({"jump": {"target": BANS}})]));
            for set in &group.sets {
                script_set(plan, number, set, turn, to);
            }
        }
        let hook = [("type", json!("filter")), ("hook", json!("input")), ("prio", json!(PRIORITY))];
        let chain = [("name", json!(INPUT)), ("policy", json!("accept"))].into_iter().chain(hook).collect::<Vec<_>>();
        to.push(Command::Add(plain("chain", table, &chain)));
        to.push(rule(table, INPUT, &[not_a_beginning(), json!({"return": null})]));
        to.extend(plan.doors.iter().map(|door| rule(table, INPUT, &way_through(*door))));
        script
    }

    /// Others are banned, under a plan that is there already.
    pub fn to_ban(plan: &'p Plan, banned: &'p Banned, there: &Inventory) -> Self {
        let table = plan.table.as_str();
        let mut script = Self { nftables: vec![Command::Flush(plain("chain", table, &[("name", json!(BANS))]))] };
        let to = &mut script.nftables;
        let old = there.sets.iter().filter(|set| is_of_bans(set));
        to.extend(old.map(|set| Command::Delete(plain("set", table, &[("name", json!(set))]))));
        script_bans(plan, banned, there, to);
        script
    }

    /// The table is not there any more. It need not be there before.
    pub fn to_remove(table: &'p str) -> Self {
        Self { nftables: vec![Command::Add(plain("table", table, &[])), Command::Delete(plain("table", table, &[]))] }
    }

    /// After the other one.
    pub fn and(mut self, other: Self) -> Self {
        self.nftables.extend(other.nftables);
        self
    }
}

impl Inventory {
    /// The end of the names of sets, of bans or of others. A name that is used already is not used again: nft would look
    /// whether old and new elements overlap.
    fn turn(&self, of_bans: bool) -> char {
        let is_used = self.sets.iter().any(|set| is_of_bans(set) == of_bans && set.ends_with("-a"));
        if is_used { 'b' } else { 'a' }
    }
}

fn is_of_bans(set: &str) -> bool {
    set.strip_prefix(BANS).is_some_and(|rest| rest.starts_with('-'))
}

/// Who is banned, in both families.
fn script_bans<'p>(plan: &'p Plan, banned: &'p Banned, there: &Inventory, to: &mut Vec<Command<'p>>) {
    let turn = there.turn(true);
    let families = [
        (Family::V4, Elements::BannedV4(&banned.v4), banned.v4.is_empty()),
        (Family::V6, Elements::BannedV6(&banned.v6), banned.v6.is_empty()),
    ];
    for (family, elem, is_empty) in families {
        if !is_empty {
            let name = format!("{BANS}-{}-{turn}", family.name());
            deny(plan, (BANS.to_owned(), BAN), (family, name, &["interval", "timeout"], elem), to);
        }
    }
}

/// What one rule denies, in both families.
fn script_set<'p>(plan: &'p Plan, group: usize, set: &'p Set, turn: char, to: &mut Vec<Command<'p>>) {
    let families = [
        (Family::V4, Elements::V4(&set.v4), set.v4.is_empty()),
        (Family::V6, Elements::V6(&set.v6), set.v6.is_empty()),
    ];
    for (family, elem, is_empty) in families {
        if !is_empty {
            let name = format!("{}-{}-{}-{turn}", chain_of(group), counter_of(&set.rule), family.name());
            deny(plan, (chain_of(group), &set.rule), (family, name, &["interval"], elem), to);
        }
    }
}

/// A set, and a rule in `chain` that denies whoever comes from there.
fn deny<'p>(
    plan: &'p Plan,
    (chain, name_of_rule): (String, &str),
    (family, name, flags, elem): (Family, String, &'static [&'static str], Elements<'p>),
    to: &mut Vec<Command<'p>>,
) {
    let (r#type, protocol) = match family {
        Family::V4 => ("ipv4_addr", "ip"),
        Family::V6 => ("ipv6_addr", "ip6"),
    };
    let from = json!({"match": {
        "op": "==",
        "left": {"payload": {"protocol": protocol, "field": "saddr"}},
        "right": format!("@{name}"),
    }});
    let verdict = match plan.deny_action {
        DenyAction::Drop => json!({"drop": null}),
        DenyAction::Reset => json!({"reject": {"type": "tcp reset"}}),
    };
    let set = ElementSet { family: "inet", table: &plan.table, name, r#type, flags, elem };
    to.push(Command::Add(Object::Set { set }));
    let counter = json!({"counter": counter_of(name_of_rule)});
    to.push(rule(&plan.table, &chain, &[from, counter, verdict]));
}

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// Packets of connections that are there already stay what they are (traps F5): only the first one of a connection is looked
/// at, and no state of the kernel is needed for that.
fn not_a_beginning() -> Value {
    json!({"match": {
        "op": "!=",
        "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn", "rst", "ack"]]},
        "right": "syn",
    }})
}

/// To the chain of a listener. It is final: what that chain says nothing about is none of the next ones' business.
fn way_through(Door { address, group }: Door) -> Vec<Value> {
    let equal = |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
    let nfproto = |family: &str| equal(json!({"meta": {"key": "nfproto"}}), json!(family));
    let to = |protocol: &str, ip: IpAddr| {
        equal(json!({"payload": {"protocol": protocol, "field": "daddr"}}), json!(ip.to_string()))
    };
    let at = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Some(nfproto("ipv4")),
        // Clients of IPv4 too, whom no door of `0.0.0.0` has taken before.
        IpAddr::V6(ip) if ip.is_unspecified() => None,
        ip @ IpAddr::V4(_) => Some(to("ip", ip)),
        ip @ IpAddr::V6(_) => Some(to("ip6", ip)),
    };
    let port = equal(json!({"payload": {"protocol": "tcp", "field": "dport"}}), json!(address.port()));
    at.into_iter().chain([port, json!({"goto": {"target": chain_of(group)}})]).collect()
}

fn chain_of(group: usize) -> String {
    format!("g{group}")
}

fn counter_of(rule: &str) -> String {
    format!("{RULE}{rule}")
}

fn rule<'p>(table: &str, chain: &str, expressions: &[Value]) -> Command<'p> {
    Command::Add(Object::Plain(json!({"rule": {
        "family": "inet", "table": table, "chain": chain, "expr": expressions,
    }})))
}

/// A table, or something in one.
fn plain<'p>(kind: &str, table: &str, more: &[(&str, Value)]) -> Object<'p> {
    let place = if kind == "table" { "name" } else { "table" };
    let mut fields =
        serde_json::Map::from_iter([("family".to_owned(), json!("inet")), (place.to_owned(), json!(table))]);
    fields.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    Object::Plain(Value::Object(serde_json::Map::from_iter([(kind.to_owned(), Value::Object(fields))])))
}

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let v4 = |(first, last): (u32, u32)| Element(Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last));
        let v6 = |(first, last): (u128, u128)| Element(Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last));
        match self {
            Self::V4(ranges) => serializer.collect_seq(ranges.iter().map(|&range| v4(range))),
            Self::V6(ranges) => serializer.collect_seq(ranges.iter().map(|&range| v6(range))),
            Self::BannedV4(ranges) => {
                serializer.collect_seq(ranges.iter().map(|&(first, last, left)| Limited(v4((first, last)), left)))
            }
            Self::BannedV6(ranges) => {
                serializer.collect_seq(ranges.iter().map(|&(first, last, left)| Limited(v6((first, last)), left)))
            }
        }
    }
}

/// For so many seconds, or until it is taken away.
struct Limited<A>(Element<A>, Option<u64>);

impl<A: Serialize + PartialEq> Serialize for Limited<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Elem<'e, E> {
            elem: Inner<'e, E>,
        }
        #[derive(Serialize)]
        struct Inner<'e, E> {
            val: &'e E,
            timeout: u64,
        }
        let Self(val, left) = self;
        match *left {
            None => val.serialize(serializer),
            Some(timeout) => Elem { elem: Inner { val, timeout } }.serialize(serializer),
        }
    }
}

struct Element<A>(A, A);

impl<A: Serialize + PartialEq> Serialize for Element<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Range<'a, A> {
            range: [&'a A; 2],
        }
        let Self(first, last) = self;
        if first == last { first.serialize(serializer) } else { Range { range: [first, last] }.serialize(serializer) }
    }
}

/// The tables of the family `inet`, from the answer to `list tables inet`.
pub fn read_tables(answer: &[u8]) -> Result<BTreeSet<String>, String> {
    Ok(objects(answer)?.filter_map(|(kind, name, _)| (kind == "table").then_some(name)).collect())
}

/// What is in a table, from the answer to `list table`.
pub fn read_inventory(answer: &[u8]) -> Result<Inventory, String> {
    let mut inventory = Inventory::default();
    for (kind, name, _) in objects(answer)? {
        match kind.as_str() {
            "counter" => inventory.counters.insert(name),
            "set" => inventory.sets.insert(name),
            "chain" => inventory.chains.insert(name),
            _ => false,
        };
    }
    Ok(inventory)
}

/// Packets by rule, from the answer to `reset counters`.
pub fn read_counts(answer: &[u8]) -> Result<Vec<(String, u64)>, String> {
    let counts = objects(answer)?.filter_map(|(kind, name, object)| {
        let rule = name.strip_prefix(RULE).filter(|_| kind == "counter")?;
        Some((rule.to_owned(), object.get("packets")?.as_u64()?))
    });
    Ok(counts.collect())
}

/// What has a name, with its kind.
fn objects(answer: &[u8]) -> Result<impl Iterator<Item = (String, String, Value)>, String> {
    // Where there is nothing to tell, nft may say nothing at all.
    let answer = if answer.trim_ascii().is_empty() { b"{\"nftables\":[]}" } else { answer };
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|error| format!("nft answers something else: {error}"))?;
    let all = answer.nftables.into_iter().flatten();
    Ok(all.filter_map(|(kind, object)| Some((kind, object.get("name")?.as_str()?.to_owned(), object))))
}
