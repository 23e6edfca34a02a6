//! From byte offsets to what people count: lines and columns.

use std::ops::Range;

/// Where the lines of a text begin.
#[derive(Debug)]
pub struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

/// Both count from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl<'t> Lines<'t> {
    pub fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Any offset is good: one behind the end is the end, one inside a character is that character.
    pub fn position(&self, offset: usize) -> Position {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        let before = self.text.get(self.start(line)..offset).unwrap_or_default();
        // A byte order mark takes no place on a screen.
        let column = before.strip_prefix('\u{feff}').unwrap_or(before).chars().count() + 1;
        Position { line, column }
    }

    pub fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).max(1)
    }

    /// The byte range of a line without its end.
    pub fn range(&self, line: usize) -> Range<usize> {
        let start = self.start(line);
        let end = self.starts.get(line).map_or(self.text.len(), |next| next.saturating_sub(1));
        let content = self.text.get(start..end).unwrap_or_default();
        start..start + content.strip_suffix('\r').unwrap_or(content).len()
    }

    /// A line without its end.
    pub fn text(&self, line: usize) -> &'t str {
        self.text.get(self.range(line)).unwrap_or_default()
    }

    fn start(&self, line: usize) -> usize {
        self.starts.get(line.saturating_sub(1)).copied().unwrap_or(self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_end_with_either_end() {
        let lines = Lines::new("a\r\nää b\n");
        assert_eq!(lines.position(0), Position { line: 1, column: 1 });
        assert_eq!(lines.position(8), Position { line: 2, column: 4 });
        assert_eq!(lines.position(4), Position { line: 2, column: 1 });
        assert_eq!(lines.position(999), Position { line: 3, column: 1 });
        assert_eq!(lines.range(1), 0..1);
        assert_eq!(lines.range(2), 3..9);
        assert_eq!(lines.range(3), 10..10);
    }
}
