//! Diagnostics as text for people, in the form that the Rust compiler made known.

use std::{ops::Range, path::Path};

use annotate_snippets::{AnnotationKind, Group, Level, Origin as FileOrigin, Padding, Renderer, Snippet};

use super::{
    code,
    diagnostic::{Diagnostic, Origin, Severity, sorted},
    lines::Lines,
    mask::without_secrets,
};

/// A longer line is not shown: a large file of one line must not cost a second per message.
const LONGEST_LINE: usize = 16 << 10;

/// Every diagnostic, in the order of the text, each with its line and the place underlined. `path` and `text` are those
/// of the configuration; `styled` adds colours for a terminal. Passwords in the text are hidden.
pub fn render(diagnostics: &[Diagnostic], path: &Path, text: &str, styled: bool) -> String {
    let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
    let text = &*without_secrets(text, diagnostics.iter().any(|diagnostic| diagnostic.code == code::SYNTAX));
    let lines = Lines::new(text);
    let path = printable(&path.to_string_lossy());
    let mut out = String::new();
    for diagnostic in sorted(diagnostics) {
        let rendered = renderer.render(&[group(diagnostic, &path, text, &lines)]);
        // The renderer pads an empty source line; nobody wants spaces at line ends.
        for line in rendered.lines() {
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

fn group<'a>(diagnostic: &'a Diagnostic, path: &'a str, text: &'a str, lines: &Lines<'a>) -> Group<'a> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(printable(&diagnostic.message)).id(diagnostic.code);
    let mut group = Group::with_title(title);
    match &diagnostic.origin {
        Origin::Config { span } => group = place(group, diagnostic, path, &Excerpt::of_text(text, span, lines)),
        Origin::File { path: named, span } => {
            if let Some(span) = span {
                group = place(group, diagnostic, path, &Excerpt::of_text(text, span, lines)).element(Padding);
            }
            group = group.element(FileOrigin::path(printable(&named.to_string_lossy())));
        }
        Origin::Line { path, line, column, text } => {
            let path = printable(&path.to_string_lossy());
            group = place(group, diagnostic, &path, &Excerpt::of_line(text, *line, column));
        }
        Origin::None => {}
    }
    let notes = diagnostic.notes.iter().map(|note| Level::NOTE.message(printable(note)));
    let helps = diagnostic.helps.iter().map(|help| Level::HELP.message(printable(help)));
    group.elements(notes.chain(helps))
}

fn place<'a>(group: Group<'a>, diagnostic: &'a Diagnostic, path: &str, excerpt: &Excerpt<'a>) -> Group<'a> {
    let label = (!diagnostic.label.is_empty()).then(|| printable(&diagnostic.label));
    if excerpt.source.len() > LONGEST_LINE {
        let origin = FileOrigin::path(path.to_owned()).line(excerpt.line).char_column(excerpt.column);
        return group.element(origin).elements(label.map(|label| Level::NOTE.message(label)));
    }
    let annotation = AnnotationKind::Primary.span(excerpt.span.clone()).label(label);
    let snippet = Snippet::source(excerpt.source).path(path.to_owned()).line_start(excerpt.line);
    group.element(snippet.annotation(annotation))
}

/// The line that is shown. A span over several lines is shown by its first.
struct Excerpt<'a> {
    source: &'a str,
    /// In `source`, on character boundaries.
    span: Range<usize>,
    line: usize,
    column: usize,
}

impl<'a> Excerpt<'a> {
    fn of_text(text: &'a str, span: &Range<usize>, lines: &Lines<'a>) -> Self {
        let start = text.floor_char_boundary(span.start);
        let position = lines.position(start);
        let line_start = lines.range(position.line).start;
        let relative = start.saturating_sub(line_start)..span.end.saturating_sub(line_start);
        Self::new(lines.text(position.line), relative, position.line, position.column)
    }

    fn of_line(text: &'a str, line: usize, column: &Range<usize>) -> Self {
        let lines = Lines::new(text);
        Self::new(lines.text(1), column.clone(), line, lines.position(column.start).column)
    }

