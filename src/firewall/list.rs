//! Files of networks: one per line, `#` starts a comment, IPv4 and IPv6 mixed.

use std::{error::Error, fmt, net::IpAddr, ops::Range, str};

use crate::cidr::{Cidr, CidrError};

/// Errors kept; the rest is only counted.
const MAX_ERRORS: usize = 20;
/// Bytes of a line kept for its error.
const MAX_TEXT: usize = 200;

/// What a list file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List {
    /// Sorted, without duplicates; networks inside others are still there.
    pub networks: Vec<Cidr>,
    /// Lines with bits set beyond the prefix, read as the network they are in.
    pub host_bits: usize,
    /// Lines that said what another line says.
    pub duplicates: usize,
    /// Networks that lie inside another one of the list, duplicates not counted.
    pub covered: usize,
    /// The last line, if it says something and has no end: the file may have been cut.
    pub unfinished: Option<usize>,
}

/// Why a list file is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListErrors {
    /// The first 20, in the order of the file; never empty.
    pub first: Vec<LineError>,
    /// All of them.
    pub total: usize,
}

/// A line that is not a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// From 1.
    pub line: usize,
    /// Byte range in `text`, on character boundaries.
    pub columns: Range<usize>,
    /// The line without its end, cut at 200 bytes, with U+FFFD for what is not UTF-8.
    pub text: String,
    pub reason: CidrError,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl Error for LineError {}

impl fmt::Display for ListErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.first {
            writeln!(f, "{error}")?;
        }
        write!(f, "{} bad lines in all", self.total)
    }
}

impl Error for ListErrors {}

/// Reads a whole list file. CRLF line ends and a byte order mark are tolerated, since editors leave them behind.
///
/// Host bits are cleared and counted; any other flaw refuses the list, because half a list lets in the wrong half (F4).
pub fn parse_list(text: &[u8]) -> Result<List, ListErrors> {
    let mut list = List::default();
    let mut errors = ListErrors { first: Vec::new(), total: 0 };
    for (line, number) in lines(text).zip(1..) {
        let Some(entry) = entry_of(line) else { continue };
        match parse_entry(entry) {
            Ok((network, host_bits)) => {
                list.networks.push(network);
                list.host_bits += usize::from(host_bits);
            }
            Err(reason) => {
                errors.total += 1;
                if errors.first.len() < MAX_ERRORS {
                    errors.first.push(LineError::new(number, line, entry, reason));
                }
            }
        }
    }
    if errors.total > 0 {
        return Err(errors);
    }
    let last = lines(text).zip(1..).last();
    list.unfinished = last.filter(|(line, _)| entry_of(line).is_some()).map(|(_, number)| number);
    list.networks.sort_unstable();
    let read = list.networks.len();
    list.networks.dedup();
    list.networks.shrink_to_fit();
    list.duplicates = read - list.networks.len();
    list.covered = covered(&list.networks);
    Ok(list)
}

/// The narrowest network of a list file that holds the address, and the line (from 1) that names it first.
#[must_use]
pub fn find_in_list(text: &[u8], ip: IpAddr) -> Option<(Cidr, usize)> {
    let mut found: Option<(Cidr, usize)> = None;
    for (line, number) in lines(text).zip(1..) {
        let network = entry_of(line).and_then(|entry| parse_entry(entry).ok());
        let Some((network, _)) = network.filter(|(network, _)| network.contains(ip)) else { continue };
        if found.is_none_or(|(known, _)| known.prefix_len() < network.prefix_len()) {
            found = Some((network, number));
        }
    }
    found
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text).split(|byte| *byte == b'\n')
}

/// The line without its comment and the space around; `None` if nothing is left.
fn entry_of(line: &[u8]) -> Option<&[u8]> {
    let entry = line.split(|byte| *byte == b'#').next()?.trim_ascii();
    (!entry.is_empty()).then_some(entry)
}

fn parse_entry(entry: &[u8]) -> Result<(Cidr, bool), CidrError> {
    let text = str::from_utf8(entry).map_err(|_| CidrError::NotAnAddress)?;
    Cidr::parse_lenient(text)
}

/// In sorted networks the outermost one stands before all it covers.
fn covered(sorted: &[Cidr]) -> usize {
    let mut outermost: Option<&Cidr> = None;
    let mut count = 0;
    for network in sorted {
        if outermost.is_some_and(|outer| outer.covers(network)) {
            count += 1;
        } else {
            outermost = Some(network);
        }
    }
    count
}

