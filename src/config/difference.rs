//! What one configuration has that another has not, in the words of the file.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Admin, Config, Global, Listener, Log, Pool, Rule};

/// Something that was added, removed or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub part: Part,
    /// Of a backend `POOL/BACKEND`, of a file its path.
    pub name: String,
    pub change: Change,
    /// What is written otherwise, where it is changed and not a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

/// What a difference is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A table that is not one of several: `[global]`, `[admin]`, `[timeouts]`, `[firewall]`.
    Section,
    Listener,
    Pool,
    Backend,
    Rule,
    /// A file with a certificate or its key.
    Certificate,
    /// A file with networks.
    List,
    /// Another file that the configuration names.
    File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

/// A key, and whether it says the same in both.
type Key = (&'static str, bool);

/// What a reload from `old` to `new` puts to work. What files hold is not looked at.
pub fn differences(old: &Config, new: &Config) -> Vec<Difference> {
    let mut found = sections(old, new);
    compare(Part::Rule, (&old.firewall.rules, &new.firewall.rules), |rule| rule.name.clone(), rule, &mut found);
    compare(Part::Listener, (&old.listeners, &new.listeners), |one| one.name.clone(), listener, &mut found);
    compare(Part::Pool, (&old.pools, &new.pools), |pool| pool.name.clone(), pool, &mut found);
    let before: HashMap<_, _> = old.pools.iter().map(|pool| (&pool.name, &pool.backends)).collect();
    for new in &new.pools {
        let before = before.get(&new.name).map_or(&[][..], |backends| &backends[..]);
        let name = |backend: &super::Backend| format!("{}/{}", new.name, backend.name);
        compare(Part::Backend, (before, &new.backends), name, backend, &mut found);
    }
    found
}

/// What `new` asks for and only a restart brings, beside what the process was started with.
pub fn needs_restart(started: &Config, new: &Config) -> Vec<String> {
    let Global { workers, max_connections: _, zero_copy, hash_key: _, watch: _ } = &started.global;
    let Admin { bind, socket, allow: _ } = &started.admin;
    let Log { access, format, level } = &started.log;
    let keys = [
        ("[global] workers", *workers == new.global.workers),
        ("[global] zero_copy", *zero_copy == new.global.zero_copy),
        ("[admin] bind", *bind == new.admin.bind),
        ("[admin] socket", *socket == new.admin.socket),
        ("[log] access", *access == new.log.access),
        ("[log] format", *format == new.log.format),
        ("[log] level", *level == new.log.level),
    ];
    changed(&keys)
}

impl Part {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Section => "section",
            Self::Listener => "listener",
            Self::Pool => "pool",
            Self::Backend => "backend",
            Self::Rule => "rule",
            Self::Certificate => "certificate",
            Self::List => "list",
            Self::File => "file",
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        };
        write!(f, "{sign} {} {}", self.part.as_str(), self.name)?;
        if self.keys.is_empty() { Ok(()) } else { write!(f, ": {}", self.keys.join(", ")) }
    }
}

fn sections(old: &Config, new: &Config) -> Vec<Difference> {
    let order = |config: &Config| config.firewall.rules.iter().map(|rule| rule.name.clone()).collect::<Vec<_>>();
    let (limits, new_limits) = (&old.firewall.limits, &new.firewall.limits);
    let sections: [(&str, &[Key]); 5] = [
        (
            "[global]",
            &[
                ("max_connections", old.global.max_connections == new.global.max_connections),
                ("hash_key", old.global.hash_key == new.global.hash_key),
                ("watch", old.global.watch == new.global.watch),
            ],
        ),
        ("[admin]", &[("allow", old.admin.allow == new.admin.allow)]),
        ("[timeouts]", &[("drain", old.drain == new.drain)]),
        (
            "[firewall]",
            &[
                ("default", old.firewall.default == new.firewall.default),
                ("deny_action", old.firewall.deny_action == new.firewall.deny_action),
                ("offload", old.firewall.offload == new.firewall.offload),
                ("tests", old.firewall.tests == new.firewall.tests),
                ("order of the rules", has_same_order(&order(old), &order(new))),
                ("auto_ban", old.firewall.auto_ban == new.firewall.auto_ban),
                ("bans_file", old.firewall.bans_file == new.firewall.bans_file),
            ],
        ),
        (
            "[firewall.limits]",
            &[
                ("connections", limits.connections == new_limits.connections),
                ("new_per_second, burst", limits.rate == new_limits.rate),
                ("exempt", limits.exempt == new_limits.exempt),
                ("ipv4_prefix, ipv6_prefix", limits.prefixes == new_limits.prefixes),
            ],
        ),
    ];
    let sections = sections.into_iter().filter_map(|(name, keys)| changed_part(Part::Section, name.to_owned(), keys));
    sections.collect()
}

