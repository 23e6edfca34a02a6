//! Limits per source and automatic bans: what is true, what may be written, and the way from the one to the other.

#![expect(clippy::ref_option, reason = "the fields of the mirror are lent as they are")]

use std::{num::NonZeroU32, ops::Range, time::Duration};

use toml::de::DeValue;

use super::{
    Config, code,
    convert::{list, required, value},
    diagnostic::Diagnostic,
    file::{DAY, File, Written, WrittenList, YEAR},
    network,
    pool::file::Switch,
    reader::{Report, Schema, Table},
    value::{self, Problem},
};
use crate::{address::Prefixes, cidr::Cidr};

/// What each source of clients may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLimits {
    /// At once; `None`: as many as come.
    pub connections: Option<NonZeroU32>,
    /// `None`: as fast as they come.
    pub rate: Option<ConnectionRate>,
    /// Whom no limit is for, and no automatic ban.
    pub exempt: Vec<Cidr>,
    pub prefixes: Prefixes,
}

/// How fast connections may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionRate {
    pub new_per_second: NonZeroU32,
    /// So many at once after a pause.
    pub burst: NonZeroU32,
}

/// Which limits a listener has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerLimits {
    /// Those of `[firewall.limits]`, with every other listener that has no limits of its own.
    Shared,
    /// For itself: its clients count here alone.
    Own(SourceLimits),
    Off,
}

/// When a source is banned for what it does. At least one of the two numbers is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoBan {
    /// Clients turned away at their limits.
    pub limited: Option<NonZeroU32>,
    pub handshake_failures: Option<NonZeroU32>,
    /// From the first of them to the last.
    pub within: Duration,
    /// How long the ban lasts.
    pub duration: Duration,
}

/// `[firewall.limits]` and `[listener.*.limits]` as written.
#[derive(Debug, Default)]
pub struct Limits {
    pub connections: Written<NonZeroU32>,
    pub new_per_second: Written<NonZeroU32>,
    pub burst: Written<NonZeroU32>,
    pub exempt: WrittenList<Cidr>,
    pub ipv4_prefix: Written<u8>,
    pub ipv6_prefix: Written<u8>,
}

/// `[firewall.auto_ban]` as written.
#[derive(Debug)]
pub struct Automatic {
    pub limited: Written<NonZeroU32>,
    pub handshake_failures: Written<NonZeroU32>,
    pub within: Written<Duration>,
    pub duration: Written<Duration>,
}

const KEYS: &[&str] = &["connections", "new_per_second", "burst", "exempt", "ipv4_prefix", "ipv6_prefix"];
pub const LIMITS: Schema = Schema { name: "[firewall.limits]", keys: KEYS };
pub const LISTENER_LIMITS: Schema = Schema { name: "[listener.*.limits]", keys: KEYS };
pub const AUTO_BAN: Schema =
    Schema { name: "[firewall.auto_ban]", keys: &["limited", "handshake_failures", "within", "for"] };

const MOST: u32 = 1_000_000;
const DEFAULT_WITHIN: Duration = Duration::from_mins(1);
const DEFAULT_BAN: Duration = Duration::from_mins(10);

/// The table under `key` of `parent`.
pub fn read_limits(parent: &Table, title: String, schema: &Schema, report: &mut Report) -> Option<Limits> {
    let table = parent.table("limits", title, schema, report)?;
    Some(Limits {
        connections: table.read("connections", report, count),
        new_per_second: table.read("new_per_second", report, count),
        burst: table.read("burst", report, count),
        exempt: table.read_list("exempt", report, network::network),
        ipv4_prefix: table.read("ipv4_prefix", report, prefix(32)),
        ipv6_prefix: table.read("ipv6_prefix", report, prefix(128)),
    })
}

/// As [`read_limits`], where they may be switched off too.
pub fn read_listener_limits(parent: &Table, title: String, report: &mut Report) -> Option<Switch<Limits>> {
    if parent.text("limits").is_some() {
        return parent.read("limits", report, value::word(&[("off", ())])).map(|_| Switch::Off);
    }
    read_limits(parent, title, &LISTENER_LIMITS, report).map(Switch::On)
}

pub fn read_auto_ban(parent: &Table, report: &mut Report) -> Option<Automatic> {
    let table = parent.table("auto_ban", "[firewall.auto_ban]".to_owned(), &AUTO_BAN, report)?;
    table.require_one(&["limited", "handshake_failures"], "limited = 50", report);
    Some(Automatic {
        limited: table.read("limited", report, count),
        handshake_failures: table.read("handshake_failures", report, count),
        within: table.read("within", report, value::duration(DAY)),
        duration: table.read("for", report, value::duration(YEAR)),
    })
}

