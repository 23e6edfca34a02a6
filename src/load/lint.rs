//! Doubts about the firewall that only show when every list is read and the rules are compiled.

use std::{
    cell::LazyCell,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use super::Materials;
use crate::{
    cidr::Cidr,
    config::{
        Action, Config, Diagnostic, Listener, ListenerLimits, Located, Networks, Rule,
        code::{DENIES_EVERYONE, DENIES_ITSELF, LIST_EMPTY, NO_EFFECT, RULE_UNREACHABLE},
        diagnostic::Origin,
        places::{Places, Spot},
    },
    firewall::Table,
};

/// Networks of a rule that are asked for whoever decides instead of it: it is only for a name in a message.
const ASKED: usize = 10_000;
/// Names in one message.
const NAMED: usize = 3;

/// Notes them. `text` is what `config` was read from, `networks` are those of a rule.
pub fn lint<'n>(
    text: &str,
    config: &Config,
    listeners: &[Materials],
    networks: impl Fn(usize) -> &'n [Cidr],
    found: &mut Vec<Diagnostic>,
) {
    let reached = reached(listeners);
    for (index, rule) in config.firewall.rules.iter().enumerate() {
        if networks(index).is_empty() {
            found.extend(empty(rule));
        } else if !reached.contains(&index) {
            found.push(unreachable(config, listeners, index, networks(index)));
        }
    }
    if !found.iter().any(|known| known.code == DENIES_EVERYONE) {
        let denies = config.listeners.iter().zip(listeners).filter(|(_, materials)| !admits(&materials.table));
        found.extend(denies.map(|(listener, _)| denies_everyone(listener)));
    }
    denies_itself(config, listeners, found);
    denies_exempt(text, config, listeners, found);
}

/// The rules that decide about some address at some listener, or would if they were no shadows.
fn reached(listeners: &[Materials]) -> BTreeSet<usize> {
    let tables: HashMap<_, _> = listeners.iter().map(|one| (std::ptr::from_ref(&*one.table), one)).collect();
    let mut reached = BTreeSet::new();
    for materials in tables.values() {
        let numbers =
            materials.table.verdicts().flat_map(|verdict| verdict.shadows.iter().copied().chain(verdict.rule));
        reached.extend(numbers.filter_map(|number| materials.rules.get(usize::from(number)).copied()));
    }
    reached
}

fn admits(table: &Table) -> bool {
    table.verdicts().any(|verdict| verdict.action == Action::Allow)
}

fn empty(rule: &Rule) -> Option<Diagnostic> {
    let Networks::File(file) = &rule.networks else { return None };
    let message = format!("list `{}` has no network, so rule `{}` never matches", file.value.display(), rule.name);
    let at = Origin::File { path: file.value.clone(), span: Some(file.span.clone()) };
    let help = "if it should have some: was it written to the end?";
    Some(Diagnostic::warning(LIST_EMPTY, message).from(at).label("named here").help(help))
}

fn unreachable(config: &Config, listeners: &[Materials], index: usize, networks: &[Cidr]) -> Diagnostic {
    let (rule, rules) = (config.firewall.rules.get(index), &config.firewall.rules);
    let mut earlier = BTreeSet::new();
    for materials in listeners.iter().filter(|materials| materials.rules.contains(&index)) {
        let ends = networks.iter().take(ASKED).flat_map(|network| [network.network(), network.last()]);
        let decided = ends.filter_map(|ip| materials.table.verdict(ip).rule);
        earlier.extend(decided.filter_map(|number| materials.rules.get(usize::from(number)).copied()));
    }
    let names: Vec<_> = earlier.iter().filter_map(|index| Some(format!("`{}`", rules.get(*index)?.name))).collect();
    let label = match names.as_slice() {
        [] => "other rules match first".to_owned(),
        [one] => format!("rule {one} matches first"),
        some if some.len() <= NAMED => format!("rules {} match first", some.join(", ")),
        many => format!("rules {} and others match first", many.get(..NAMED).unwrap_or_default().join(", ")),
    };
    let name = rule.map_or("", |rule| &rule.name);
    Diagnostic::warning(RULE_UNREACHABLE, format!("rule `{name}` never decides"))
        .at(rule.map_or(0..0, |rule| rule.span.clone()))
        .label(label)
        .help("the first rule that matches decides: write the narrower rule first")
}

fn denies_everyone(listener: &Listener) -> Diagnostic {
    let message = format!("the firewall denies every client of listener `{}`", listener.name);
    at_bind(DENIES_EVERYONE, message, listener)
        .label("nobody can connect here")
        .help("add a rule that allows someone at this listener")
}

