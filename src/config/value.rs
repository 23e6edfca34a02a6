//! Single values: from a TOML value to what it means, or to a message without a place.

use std::{
    num::NonZeroUsize,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::fmt::friendly::SpanParser;
use toml::de::DeValue;

use super::{Auto, code, diagnostic::Diagnostic, reader::similar};

/// What is wrong with a value; the reader knows where it stands.
pub type Problem = Box<Diagnostic>;

/// How long a duration may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Whether `"0s"` has a meaning.
    pub zero: bool,
    pub hours: u64,
}

pub fn wrong_type(expected: &str, found: &DeValue) -> Diagnostic {
    let article = match found.type_str() {
        kind @ ("array" | "integer") => format!("an {kind}"),
        kind => format!("a {kind}"),
    };
    Diagnostic::error(code::WRONG_TYPE, format!("expected {expected}, found {article}"))
        .label(format!("{expected} is expected"))
}

/// Any string.
pub fn text(value: &DeValue) -> Result<String, Problem> {
    text_of(value).map(str::to_owned)
}

pub fn boolean(value: &DeValue) -> Result<bool, Problem> {
    value.as_bool().ok_or_else(|| {
        let problem = wrong_type("true or false", value);
        match value.as_str() {
            Some("true" | "false") => problem.help("write it without quotes").into(),
            _ => problem.into(),
        }
    })
}

/// One of a closed set of words.
pub fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&DeValue) -> Result<T, Problem> {
    move |value| {
        let written = text_of(value)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == written) {
            return Ok(*meaning);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        Err(unknown_word(written, &known).into())
    }
}

pub fn unknown_word(written: &str, known: &[&str]) -> Diagnostic {
    let similar = similar(written, known.iter().copied());
    let label = similar.map_or("not known here".to_owned(), |word| format!("did you mean `{word}`?"));
    let known: Vec<_> = known.iter().map(|word| format!("\"{word}\"")).collect();
    Diagnostic::error(code::UNKNOWN_WORD, format!("unknown value {}", quoted(written)))
        .label(label)
        .note(format!("possible values: {}", known.join(", ")))
}

/// A whole number within a range.
pub fn integer(range: RangeInclusive<u32>) -> impl Fn(&DeValue) -> Result<u32, Problem> {
    move |value| {
        let DeValue::Integer(written) = value else {
            let problem = wrong_type("a whole number", value);
            let digits =
                value.as_str().is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
            return Err(if digits { problem.help("write the number without quotes") } else { problem }.into());
        };
        let number = u32::from_str_radix(written.as_str(), written.radix()).ok();
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            Diagnostic::error(code::OUT_OF_RANGE, format!("{} is out of range", cut(&written.to_string())))
                .label(format!("must be {least} to {most}"))
                .into()
        })
    }
}

/// A number from 1.
pub fn count(most: u32) -> impl Fn(&DeValue) -> Result<NonZeroUsize, Problem> {
    let parse = integer(1..=most);
    move |value| {
        let number = usize::try_from(parse(value)?).unwrap_or(usize::MAX);
        Ok(NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN))
    }
}

/// A number from 1, or `"auto"`.
pub fn auto_or_count(most: u32) -> impl Fn(&DeValue) -> Result<Auto, Problem> {
    let parse = count(most);
    move |value| match value.as_str() {
        Some("auto") => Ok(Auto::Auto),
        Some(_) => parse(value).map(Auto::Fixed).map_err(|problem| problem.note("or the word \"auto\"").into()),
        None => parse(value).map(Auto::Fixed),
    }
}

/// How long a header of the PROXY protocol may take: long enough for a packet that is sent again.
pub fn proxy_timeout(value: &DeValue) -> Result<Duration, Problem> {
    const LEAST: Duration = Duration::from_secs(3);
    let timeout = duration(Bounds { zero: false, hours: 24 })(value)?;
    if timeout >= LEAST {
        return Ok(timeout);
    }
    let written = value.as_str().unwrap_or_default();
    Err(Diagnostic::error(code::OUT_OF_RANGE, format!("the duration {} is out of range", quoted(written)))
        .label(format!("must be at least {}s", LEAST.as_secs()))
        .note("a packet that is lost is sent again after a second, or three")
        .into())
}