/// `[firewall.limits]` with every default.
pub fn limits(file: &Limits) -> SourceLimits {
    let burst = required(&file.burst);
    SourceLimits {
        connections: required(&file.connections),
        rate: required(&file.new_per_second)
            .map(|new_per_second| ConnectionRate { new_per_second, burst: burst.unwrap_or(new_per_second) }),
        exempt: list(&file.exempt),
        prefixes: Prefixes {
            ipv4: value(&file.ipv4_prefix, Prefixes::DEFAULT.ipv4),
            ipv6: value(&file.ipv6_prefix, Prefixes::DEFAULT.ipv6),
        },
    }
}

/// Those of a listener: each key that it does not have is the one of `[firewall.limits]`.
pub fn listener_limits(file: Option<&Switch<Limits>>, general: &Limits) -> ListenerLimits {
    let own = match file {
        None => return ListenerLimits::Shared,
        Some(Switch::Off) => return ListenerLimits::Off,
        Some(Switch::On(own)) => own,
    };
    ListenerLimits::Own(limits(&Limits {
        connections: nearest(&own.connections, &general.connections),
        new_per_second: nearest(&own.new_per_second, &general.new_per_second),
        burst: nearest(&own.burst, &general.burst),
        exempt: nearest(&own.exempt, &general.exempt),
        ipv4_prefix: nearest(&own.ipv4_prefix, &general.ipv4_prefix),
        ipv6_prefix: nearest(&own.ipv6_prefix, &general.ipv6_prefix),
    }))
}

pub fn auto_ban(file: &Automatic) -> AutoBan {
    AutoBan {
        limited: required(&file.limited),
        handshake_failures: required(&file.handshake_failures),
        within: value(&file.within, DEFAULT_WITHIN),
        duration: value(&file.duration, DEFAULT_BAN),
    }
}

/// What is written and does nothing.
pub fn lint(file: &File, report: &mut Report) {
    let listeners = || of_listeners(file);
    let everywhere = || file.firewall.limits.iter().chain(listeners());
    let mut told = |message: String, span: Range<usize>, label: &str, help: &str| {
        report.push(Diagnostic::warning(code::NO_EFFECT, message).at(span).label(label).help(help));
    };
    let has_rate = file.firewall.limits.iter().any(|limits| limits.new_per_second.is_some());
    for limits in everywhere() {
        let Some(burst) = limits.burst.as_ref().filter(|_| limits.new_per_second.is_none() && !has_rate) else {
            continue;
        };
        // A listener may name the other half.
        if listeners().any(|own| own.new_per_second.is_some()) {
            continue;
        }
        let help = "add `new_per_second = NUMBER`, or leave `burst` out";
        told("`burst` has no effect without `new_per_second`".to_owned(), burst.span.clone(), "of which rate?", help);
    }
    let limits_something = everywhere().any(|limits| limits.connections.is_some() || limits.new_per_second.is_some());
    let help = "add `connections` or `new_per_second` to [firewall.limits]";
    if let Some(limited) = file.firewall.auto_ban.as_ref().and_then(|auto_ban| auto_ban.limited.as_ref())
        && !limits_something
    {
        told("`limited` has no effect without limits".to_owned(), limited.span.clone(), "nobody is limited", help);
    }
    let exempt = file.firewall.limits.as_ref().and_then(|limits| limits.exempt.as_ref());
    if let Some(exempt) = exempt.filter(|_| !limits_something && file.firewall.auto_ban.is_none()) {
        told("`exempt` has no effect without limits".to_owned(), exempt.span.clone(), "exempt from what?", help);
    }
}

/// Exempt networks that others of the same list cover.
pub fn lint_exempt(file: &File, report: &mut Report) {
    for exempt in file.firewall.limits.iter().chain(of_listeners(file)).filter_map(|limits| limits.exempt.as_ref()) {
        // A network stands before all that it covers then, and of two that are equal the one that was written first.
        let mut networks: Vec<_> = exempt.value.iter().collect();
        networks.sort_by_key(|network| network.value);
        let mut outer: Option<Cidr> = None;
        for network in networks {
            let own = network.value;
            let Some(outer) = outer.filter(|outer| outer.covers(&own)) else {
                outer = Some(own);
                continue;
            };
            report.push_with(|| {
                let (message, label) = if outer == own {
                    (format!("{own} is twice in `exempt`"), "written before".to_owned())
                } else {
                    (format!("{own} has no effect beside {outer} in `exempt`"), format!("covered by {outer}"))
                };
                let told = Diagnostic::warning(code::NO_EFFECT, message).at(network.span.clone());
                told.label(label).help("leave it out")
            });
        }
    }
}

