//! Where things are written: from the keys of a value to its line.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{lines::Lines, syntax::Tree};

/// A configuration text in which every key can be found.
#[derive(Debug)]
pub struct Places<'t> {
    tree: Tree<'t>,
    lines: Lines<'t>,
}

/// What stands behind some keys, if they are written.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'p> {
    lines: &'p Lines<'p>,
    /// Where it begins in the text.
    start: Option<usize>,
    value: Value<'p>,
}

#[derive(Debug, Clone, Copy)]
enum Value<'p> {
    Nothing,
    Table(&'p DeTable<'p>),
    Other(&'p Spanned<DeValue<'p>>),
}

impl<'t> Places<'t> {
    /// For a text without mistakes; in another one some keys may be missing.
    pub fn of(text: &'t str) -> Self {
        Self { tree: Tree::parse(text).0, lines: Lines::new(text) }
    }

    /// What stands behind a key of the file.
    pub fn key(&self, key: &str) -> Spot<'_> {
        Spot { lines: &self.lines, start: None, value: Value::Table(self.tree.root()) }.key(key)
    }
}

impl Spot<'_> {
    /// What stands behind a key of this table.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        let table = match self.value {
            Value::Table(table) => Some(table),
            Value::Other(value) => value.get_ref().as_table(),
            Value::Nothing => None,
        };
        let found = table.and_then(|table| table.get_key_value(key));
        let value = found.map_or(Value::Nothing, |(_, value)| Value::Other(value));
        Self { start: found.map(|(key, _)| key.span().start), value, ..self }
    }

    /// An entry of this list; a single value is a list of one.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        let items = if let Value::Other(value) = self.value { value.get_ref().as_array() } else { None };
        let Some(items) = items else {
            return if index == 0 { self } else { Self { start: None, value: Value::Nothing, ..self } };
        };
        let found = items.get(index);
        let value = found.map_or(Value::Nothing, Value::Other);
        Self { start: found.map(|item| item.span().start), value, ..self }
    }

    /// Counts from 1; `None` if it is not written.
    pub fn line(&self) -> Option<usize> {
        self.start.map(|start| self.lines.line(start))
    }

    /// The value without its key, as bytes of the text; `None` if it is not written.
    pub fn span(&self) -> Option<Range<usize>> {
        if let Value::Other(value) = self.value { Some(value.span()) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_however_it_is_written() {
        let text =
            "[a.\"b.c\"]\nlist = [\n  { x = 1 },\n  { x = [7,\n 8] },\n]\nd.e = 2\n[[t]]\nx = 1\n\n[[t]]\nx = 2\n";
        let places = Places::of(text);
        let list = places.key("a").key("b.c").key("list");
        assert_eq!([list.line(), list.at(0).line(), list.at(1).key("x").line()], [Some(2), Some(3), Some(4)]);
        assert_eq!(list.at(1).key("x").at(1).line(), Some(5));
        assert_eq!(places.key("a").key("b.c").key("d").key("e").line(), Some(7));
        assert_eq!(places.key("t").at(1).key("x").line(), Some(12));
        assert_eq!(list.at(0).key("x").at(0).line(), Some(3), "a single value is a list of one");
        let [many, one] = [list.at(1), list.at(0)].map(|table| table.key("x").at(0).span());
        assert_eq!([many, one].map(|span| &text[span.unwrap()]), ["7", "1"]);
        let missing = [places.key("b"), list.at(2), list.at(0).key("y").key("z"), list.at(0).key("x").at(1)];
        assert!(missing.iter().all(|spot| spot.line().is_none() && spot.span().is_none()));
    }
}