    fn new(content: &'a str, span: Range<usize>, line: usize, column: usize) -> Self {
        // A byte order mark takes no place on a screen.
        let source = content.strip_prefix('\u{feff}').unwrap_or(content);
        let mark = content.len() - source.len();
        let start = source.floor_char_boundary(span.start.saturating_sub(mark));
        let end = source.ceil_char_boundary(span.end.saturating_sub(mark).clamp(start, source.len()));
        Self { source, span: start..end, line, column }
    }
}

/// Without line ends and other characters that would change a terminal.
fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        if char.is_control() {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        render(&[Diagnostic::error("E021", "m").at(span).label("l")], Path::new("f.toml"), text, false)
    }

    #[test]
    fn looks_like_the_compiler() {
        let text = "\n\nbalence = \"least_conn\"\n";
        let found = Diagnostic::error("E021", "unknown key `balence`")
            .at(2..9)
            .label("did you mean `balance`?")
            .note("keys of [pool.*]: balance")
            .help("fix it");
        let expected = "\
error[E021]: unknown key `balence`
 --> sluicegate.toml:3:1
  |
3 | balence = \"least_conn\"
  | ^^^^^^^ did you mean `balance`?
  |
  = note: keys of [pool.*]: balance
  = help: fix it

";
        assert_eq!(render(&[found], Path::new("sluicegate.toml"), text, false), expected);
    }

    #[test]
    fn any_span_can_be_shown() {
        for text in ["", "\n", "a", "ä\r\nö", "\u{feff}a = 1\r\n", "\0\u{1b}[31m", "a\n\n\n", "\r", "👩‍👩‍👧 x"]
        {
            for start in 0..text.len() + 3 {
                for end in 0..text.len() + 3 {
                    let out = shown(text, start..end);
                    assert!(out.contains("f.toml:"), "{out}");
                    assert!(!out.contains('\u{1b}'), "{out}");
                }
            }
        }
    }

    #[test]
    fn a_long_line_is_cut_and_keeps_its_column() {
        for (length, column) in [(100, 108), (4_000, 4_008), (100_000, 100_008)] {
            let text = format!("a = \"{}\" {}", "ä".repeat(length), "b".repeat(length));
            let out = shown(&text, 2 * length + 7..2 * length + 9);
            assert!(out.contains(&format!("f.toml:1:{column}")), "{out}");
            assert!(out.contains('l') && out.len() < 1000, "{out}");
        }
    }

    #[test]
    fn another_file_is_shown_with_its_own_line() {
        let origin = Origin::Line { path: "deny.txt".into(), line: 8812, column: 0..6, text: "10.1/16".to_owned() };
        let out = render(&[Diagnostic::error("E102", "bad").from(origin)], Path::new("f.toml"), "", false);
        assert!(out.contains("--> deny.txt:8812:1\n") && out.contains("8812 | 10.1/16\n"), "{out}");
    }

    #[test]
    fn a_file_names_itself_and_where_it_is_named() {
        let origin = Origin::File { path: "a.pem".into(), span: Some(0..1) };
        let out = render(&[Diagnostic::error("E103", "bad").from(origin).help("h")], Path::new("f.toml"), "x", false);
        assert_eq!(out, "error[E103]: bad\n --> f.toml:1:1\n  |\n1 | x\n  | ^\n  |\n ::: a.pem\n  = help: h\n\n");
        let origin = Origin::File { path: "a.pem".into(), span: None };
        let out = render(&[Diagnostic::error("E103", "bad").from(origin)], Path::new("f.toml"), "x", false);
        assert_eq!(out, "error[E103]: bad\n--> a.pem\n\n");
    }

    #[test]
    fn a_message_cannot_paint_the_terminal() {
        let out = render(&[Diagnostic::error("E021", "a\u{1b}[31m\nb")], Path::new("f\u{7}"), "", false);
        assert_eq!(out, "error[E021]: a\\u{1b}[31m\\nb\n\n");
    }
}
