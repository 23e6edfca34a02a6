//! The two text formats of a scrape: Prometheus text 0.0.4 and OpenMetrics 1.0.0.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{Display, Write},
};

use super::histogram::Snapshot;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4, for everybody who does not ask for something else.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// Metric families by name, to be written in either format.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    families: BTreeMap<Cow<'static, str>, Family>,
}

#[derive(Debug, Default)]
struct Family {
    help: String,
    /// The word of the `# TYPE` line.
    kind: String,
    /// Whole sample lines, as both formats write them. Without any the family is not shown.
    samples: String,
}

impl Format {
    /// What the client likes better, by its Accept header. OpenMetrics only when it is named: a browser gets text.
    pub fn accepted(header: &str) -> Self {
        let quality = |wanted: fn(&str) -> bool| {
            header.split(',').filter(|range| wanted(range)).map(quality_of).fold(0.0_f32, f32::max)
        };
        let openmetrics = quality(is_openmetrics);
        if openmetrics > 0.0 && openmetrics >= quality(is_text) { Self::OpenMetrics } else { Self::Text }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Exposition {
    /// Says what a family is, before its first sample.
    pub(super) fn describe(&mut self, name: &'static str, kind: &str, help: &str) {
        let family = self.families.entry(Cow::Borrowed(name)).or_default();
        help.clone_into(&mut family.help);
        kind.clone_into(&mut family.kind);
    }

    /// Adds one series to a family that is described already.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let Some(Family { samples, .. }) = self.families.get_mut(name) else { return };
        samples.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            samples.push(if index == 0 { '{' } else { ',' });
            samples.push_str(key);
            samples.push_str("=\"");
            push_escaped(samples, value);
            samples.push('"');
        }
        // A String takes everything that is written to it.
        let _ = writeln!(samples, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Takes over what the exporter rendered, as Prometheus text, in whatever order it did.
    pub(super) fn add(&mut self, text: &str) {
        let mut samples = BTreeMap::<&str, Vec<&str>>::new();
        let mut current = "";
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                help.clone_into(&mut self.families.entry(Cow::Owned(name.to_owned())).or_default().help);
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                kind.clone_into(&mut self.families.entry(Cow::Owned(name.to_owned())).or_default().kind);
                current = name;
            } else {
                samples.entry(current).or_default().push(line);
            }
        }
        for (name, mut lines) in samples {
            lines.sort_unstable();
            if let Some(family) = self.families.get_mut(name) {
                family.samples.extend(lines.iter().flat_map(|line| [line, "\n"]));
            }
        }
    }

    /// Says that a family is a counter, whatever it was recorded as.
    pub(super) fn make_counter(&mut self, name: &str) {
        if let Some(family) = self.families.get_mut(name) {
            "counter".clone_into(&mut family.kind);
        }
    }

    /// Adds one series of a histogram of durations, in seconds.
    pub(super) fn histogram<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        (key, value): (&str, &str),
        snapshot: &Snapshot<N>,
    ) {
        self.describe(name, "histogram", help);
        let Some(Family { samples, .. }) = self.families.get_mut(name) else { return };
        let mut label = format!("{key}=\"");
        push_escaped(&mut label, value);
        label.push('"');
        for (bound, count) in snapshot.cumulative() {
            // Debug writes `1.0` where Display writes `1`: OpenMetrics wants the first, and one spelling in both formats
            // keeps the series the same when a scraper changes its mind.
            let le = bound.as_secs_f64();
            let _ = writeln!(samples, "{name}_bucket{{{label},le=\"{le:?}\"}} {count}");
        }
        let count = snapshot.count();
        let _ = writeln!(samples, "{name}_bucket{{{label},le=\"+Inf\"}} {count}");
        let _ = writeln!(samples, "{name}_sum{{{label}}} {}", snapshot.sum_seconds());
        let _ = writeln!(samples, "{name}_count{{{label}}} {count}");
    }

    pub(super) fn write(&self, format: Format) -> String {
        const HEAD: usize = 256;
        let length = self.families.values().map(|family| HEAD + family.samples.len()).sum();
        let mut text = String::with_capacity(length);
        for (name, Family { help, kind, samples }) in &self.families {
            if samples.is_empty() {
                continue;
            }
            let (name, kind) = match format {
                Format::Text => (&**name, kind.as_str()),
                Format::OpenMetrics => self.openmetrics(name, kind),
            };
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            text.push_str(samples);
        }
        if format == Format::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }

    fn shows(&self, name: &str) -> bool {
        self.families.get(name).is_some_and(|family| !family.samples.is_empty())
    }

    /// Name and type of a family in OpenMetrics, where a counter's family has the name of its samples without `_total`.
    /// `sluicegate_backend_connections` is a gauge beside the counter `.._connections_total`, and two families may not
    /// share a name: that counter goes as `unknown`, so that every sample has its contracted name in both formats.
    fn openmetrics<'a>(&self, name: &'a str, kind: &'a str) -> (&'a str, &'a str) {
        match name.strip_suffix("_total") {
            Some(family) if kind == "counter" && !self.shows(family) => (family, kind),
            _ if kind == "counter" => (name, "unknown"),
            _ => (name, kind),
        }
    }
}

fn is_openmetrics(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"))
        && parts.all(|parameter| parameter.strip_prefix("version=").is_none_or(|v| v.trim_matches('"') == "1.0.0"))
}

fn is_text(range: &str) -> bool {
    let kind = range.split(';').next().unwrap_or_default().trim();
    ["text/plain", "text/*", "*/*"].iter().any(|text| kind.eq_ignore_ascii_case(text))
}

/// The `q` of a media range; 1 when it is not written, 0 when it is no number.
fn quality_of(range: &str) -> f32 {
    let q = range.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
    q.map_or(1.0, |q| q.trim().parse().unwrap_or(0.0))
}

/// A label value as both formats write it between quotes.
fn push_escaped(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_the_scraper_likes_best() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("application/openmetrics-text"), Format::OpenMetrics);
        assert_eq!(Format::accepted("application/openmetrics-text; version=\"1.0.0\", */*"), Format::OpenMetrics);
        for text in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;q=0.1,text/plain;q=0.5",
            ";;;,,,q=",
        ] {
            assert_eq!(Format::accepted(text), Format::Text, "{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut text = String::new();
        push_escaped(&mut text, "a\\b\"c\nd");
        assert_eq!(text, "a\\\\b\\\"c\\nd");
    }
}
