//! What was counted, in memory that does not grow with the log.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    net::IpAddr,
};

use serde::Serialize;

use crate::{
    access_log::Line,
    cli::table::{columns, count},
    config::Action,
    load::{Loaded, Materials},
};

/// Listeners that the configuration does not have, by name; the rest is counted together.
const UNKNOWN_LISTENERS: usize = 20;

pub(super) struct Tally<'a> {
    listeners: HashMap<&'a str, &'a Materials>,
    told: Told,
}

/// The answer. Serialized as it stands.
#[derive(Debug, Default, Serialize)]
pub(super) struct Told {
    lines: u64,
    /// Of them records of connections that could be judged.
    connections: u64,
    /// Messages of the process, empty lines, other events.
    other_lines: u64,
    bad_lines: u64,
    first_bad_line: Option<BadLine>,
    /// By the configuration.
    allowed: u64,
    denied: u64,
    /// As the log has it.
    denied_before: u64,
    newly_denied: u64,
    newly_allowed: u64,
    /// In their order, the default last.
    rules: Vec<RuleTally>,
    newly_denied_sources: Sources,
    newly_allowed_sources: Sources,
    /// Connections of listeners that the configuration does not have: not judged.
    unknown_listeners: BTreeMap<String, u64>,
    /// Those of still other listeners.
    more_unknown: u64,
}

#[derive(Debug, Clone, Serialize)]
struct BadLine {
    line: u64,
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct RuleTally {
    rule: String,
    action: &'static str,
    shadow: bool,
    /// That it decides; of a shadow rule that it would.
    connections: u64,
    newly_denied: u64,
    newly_allowed: u64,
}

/// The first sources, and how many connections the others have.
#[derive(Debug, Default, Serialize)]
struct Sources {
    first: Vec<Source>,
    other_connections: u64,
    #[serde(skip)]
    most: usize,
    #[serde(skip)]
    known: HashMap<IpAddr, usize>,
}

#[derive(Debug, Serialize)]
struct Source {
    client: IpAddr,
    connections: u64,
    /// Of its first connection.
    listener: String,
    rule: String,
}

impl<'a> Tally<'a> {
    pub(super) fn new(loaded: &'a Loaded, sources: usize) -> Self {
        let firewall = &loaded.config.firewall;
        let row = |rule: &str, action: Action, shadow| RuleTally {
            rule: rule.to_owned(),
            action: action.as_str(),
            shadow,
            connections: 0,
            newly_denied: 0,
            newly_allowed: 0,
        };
        let rules = firewall.rules.iter().map(|rule| row(&rule.name, rule.action, rule.shadow));
        let listeners = loaded.config.listeners.iter().zip(&loaded.listeners);
        let named = || Sources { most: sources, ..Sources::default() };
        Self {
            listeners: listeners.map(|(listener, materials)| (listener.name.as_str(), materials)).collect(),
            told: Told {
                rules: rules.chain([row("default", firewall.default, false)]).collect(),
                newly_denied_sources: named(),
                newly_allowed_sources: named(),
                ..Told::default()
            },
        }
    }

    pub(super) fn judge(&mut self, line: &Line<'_>) {
        let told = &mut self.told;
        told.lines += 1;
        let Some(materials) = self.listeners.get(line.listener.as_ref()) else {
            return told.unknown(&line.listener);
        };
        let verdict = materials.table.verdict(line.client.ip());
        let index = |number: u16| materials.rules.get(usize::from(number)).copied();
        told.connections += 1;
        for shadow in verdict.shadows.iter().filter_map(|number| index(*number)) {
            told.rules.get_mut(shadow).into_iter().for_each(|rule| rule.connections += 1);
        }
        let denied = verdict.action == Action::Deny;
        let (newly_denied, newly_allowed) = (denied && !line.denied, !denied && line.denied);
        told.denied += u64::from(denied);
        told.allowed += u64::from(!denied);
        told.denied_before += u64::from(line.denied);
        told.newly_denied += u64::from(newly_denied);
        told.newly_allowed += u64::from(newly_allowed);
        let default = told.rules.len().saturating_sub(1);
        let Some(rule) = told.rules.get_mut(verdict.rule.and_then(index).unwrap_or(default)) else { return };
        rule.connections += 1;
        rule.newly_denied += u64::from(newly_denied);
        rule.newly_allowed += u64::from(newly_allowed);
        if newly_denied {
            told.newly_denied_sources.note(line, &rule.rule);
        } else if newly_allowed {
            told.newly_allowed_sources.note(line, &rule.rule);
        }
    }

