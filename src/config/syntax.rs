//! Mistakes in the TOML itself, and which other mistakes can be believed beside them.

use std::collections::BTreeSet;

use toml::de::Error;

use super::{
    code,
    diagnostic::{Diagnostic, Origin},
    reader::Report,
};

/// Seen wrongly as soon as a part of the file could not be read.
const NEED_THE_WHOLE_FILE: &[&str] = &[
    code::MISSING_KEY,
    code::NOTHING_TO_DO,
    code::UNKNOWN_POOL,
    code::UNKNOWN_LISTENER,
    code::NO_USABLE_BACKEND,
    code::DUPLICATE,
];

/// The syntax errors, one for each line, and those of `noted` that do not follow from them.
pub fn with_syntax_errors<'t>(errors: &[Error], noted: Report<'t>, text: &'t str) -> Report<'t> {
    let mut all = Report::new(text);
    let mut broken_lines = BTreeSet::new();
    let mut broken_header = false;
    let mut sorted: Vec<_> = errors.iter().collect();
    sorted.sort_by_key(|error| error.span().map(|span| span.start));
    for error in sorted {
        let Some(span) = error.span() else {
            all.push(diagnostic(error, Origin::None));
            continue;
        };
        let line = all.line(&span);
        if broken_lines.insert(line) {
            broken_header |= all.line_text(line).trim_start().starts_with('[');
            all.push(diagnostic(error, Origin::Config { span }));
        }
    }
    for found in noted.into_diagnostics() {
        let follows = NEED_THE_WHOLE_FILE.contains(&found.code)
            // Keys behind a header that could not be read seem to belong to the table before it.
            || (broken_header && found.code == code::UNKNOWN_KEY)
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
