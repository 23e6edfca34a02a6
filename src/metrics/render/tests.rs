//! A scrape read back by a parser that forgives nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use super::*;
use crate::metrics::{
    RuleAction,
    gauges::{BackendGauges, CertificateGauges, ListenerGauges, PoolGauges, PrefixGauges, SourceGauges},
};

/// What a scrape says: the type of each family, and the value of each series as it is written.
struct Scrape {
    types: BTreeMap<String, String>,
    series: HashMap<String, f64>,
}

impl Scrape {
    fn value(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("{series} is missing"))
    }
}

/// A counter whose family in OpenMetrics would be that of a gauge: both names are a promise.
const SHARED: &str = "sluicegate_backend_connections_total";

/// Families are contiguous, each with HELP then TYPE; no series twice; samples carry the suffixes of their type.
fn parse(text: &str, format: Format) -> Scrape {
    let body = match format {
        Format::Text => text,
        Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("ends with EOF"),
    };
    assert!(body.ends_with('\n') && !body.contains("# EOF") && !body.contains("\n\n") && !body.contains('\r'));
    let mut scrape = Scrape { types: BTreeMap::new(), series: HashMap::new() };
    let (mut helped, mut family, mut kind) = (String::new(), String::new(), String::new());
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help text");
            assert!(!help.trim().is_empty(), "{line}");
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, word) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "HELP comes before TYPE");
            let unknown = format == Format::OpenMetrics && name == SHARED && word == "unknown";
            assert!(unknown || matches!(word, "counter" | "gauge" | "histogram"), "{line}");
            (family, kind) = (name.to_owned(), word.to_owned());
            assert!(scrape.types.insert(family.clone(), kind.clone()).is_none(), "{name} is in two places");
        } else {
            let (name, labels, value) = sample(line);
            assert!(suffixes(&kind, format).iter().any(|suffix| name == format!("{family}{suffix}")), "{line}");
            let series = format!("{name}{{{}}}", labels.join(","));
            assert!(scrape.series.insert(series, value).is_none(), "{line} is there twice");
        }
    }
    scrape
}

fn suffixes(kind: &str, format: Format) -> &'static [&'static str] {
    match (kind, format) {
        ("counter", Format::OpenMetrics) => &["_total"],
        ("histogram", _) => &["_bucket", "_sum", "_count"],
        _ => &[""],
    }
}

/// `name{key="value",..} number`, keys plain and unique, values with only the three escapes.
fn sample(line: &str) -> (String, Vec<String>, f64) {
    let end = line.find(['{', ' ']).expect("a value");
    let (name, mut rest) = line.split_at(end);
    let plain = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    assert!(plain(name), "{line}");
    let (mut labels, mut keys) = (Vec::new(), HashSet::new());
    if rest.starts_with('{') {
        loop {
            let (key, after) = rest[1..].split_once("=\"").expect("key");
            assert!(plain(key) && keys.insert(key), "{line}");
            let end = closing_quote(after).unwrap_or_else(|| panic!("no end of a value: {line}"));
            labels.push(format!("{key}=\"{}\"", &after[..end]));
            rest = &after[end + 1..];
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            assert!(rest.starts_with(','), "{line}");
        }
    }
    let number = rest.strip_prefix(' ').expect("one space");
    assert!(number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'e' | b'+')), "{line}");
    (name.to_owned(), labels, number.parse().expect("a number"))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match (escaped, c) {
            (true, '\\' | '"' | 'n') => escaped = false,
            (true, _) => panic!("unknown escape in {text}"),
            (false, '\\') => escaped = true,
            (false, '"') => return Some(index),
            (false, _) => {}
        }
    }
    None
}

/// Every histogram: buckets rise to `+Inf`, which is the count.
fn check_histograms(text: &str) -> usize {
    let mut last: HashMap<String, (f64, f64)> = HashMap::new();
    let mut counts = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels, value) = sample(line);
        if let Some(base) = name.strip_suffix("_bucket") {
            let (le, others) = labels.split_last().unwrap();
            let le = le.strip_prefix("le=\"").unwrap().trim_end_matches('"');
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
            let series = format!("{base}{}", others.join(","));
            let (bound_before, before) = last.insert(series, (bound, value)).unwrap_or((-1.0, 0.0));
            assert!(bound > bound_before && value >= before, "{line}");
        } else if let Some((bound, infinite)) =
            name.strip_suffix("_count").and_then(|base| last.get(&format!("{base}{}", labels.join(","))))
        {
            assert!(bound.is_infinite(), "{line}");
            assert!((infinite - value).abs() < f64::EPSILON, "{line}");
            counts += 1;
        }
    }
    assert_eq!(counts, last.len());
    counts
}

