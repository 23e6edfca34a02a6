//! A line of the log, read again: what the firewall needs to judge its client once more.

use std::{borrow::Cow, net::SocketAddr};

use serde::Deserialize;

use crate::outcome::Outcome;

/// Who connected where, and what the firewall said then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    pub listener: Cow<'a, str>,
    pub client: SocketAddr,
    pub denied: bool,
}

/// As much of a record as is needed.
#[derive(Deserialize)]
struct Json<'a> {
    #[serde(borrow, default)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    listener: Cow<'a, str>,
    #[serde(borrow, default)]
    client: Cow<'a, str>,
    #[serde(borrow, default)]
    outcome: Cow<'a, str>,
}

/// Reads a line of either format, without its end. `None`: it is about something else, or empty. An error says why it cannot
/// be read.
pub fn read_line(line: &[u8]) -> Result<Option<Line<'_>>, &'static str> {
    let line = line.trim_ascii();
    match line.first() {
        None => Ok(None),
        Some(b'{') => read_json(line),
        Some(_) => read_text(line),
    }
}

fn read_json(line: &[u8]) -> Result<Option<Line<'_>>, &'static str> {
    let read: Json<'_> = serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof => "it is cut short",
        serde_json::error::Category::Data => "a value of another type is expected",
        _ => "it is not JSON",
    })?;
    // The process's own messages may stand in the same journal.
    if read.event != "connection" {
        return Ok(None);
    }
    if read.outcome.is_empty() {
        return Err("it has no outcome");
    }
    line_of(read.listener, &read.client, read.outcome == Outcome::Denied.as_str())
}

/// `TIME ID LISTENER client=ADDRESS ... outcome=WORD`: what a client sent stands in quotes between these.
fn read_text(line: &[u8]) -> Result<Option<Line<'_>>, &'static str> {
    let text = str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
    let mut words = text.split(' ').skip(2);
    let (listener, client) = (words.next(), words.next().and_then(|word| word.strip_prefix("client=")));
    let Some((listener, client)) = listener.zip(client) else {
        return if is_message(text) { Ok(None) } else { Err("it is no record of the access log") };
    };
    // A line that is cut may end inside a word, or inside something like this that a client sent.
    let outcome = text.rsplit_once(" outcome=").map(|(_, outcome)| outcome).filter(|_| !ends_in_quotes(text));
    let Some(outcome) = Outcome::ALL.iter().find(|known| Some(known.as_str()) == outcome) else {
        return Err("it is cut short: it does not end with an outcome");
    };
    // A name is quoted only where it could be taken for something else.
    line_of(listener.trim_matches('"').into(), client, *outcome == Outcome::Denied)
}

fn ends_in_quotes(text: &str) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    quoted
}

/// `TIME LEVEL ...`
fn is_message(text: &str) -> bool {
    let level = text.split_ascii_whitespace().nth(1);
    level.is_some_and(|level| ["ERROR", "WARN", "INFO", "DEBUG"].contains(&level))
}

fn line_of<'a>(listener: Cow<'a, str>, client: &str, denied: bool) -> Result<Option<Line<'a>>, &'static str> {
    if listener.is_empty() {
        return Err("it has no listener");
    }
    let client = client.parse().map_err(|_| "its client is no address with a port")?;
    Ok(Some(Line { listener, client, denied }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "2026-11-20T20:31:07.412Z 6f1c0a9e2b41 https client=203.0.113.7:51234 rule=default pool=web \
        backend=- attempts=0 received=0 sent=0 path=- sni=\"a client=1.2.3.4:5 outcome=denied\" queue=0 total=1 \
        outcome=client_closed";

    #[test]
    fn text_is_read_past_what_a_client_sent() {
        let line = read_line(TEXT.as_bytes()).unwrap().unwrap();
        assert_eq!((line.listener.as_ref(), line.denied), ("https", false));
        assert_eq!(line.client.to_string(), "203.0.113.7:51234");
        let denied = TEXT.replace("outcome=client_closed", "outcome=denied");
        assert!(read_line(denied.as_bytes()).unwrap().unwrap().denied);
    }

    #[test]
    fn a_line_that_is_cut_anywhere_is_no_record() {
        let json = r#"{"event":"connection","listener":"a","client":"[2001:db8::1]:5","outcome":"denied"}"#;
        for whole in [TEXT, json] {
            assert!(read_line(whole.as_bytes()).unwrap().is_some());
            for end in 1..whole.len() {
                assert!(!matches!(read_line(&whole.as_bytes()[..end]), Ok(Some(_))), "{}", &whole[..end]);
            }
        }
    }

    #[test]
    fn what_is_no_record_is_told_from_what_is_broken() {
        for other in
            ["", " \r", "2026-11-21T00:11:49.984107Z  INFO listening listener=\"a\"", "{\"message\":\"ready\"}"]
        {
            assert_eq!(read_line(other.as_bytes()), Ok(None), "{other}");
        }
        for bad in [
            &b"nonsense"[..],
            b"\xff\xfe",
            b"{",
            b"{]",
            b"[1]",
            b"{\"event\":\"connection\"}",
            b"{\"event\":1}",
            b"{\"event\":\"connection\",\"listener\":\"\xff\",\"client\":\"1.2.3.4:5\",\"outcome\":\"denied\"}",
            b"{\"event\":\"connection\",\"listener\":\"a\",\"client\":\"1.2.3.4\",\"outcome\":\"denied\"}",
            b"t i l client=fe80::1%3 outcome=denied",
        ] {
            assert!(read_line(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
