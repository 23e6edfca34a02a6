//! Walks a table by hand and notes every mistake on the way, where serde would stop at the first.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Located, code,
    diagnostic::Diagnostic,
    lines::Lines,
    value::{self, Problem, name, quoted},
};

/// Above this the file is not a configuration with mistakes but something else.
const MOST_DIAGNOSTICS: usize = 100;

/// Where mistakes are collected.
#[derive(Debug)]
pub struct Report<'t> {
    diagnostics: Vec<Diagnostic>,
    omitted: usize,
    lines: Lines<'t>,
}

/// What a table may hold.
#[derive(Debug)]
pub struct Schema<'k> {
    /// As written in messages: `[pool.*]`.
    pub name: &'static str,
    pub keys: &'k [&'static str],
}

/// A table whose keys are all known.
#[derive(Debug, Clone)]
pub struct Table<'a> {
    /// The header that the table has or could have: `[pool.web]`.
    pub title: String,
    pub span: Range<usize>,
    entries: &'a DeTable<'a>,
    /// Keys that were probably meant by unknown ones: not called missing as well.
    meant: Vec<&'static str>,
}

impl<'t> Report<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { diagnostics: Vec::new(), omitted: 0, lines: Lines::new(text) }
    }

    pub fn push(&mut self, diagnostic: impl Into<Box<Diagnostic>>) {
        self.push_with(|| diagnostic.into());
    }

    /// As [`Report::push`], for messages that take some work: it is not done for those that will not be shown.
    pub fn push_with<D: Into<Box<Diagnostic>>>(&mut self, diagnostic: impl FnOnce() -> D) {
        if self.diagnostics.len() < MOST_DIAGNOSTICS {
            self.diagnostics.push(*diagnostic().into());
        } else {
            self.omitted += 1;
        }
    }

    /// For messages that name a second place.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.lines.line(span.start)
    }

    pub fn line_text(&self, line: usize) -> &'t str {
        self.lines.text(line)
    }

    /// How many mistakes were noted.
    pub fn len(&self) -> usize {
        self.diagnostics.len() + self.omitted
    }

    pub fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut diagnostics = self.diagnostics;
        diagnostics.sort_by_key(|one| one.span().map_or(usize::MAX, |span| span.start));
        if let (1.., Some(last)) = (self.omitted, diagnostics.last_mut()) {
            last.notes.push(format!("{} more are not shown", self.omitted));
        }
        diagnostics
    }
}

impl<'a> Table<'a> {
    /// Notes every key that `schema` does not have.
    pub fn new(
        title: String,
        span: Range<usize>,
        entries: &'a DeTable<'a>,
        schema: &Schema,
        report: &mut Report,
    ) -> Self {
        let mut meant = Vec::new();
        for key in entries.keys().filter(|key| !schema.keys.contains(&key.get_ref().as_ref())) {
            report.push_with(|| {
                let similar = similar(key.get_ref(), schema.keys.iter().copied());
                meant.extend(similar);
                let label = similar.map_or("not known here".to_owned(), |similar| format!("did you mean `{similar}`?"));
                Diagnostic::error(code::UNKNOWN_KEY, format!("unknown key {}", quoted(key.get_ref())))
                    .at(key.span())
                    .label(label)
                    .note(format!("keys of {}: {}", schema.name, schema.keys.join(", ")))
            });
        }
        Self { title, span, entries, meant }
    }