fn registry() -> Registry {
    let registry = Registry::new(3);
    for name in ["https", "mysql"] {
        registry.listener(name);
    }
    registry.rule("default", RuleAction::Allow);
    registry.rule("bad-nets", RuleAction::Deny);
    registry.offloaded("bad-nets");
    registry.pool("web");
    registry.backend("web", "web-01");
    registry.backend("web", "web-02");
    registry.checks("web", "web-01");
    registry
}

fn gauges() -> Gauges {
    let backend =
        |name: &str, up| BackendGauges { pool: "web".into(), name: name.into(), weight: 2, connections: 5, up };
    Gauges {
        listeners: vec![ListenerGauges { name: "https".into(), connections_limit: 50_000 }],
        pools: vec![PoolGauges { name: "web".into(), up: 1, down: 1, ..PoolGauges::default() }],
        backends: vec![backend("web-01", true), backend("web-02", false)],
        certificates: vec![CertificateGauges { name: "certs/a \"b\" c\\d.pem".into(), not_after: 1_900_000_000 }],
        sources: Some(SourceGauges { sources: 7, manual: 2, automatic: 3 }),
        firewall: vec![PrefixGauges { rule: "bad-nets".into(), v4: 999_999, v6: 1 }],
    }
}

#[test]
fn every_series_is_there_at_zero_from_the_start_under_its_contracted_name() {
    let text = render(&registry(), &gauges(), Format::Text);
    let scrape = parse(&text, Format::Text);
    let ours: Vec<_> = scrape.types.iter().filter(|(name, _)| name.starts_with("sluicegate_")).collect();
    let counters = COUNTERS.iter().map(|(name, _)| (*name, "counter"));
    let shown = GAUGES.iter().map(|(name, _)| (*name, "gauge"));
    let timed = ["connection", "tls_handshake", "backend_connect"];
    let timed: Vec<_> = timed.iter().map(|what| format!("sluicegate_{what}_duration_seconds")).collect();
    let mut expected: Vec<_> = counters.chain(shown).chain(timed.iter().map(|name| (&**name, "histogram"))).collect();
    expected.sort_unstable();
    assert_eq!(ours.iter().map(|(name, kind)| (&***name, &***kind)).collect::<Vec<_>>(), expected);
    assert_eq!(check_histograms(&text), 2 * 2 + 1);
    for outcome in Outcome::ALL {
        let series =
            format!("sluicegate_connections_closed_total{{listener=\"mysql\",outcome=\"{}\"}}", outcome.as_str());
        assert_eq!(scrape.value(&series).to_bits(), 0);
    }
    assert!(scrape.series.contains_key("sluicegate_firewall_connections_total{rule=\"default\",action=\"allow\"}"));
}

#[test]
fn standard_process_metrics_are_there_with_their_types() {
    let scrape = parse(&render(&registry(), &gauges(), Format::Text), Format::Text);
    for gauge in ["resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"] {
        assert_eq!(scrape.types[&format!("process_{gauge}")], "gauge");
        assert!(scrape.value(&format!("process_{gauge}{{}}")) > 0.0);
    }
    assert_eq!(scrape.types["process_cpu_seconds_total"], "counter");
}

