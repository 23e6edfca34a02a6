//! Bans in a file: a JSON object on each line, so that a mistake has a line, and a person can read and cut it.

use std::fmt::Write;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{cidr::Cidr, metrics::BanKind};

/// A ban as it is written down, by the clock on the wall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedBan {
    pub network: Cidr,
    pub kind: BanKind,
    pub reason: String,
    /// Unix seconds.
    pub since: i64,
    /// Unix seconds; `None`: it does not end by itself.
    pub until: Option<i64>,
}

/// A line that is no ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Counts from 1.
    pub line: usize,
    pub text: String,
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    network: String,
    kind: BanKind,
    /// RFC 3339.
    since: String,
    until: Option<String>,
    #[serde(default)]
    reason: String,
}

/// Reads what [`write_saved`] wrote, or the first line that makes no sense. Empty lines and those with `#` first are left
/// out.
pub fn parse_saved(bytes: &[u8]) -> Result<Vec<SavedBan>, BadLine> {
    let mut bans = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let text = line.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        let bad = |reason: String| {
            let text = String::from_utf8_lossy(line.get(..LONGEST_LINE).unwrap_or(line)).into_owned();
            BadLine { line: number, text, reason }
        };
        let Line { network, kind, since, until, reason } =
            serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        let network = network.parse().map_err(|error| bad(format!("`{network}`: {error}")))?;
        let seconds = |text: String| {
            let time = text.parse::<Timestamp>().map(Timestamp::as_second);
            time.map_err(|_| bad(format!("`{text}` is no time like 2026-11-21T18:00:00Z")))
        };
        let (since, until) = (seconds(since)?, until.map(seconds).transpose()?);
        bans.push(SavedBan { network, kind, reason, since, until });
    }
    Ok(bans)
}

/// More of a line is not shown.
const LONGEST_LINE: usize = 1_024;

/// The file for these bans.
pub fn write_saved(bans: &[SavedBan]) -> String {
    let mut text =
        "# Bans of sluicegate. It is written anew whenever a ban changes, and read at the start.\n".to_owned();
    for SavedBan { network, kind, reason, since, until } in bans {
        let line = Line {
            network: network.to_string(),
            kind: *kind,
            since: time(*since),
            until: until.map(time),
            reason: reason.clone(),
        };
        // Neither a line of words nor a String refuses to be written.
        let _ = writeln!(text, "{}", serde_json::to_string(&line).unwrap_or_default());
    }
    text
}

/// Seconds beyond the calendar are its end.
fn time(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds);
    time.unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let ban = |network: &str, kind, until, reason: &str| SavedBan {
            network: network.parse().unwrap(),
            kind,
            reason: reason.to_owned(),
            since: 1_795_000_000,
            until,
        };
        let bans = [
            ban("192.0.2.0/24", BanKind::Manual, None, "a \"quote\"\nand a line \u{1b}[31m ä"),
            ban("2001:db8::1/128", BanKind::Automatic, Some(1_795_000_600), ""),
        ];
        let text = write_saved(&bans);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(parse_saved(text.as_bytes()).unwrap(), bans);
        assert_eq!(parse_saved(b"").unwrap(), []);
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = write_saved(&[]) + "\r\n \n";
        let line = r#"{"network":"192.0.2.1","kind":"manual","since":"2026-11-21T18:00:00Z","until":null}"#;
        assert_eq!(parse_saved(format!("{good}{line}").as_bytes()).unwrap().len(), 1);
        for (from, to) in [
            ("192.0.2.1", "192.0.2.1/24"),
            ("manual", "other"),
            ("2026-11-21T18:00:00Z", "yesterday"),
            ("null", "7"),
            ("}", ""),
            ("until", "till"),
            ("{", "\u{0}{"),
        ] {
            let error = parse_saved(format!("{good}{}\n", line.replace(from, to)).as_bytes()).unwrap_err();
            assert_eq!(error.line, 4, "{error:?}");
            assert!(!error.reason.is_empty());
        }
        assert_eq!(parse_saved(&vec![b'x'; 100_000]).unwrap_err().text.len(), LONGEST_LINE);
    }
}
