//! What is wrong with a configuration, told so that it can be cured: where, why and how.

use std::{
    cmp::Ordering,
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::lines::{Lines, Position};
pub use super::render::render;

/// One mistake, or one doubt, about what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// One of [`super::code::CODES`].
    pub code: &'static str,
    /// What is wrong, in one sentence that stands alone.
    pub message: String,
    pub origin: Origin,
    /// Stands beside the underlined text; may be empty.
    pub label: String,
    /// Facts that explain the message.
    pub notes: Vec<String>,
    /// What to do about it.
    pub helps: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It works, but probably not as meant.
    Warning,
}

/// Where a diagnostic comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A byte range of the configuration text.
    Config { span: Range<usize> },
    /// One line of a file that the configuration names.
    Line {
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// Byte range in `text`.
        column: Range<usize>,
        text: String,
    },
    /// A file as a whole, and where the configuration names it.
    File { path: PathBuf, span: Option<Range<usize>> },
    /// No file: the host, or the configuration as a whole.
    None,
}

impl Diagnostic {
    /// An error without a place; [`Diagnostic::at`] or [`Diagnostic::from`] gives it one.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            origin: Origin::None,
            label: String::new(),
            notes: Vec::new(),
            helps: Vec::new(),
        }
    }

    /// As [`Diagnostic::error`], for what is allowed but doubtful.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// Places it at a byte range of the configuration text.
    #[must_use]
    pub fn at(self, span: Range<usize>) -> Self {
        self.from(Origin::Config { span })
    }

    #[must_use]
    pub fn from(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.helps.push(help.into());
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The byte range in the configuration text, where there is one.
    pub fn span(&self) -> Option<&Range<usize>> {
        match &self.origin {
            Origin::Config { span } | Origin::File { span: Some(span), .. } => Some(span),
            Origin::Line { .. } | Origin::File { span: None, .. } | Origin::None => None,
        }
    }
}

/// The diagnostics in the order of the text, then those of other files, then those of no file.
pub fn sorted(diagnostics: &[Diagnostic]) -> Vec<&Diagnostic> {
    let mut sorted: Vec<_> = diagnostics.iter().collect();
    sorted.sort_by(|a, b| by_position(a, b));
    sorted
}

/// For programs: `check --json`. Lines and columns count from 1, columns are characters, `end` is behind the last one.
pub fn to_json(diagnostics: &[Diagnostic], path: &Path, text: &str) -> Value {
    let lines = Lines::new(text);
    sorted(diagnostics).into_iter().map(|diagnostic| object(diagnostic, path, &lines)).collect()
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

fn object(diagnostic: &Diagnostic, path: &Path, lines: &Lines) -> Value {
    let (file, related) = match &diagnostic.origin {
        Origin::Config { .. } => (Some(path), None),
        Origin::File { path: named, span: Some(_) } => (Some(path), Some(named)),
        Origin::Line { path, .. } | Origin::File { path, span: None } => (Some(path.as_path()), None),
        Origin::None => (None, None),
    };
    let range = positions(diagnostic, lines);
    json!({
        "severity": diagnostic.severity.as_str(),
        "code": diagnostic.code,
        "message": diagnostic.message,
        "label": diagnostic.label,
        "file": file.map(Path::to_string_lossy),
        "related_file": related.map(|path| path.to_string_lossy()),
        "line": range.map(|(start, _)| start.line),
        "column": range.map(|(start, _)| start.column),
        "end": range.map(|(_, end)| json!({ "line": end.line, "column": end.column })),
        "notes": diagnostic.notes,
        "helps": diagnostic.helps,
    })
}

fn positions(diagnostic: &Diagnostic, lines: &Lines) -> Option<(Position, Position)> {
    if let Origin::Line { line, column, text, .. } = &diagnostic.origin {
        let inner = Lines::new(text);
        let place = |offset| Position { line: *line, column: inner.position(offset).column };
        return Some((place(column.start), place(column.end.max(column.start))));
    }
    let span = diagnostic.span()?;
    Some((lines.position(span.start), lines.position(span.end.max(span.start))))
}

fn by_position(a: &Diagnostic, b: &Diagnostic) -> Ordering {
    position_key(a).cmp(&position_key(b))
}

fn position_key(diagnostic: &Diagnostic) -> (u8, usize, Option<&Path>) {
    match (&diagnostic.origin, diagnostic.span()) {
        (_, Some(span)) => (0, span.start, None),
        (Origin::Line { path, line, .. }, _) => (1, *line, Some(path)),
        (Origin::File { path, .. }, _) => (1, 0, Some(path)),
        (Origin::Config { .. } | Origin::None, _) => (2, 0, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_names_the_place() {
        let text = "a = 1\nbä = 2\n";
        let found = Diagnostic::error("E021", "no").at(6..9).label("l").note("n").help("h");
        let json = to_json(&[found], Path::new("x.toml"), text);
        assert_eq!(
            json,
            json!([{
                "severity": "error", "code": "E021", "message": "no", "label": "l", "file": "x.toml",
                "related_file": null, "line": 2, "column": 1, "end": { "line": 2, "column": 3 },
                "notes": ["n"], "helps": ["h"],
            }])
        );
    }

    #[test]
    fn json_of_another_file_has_its_line() {
        let origin = Origin::Line { path: "deny.txt".into(), line: 8812, column: 0..2, text: "ää".to_owned() };
        let json = to_json(&[Diagnostic::error("E102", "no").from(origin)], Path::new("x.toml"), "");
        let first = &json[0];
        assert_eq!(
            (&first["file"], &first["line"], &first["end"]["column"]),
            (&json!("deny.txt"), &json!(8812), &json!(2))
        );
    }

    #[test]
    fn the_configuration_comes_first_and_in_its_order() {
        let none = Diagnostic::error("E040", "c");
        let late = Diagnostic::error("E021", "b").at(7..8);
        let early = Diagnostic::warning("W001", "a").at(3..4);
        let all = [none, late, early];
        let order: Vec<_> = sorted(&all).iter().map(|one| one.message.clone()).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }
}