/// A duration with units.
pub fn duration(bounds: Bounds) -> impl Fn(&DeValue) -> Result<Duration, Problem> {
    move |value| {
        let written = match value {
            DeValue::Integer(number) if number.radix() == 10 => return Err(no_unit(number.as_str())),
            DeValue::Float(number) => return Err(no_unit(number.as_str())),
            _ => value.as_str().ok_or_else(|| wrong_type("a duration in quotes", value))?,
        };
        let duration = parse_duration(written)?;
        let out_of_range = |label: String| {
            Diagnostic::error(code::OUT_OF_RANGE, format!("the duration {} is out of range", quoted(written)))
                .label(label)
        };
        if duration.is_zero() && !bounds.zero {
            return Err(out_of_range("must be longer than zero".to_owned()).into());
        }
        if duration > Duration::from_secs(bounds.hours * 3600) {
            return Err(out_of_range(format!("must be at most {}h", bounds.hours)).into());
        }
        Ok(duration)
    }
}

/// A path, relative to the directory of the configuration.
pub fn path(base: &Path) -> impl Fn(&DeValue) -> Result<PathBuf, Problem> {
    move |value| {
        let written = text_of(value)?;
        if written.is_empty() {
            return Err(Diagnostic::error(code::BAD_TEXT, "the path is empty")
                .label("write the path of a file")
                .into());
        }
        if written.contains('\0') {
            let problem = Diagnostic::error(code::BAD_TEXT, "the path has a NUL character");
            return Err(problem.label("no file can have this name").into());
        }
        Ok(base.join(written))
    }
}

/// A name that can stand in metrics and on a command line.
pub fn name(written: &str) -> Result<String, Problem> {
    let problem = |label: &str| {
        Diagnostic::error(code::BAD_NAME, format!("{} cannot be a name", quoted(written)))
            .label(label)
            .note("names have 1 to 64 characters out of A-Z a-z 0-9 _ . -")
    };
    if written.is_empty() {
        return Err(problem("the name is empty").into());
    }
    if written.len() > 64 {
        return Err(problem(&format!("the name has {} characters", written.chars().count())).into());
    }
    match written.chars().find(|char| !(char.is_ascii_alphanumeric() || "_.-".contains(*char))) {
        Some(char) => Err(problem(&format!("`{}` is not allowed", char.escape_debug())).into()),
        None => Ok(written.to_owned()),
    }
}

/// The name of a table of the packet filter: a word of its language.
pub fn table_name(value: &DeValue) -> Result<String, Problem> {
    let written = name(text_of(value)?)?;
    if written.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Ok(written);
    }
    let problem = Diagnostic::error(code::BAD_NAME, format!("{} cannot be the name of a table", quoted(&written)));
    Err(problem.label("it has to begin with a letter").into())
}

/// As [`name`], from a value, except for names that have a meaning already.
pub fn name_except(reserved: &'static [&'static str]) -> impl Fn(&DeValue) -> Result<String, Problem> {
    move |value| {
        let written = name(text_of(value)?)?;
        if reserved.contains(&written.as_str()) {
            return Err(reserved_name(&written).into());
        }
        Ok(written)
    }
}

pub fn reserved_name(name: &str) -> Diagnostic {
    Diagnostic::error(code::BAD_NAME, format!("the name `{name}` is reserved")).label("choose another name")
}

/// 32 hexadecimal digits.
pub fn hash_key(value: &DeValue) -> Result<[u8; 16], Problem> {
    let written = text_of(value)?;
    let digits: Vec<u8> =
        written.chars().filter_map(|char| char.to_digit(16)).filter_map(|digit| u8::try_from(digit).ok()).collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    match <[u8; 16]>::try_from(bytes) {
        Ok(key) if rest.is_empty() && written.chars().count() == 32 => Ok(key),
        _ => Err(Diagnostic::error(code::BAD_TEXT, "the hash key is not 32 hexadecimal digits")
            .label(format!("{} characters, {} of them hexadecimal digits", written.chars().count(), digits.len()))
            .help("make one with `openssl rand -hex 16` and give every balancer of the same site the same one")
            .into()),
    }
}

