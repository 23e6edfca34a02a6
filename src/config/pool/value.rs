//! Single values of a pool: from a TOML value to what it means.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use regex::bytes::RegexBuilder;
use rustls::pki_types::ServerName;
use toml::de::DeValue;
use zeroize::Zeroizing;

use super::{Expect, Pattern, Secret};
use crate::config::{
    Located, code,
    diagnostic::Diagnostic,
    file::DAY,
    value::{self, Problem, cut, quoted, text_of},
};

/// Checks come no faster: a slip of the keyboard must not become a flood.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// What is sent to a backend or looked for in its answer.
const MOST_BYTES: usize = 64 << 10;

/// How often a check comes.
pub fn interval(value: &DeValue) -> Result<Duration, Problem> {
    let interval = value::duration(DAY)(value)?;
    if interval >= LEAST_INTERVAL {
        return Ok(interval);
    }
    let written = value.as_str().unwrap_or_default();
    Err(Diagnostic::error(code::OUT_OF_RANGE, format!("the interval {} is out of range", quoted(written)))
        .label(format!("must be at least {}ms", LEAST_INTERVAL.as_millis()))
        .into())
}

/// A share in the form `"50%"`.
pub fn percent(value: &DeValue) -> Result<u8, Problem> {
    if let DeValue::Integer(number) = value {
        let problem = value::wrong_type("a percentage in quotes", value);
        return Err(problem.help(format!("write \"{}%\"", cut(number.as_str()))).into());
    }
    let written = text_of(value)?;
    let number = written.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(number) = number.filter(|digits| !digits.is_empty()) else {
        let problem = Diagnostic::error(code::BAD_TEXT, format!("{} is not a percentage", quoted(written)));
        return Err(problem.label("write it like \"50%\"").into());
    };
    number.parse().ok().filter(|percent| *percent <= 100).ok_or_else(|| {
        let problem = Diagnostic::error(code::OUT_OF_RANGE, format!("{} is out of range", cut(written)));
        problem.label("must be 0% to 100%").into()
    })
}

/// One HTTP status, or a range of them.
pub fn statuses(value: &DeValue) -> Result<RangeInclusive<u16>, Problem> {
    if let DeValue::Integer(number) = value {
        let problem = value::wrong_type("a status or a range of them in quotes", value);
        return Err(problem.help(format!("write \"{}\"", cut(number.as_str()))).into());
    }
    let written = text_of(value)?;
    let (first, last) = written.split_once('-').unwrap_or((written, written));
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|status| digits && (100..=599).contains(status))
    };
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(Diagnostic::error(code::BAD_TEXT, format!("{} is not a range of HTTP statuses", quoted(written)))
            .label("write it like \"200-299\" or \"204\"")
            .into()),
    }
}

/// Text, or bytes in the form `"hex:0d0a"`.
pub fn bytes(value: &DeValue) -> Result<Vec<u8>, Problem> {
    let written = text_of(value)?;
    let bytes = match written.strip_prefix("hex:") {
        Some(digits) => hex(digits).ok_or_else(|| {
            Diagnostic::error(code::BAD_TEXT, format!("{} is not a string of bytes", quoted(written)))
                .label("after `hex:` pairs of hexadecimal digits are expected")
                .help("for example \"hex:0d0a\"")
        })?,
        None => written.as_bytes().to_vec(),
    };
    if bytes.len() > MOST_BYTES {
        let problem = Diagnostic::error(code::OUT_OF_RANGE, format!("the string has {} bytes", bytes.len()));
        return Err(problem.label(format!("must have at most {MOST_BYTES}")).into());
    }
    Ok(bytes)
}

/// As [`bytes`], or a regular expression in the form `"regex:^220 "`.
pub fn expect(value: &DeValue) -> Result<Expect, Problem> {
    let written = text_of(value)?;
    let Some(pattern) = written.strip_prefix("regex:") else {
        let bytes = bytes(value)?;
        return if bytes.is_empty() { Err(nothing_expected()) } else { Ok(Expect::Bytes(bytes)) };
    };
    if pattern.is_empty() {
        return Err(nothing_expected());
    }
    let regex = RegexBuilder::new(pattern).size_limit(1 << 20).unicode(false).build();
    regex.map(|regex| Expect::Regex(Pattern(regex))).map_err(|error| {
        // The crate's message has the pattern and a mark under it, on lines of their own.
        let told = error.to_string();
        let reason = told.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Diagnostic::error(code::BAD_TEXT, "the regular expression cannot be used").label(reason).into()
    })
}

fn nothing_expected() -> Problem {
    Diagnostic::error(code::BAD_TEXT, "nothing is expected")
        .label("write what the answer must contain")
        .help("to check only that connections are accepted use `type = \"tcp\"`")
        .into()
}

/// A secret, `"env:NAME"` or `"file:PATH"`. The place is filled in by [`secret_at`].
pub fn secret(base: &Path) -> impl Fn(&DeValue) -> Result<Secret, Problem> {
    move |value| {
        let written = text_of(value)?;
        if let Some(name) = written.strip_prefix("env:") {
            if name.is_empty() || name.contains(['=', '\0']) {
                let problem = Diagnostic::error(code::BAD_TEXT, "this is no name of an environment variable");
                return Err(problem.label("write it like \"env:CHECK_PASSWORD\"").into());
            }
            return Ok(Secret::Env(Located { value: name.to_owned(), span: 0..0 }));
        }
        if let Some(path) = written.strip_prefix("file:") {
            let path = value::path(base)(&DeValue::String(path.into()))?;
            return Ok(Secret::File(Located { value: path, span: 0..0 }));
        }
        Ok(Secret::Inline(Zeroizing::new(written.to_owned())))
    }
}