    pub(super) fn other(&mut self) {
        self.told.lines += 1;
        self.told.other_lines += 1;
    }

    pub(super) fn bad(&mut self, reason: &'static str) {
        self.told.lines += 1;
        self.told.bad_lines += 1;
        let line = self.told.lines;
        self.told.first_bad_line.get_or_insert(BadLine { line, reason });
    }

    /// Nothing in it could be read.
    pub(super) fn is_no_log(&self) -> bool {
        self.told.bad_lines > 0 && self.told.lines == self.told.bad_lines
    }

    pub(super) fn first_bad(&self) -> Option<String> {
        self.told.first_bad_line.as_ref().map(BadLine::text)
    }

    pub(super) fn told(self) -> Told {
        self.told
    }
}

impl Sources {
    fn note(&mut self, line: &Line<'_>, rule: &str) {
        let client = line.client.ip().to_canonical();
        if let Some(source) = self.known.get(&client).and_then(|index| self.first.get_mut(*index)) {
            source.connections += 1;
        } else if self.first.len() < self.most {
            self.known.insert(client, self.first.len());
            let (listener, rule) = (line.listener.as_ref().to_owned(), rule.to_owned());
            self.first.push(Source { client, connections: 1, listener, rule });
        } else {
            self.other_connections += 1;
        }
    }
}

impl BadLine {
    fn text(&self) -> String {
        format!("line {}: {}", self.line, self.reason)
    }
}

impl Told {
    fn unknown(&mut self, listener: &str) {
        // A name is never longer where it is one of ours.
        let name = listener.get(..listener.floor_char_boundary(64)).unwrap_or_default();
        if let Some(count) = self.unknown_listeners.get_mut(name) {
            *count += 1;
        } else if self.unknown_listeners.len() < UNKNOWN_LISTENERS {
            self.unknown_listeners.insert(name.to_owned(), 1);
        } else {
            self.more_unknown += 1;
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { connections, allowed, denied, denied_before, newly_denied, newly_allowed, .. } = self;
        let first = self.first_bad_line.as_ref().map(|bad| format!(" (the first is {})", bad.text()));
        let mut text = format!(
            "{}: {}, {}, {}{}\nbefore: {} allowed, {denied_before} denied\n\
             by the configuration: {allowed} allowed, {denied} denied\n\
             newly denied: {newly_denied}, newly allowed: {newly_allowed}\n",
            count(self.lines, "line"),
            count(*connections, "connection"),
            count(self.other_lines, "other line"),
            count(self.bad_lines, "bad line"),
            first.unwrap_or_default(),
            connections - denied_before,
        );
        self.notes(&mut text);
        text.push('\n');
        text.push_str(&columns(&self.rule_rows()));
        for (what, sources) in [("denied", &self.newly_denied_sources), ("allowed", &self.newly_allowed_sources)] {
            if !sources.first.is_empty() || sources.other_connections > 0 {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "\nnewly {what}, in the order of the log:");
                text.push_str(&columns(&sources.rows()));
            }
        }
        text
    }

    fn notes(&self, text: &mut String) {
        if self.denied_before == 0 && self.connections > 0 {
            text.push_str("note: no denied client is in this log, so nobody can be newly allowed by it\n");
        }
        let names = self.unknown_listeners.iter().map(|(name, number)| (format!("`{}`", name.escape_debug()), number));
        let more = (self.more_unknown > 0).then_some(("others".to_owned(), &self.more_unknown));
        for (name, number) in names.chain(more) {
            let _ = writeln!(
                text,
                "note: {} of listener {name}, which is not configured: not judged",
                count(*number, "connection")
            );
        }
    }

    fn rule_rows(&self) -> Vec<Vec<String>> {
        let title = ["rule", "action", "connections", "newly denied", "newly allowed"].map(str::to_owned).to_vec();
        let row = |rule: &RuleTally| {
            let shadow = if rule.shadow { "shadow " } else { "" };
            let counts = [rule.connections, rule.newly_denied, rule.newly_allowed].map(|count| count.to_string());
            [vec![rule.rule.clone(), format!("{shadow}{}", rule.action)], counts.to_vec()].concat()
        };
        [title].into_iter().chain(self.rules.iter().map(row)).collect()
    }
}

impl Sources {
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |source: &Source| {
            vec![
                format!("  {}", source.client),
                count(source.connections, "connection"),
                format!("rule `{}` at listener `{}`", source.rule, source.listener),
            ]
        };
        let others = vec!["  others".to_owned(), count(self.other_connections, "connection")];
        let others = (self.other_connections > 0).then_some(others);
        self.first.iter().map(row).chain(others).collect()
    }
}
