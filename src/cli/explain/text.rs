//! The answer as people read it: a line for each fact, its place behind it.

use std::time::Duration;

use jiff::fmt::friendly::SpanPrinter;

use super::{
    super::table::columns,
    facts::{Admitted, AtListener, Explained, Fact, Limits, Place, Seconds, Sources, Timeouts},
    firewall::Firewall,
    pool::{Backend, Pool},
    proxy::Proxy,
    tls::{Answer, Tls},
};

/// A label, words, and where that is written.
type Row = Vec<String>;

pub(super) fn text(explained: &Explained) -> String {
    let listeners = explained.listeners.iter().map(|listener| at_listener(explained, listener));
    listeners.collect::<Vec<_>>().join("\n")
}

fn at_listener(explained: &Explained, at: &AtListener) -> String {
    let binds: Vec<_> = at.binds.iter().map(ToString::to_string).collect();
    let verdict = match &at.proxy {
        _ if at.admitted.is_some() => "allowed",
        Some(proxy) if proxy.trusted.is_none() && at.lets_peer_in() => "closed",
        _ => "denied",
    };
    let who = match explained.proxied_by {
        Some(peer) => format!("{} brought by {peer}", explained.client),
        None => explained.client.to_string(),
    };
    let title = format!("{who} at listener `{}` ({}): {verdict}", at.listener.value, binds.join(" "));
    let mut rows = Vec::new();
    if let Some(why) = at.unreachable {
        rows.push(vec!["note".to_owned(), why.to_owned(), place(at.listener.at.as_ref())]);
    }
    judged(at, &mut rows);
    match &at.admitted {
        Some(admitted) => {
            let Admitted { limits: most, sources: of_source, tls: policy, pool: to, timeouts: times } = admitted;
            limits(most, &mut rows);
            sources(of_source, &mut rows);
            if let Some(policy) = policy {
                tls(policy, explained.sni.as_deref(), &mut rows);
            }
            pool(to, &mut rows);
            timeouts(times, &mut rows);
        }
        None if at.proxy.as_ref().is_some_and(|proxy| proxy.firewall.is_some() && proxy.lets_in()) => {
            rows.push(row("", "no backend hears of it"));
        }
        None => rows.push(row("", "nothing is read from it, and no backend hears of it")),
    }
    // A label is said once.
    let mut last = String::new();
    for row in &mut rows {
        let Some(label) = row.first_mut() else { continue };
        if *label == last { label.clear() } else { last.clone_from(label) }
    }
    let rows: Vec<_> = rows.into_iter().map(indented).collect();
    format!("{title}\n{}", columns(&rows))
}

fn indented(mut row: Row) -> Row {
    if let Some(label) = row.first_mut() {
        label.insert_str(0, "  ");
    }
    row
}

/// Who connects, whether it may bring clients, and the client: each only if the one before does not end it.
fn judged(at: &AtListener, rows: &mut Vec<Row>) {
    let Some(found) = &at.proxy else { return firewall("firewall", &at.firewall, rows) };
    match &found.firewall {
        Some(verdict) => firewall("peer", verdict, rows),
        None => firewall("firewall", &at.firewall, rows),
    }
    if at.lets_peer_in() {
        proxy(found, rows);
    }
    if found.firewall.is_some() && found.lets_in() {
        firewall("firewall", &at.firewall, rows);
    }
}

fn proxy(proxy: &Proxy, rows: &mut Vec<Row>) {
    let Proxy { peer, trusted, from, timeout, firewall: verdict } = proxy;
    let Some(network) = trusted else {
        let words = format!("{peer} is none of those that bring clients here: closed, whatever it sends");
        rows.push(fact("proxy", words, from));
        return;
    };
    rows.push(fact("proxy", format!("{peer} is one of those that bring clients here: {}", network.value), network));
    let Seconds(time) = timeout.value;
    rows.push(fact(
        "proxy",
        format!("it has {} for the PROXY header, and is closed without one", duration(time)),
        timeout,
    ));
    if verdict.is_none() {
        let ask = format!("what follows is for itself; of others: --from CLIENT --proxied-by {peer}");
        rows.push(row("proxy", &ask));
    }
}