#[test]
fn both_formats_say_the_same() {
    let (registry, gauges) = (registry(), gauges());
    registry.listener("https").at(2).accepted.add(3);
    let text = parse(&render(&registry, &gauges, Format::Text), Format::Text);
    let open = parse(&render(&registry, &gauges, Format::OpenMetrics), Format::OpenMetrics);
    assert_eq!(open.types["sluicegate_listener_accepted"], "counter");
    assert_eq!(open.types["sluicegate_backend_connections"], "gauge");
    let ours = |scrape: &Scrape| {
        let ours = scrape.series.iter().filter(|(name, _)| name.starts_with("sluicegate_"));
        ours.map(|(name, value)| (name.clone(), value.to_bits())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(ours(&text), ours(&open));
    assert_eq!(text.series.len(), open.series.len());
}

/// `sluicegate_bans` beside `sluicegate_bans_total` was one family to OpenMetrics, so the counter had to go as `unknown`, as
/// the one whose name is a promise still does.
#[test]
fn no_family_has_the_name_of_another_ones_samples() {
    const SUFFIXES: [&str; 6] = ["_total", "_count", "_sum", "_bucket", "_created", "_info"];
    for format in [Format::Text, Format::OpenMetrics] {
        let families = parse(&render(&registry(), &gauges(), format), format).types;
        assert!(families.len() > COUNTERS.len() + GAUGES.len(), "{families:?}");
        for (name, suffix) in families.keys().flat_map(|name| SUFFIXES.map(|suffix| (name, suffix))) {
            let other = format!("{name}{suffix}");
            assert!(other == SHARED || !families.contains_key(&other), "{name} and {other}");
        }
    }
}

#[test]
fn a_scrape_says_exactly_what_was_counted() {
    let registry = registry();
    let https = registry.listener("https");
    for worker in 0..3 {
        let cells = https.at(worker);
        cells.accepted.add(10);
        cells.close(Outcome::ClientClosed, Duration::from_millis(250));
        cells.received_bytes.add(1 << 60);
        cells.tls_handshakes(TlsVersion::V1_3, Resumption::Resumed).add(2);
        registry.workers().at(worker).pipes_pooled.set(4);
        registry.workers().at(worker).connections.set(9);
    }
    registry.workers().at(1).fallbacks.at(Fallback::SmallPipe).add(9);
    https.at(2).limited.at(LimitReason::Rate).add(4);
    registry.bans().at(0).bans.at(BanKind::Automatic).add(3);
    registry.count_reload(false);
    let text = render(&registry, &gauges(), Format::Text);
    let scrape = parse(&text, Format::Text);
    let is = |series: &str, value: f64| assert!((scrape.value(series) - value).abs() < 1e-9, "{series}");
    is("sluicegate_listener_accepted_total{listener=\"https\"}", 30.0);
    is("sluicegate_listener_connections{listener=\"https\"}", 27.0);
    is("sluicegate_connections_closed_total{listener=\"https\",outcome=\"client_closed\"}", 3.0);
    is("sluicegate_connection_duration_seconds_sum{listener=\"https\"}", 0.75);
    is("sluicegate_connection_duration_seconds_bucket{listener=\"https\",le=\"0.1\"}", 0.0);
    is("sluicegate_connection_duration_seconds_bucket{listener=\"https\",le=\"0.5\"}", 3.0);
    is("sluicegate_tls_handshakes_total{listener=\"https\",version=\"1.3\",resumed=\"true\"}", 6.0);
    is("sluicegate_pipes{state=\"pooled\"}", 12.0);
    is("sluicegate_worker_connections{worker=\"2\"}", 9.0);
    is("sluicegate_relay_fallbacks_total{from=\"splice\",to=\"copy\",reason=\"small_pipe\"}", 9.0);
    is("sluicegate_config_reloads_total{result=\"refused\"}", 1.0);
    is("sluicegate_config_last_reload_successful{}", 0.0);
    is("sluicegate_pool_backends{pool=\"web\",state=\"down\"}", 1.0);
    is("sluicegate_limited_connections_total{listener=\"https\",reason=\"rate\"}", 4.0);
    is("sluicegate_bans_total{kind=\"automatic\"}", 3.0);
    is("sluicegate_bans_in_force{kind=\"manual\"}", 2.0);
    is("sluicegate_limits_sources{}", 7.0);
    is("sluicegate_backend_up{pool=\"web\",backend=\"web-02\"}", 0.0);
    is("sluicegate_firewall_prefixes{rule=\"bad-nets\",family=\"v4\"}", 999_999.0);
    // Beyond 2^53: counters do not pass through a float.
    let bytes = format!("sluicegate_listener_received_bytes_total{{listener=\"https\"}} {}\n", 3_u64 << 60);
    assert!(text.contains(&bytes));
}

#[test]
fn o4_names_cannot_break_out_of_a_label() {
    let gauges = gauges();
    let registry = Registry::new(1);
    let wild = ["a\"} 1\nx 2", "a\\", "a\\\\", "a\\\"", "a\\n", "a\n", "ünï"];
    for name in wild {
        registry.listener(name);
    }
    for format in [Format::Text, Format::OpenMetrics] {
        let text = render(&registry, &gauges, format);
        let scrape = parse(&text, format);
        for name in ["sluicegate_listener_accepted_total", "sluicegate_connection_duration_seconds_count"] {
            let count = scrape.series.keys().filter(|series| series.starts_with(&format!("{name}{{"))).count();
            assert_eq!(count, wild.len(), "{name}: two names became one");
        }
        assert!(text.contains(r#"certificate="certs/a \"b\" c\\d.pem"} 1900000000"#), "{text}");
    }
}