impl LineError {
    fn new(line: usize, raw: &[u8], entry: &[u8], reason: CidrError) -> Self {
        let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
        let indent = raw.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        // Every byte shows as one to three, so this much of the line is enough to fill the text.
        let shown = raw.get(..raw.len().min(MAX_TEXT)).unwrap_or(raw);
        let before = shown.get(..indent).unwrap_or(shown);
        let rest = shown.get(indent..).unwrap_or_default();
        let (entry, after) = rest.split_at_checked(entry.len()).unwrap_or((rest, &[]));
        let mut text = String::from_utf8_lossy(before).into_owned();
        let start = text.len();
        text.push_str(&String::from_utf8_lossy(entry));
        let end = text.len();
        text.push_str(&String::from_utf8_lossy(after));
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        Self { line, columns: start.min(text.len())..end.min(text.len()), text, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        parse_list(text.as_bytes()).unwrap().networks.iter().map(Cidr::to_string).collect()
    }

    #[test]
    fn comments_blanks_crlf_and_a_byte_order_mark_are_tolerated() {
        let text = "\u{feff}10.0.0.0/8 # office\r\n\r\n# all\n\t2001:db8::/32#x\r\n  192.0.2.1  \n#";
        assert_eq!(lines(text), ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]);
        assert_eq!(lines(""), [""; 0]);
        assert_eq!(lines("\n\n# nothing"), [""; 0]);
    }

    #[test]
    fn f2_host_bits_duplicates_and_covered_networks_are_counted() {
        let list =
            parse_list(b"10.0.0.5/8\n10.0.0.0/8\n10.1.0.0/16\n10.1.2.0/24\n11.0.0.0/8\n::ffff:10.0.0.0/104\n").unwrap();
        assert_eq!((list.host_bits, list.duplicates, list.covered), (1, 2, 2));
        assert_eq!(list.networks.len(), 4);
    }

    #[test]
    fn f4_a_line_without_an_end_is_told() {
        for (text, unfinished) in [
            (&b"10.0.0.0/8\n10.0.0.0/2"[..], Some(2)),
            (b"10.0.0.0/8", Some(1)),
            (b"10.0.0.0/8\n", None),
            (b"10.0.0.0/8\n# end", None),
            (b"10.0.0.0/8\n  ", None),
            (b"", None),
        ] {
            let list = parse_list(text).unwrap_or_default();
            assert_eq!(list.unfinished, unfinished, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn an_address_is_found_in_its_narrowest_network_and_first_line() {
        let text = b"\xef\xbb\xbf10.0.0.0/8\r\n# a\n10.1.0.0/16 # b\n10.1.0.5/16\n2001:db8::/32\nnonsense\n";
        let found = |ip: &str| find_in_list(text, ip.parse().unwrap()).map(|(net, line)| (net.to_string(), line));
        assert_eq!(found("10.1.2.3"), Some(("10.1.0.0/16".to_owned(), 3)));
        assert_eq!(found("::ffff:10.2.0.1"), Some(("10.0.0.0/8".to_owned(), 1)));
        assert_eq!(found("2001:db8::1"), Some(("2001:db8::/32".to_owned(), 5)));
        assert_eq!(found("192.0.2.1"), None);
    }

    #[test]
    fn an_error_says_line_and_columns() {
        let errors = parse_list(b"10.0.0.0/8\r\n  10.1/16 # typo\r\n").unwrap_err();
        let text = "  10.1/16 # typo".to_owned();
        let expected = LineError { line: 2, columns: 2..9, text, reason: CidrError::NotAnAddress };
        assert_eq!(errors, ListErrors { first: vec![expected], total: 1 });
        assert_eq!(parse_list(b"10.0.0.0/8 10.1.0.0/16").unwrap_err().total, 1, "one network per line");
    }

    #[test]
    fn all_errors_are_counted_and_twenty_are_told() {
        let errors = parse_list("nonsense\n".repeat(1_000).as_bytes()).unwrap_err();
        assert_eq!((errors.first.len(), errors.total), (20, 1_000));
        assert_eq!(errors.first.last().map(|error| error.line), Some(20));
    }

    #[test]
    fn hostile_lines_are_cut_and_their_columns_stay_inside() {
        let long = [b" ".repeat(300), b"x".to_vec()].concat();
        let binary = b"\xff".repeat(100_000);
        let accents = "é".repeat(500).into_bytes();
        let halfway = [b"a".to_vec(), accents.clone()].concat();
        let utf16 = b"\xff\xfe1\x000\x00".to_vec();
        for line in [long, binary, accents, halfway, utf16, b"\0".to_vec(), b"a\rb".to_vec()] {
            let errors = parse_list(&line).unwrap_err();
            let error = &errors.first[0];
            assert!(error.text.len() <= 200);
            assert!(error.text.get(error.columns.clone()).is_some(), "{error:?}");
        }
    }
}