fn firewall(label: &str, firewall: &Firewall, rows: &mut Vec<Row>) {
    for shadow in &firewall.shadows {
        let words = format!("shadow rule `{}` would {} it", shadow.rule.value, shadow.action);
        matched(label, words, &shadow.rule, &shadow.network, rows);
    }
    let Firewall { action, rule, .. } = firewall;
    match &firewall.network {
        Some(network) => {
            let words = format!("rule `{}` {} it", rule.value, third_person(action));
            matched(label, words, rule, network, rows);
        }
        None => rows.push(fact(label, format!("no rule decides, the default {} it", third_person(action)), rule)),
    }
    if let Some(deny_action) = &firewall.deny_action {
        let words = match deny_action.value {
            "reset" => "reset: it gets RST",
            _ => "drop: closed without a byte",
        };
        rows.push(fact(label, words.to_owned(), deny_action));
    }
    if let Some(offload) = &firewall.offload {
        let words = "nftables: the kernel denies it before, unless its rule has too many networks";
        rows.push(fact("firewall", words.to_owned(), offload));
    }
}

/// A rule, and the network that made it match: in a line of its own where it is written elsewhere.
fn matched(label: &str, words: String, rule: &Fact<String>, network: &Fact<String>, rows: &mut Vec<Row>) {
    if rule.at == network.at {
        rows.push(fact(label, format!("{words}: {}", network.value), rule));
    } else {
        rows.push(fact(label, words, rule));
        rows.push(fact(label, format!("for {}", network.value), network));
    }
}

fn third_person(action: &str) -> &'static str {
    if action == "allow" { "allows" } else { "denies" }
}

fn limits(limits: &Limits, rows: &mut Vec<Row>) {
    let words = |most: Option<usize>, none: &str| most.map_or(none.to_owned(), |most| most.to_string());
    let process = words(limits.process.value, "as many as its descriptors allow");
    rows.push(fact("connections", format!("of the process: {process}"), &limits.process));
    let listener = words(limits.listener.value, "as many as the process");
    rows.push(fact("connections", format!("of the listener: {listener}"), &limits.listener));
}

fn sources(sources: &Sources, rows: &mut Vec<Row>) {
    let Sources { source, own, connections, new_per_second, burst, exempt, off } = sources;
    if let Some(off) = off {
        rows.push(fact("limits", "of its source: switched off for this listener".to_owned(), off));
    } else if let Some(exempt) = exempt {
        rows.push(fact("limits", format!("of its source: none, {} is exempt", exempt.value), exempt));
    } else {
        let whole = if *own { "at this listener" } else { "at all listeners without limits of their own" };
        if let Some(most) = connections {
            rows.push(fact("limits", format!("of {source}: {} connections {whole}", most.value), most));
        }
        if let Some((rate, burst)) = new_per_second.as_ref().zip(burst.as_ref()) {
            let words = format!("of {source}: {} new per second {whole}", rate.value);
            rows.push(fact("limits", words, rate));
            rows.push(fact("limits", format!("and {} at once after a pause", burst.value), burst));
        }
        if connections.is_none() && new_per_second.is_none() {
            rows.push(row("limits", "of its source: none"));
        }
    }
}