fn rule(old: &Rule, new: &Rule) -> Vec<Key> {
    vec![
        ("action", old.action == new.action),
        ("networks", old.networks == new.networks),
        ("listeners", old.listeners == new.listeners),
        ("shadow", old.shadow == new.shadow),
    ]
}

fn listener(old: &Listener, new: &Listener) -> Vec<Key> {
    let mut keys = vec![
        ("bind", old.binds == new.binds),
        ("pool", old.pool == new.pool),
        ("proxy_protocol", old.proxy_protocol == new.proxy_protocol),
        ("max_connections", old.max_connections == new.max_connections),
        ("limits", old.limits == new.limits),
        ("timeouts.handshake", old.timeouts.handshake == new.timeouts.handshake),
        ("timeouts.idle", old.timeouts.idle == new.timeouts.idle),
        ("timeouts.half_closed", old.timeouts.half_closed == new.timeouts.half_closed),
        ("timeouts.max_age", old.timeouts.max_age == new.timeouts.max_age),
    ];
    match (&old.tls, &new.tls) {
        (Some(old), Some(new)) => keys.extend([
            ("tls.certificates", old.certificates == new.certificates),
            ("tls.min_version", old.min_version == new.min_version),
            ("tls.alpn", old.alpn == new.alpn),
            ("tls.strict_sni", old.strict_sni == new.strict_sni),
        ]),
        (old, new) => keys.push(("tls", old.is_some() == new.is_some())),
    }
    keys
}

fn pool(old: &Pool, new: &Pool) -> Vec<Key> {
    let order = |pool: &Pool| pool.backends.iter().map(|backend| backend.name.clone()).collect::<Vec<_>>();
    vec![
        ("balance", old.balance == new.balance),
        ("retries", old.retries == new.retries),
        ("timeouts.connect", old.connect_timeout == new.connect_timeout),
        ("timeouts.queue", old.queue == new.queue),
        ("check", old.check == new.check),
        ("outlier", old.outlier == new.outlier),
        ("slow_start", old.slow_start == new.slow_start),
        ("send_proxy", old.send_proxy == new.send_proxy),
        ("on_down", old.on_down == new.on_down),
        ("on_all_down", old.on_all_down == new.on_all_down),
        ("max_queued", old.max_queued == new.max_queued),
        ("panic_threshold", old.panic_threshold == new.panic_threshold),
        ("order of the backends", has_same_order(&order(old), &order(new))),
    ]
}

fn backend(old: &super::Backend, new: &super::Backend) -> Vec<Key> {
    vec![
        ("address", old.address == new.address),
        ("weight", old.weight == new.weight),
        ("role", old.role == new.role),
        ("max_connections", old.max_connections == new.max_connections),
    ]
}

/// Whether those names that are in both come in the same order.
fn has_same_order(old: &[String], new: &[String]) -> bool {
    let (in_old, in_new): (HashSet<_>, HashSet<_>) = (old.iter().collect(), new.iter().collect());
    let kept = old.iter().filter(|name| in_new.contains(name));
    kept.eq(new.iter().filter(|name| in_old.contains(name)))
}

fn compare<T>(
    part: Part,
    (old, new): (&[T], &[T]),
    name: impl Fn(&T) -> String,
    keys: impl Fn(&T, &T) -> Vec<Key>,
    found: &mut Vec<Difference>,
) {
    let before: HashMap<_, _> = old.iter().map(|one| (name(one), one)).collect();
    let mut kept = HashSet::new();
    for after in new {
        let name = name(after);
        kept.insert(name.clone());
        found.extend(match before.get(&name) {
            Some(before) => changed_part(part, name, &keys(before, after)),
            None => Some(Difference { part, name, change: Change::Added, keys: Vec::new() }),
        });
    }
    let gone = old.iter().map(&name).filter(|name| !kept.contains(name));
    found.extend(gone.map(|name| Difference { part, name, change: Change::Removed, keys: Vec::new() }));
}