/// Balancers that connect for many clients and have the limits of one source.
pub fn lint_balancers(file: &File, config: &Config, report: &mut Report) {
    for (written, listener) in file.listeners.iter().zip(&config.listeners) {
        let limits = match &listener.limits {
            ListenerLimits::Own(own) => own,
            ListenerLimits::Shared => &config.firewall.limits,
            ListenerLimits::Off => continue,
        };
        if limits.connections.is_none() && limits.rate.is_none() {
            continue;
        }
        let from = written.proxy_protocol.iter().flat_map(|required| &required.from).flat_map(|from| &from.value);
        for network in from.filter(|network| !limits.exempt.iter().any(|exempt| exempt.covers(&network.value))) {
            let message = format!("{} brings clients, and is limited like one of them", network.value);
            report.push(
                Diagnostic::warning(code::PROXY_LIMITED, message)
                    .at(network.span.clone())
                    .label("not `exempt` from the limits of this listener")
                    .note("the clients that it brings have the limits in any case")
                    .help(format!("add \"{}\" to `exempt` of [firewall.limits]", network.value)),
            );
        }
    }
}

/// Those that listeners have for themselves.
fn of_listeners(file: &File) -> impl Iterator<Item = &Limits> {
    let own = file.listeners.iter().map(|listener| listener.limits.as_ref());
    own.filter_map(|own| if let Some(Switch::On(own)) = own { Some(own) } else { None })
}

fn nearest<T: Clone>(own: &Written<T>, general: &Written<T>) -> Written<T> {
    own.clone().or_else(|| general.clone())
}

fn count(value: &DeValue) -> Result<NonZeroU32, Problem> {
    value::integer(1..=MOST)(value).map(|number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN))
}