fn tls(tls: &Tls, sni: Option<&str>, rows: &mut Vec<Row>) {
    rows.push(fact("tls", format!("TLS {} or newer", tls.min_version.value), &tls.min_version));
    let alpn = match tls.alpn.value.as_slice() {
        [] => "ALPN is not negotiated".to_owned(),
        protocols => format!("ALPN {}; who offers only others is refused", protocols.join(", ")),
    };
    rows.push(fact("tls", alpn, &tls.alpn));
    let asked = sni.map_or("a client without a name".to_owned(), |name| format!("a client that asks for {name}"));
    if tls.answer == Answer::Refused {
        rows.push(fact("certificate", format!("none: {asked} is refused (unknown_sni)"), &tls.strict_sni));
        return;
    }
    let why = match tls.answer {
        Answer::Exact => "is for this name",
        Answer::Wildcard => "covers this name",
        _ => "is the first, for clients without a known name",
    };
    for (index, certificate) in tls.certificates.iter().enumerate() {
        let why = if index == 0 { why } else { "if it cannot verify those above" };
        let words = format!("{} ({}): {why}", certificate.value.file, some(&certificate.value.names));
        rows.push(fact("certificate", words, certificate));
    }
}

fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.get(..SHOWN).unwrap_or(names).join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn pool(pool: &Pool, rows: &mut Vec<Row>) {
    rows.push(fact("pool", format!("`{}`", pool.name.value), &pool.name));
    let how = match pool.balance.value {
        "round_robin" => "in turn, in proportion to weight",
        "least_conn" => "the fewest live connections for its weight",
        "p2c" => "the less loaded of two drawn at random by weight",
        _ => "by the address of the client: the first of these that is up",
    };
    rows.push(fact("pool", format!("{}: {how}", pool.balance.value), &pool.balance));
    let (mut active, mut backup) = (0, 0);
    for backend in &pool.backends {
        let (place, role) =
            if backend.value.role == "active" { (&mut active, "backend") } else { (&mut backup, "backup") };
        *place += 1;
        let number = if pool.ordered { format!("{place}. ") } else { String::new() };
        rows.push(fact(role, format!("{number}{}", described(&backend.value)), backend));
    }
    let retries = match pool.retries.value {
        0 => "a failed connect ends it".to_owned(),
        more => format!("after a failed connect, at most {more} more of the same role"),
    };
    rows.push(fact("retries", retries, &pool.retries));
    if pool.send_proxy.value != "off" {
        let words = format!("backends are told of the client by a PROXY header, {}", pool.send_proxy.value);
        rows.push(fact("send_proxy", words, &pool.send_proxy));
    }
    rows.push(row("not known", pool.unknown));
}

fn described(backend: &Backend) -> String {
    let Backend { name, address, weight, share_percent, max_connections, .. } = backend;
    let address = address.to_string();
    let name = if *name == address { String::new() } else { format!("{name} ") };
    let share = match weight {
        0 => "weight 0: takes no new connections".to_owned(),
        _ => format!("weight {weight} ({share_percent:.0} %)"),
    };
    let most = max_connections.map(|most| format!(", at most {most} connections")).unwrap_or_default();
    format!("{name}{address}, {share}{most}")
}

fn timeouts(timeouts: &Timeouts, rows: &mut Vec<Row>) {
    let Timeouts { handshake, queue, connect, idle, half_closed, max_age } = timeouts;
    let mut push = |key: &str, time: &Fact<Seconds>, zero: &str| {
        let Seconds(time_value) = time.value;
        let words = if time_value.is_zero() { zero.to_owned() } else { duration(time_value) };
        rows.push(fact("timeouts", format!("{key} {words}"), time));
    };
    if let Some(handshake) = handshake {
        push("handshake", handshake, "");
    }
    push("queue", queue, "0s: refused at once when every backend is full");
    push("connect", connect, "");
    push("idle", idle, "");
    push("half_closed", half_closed, "");
    push("max_age", max_age, "0s: never");
}

fn duration(duration: Duration) -> String {
    SpanPrinter::new().unsigned_duration_to_string(&duration)
}

fn fact<T>(label: &str, words: String, fact: &Fact<T>) -> Row {
    vec![label.to_owned(), words, place(fact.at.as_ref())]
}

fn row(label: &str, words: &str) -> Row {
    vec![label.to_owned(), words.to_owned()]
}

fn place(at: Option<&Place>) -> String {
    at.map_or("default".to_owned(), |Place { file, line }| format!("{file}:{line}"))
}