fn changed_part(part: Part, name: String, keys: &[Key]) -> Option<Difference> {
    let keys = changed(keys);
    (!keys.is_empty()).then_some(Difference { part, name, change: Change::Changed, keys })
}

fn changed(keys: &[Key]) -> Vec<String> {
    keys.iter().filter(|(_, is_same)| !is_same).map(|(key, _)| (*key).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    const BEFORE: &str = r#"
[firewall]
rules = [{ name = "a", deny = "192.0.2.0/24" }, { name = "b", allow = "198.51.100.0/24" }]
[listener.https]
bind = "127.0.0.1:8443"
tls = { cert = "a.pem", key = "a.key" }
pool = "web"
[listener.old]
bind = "127.0.0.1:8081"
pool = "web"
[pool.web]
backends = ["10.0.0.1:80", "10.0.0.2:80"]
"#;

    fn config(text: &str) -> Config {
        parse(text, Path::new("/etc")).unwrap_or_else(|errors| panic!("{errors:#?}")).0
    }

    fn told(after: &str) -> Vec<String> {
        differences(&config(BEFORE), &config(after)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn where_it_stands_makes_no_difference() {
        let moved = format!("# a comment\n\n{BEFORE}");
        assert_eq!(config(BEFORE), config(&moved));
        assert_eq!(told(&moved), [""; 0]);
    }

    #[test]
    fn each_difference_is_named_with_its_keys() {
        let after = BEFORE
            .replace("192.0.2.0/24", "192.0.3.0/24")
            .replace("[listener.old]", "[listener.new]")
            .replace("\"a.key\" }", "\"a.key\", min_version = \"1.3\" }\ntimeouts = { idle = \"1s\" }")
            .replace("10.0.0.2:80\"", "10.0.0.3:80\"");
        let after = format!("{after}balance = \"maglev\"\n[timeouts]\ndrain = \"1s\"\n");
        assert_eq!(
            told(&after),
            [
                "~ section [timeouts]: drain",
                "~ rule a: networks",
                "~ listener https: timeouts.idle, tls.min_version",
                "+ listener new",
                "- listener old",
                "~ pool web: balance",
                "+ backend web/10.0.0.3:80",
                "- backend web/10.0.0.2:80",
            ]
        );
    }

    #[test]
    fn the_order_of_rules_and_backends_counts() {
        let after = BEFORE
            .replace("\"10.0.0.1:80\", \"10.0.0.2:80\"", "\"10.0.0.2:80\", \"10.0.0.1:80\"")
            .replace("name = \"a\"", "name = \"x\"")
            .replace("name = \"b\"", "name = \"a\"")
            .replace("name = \"x\"", "name = \"b\"");
        let told = told(&after);
        assert!(told.contains(&"~ section [firewall]: order of the rules".to_owned()), "{told:?}");
        assert!(told.contains(&"~ pool web: order of the backends".to_owned()), "{told:?}");
    }

    /// 100,000 backends in the opposite order: a look at each for each of them would take minutes.
    #[test]
    fn many_backends_are_compared_in_time_in_proportion() {
        let mut old = config(BEFORE);
        let one = old.pools[0].backends[0].clone();
        let backend = |n: usize| super::super::Backend { name: n.to_string(), ..one.clone() };
        old.pools[0].backends = (0..100_000).map(backend).collect();
        let mut new = old.clone();
        new.pools[0].backends.reverse();
        new.pools[0].backends[0].weight = 7;
        let begin = std::time::Instant::now();
        let told: Vec<_> = differences(&old, &new).iter().map(ToString::to_string).collect();
        println!("100,000 backends: {:?}", begin.elapsed());
        assert_eq!(told, ["~ pool web: order of the backends", "~ backend web/99999: weight"]);
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let after = format!("{BEFORE}[global]\nworkers = 7\nmax_connections = 5\n[log]\naccess = \"off\"\n");
        assert_eq!(needs_restart(&config(BEFORE), &config(&after)), ["[global] workers", "[log] access"]);
        assert_eq!(told(&after), ["~ section [global]: max_connections"]);
    }
}
