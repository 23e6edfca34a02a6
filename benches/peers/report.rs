//! The result as Markdown.

use std::fmt::Write as _;

use crate::{
    idle::Memory,
    machine::Machine,
    measure::{Comparison, Figure},
    options::Options,
    proxy::Proxy,
};

#[derive(Debug)]
pub struct Report<'a> {
    pub machine: Machine,
    pub options: &'a Options,
    pub comparisons: Vec<Comparison>,
    pub memory: Vec<Memory>,
    pub configurations: Vec<(Proxy, String)>,
}

impl Report<'_> {
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# sluicegate, haproxy and nginx\n\n\
             Written by `cargo bench --bench peers`. What is measured and how to read it: [README.md](README.md).\n\n\
             ![CPU time of sluicegate for each workload, with the best peer as 1](latest.svg)\n",
        );
        if !self.comparisons.is_empty() {
            self.cpu_time(&mut text);
        }
        if !self.memory.is_empty() {
            self.idle(&mut text);
        }
        text += "\n## Where and with what\n\n| | |\n|---|---|\n";
        for (what, value) in &self.machine.lines {
            line(&mut text, format_args!("| {what} | {value} |"));
        }
        if !self.comparisons.is_empty() {
            self.rounds(&mut text);
        }
        text += "\n## Configurations\n\nPLAIN, TLS and ADMIN are free ports, others in each round.\n";
        for (proxy, configuration) in &self.configurations {
            let language = if *proxy == Proxy::Sluicegate { "toml" } else { "" };
            line(&mut text, format_args!("\n### {}\n\n```{language}\n{}\n```", proxy.name(), configuration.trim_end()));
        }
        text
    }

    fn cpu_time(&self, text: &mut String) {
        let Options { rounds, seconds, .. } = self.options;
        let (each, second) = (if *rounds == 1 { "round" } else { "rounds" }, if *seconds == 1 { "" } else { "s" });
        line(
            text,
            format_args!(
                "\n## CPU time of the proxy\n\nµs per request or connection, or seconds per GiB; lower is better. Medians of {rounds} {each} of {seconds} second{second}.\n"
            ),
        );
        heading(text, "| workload | | unit |");
        for comparison in &self.comparisons {
            let workload = comparison.workload;
            let _ = write!(text, "| {} | {} | {} |", workload.name, workload.what, workload.unit());
            for proxy in Proxy::ALL {
                let cell = comparison.of(proxy).map_or_else(|| "void".to_owned(), short);
                let _ = write!(text, " {} |", emphasised(&cell, proxy));
            }
            let ratio =
                comparison.ratio(Proxy::Sluicegate).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            line(text, format_args!(" **{ratio}** |"));
        }
    }

    fn idle(&self, text: &mut String) {
        line(
            text,
            format_args!(
                "\n## Memory of an idle connection\n\nResident KiB per connection, from the growth between 500 and 3,500 connections that have had one exchange.\n"
            ),
        );
        heading(text, "| |");
        for memory in &self.memory {
            let _ = write!(text, "| {} |", memory.name());
            for proxy in Proxy::ALL {
                let cell = memory.of(proxy).map_or_else(|| "-".to_owned(), |kib| format!("{kib:.1}"));
                let _ = write!(text, " {} |", emphasised(&cell, proxy));
            }
            let ratio = memory.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            line(text, format_args!(" **{ratio}** |"));
        }
    }

    /// How steady the figures are, and what else the generator said.
    fn rounds(&self, text: &mut String) {
        *text += "\n## Spread\n\nThe cheapest and the dearest round, requests per second, latency of the last round, and rounds that \
                  were void because a response failed.\n\n\
                  | workload | proxy | CPU time | per second | p99 | void rounds | failed responses |\n\
                  |---|---|--:|--:|--:|--:|--:|\n";
        for comparison in &self.comparisons {
            for Figure { proxy, cost, per_second, p99, void, failed } in &comparison.figures {
                let span = cost.map_or_else(|| "-".to_owned(), |c| format!("{} .. {}", short(c.least), short(c.most)));
                let (name, proxy, p99) = (comparison.workload.name, proxy.name(), p99.as_deref().unwrap_or("-"));
                line(text, format_args!("| {name} | {proxy} | {span} | {per_second:.0} | {p99} | {void} | {failed} |"));
            }
        }
    }
}

/// The first line of a table that has a column for each proxy, and one for the ratio.
fn heading(text: &mut String, first: &str) {
    let names: Vec<_> = Proxy::ALL.iter().map(|proxy| proxy.name()).collect();
    line(text, format_args!("{first} {} | ratio to the best peer |", names.join(" | ")));
    let left = "---|".repeat(first.matches('|').count() - 1);
    line(text, format_args!("|{left}{}", "--:|".repeat(Proxy::ALL.len() + 1)));
}

fn emphasised(cell: &str, proxy: Proxy) -> String {
    if proxy == Proxy::Sluicegate { format!("**{cell}**") } else { cell.to_owned() }
}

/// Three digits that count.
pub fn short(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{arguments}");
}