/// The same secret with the place it was written at.
pub fn secret_at(written: Located<Secret>) -> Located<Secret> {
    let span = written.span.clone();
    let value = match written.value {
        Secret::Env(name) => Secret::Env(Located { span, ..name }),
        Secret::File(path) => Secret::File(Located { span, ..path }),
        inline @ Secret::Inline(_) => inline,
    };
    Located { value, span: written.span }
}

/// An HTTP method.
pub fn method(value: &DeValue) -> Result<String, Problem> {
    let written = text_of(value)?;
    if (1..=32).contains(&written.len()) && written.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Ok(written.to_owned());
    }
    let problem = Diagnostic::error(code::BAD_TEXT, format!("{} is not an HTTP method", quoted(written)));
    Err(problem.label("write it in capital letters, for example \"GET\"").into())
}

/// The path of an HTTP request, with its query.
pub fn request_path(value: &DeValue) -> Result<String, Problem> {
    let written = text_of(value)?;
    // The others would be refused when they are asked for, or end the path.
    let is_fit = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>`".contains(&byte);
    if written.starts_with('/') && written.len() <= 4096 && written.bytes().all(is_fit) {
        return Ok(written.to_owned());
    }
    let problem = Diagnostic::error(code::BAD_TEXT, format!("{} is not the path of a request", quoted(written)));
    Err(problem.label("must begin with `/`; spaces and the characters \"#<>` are written like %20").into())
}

/// The value of a Host header.
pub fn host(value: &DeValue) -> Result<String, Problem> {
    let written = text_of(value)?;
    if (1..=255).contains(&written.len()) && written.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
        return Ok(written.to_owned());
    }
    let problem = Diagnostic::error(code::BAD_TEXT, format!("{} is not the name of a host", quoted(written)));
    Err(problem.label("write only the name, for example \"foobar.com\"").into())
}

/// A name that a certificate may have, or an IP address.
pub fn server_name(value: &DeValue) -> Result<ServerName<'static>, Problem> {
    let written = text_of(value)?;
    ServerName::try_from(written.to_owned()).map_err(|_| {
        let problem = Diagnostic::error(code::BAD_TEXT, format!("{} is not the name of a server", quoted(written)));
        problem.label("write a name without a port, for example \"foobar.com\"").into()
    })
}

/// The name of a database user.
pub fn user(value: &DeValue) -> Result<String, Problem> {
    let written = text_of(value)?;
    if (1..=128).contains(&written.len()) && !written.contains('\0') {
        return Ok(written.to_owned());
    }
    let problem = Diagnostic::error(code::BAD_TEXT, format!("{} is not the name of a user", quoted(written)));
    Err(problem.label("must have 1 to 128 bytes").into())
}

/// A substring of an answer.
pub fn substring(value: &DeValue) -> Result<String, Problem> {
    let written = text_of(value)?;
    if (1..=4096).contains(&written.len()) {
        return Ok(written.to_owned());
    }
    let problem = Diagnostic::error(code::BAD_TEXT, format!("{} cannot be looked for", quoted(written)));
    Err(problem.label("must have 1 to 4096 bytes").into())
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        digits.chars().map(|char| char.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    (rest.is_empty() && !pairs.is_empty()).then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[test]
    fn percentages_have_their_sign() {
        for (text, expected) in [("0%", Some(0)), ("50%", Some(50)), ("100%", Some(100)), ("101%", None)] {
            assert_eq!(percent(&string(text)).ok(), expected, "{text}");
        }
        for bad in ["", "%", "50", "-1%", "+1%", "1.5%", "50 %"] {
            assert!(percent(&string(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses_are_one_or_a_range() {
        assert_eq!(statuses(&string("200-299")).unwrap(), 200..=299);
        assert_eq!(statuses(&string("204")).unwrap(), 204..=204);
        for bad in ["", "99", "299-200", "200-", "2xx", "200 - 299", "600"] {
            assert!(statuses(&string(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_text_or_digits() {
        assert_eq!(bytes(&string("PING\r\n")).unwrap(), b"PING\r\n");
        assert_eq!(bytes(&string("hex:00fF")).unwrap(), [0, 255]);
        for bad in ["hex:", "hex:0", "hex:0g", "hex:ä0"] {
            assert!(bytes(&string(bad)).is_err(), "{bad}");
        }
        assert!(bytes(&string(&"x".repeat(MOST_BYTES + 1))).is_err());
    }

    #[test]
    fn an_expression_is_compiled_or_refused() {
        assert!(matches!(expect(&string("regex:^220 ")).unwrap(), Expect::Regex(_)));
        assert!(matches!(expect(&string("220")).unwrap(), Expect::Bytes(bytes) if bytes == b"220"));
        for bad in ["", "regex:", "regex:(", "hex:", "regex:(a{999}){999}{999}"] {
            assert!(expect(&string(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_name_is_a_name_or_an_address() {
        for good in ["foobar.com", "a_b", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(server_name(&string(good)).unwrap().to_str(), good);
        }
        // The first two are names by their letters alone: they cannot be asked for.
        for bad in ["-a.com", "a-.com", "", "a:443", "a b", "*.foobar.com", "ä.com"] {
            assert!(server_name(&string(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_goes_into_a_request_cannot_break_out_of_it() {
        for bad in ["", "healthz", "/a b", "/a\r\nX: y", "/ä", "/a#b", "/<a>", "/a`"] {
            assert!(request_path(&string(bad)).is_err(), "{bad}");
        }
        for bad in ["", "a b", "a\r\nX: y", "a/b"] {
            assert!(host(&string(bad)).is_err(), "{bad}");
        }
        for bad in ["", "get", "GET /", "G\r\n"] {
            assert!(method(&string(bad)).is_err(), "{bad}");
        }
    }
}
