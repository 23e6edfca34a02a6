//! Lines of any length in bounded memory.

use std::io::{self, BufRead, BufReader, Read};

/// A record has a few hundred bytes, and what a client sent is cut long before this.
const LONGEST: usize = 64 << 10;

pub(super) struct Lines<R> {
    input: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::with_capacity(256 << 10, input), line: Vec::new() }
    }

    /// The next line without its end, or why it is not kept; `None` behind the last one.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<&[u8], &'static str>>> {
        self.line.clear();
        let (mut is_there, mut is_long) = (false, false);
        loop {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                break;
            }
            is_there = true;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
            is_long |= self.line.len() + part.len() > LONGEST;
            if !is_long {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        let line = if is_long { Err("it is longer than any record") } else { Ok(self.line.as_slice()) };
        Ok(is_there.then_some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_skipped_and_the_next_is_whole() {
        let long = "x".repeat(3_000_000);
        let text = format!("a\n\n{long}\nb\r\n{}\nlast", "y".repeat(LONGEST));
        let mut lines = Lines::new(text.as_bytes());
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            seen.push(line.map(<[u8]>::len));
        }
        assert_eq!(seen, [Ok(1), Ok(0), Err("it is longer than any record"), Ok(2), Ok(LONGEST), Ok(4)]);
        assert!(lines.line.capacity() <= 2 * LONGEST);
    }
}
