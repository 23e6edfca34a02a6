//! The result as a picture: a bar for each workload, the best peer at 1.

use std::fmt::{Arguments, Write as _};

use crate::{
    proxy::Proxy,
    report::{Report, short},
    workload::Listener,
};

const WIDTH: f64 = 960.0;
/// The names are left of it.
const LEFT: f64 = 290.0;
/// The figures are right of it.
const RIGHT: f64 = 678.0;
const TOP: f64 = 92.0;
const STEP: f64 = 28.0;
const BAR: f64 = 16.0;
/// The bars begin this far below the name of their group.
const GROUP: f64 = 26.0;

/// One bar.
#[derive(Debug)]
struct Bar {
    what: &'static str,
    ratio: f64,
    /// Both figures, for the text on the right.
    own: String,
    peer: String,
}

/// A picture that stands on a card of its own, so that it can be read on any page.
pub fn draw(report: &Report<'_>) -> String {
    let groups = groups(report);
    let bars: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let bottom = TOP + groups.len() as f64 * GROUP + bars as f64 * STEP;
    let most = groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.ratio).fold(1.0, f64::max);
    // Up to the next quarter; what is beyond twice the best peer is cut and said in figures.
    let scale = ((most * 4.0).ceil() / 4.0).clamp(1.25, 2.0);
    let at = |ratio: f64| LEFT + ratio.min(scale) / scale * (RIGHT - LEFT);
    let mut svg = head(bottom + 58.0, report);
    grid(&mut svg, scale, bottom, at);
    let mut y = TOP;
    for (name, bars) in &groups {
        put(&mut svg, format_args!("<text class=\"group\" x=\"24\" y=\"{}\">{name}</text>", y + 17.0));
        y += GROUP;
        for bar in bars {
            one(&mut svg, bar, y, at(bar.ratio));
            y += STEP;
        }
    }
    let (x, foot) = (at(1.0), bottom + 20.0);
    put(&mut svg, format_args!("<line class=\"peer\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\"/>", TOP - 8.0));
    put(&mut svg, format_args!("<text class=\"mid strong\" x=\"{x}\" y=\"{}\">best peer</text>", TOP - 14.0));
    put(&mut svg, format_args!("<text class=\"mute\" x=\"24\" y=\"{}\">{}</text>", foot + 20.0, footnote(report)));
    svg + "</svg>\n"
}

fn groups(report: &Report<'_>) -> Vec<(&'static str, Vec<Bar>)> {
    let of = |listener| -> Vec<Bar> {
        let chosen = report.comparisons.iter().filter(|comparison| comparison.workload.listener == listener);
        let bars = chosen.filter_map(|comparison| {
            let (workload, (peer, cost)) = (comparison.workload, comparison.best_peer()?);
            Some(Bar {
                what: workload.what.split_once(", ").map_or(workload.what, |(_, what)| what),
                ratio: comparison.ratio(Proxy::Sluicegate)?,
                own: format!("{} {}", short(comparison.of(Proxy::Sluicegate)?), workload.unit()),
                peer: format!("{} {}", peer.name(), short(cost)),
            })
        });
        bars.collect()
    };
    let memory = report.memory.iter().filter_map(|memory| {
        let (peer, kib) = memory.best_peer()?;
        Some(Bar {
            what: if memory.listener == Listener::Plain { "an idle TCP connection" } else { "an idle TLS connection" },
            ratio: memory.ratio()?,
            own: format!("{:.1} KiB", memory.of(Proxy::Sluicegate)?),
            peer: format!("{} {kib:.1}", peer.name()),
        })
    });
    let all =
        [("TCP: CPU time", of(Listener::Plain)), ("TLS: CPU time", of(Listener::Tls)), ("Memory", memory.collect())];
    all.into_iter().filter(|(_, bars)| !bars.is_empty()).collect()
}