/// An ALPN protocol name.
pub fn alpn(value: &DeValue) -> Result<String, Problem> {
    let written = text_of(value)?;
    if (1..=255).contains(&written.len()) {
        return Ok(written.to_owned());
    }
    let problem = Diagnostic::error(code::BAD_TEXT, format!("{} cannot be an ALPN protocol", quoted(written)));
    Err(problem.label("must have 1 to 255 bytes").note("for example \"h2\" or \"http/1.1\"").into())
}

pub fn text_of<'v>(value: &'v DeValue) -> Result<&'v str, Problem> {
    value.as_str().ok_or_else(|| {
        let problem = wrong_type("a string", value);
        match value {
            DeValue::Integer(_) | DeValue::Float(_) => problem.help("write it in quotes").into(),
            _ => problem.into(),
        }
    })
}

/// For messages: in back quotes, and not endless.
pub fn quoted(text: &str) -> String {
    format!("`{}`", cut(text))
}

pub fn cut(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn parse_duration(written: &str) -> Result<Duration, Problem> {
    let trimmed = written.trim();
    if !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'_') {
        return Err(no_unit(trimmed));
    }
    if let Ok(duration) = SpanParser::new().parse_unsigned_duration(written) {
        return Ok(duration);
    }
    let problem = Diagnostic::error(code::BAD_DURATION, format!("{} is not a duration", quoted(written)));
    if trimmed.starts_with('-') {
        return Err(problem.label("a duration cannot be negative").into());
    }
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let hours = |factor: u32| number.parse::<u32>().ok().and_then(|count| count.checked_mul(factor));
    let unit = unit.trim_start();
    let cure = match unit {
        "d" | "day" | "days" => hours(24),
        "w" | "week" | "weeks" => hours(24 * 7),
        _ if unit.starts_with('d') || unit.starts_with('w') => Some(24),
        _ => None,
    };
    Err(match cure {
        Some(hours) => problem.label("the longest unit is the hour").help(format!("use {hours}h")),
        None => problem
            .label("a number with a unit is expected")
            .note("durations are written like \"500ms\", \"10s\", \"1m 30s\", \"2h\""),
    }
    .into())
}

fn no_unit(number: &str) -> Problem {
    let number = cut(number);
    Diagnostic::error(code::BAD_DURATION, format!("the duration `{number}` has no unit"))
        .label(format!("did you mean \"{number}s\"?"))
        .help(format!("write the unit, in quotes: \"{number}s\" or \"{number}ms\""))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Bounds = Bounds { zero: false, hours: 24 };

    fn string(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[test]
    fn durations_have_units() {
        let parse = |text: &str| duration(Bounds { zero: true, hours: 24 })(&string(text)).ok();
        for (text, millis) in
            [("10s", 10_000), ("1m 30s", 90_000), ("500ms", 500), ("0s", 0), ("1.5m", 90_000), ("24h", 86_400_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", " ", "10", "1d", "-1s", "s", "10s ago", "1x", "25h", "99999999999999999999h", "ä", "1 s x"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn wrong_durations_have_a_cure() {
        let cure = |text: &str| duration(DAY)(&string(text)).unwrap_err().helps.concat();
        assert_eq!(cure("2d"), "use 48h");
        assert_eq!(cure("1d 2h"), "use 24h");
        assert_eq!(cure("10"), "write the unit, in quotes: \"10s\" or \"10ms\"");
    }

    #[test]
    fn names_are_metric_labels() {
        for good in ["a", "web-01", "A.b_c", &"x".repeat(64)] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", "a\n", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hash_key_is_32_digits() {
        let key = hash_key(&string("000102030405060708090a0b0c0d0eFF")).unwrap();
        assert_eq!(key, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        for bad in ["", "00", "g00102030405060708090a0b0c0d0eff", "000102030405060708090a0b0c0d0effa", &"ä".repeat(32)]
        {
            assert!(hash_key(&string(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_do_not_repeat_a_novel() {
        assert_eq!(quoted(&"ä".repeat(1000)).chars().count(), 67);
    }
}
