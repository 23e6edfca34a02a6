//! What is allowed but probably not meant.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Action, Config, Networks, Rule, code, diagnostic::Diagnostic, file::File, reader::Report, value::cut};
use crate::cidr::Cidr;

/// Notes the doubts about a configuration without mistakes.
pub fn lint(file: &File, config: &Config, report: &mut Report) {
    pools(file, report);
    if let Some(default) = &file.firewall.default {
        let admits = |rule: &Rule| rule.action == Action::Allow && !rule.shadow;
        if default.value == Action::Deny && !config.firewall.rules.iter().any(admits) {
            report.push(
                Diagnostic::warning(code::DENIES_EVERYONE, "the firewall denies every client")
                    .at(default.span.clone())
                    .label("and no rule allows anyone")
                    .help("add a rule, for example `{ name = \"office\", allow = \"203.0.113.0/24\" }`"),
            );
        }
    }
    unreachable_rules(&config.firewall.rules, report);
}

fn pools(file: &File, report: &mut Report) {
    let used: HashSet<_> = file.listeners.iter().filter_map(|listener| Some(&listener.pool.as_ref()?.value)).collect();
    for pool in &file.pools {
        if !used.contains(&pool.name.value) {
            report.push(
                Diagnostic::warning(code::POOL_UNUSED, format!("no listener uses pool `{}`", cut(&pool.name.value)))
                    .at(pool.name.span.clone()),
            );
        }
        for weight in pool.backends.iter().filter_map(|backend| backend.weight.as_ref()) {
            if weight.value == 0 {
                report.push(
                    Diagnostic::warning(code::WEIGHT_ZERO, "a backend with weight 0 takes no traffic")
                        .at(weight.span.clone()),
                );
            }
        }
    }
}

/// Enforced networks with the earlier rules that have them.
type Decided<'r> = HashMap<(IpAddr, u8), Vec<&'r Rule>>;

fn unreachable_rules(rules: &[Rule], report: &mut Report) {
    let mut decided = Decided::new();
    for rule in rules {
        let Networks::Inline(networks) = &rule.networks else { continue };
        let first = networks.first().and_then(|network| covering(&decided, rule, *network));
        if let Some(first) = first
            && networks.iter().all(|network| covering(&decided, rule, *network).is_some())
        {
            report.push(
                Diagnostic::warning(code::RULE_UNREACHABLE, format!("rule `{}` never decides", rule.name))
                    .at(rule.span.clone())
                    .label(format!("rule `{}` matches first", first.name))
                    .help("the first rule that matches decides: write the narrower rule first"),
            );
        }
        if !rule.shadow {
            for network in networks {
                decided.entry((network.network(), network.prefix_len())).or_default().push(rule);
            }
        }
    }
}

/// An earlier rule that decides for all of `network` wherever `rule` applies.
fn covering<'r>(decided: &Decided<'r>, rule: &Rule, network: Cidr) -> Option<&'r Rule> {
    let applies = |earlier: &&&Rule| {
        earlier.listeners.is_empty() || (!rule.listeners.is_empty() && earlier.listeners.is_superset(&rule.listeners))
    };
    (0..=network.prefix_len())
        .filter_map(|len| decided.get(&(truncated(network.network(), len), len)))
        .find_map(|rules| rules.iter().find(applies).copied())
}

/// The network of length `len` around `ip`.
fn truncated(ip: IpAddr, len: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::parse;

    fn unreachable(rules: &str) -> Vec<String> {
        let text = format!(
            "firewall.rules = [{rules}]\n[listener.a]\nbind = \"0.0.0.0:0\"\npool = \"p\"\n\
            [listener.b]\nbind = \"0.0.0.0:0\"\npool = \"p\"\n[pool.p]\nbackends = \"192.0.2.1:80\"\n"
        );
        let (_, warnings) = parse(&text, Path::new("")).unwrap_or_else(|errors| panic!("{errors:#?}"));
        warnings.into_iter().map(|warning| warning.message + ", " + &warning.label).collect()
    }

    #[test]
    fn a_rule_behind_a_wider_one_is_found() {
        let wide = "{ name = \"wide\", deny = [\"10.0.0.0/8\", \"2001:db8::/32\"] }";
        let told = "rule `x` never decides, rule `wide` matches first";
        for (rules, expected) in [
            (format!("{wide}, {{ name = \"x\", allow = [\"10.1.0.0/16\", \"2001:db8:1::/48\"] }}"), vec![told]),
            (format!("{wide}, {{ name = \"x\", allow = \"10.0.0.0/8\", listeners = \"a\" }}"), vec![told]),
            (format!("{wide}, {{ name = \"x\", allow = [\"10.1.0.0/16\", \"11.0.0.0/8\"] }}"), vec![]),
            (format!("{{ name = \"x\", allow = \"10.1.0.0/16\" }}, {wide}"), vec![]),
            (format!("{wide}, {{ name = \"x\", allow_file = \"x\" }}"), vec![]),
        ] {
            assert_eq!(unreachable(&rules), expected, "{rules}");
        }
    }

    #[test]
    fn a_rule_that_does_not_always_decide_hides_nothing() {
        for first in ["shadow = true", "listeners = \"a\""] {
            let rules =
                format!("{{ name = \"w\", deny = \"0.0.0.0/0\", {first} }}, {{ name = \"x\", deny = \"10.0.0.0/8\" }}");
            assert_eq!(unreachable(&rules), [""; 0], "{rules}");
        }
        let rules = "{ name = \"w\", deny = \"0.0.0.0/0\" }, { name = \"x\", deny = \"::/0\" }";
        assert_eq!(unreachable(rules), [""; 0]);
    }
}