fn prefix(most: u8) -> impl Fn(&DeValue) -> Result<u8, Problem> {
    move |value| value::integer(1..=most.into())(value).map(|bits| u8::try_from(bits).unwrap_or(most))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    fn parsed(more: &str) -> (Config, Vec<String>) {
        let text = format!(
            "[listener.a]\nbind = \"0.0.0.0:0\"\npool = \"p\"\n[listener.b]\nbind = \"0.0.0.0:0\"\npool = \"p\"\n\
             [pool.p]\nbackends = \"192.0.2.1:80\"\n{more}"
        );
        let (config, warnings) = parse(&text, Path::new("")).unwrap_or_else(|errors| panic!("{errors:#?}"));
        (config, warnings.into_iter().map(|warning| warning.message).collect())
    }

    fn number(number: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(number)
    }

    #[test]
    fn a_listener_replaces_the_keys_that_it_names() {
        let (config, _) = parsed(
            "[firewall.limits]\nconnections = 200\nnew_per_second = 50\nexempt = \"192.0.2.0/24\"\nipv4_prefix = 24\n\
             [listener.a.limits]\nnew_per_second = 5\nburst = 7\n",
        );
        let shared = &config.firewall.limits;
        assert_eq!((shared.connections, shared.rate.map(|rate| rate.burst)), (number(200), number(50)));
        assert_eq!(shared.prefixes, Prefixes { ipv4: 24, ipv6: 64 });
        let ListenerLimits::Own(own) = &config.listeners[0].limits else { panic!("{:?}", config.listeners[0]) };
        let rate = own.rate.map(|rate| (rate.new_per_second.get(), rate.burst.get()));
        assert_eq!((own.connections, rate, &own.exempt), (number(200), Some((5, 7)), &shared.exempt));
        assert_eq!(config.listeners[1].limits, ListenerLimits::Shared);
        let (config, _) =
            parsed("[firewall.limits]\nconnections = 1\n[listener.b]\n".trim_end_matches("[listener.b]\n"));
        assert_eq!(config.firewall.limits.rate, None);
    }

    #[test]
    fn limits_can_be_off_for_a_listener() {
        let text = "[listener.a]\nbind = \"0.0.0.0:0\"\npool = \"p\"\nlimits = \"off\"\n[pool.p]\nbackends = \"192.0.2.1:80\"\n";
        let (config, _) = parse(text, Path::new("")).unwrap();
        assert_eq!(config.listeners[0].limits, ListenerLimits::Off);
        let errors = parse(&text.replace("off", "of"), Path::new("")).unwrap_err();
        assert_eq!((errors[0].code, &*errors[0].label), (code::UNKNOWN_WORD, "did you mean `off`?"));
    }

    #[test]
    fn what_does_nothing_is_told() {
        for (more, expected) in [
            ("[firewall.limits]\nconnections = 1\nburst = 2\n", vec!["`burst` has no effect without `new_per_second`"]),
            ("[firewall.limits]\nburst = 2\nconnections = 1\n[listener.a.limits]\nnew_per_second = 1\n", vec![]),
            ("[firewall.limits]\nexempt = \"192.0.2.1\"\n", vec!["`exempt` has no effect without limits"]),
            ("[firewall.auto_ban]\nlimited = 3\n", vec!["`limited` has no effect without limits"]),
            ("[firewall.auto_ban]\nlimited = 3\n[listener.b.limits]\nconnections = 1\n", vec![]),
            ("[firewall.limits]\nexempt = \"192.0.2.1\"\n[firewall.auto_ban]\nhandshake_failures = 3\n", vec![]),
        ] {
            assert_eq!(parsed(more).1, expected, "{more}");
        }
    }

    #[test]
    fn an_exempt_network_inside_another_is_told() {
        for (exempt, expected) in [
            ("\"192.0.2.1\", \"192.0.2.0/24\"", vec!["192.0.2.1/32 has no effect beside 192.0.2.0/24 in `exempt`"]),
            ("\"192.0.2.1\", \"192.0.2.1/32\"", vec!["192.0.2.1/32 is twice in `exempt`"]),
            ("\"::ffff:192.0.2.0/120\", \"192.0.2.0/24\"", vec!["192.0.2.0/24 is twice in `exempt`"]),
            // Behind one that is covered and beside it.
            (
                "\"10.0.0.0/8\", \"10.1.0.0/16\", \"10.2.0.0/16\", \"11.0.0.0/16\"",
                vec![
                    "10.1.0.0/16 has no effect beside 10.0.0.0/8 in `exempt`",
                    "10.2.0.0/16 has no effect beside 10.0.0.0/8 in `exempt`",
                ],
            ),
            ("\"::/0\", \"0.0.0.0/0\"", vec![]),
            ("\"10.0.0.0/9\", \"10.128.0.0/9\"", vec![]),
        ] {
            let limits = format!("limits]\nconnections = 1\nexempt = [{exempt}]\n");
            assert_eq!(parsed(&format!("[firewall.{limits}")).1, expected, "{exempt}");
            assert_eq!(parsed(&format!("[listener.b.{limits}")).1, expected, "{exempt}");
        }
        // Each list is for itself: a listener's takes the place of the general one.
        let (_, told) = parsed(
            "[firewall.limits]\nconnections = 1\nexempt = \"10.0.0.0/8\"\n[listener.a.limits]\nexempt = \"10.1.0.0/16\"\n",
        );
        assert_eq!(told, Vec::<String>::new());
    }

    #[test]
    fn automatic_bans_need_a_number_and_have_defaults() {
        let (config, _) = parsed("[firewall.auto_ban]\nhandshake_failures = 20\n");
        let expected =
            AutoBan { limited: None, handshake_failures: number(20), within: DEFAULT_WITHIN, duration: DEFAULT_BAN };
        assert_eq!(config.firewall.auto_ban, Some(expected));
        let text = "[listener.a]\nbind = \"0.0.0.0:0\"\npool = \"p\"\n[pool.p]\nbackends = \"192.0.2.1:80\"\n";
        for (more, code) in [
            ("[firewall.auto_ban]\nwithin = \"1m\"\n", code::MISSING_KEY),
            ("[firewall.auto_ban]\nlimited = 0\n", code::OUT_OF_RANGE),
            ("[firewall.limits]\nipv4_prefix = 33\n", code::OUT_OF_RANGE),
            ("[firewall.limits]\nexempt = []\n", code::EMPTY_LIST),
        ] {
            let errors = parse(&format!("{text}{more}"), Path::new("")).unwrap_err();
            assert_eq!(errors[0].code, code, "{more}");
        }
    }
}
