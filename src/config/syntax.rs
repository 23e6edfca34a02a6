//! Mistakes in the TOML itself, and which other mistakes can be believed beside them.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue, Error};

use super::{
    code,
    diagnostic::{Diagnostic, Origin},
    lines::Lines,
    reader::Report,
};

/// The parser builds no tree behind a line with this error, although it could.
const KEY_WITHOUT_VALUE: &str = "key with no value";

/// Seen wrongly as soon as a line could not be read.
const NEED_EVERY_KEY: &[&str] = &[code::MISSING_KEY, code::NO_USABLE_BACKEND];

/// Seen wrongly as soon as a table could not be read.
const NEED_EVERY_TABLE: &[&str] = &[code::UNKNOWN_KEY, code::NOTHING_TO_DO, code::UNKNOWN_POOL, code::UNKNOWN_LISTENER];

/// A parsed text. Dropping a table inside a table inside a table calls itself: thousands of dotted keys would overflow
/// the stack of a thread, so it is taken apart by hand.
#[derive(Debug)]
pub struct Tree<'t> {
    root: DeTable<'t>,
}

impl<'t> Tree<'t> {
    pub fn parse(text: &'t str) -> (Self, Vec<Error>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        (Self { root: root.into_inner() }, errors)
    }

    pub fn root(&self) -> &DeTable<'t> {
        &self.root
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        let mut left = vec![DeValue::Table(std::mem::take(&mut self.root))];
        while let Some(value) = left.pop() {
            match value {
                DeValue::Table(table) => left.extend(table.into_iter().map(|(_, value)| value.into_inner())),
                DeValue::Array(items) => left.extend(items.into_iter().map(toml::Spanned::into_inner)),
                _ => {}
            }
        }
    }
}

/// The text with spaces for the lines that would hide those behind them; every place in it stays.
pub fn without_hiding_lines(text: &str, errors: &[Error]) -> Option<String> {
    let lines = Lines::new(text);
    let hiding = errors.iter().filter(|error| error.message().starts_with(KEY_WITHOUT_VALUE));
    let hiding: BTreeSet<_> = hiding.filter_map(|error| Some(lines.line(error.span()?.start))).collect();
    if hiding.is_empty() {
        return None;
    }
    let mut cleared = String::with_capacity(text.len());
    for line in hiding {
        let range = lines.range(line);
        cleared.push_str(text.get(cleared.len()..range.start).unwrap_or_default());
        cleared.extend(range.map(|_| ' '));
    }
    cleared.push_str(text.get(cleared.len()..).unwrap_or_default());
    Some(cleared)
}

/// The syntax errors, one for each line, and those of `noted` that do not follow from them.
pub fn with_syntax_errors<'t>(errors: &[Error], noted: Report<'t>, text: &'t str) -> Report<'t> {
    let mut all = Report::new(text);
    let mut broken_lines = BTreeSet::new();
    let mut broken_table = false;
    let mut sorted: Vec<_> = errors.iter().collect();
    sorted.sort_by_key(|error| error.span().map(|span| span.start));
    for error in sorted {
        let Some(span) = error.span() else {
            all.push(diagnostic(error, Origin::None));
            continue;
        };
        let line = all.line(&span);
        if broken_lines.insert(line) {
            broken_table |=
                all.line_text(line).trim_start().starts_with('[') || error.message().starts_with("unclosed");
            all.push(diagnostic(error, Origin::Config { span }));
        }
    }
    for found in noted.into_diagnostics() {
        let follows = NEED_EVERY_KEY.contains(&found.code)
            || (broken_table && NEED_EVERY_TABLE.contains(&found.code))
            || found.span().is_some_and(|span| broken_lines.contains(&all.line(span)));
        if !follows {
            all.push(found);
        }
    }
    all
}

fn diagnostic(error: &Error, origin: Origin) -> Diagnostic {
    let (message, label) = match error.message().split_once(", expected ") {
        Some((message, expected)) => (message, format!("expected {expected}")),
        None => (error.message(), String::new()),
    };
    Diagnostic::error(code::SYNTAX, message).from(origin).label(label)
}