/// A loopback listener whose own address is denied, and a pool that sends clients to a listener of this process that denies
/// them: a connection from this host to one of its own addresses comes from that address.
fn denies_itself(config: &Config, listeners: &[Materials], found: &mut Vec<Diagnostic>) {
    for (listener, materials) in config.listeners.iter().zip(listeners).filter(|(_, one)| admits(&one.table)) {
        let is_denied = |ip: IpAddr| materials.table.verdict(ip).action == Action::Deny;
        let why = |ip: IpAddr| by_whom(config, materials, materials.table.verdict(ip).rule);
        let binds: Vec<_> = listener.binds.iter().map(|bind| bind.value.ip()).collect();
        if let [first, ..] = binds.as_slice()
            && binds.iter().all(|ip| ip.is_loopback() && is_denied(*ip))
        {
            let message = format!("listener `{}` denies the only host that can reach it", listener.name);
            let label = format!("{first} is denied {}", why(*first));
            found.push(at_bind(DENIES_ITSELF, message, listener).label(label).help(format!("allow {first} here")));
        }
        for pool in &config.pools {
            let to_here = pool.backends.iter().find(|backend| is_own(backend.address, listener));
            let Some(backend) = to_here.filter(|backend| is_denied(backend.address.ip())) else { continue };
            let ip = backend.address.ip();
            let message = format!("listener `{}` denies the clients of pool `{}`", listener.name, pool.name);
            let note = format!("backend `{}` is this listener, and connections to it come from {ip}", backend.name);
            let label = format!("{ip} is denied {}", why(ip));
            let diagnostic = at_bind(DENIES_ITSELF, message, listener).label(label);
            found.push(diagnostic.note(note).help(format!("allow {ip} here, or let the pool go to a backend")));
        }
    }
}

/// Networks of an `exempt` list that are denied wherever the list holds: limits are for those whom the rules let in.
fn denies_exempt(text: &str, config: &Config, listeners: &[Materials], found: &mut Vec<Diagnostic>) {
    let general = &config.firewall.limits.exempt;
    let (mut everywhere, mut own) = (Vec::new(), Vec::new());
    for (listener, materials) in config.listeners.iter().zip(listeners).filter(|(_, one)| admits(&one.table)) {
        match &listener.limits {
            ListenerLimits::Own(limits) if limits.exempt != *general => {
                own.push((&listener.name, &limits.exempt, materials));
            }
            _ if everywhere.iter().any(|known: &&Materials| Arc::ptr_eq(&known.table, &materials.table)) => {}
            _ => everywhere.push(materials),
        }
    }
    // Reading the text again is for those who have such a network.
    let places = LazyCell::new(|| Places::of(text));
    found.extend(denied(config, general, &everywhere, |index| place(places.key("firewall"), index)));
    for (name, exempt, materials) in own {
        found.extend(denied(config, exempt, &[materials], |index| place(places.key("listener").key(name), index)));
    }
}

/// Where an exempt network stands in the table that has the limits.
fn place(table: Spot<'_>, index: usize) -> Option<Range<usize>> {
    table.key("limits").key("exempt").at(index).span()
}

/// About those of one list, if there are some.
fn denied(
    config: &Config,
    exempt: &[Cidr],
    listeners: &[&Materials],
    span: impl Fn(usize) -> Option<Range<usize>>,
) -> Option<Diagnostic> {
    let first = listeners.first()?;
    let is_denied =
        |table: &Table, network: &Cidr| table.verdicts_in(network).all(|verdict| verdict.action == Action::Deny);
    let is_denied_everywhere = |network: &Cidr| listeners.iter().all(|one| is_denied(&one.table, network));
    let mut denied = exempt.iter().enumerate().filter(|(_, network)| is_denied_everywhere(network));
    let (index, network) = denied.next()?;
    let rules: BTreeSet<_> = first.table.verdicts_in(network).map(|verdict| verdict.rule).collect();
    let why = match rules.len() {
        ..=NAMED => rules.iter().map(|rule| by_whom(config, first, *rule)).collect::<Vec<_>>().join(" and "),
        _ => "by several rules".to_owned(),
    };
    let message = format!("{network} has no effect in `exempt`: all of it is denied");
    let told = Diagnostic::warning(NO_EFFECT, message)
        .at(span(index).unwrap_or_default())
        .label(format!("denied {why}"))
        .help("allow it, or leave it out: the limits come after the rules");
    Some(match denied.count() {
        0 => told,
        1 => told.note("one more network of this list is denied"),
        more => told.note(format!("{more} more networks of this list are denied")),
    })
}

/// Who decided, as the last words of a sentence. `rule` is a number in the table of the listener.
fn by_whom(config: &Config, materials: &Materials, rule: Option<u16>) -> String {
    let index = rule.and_then(|rule| materials.rules.get(usize::from(rule)));
    let rule = index.and_then(|index| config.firewall.rules.get(*index));
    rule.map_or("by default".to_owned(), |rule| format!("by rule `{}`", rule.name))
}

/// Whether this address is certainly one that the listener takes connections at.
fn is_own(address: SocketAddr, listener: &Listener) -> bool {
    let takes = |bind: &Located<SocketAddr>| {
        let whole_host = bind.value.ip().is_unspecified() && bind.value.is_ipv4() == address.is_ipv4();
        bind.value == address || (whole_host && address.ip().is_loopback() && bind.value.port() == address.port())
    };
    listener.binds.iter().any(takes)
}

fn at_bind(code: &'static str, message: String, listener: &Listener) -> Diagnostic {
    let span = listener.binds.first().map_or(0..0, |bind| bind.span.clone());
    Diagnostic::warning(code, message).at(span)
}