fn head(height: f64, report: &Report<'_>) -> String {
    let mut summary = String::new();
    for bar in groups(report).iter().flat_map(|(_, bars)| bars) {
        let _ = write!(summary, "{}: {:.2}. ", bar.what, bar.ratio);
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img"
     aria-labelledby="title desc" font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" font-size="13">
  <title id="title">sluicegate and the best of haproxy, haproxy with forced splice, and nginx</title>
  <desc id="desc">Cost of sluicegate with the best peer as 1. {summary}</desc>
  <style>
    text    {{ fill: #1c2a30; }}
    .card   {{ fill: #fbfcfd; stroke: #d5dde1; }}
    .head   {{ font-size: 18px; font-weight: bold; }}
    .group  {{ font-weight: bold; fill: #1f5f7a; }}
    .strong {{ font-weight: bold; }}
    .mute   {{ fill: #52646d; font-size: 12px; }}
    .mid    {{ text-anchor: middle; }}
    .end    {{ text-anchor: end; }}
    .grid   {{ stroke: #d5dde1; }}
    .peer   {{ stroke: #37474f; stroke-width: 1.6; stroke-dasharray: 5 3; }}
    .track  {{ fill: #eaf0f3; }}
    .less   {{ fill: #1f7a8c; }}
    .more   {{ fill: #c4622d; }}
    @media (prefers-color-scheme: dark) {{
      text    {{ fill: #e3eaee; }}
      .card   {{ fill: #151d22; stroke: #33434c; }}
      .group  {{ fill: #7cc4dd; }}
      .mute   {{ fill: #9fb1ba; }}
      .grid   {{ stroke: #33434c; }}
      .peer   {{ stroke: #cfd8dc; }}
      .track  {{ fill: #1f2a31; }}
      .less   {{ fill: #3fa7bd; }}
      .more   {{ fill: #e08550; }}
    }}
  </style>
  <rect class="card" x="0.5" y="0.5" width="{}" height="{}" rx="10"/>
  <text class="head" x="24" y="36">What sluicegate costs, with the best peer as 1</text>
  <text class="mute" x="24" y="56">Shorter is better. The best of haproxy, haproxy with forced splice, and nginx, on each line.</text>
"#,
        WIDTH - 1.0,
        height - 1.0
    )
}

fn grid(svg: &mut String, scale: f64, bottom: f64, at: impl Fn(f64) -> f64) {
    let mut ratio = 0.0;
    while ratio <= scale {
        let x = at(ratio);
        put(svg, format_args!("<line class=\"grid\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\"/>", TOP - 8.0));
        put(svg, format_args!("<text class=\"mute mid\" x=\"{x}\" y=\"{}\">{ratio:.2}</text>", bottom + 16.0));
        ratio += 0.25;
    }
}

fn one(svg: &mut String, Bar { what, ratio, own, peer }: &Bar, y: f64, end: f64) {
    let (text, class) = (y + 12.5, if *ratio <= 1.0 { "less" } else { "more" });
    put(svg, format_args!("<text class=\"end\" x=\"{}\" y=\"{text}\">{what}</text>", LEFT - 12.0));
    let (top, track) = (y, RIGHT - LEFT);
    put(
        svg,
        format_args!("<rect class=\"track\" x=\"{LEFT}\" y=\"{top}\" width=\"{track}\" height=\"{BAR}\" rx=\"2\"/>"),
    );
    let width = end - LEFT;
    put(
        svg,
        format_args!(
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
        ),
    );
    put(svg, format_args!("<text class=\"strong\" x=\"{}\" y=\"{text}\">{ratio:.2}</text>", RIGHT + 14.0));
    put(svg, format_args!("<text x=\"{}\" y=\"{text}\">{own}</text>", RIGHT + 56.0));
    put(svg, format_args!("<text class=\"mute\" x=\"{}\" y=\"{text}\">{peer}</text>", RIGHT + 136.0));
}

/// What was compared, and when.
fn footnote(report: &Report<'_>) -> String {
    let value = |wanted: &str| {
        let line = report.machine.lines.iter().find(|(what, _)| *what == wanted);
        line.map(|(_, value)| value.split([',', 'T']).next().unwrap_or_default().to_owned()).unwrap_or_default()
    };
    let text = format!(
        "sluicegate {}, haproxy {}, nginx {}; {}; {}",
        value("sluicegate"),
        value("haproxy"),
        value("nginx"),
        value("CPU").split(" (family").next().unwrap_or_default(),
        value("date")
    );
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn put(svg: &mut String, element: Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(svg, "  {element}");
}