    /// A table in `value`, whatever its spelling: inline or with a header.
    pub fn open(value: &'a Spanned<DeValue<'a>>, title: String, schema: &Schema, report: &mut Report) -> Option<Self> {
        if let DeValue::Table(entries) = value.get_ref() {
            return Some(Self::new(title, value.span(), entries, schema, report));
        }
        report.push(value::wrong_type("a table", value.get_ref()).at(value.span()));
        None
    }

    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key) || self.meant.contains(&key)
    }

    /// The string under `key`, if there is one.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.entries.get(key)?.get_ref().as_str()
    }

    /// The string under `inner` of the table under `key`, if there is one.
    pub fn text_in(&self, key: &str, inner: &str) -> Option<&'a str> {
        let DeValue::Table(entries) = self.entries.get(key)?.get_ref() else { return None };
        entries.get(inner)?.get_ref().as_str()
    }

    /// Where `key` is written.
    pub fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get_key_value(key).map(|(key, _)| key.span())
    }

    /// `None` where the key is not written, or is written wrongly, which is noted.
    pub fn read<T>(
        &self,
        key: &str,
        report: &mut Report,
        parse: impl Fn(&DeValue) -> Result<T, Problem>,
    ) -> Option<Located<T>> {
        located(self.entries.get(key)?, report, &parse)
    }

    /// As [`Table::read`], for a list, which may also be a single value. Entries that are wrong are noted and left out.
    pub fn read_list<T>(
        &self,
        key: &str,
        report: &mut Report,
        parse: impl Fn(&DeValue) -> Result<T, Problem>,
    ) -> Option<Located<Vec<Located<T>>>> {
        let value = self.entries.get(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            let one = located(value, report, &parse)?;
            return Some(Located { span: one.span.clone(), value: vec![one] });
        };
        self.refuse_empty(key, report);
        let values = items.iter().filter_map(|item| located(item, report, &parse)).collect();
        Some(Located { value: values, span: value.span() })
    }

    /// For lists that mean nothing, or something dangerous, without an entry.
    pub fn refuse_empty(&self, key: &str, report: &mut Report) {
        let Some(value) = self.entries.get(key) else { return };
        if value.get_ref().as_array().is_some_and(|items| items.is_empty()) {
            report.push(
                Diagnostic::error(code::EMPTY_LIST, format!("`{key}` is an empty list"))
                    .at(value.span())
                    .label("write at least one entry, or leave the key out"),
            );
        }
    }

    /// One of `keys` must be there.
    pub fn require_one(&self, keys: &[&str], example: &str, report: &mut Report) {
        if keys.iter().any(|key| self.contains(key)) {
            return;
        }
        let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
        report.push(
            Diagnostic::error(code::MISSING_KEY, format!("{} has none of {}", self.title, keys.join(", ")))
                .at(self.span.clone())
                .label("one of them is missing")
                .help(format!("add `{example}`")),
        );
    }

    /// At most one of `keys` may be there.
    pub fn exclude(&self, keys: &[&str], report: &mut Report) {
        let mut written: Vec<_> = keys.iter().filter_map(|key| Some((self.key_span(key)?, *key))).collect();
        written.sort_by_key(|(span, _)| span.start);
        let Some(((_, first), others)) = written.split_first() else { return };
        for (span, other) in others {
            report.push(
                Diagnostic::error(code::CONFLICTING_KEYS, format!("`{first}` and `{other}` exclude each other"))
                    .at(span.clone())
                    .label(format!("`{first}` is written too"))
                    .help("keep one of them"),
            );
        }
    }

    /// A key that must be there; `example` is what could be written.
    pub fn require(&self, key: &str, example: &str, report: &mut Report) {
        if !self.contains(key) {
            report.push(
                Diagnostic::error(code::MISSING_KEY, format!("{} has no `{key}`", self.title))
                    .at(self.span.clone())
                    .label(format!("`{key}` is missing"))
                    .help(format!("add `{example}`")),
            );
        }
    }

    /// The table under `key`.
    pub fn table(&self, key: &str, title: String, schema: &Schema, report: &mut Report) -> Option<Self> {
        Self::open(self.entries.get(key)?, title, schema, report)
    }

    /// One table or a list of tables under `key`, in their order.
    pub fn tables(&self, key: &str, title: &str, schema: &Schema, report: &mut Report) -> Vec<Self> {
        let mut open = |value| Table::open(value, title.to_owned(), schema, report);
        match self.entries.get(key) {
            None => Vec::new(),
            Some(value) => match value.get_ref() {
                DeValue::Array(items) => items.iter().filter_map(open).collect(),
                _ => open(value).into_iter().collect(),
            },
        }
    }

    /// The tables with names of their own under `key`, `[key.NAME]`, in the order of the file.
    pub fn named(&self, key: &str, schema: &Schema, report: &mut Report) -> Vec<(Located<String>, Self)> {
        let Some(value) = self.entries.get(key) else { return Vec::new() };
        let form = format!("each {key} has a name of its own: `[{key}.NAME]`");
        let DeValue::Table(entries) = value.get_ref() else {
            report.push(value::wrong_type(&format!("`[{key}.NAME]`"), value.get_ref()).at(value.span()).help(form));
            return Vec::new();
        };
        let mut found = Vec::new();
        for (key_of_entry, value) in entries {
            let DeValue::Table(inner) = value.get_ref() else {
                let place = if value.get_ref().is_array() { value.span() } else { key_of_entry.span() };
                report.push(value::wrong_type("a table", value.get_ref()).at(place).help(form.as_str()));
                continue;
            };
            if let Err(problem) = name(key_of_entry.get_ref()) {
                report.push(problem.at(key_of_entry.span()));
            }
            let entry = Located { value: key_of_entry.get_ref().to_string(), span: key_of_entry.span() };
            let title = format!("[{key}.{}]", value::cut(&entry.value));
            found.push((entry, Table::new(title, value.span(), inner, schema, report)));
        }
        found.sort_by_key(|(name, _)| name.span.start);
        found
    }
}

/// The known word that was probably meant.
pub fn similar<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    // Longer words are not typing mistakes, and the comparison is quadratic.
    if word.len() > 128 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let likeness = |known: &str| match strsim::osa_distance(&word, known) {
        // Two letters changed about in a short word look very different otherwise.
        0 | 1 if known.len() > 2 => 1.0,
        _ => strsim::jaro_winkler(&word, known),
    };
    let best = known.into_iter().map(|known| (likeness(known), known)).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(likeness, _)| *likeness >= 0.8).map(|(_, known)| known)
}

fn located<T>(
    value: &Spanned<DeValue>,
    report: &mut Report,
    parse: &impl Fn(&DeValue) -> Result<T, Problem>,
) -> Option<Located<T>> {
    match parse(value.get_ref()) {
        Ok(parsed) => Some(Located { value: parsed, span: value.span() }),
        Err(problem) => {
            report.push(problem.at(value.span()));
            None
        }
    }
}
