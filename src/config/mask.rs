//! Passwords in a configuration text, hidden before any of its lines is shown (traps O6).

use std::borrow::Cow;

use super::reader::similar;

/// What a value may be instead of the secret itself.
const REFERENCES: [&str; 2] = ["env:", "file:"];

/// The text with `*` for every byte of a password; every place in it stays. What looks like the key is enough, so that a
/// misspelled one gives nothing away. In a `broken` text nobody knows where a value ends: the rest of its line is hidden.
pub fn without_secrets(text: &str, broken: bool) -> Cow<'_, str> {
    let (mut shown, mut done, mut look) = (String::new(), 0, 0);
    while let Some((start, end)) = next_word(text, look) {
        look = end;
        if !names_secret(text.get(start..end).unwrap_or_default()) {
            continue;
        }
        let Some((start, end)) = value_after(text, end, broken) else { continue };
        shown.push_str(text.get(done..start).unwrap_or_default());
        for char in text.get(start..end).unwrap_or_default().chars() {
            match char {
                '\n' | '\r' => shown.push(char),
                _ => shown.extend(std::iter::repeat_n('*', char.len_utf8())),
            }
        }
        (done, look) = (end, end.max(look));
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    shown.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(shown)
}

/// Begin and end of the next word that could be a key.
fn next_word(text: &str, from: usize) -> Option<(usize, usize)> {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-".contains(byte);
    let rest = text.as_bytes().get(from..)?;
    let start = rest.iter().position(is_word)?;
    let length = rest.iter().skip(start).take_while(|byte| is_word(byte)).count();
    Some((from + start, from + start + length))
}

fn names_secret(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    let is_like =
        || lower.starts_with('p') && (3..=16).contains(&lower.len()) && similar(&lower, ["password"]).is_some();
    ["pass", "pwd", "secret"].iter().any(|part| lower.contains(part)) || is_like()
}

/// Begin and end of the value behind a key that ends at `from`, if there is one to hide.
fn value_after(text: &str, from: usize, broken: bool) -> Option<(usize, usize)> {
    let line_end =
        |start: usize| text.get(start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |at| start + at);
    let behind = text.get(from..)?.trim_start_matches(['"', '\'', ' ', '\t']);
    let Some(written) = behind.strip_prefix(['=', ':']) else {
        return broken.then(|| (text.len() - behind.len(), line_end(text.len() - behind.len())));
    };
    let value = written.trim_start();
    let start = text.len() - value.len();
    let end = match ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| value.starts_with(quote)) {
        Some(quote) => {
            let content = value.get(quote.len()..).unwrap_or_default();
            if REFERENCES.iter().any(|reference| content.starts_with(reference)) {
                return None;
            }
            start + quote.len() + quoted_length(content, quote)
        }
        // The next line is not the value, unless it is a string.
        None if written.get(..written.len() - value.len()).is_some_and(|gap| gap.contains('\n')) => return None,
        None if value.starts_with(['[', '{']) => line_end(start),
        None => start + value.find([',', '}', ']', '#', ' ', '\t', '\r', '\n']).unwrap_or(value.len()),
    };
    Some((start, if broken { end.max(line_end(start)) } else { end }))
}

/// How long a string is, with the quote that ends it; one that nothing ends goes to the end of its line, or of the text.
fn quoted_length(content: &str, quote: &str) -> usize {
    let mut escaped = false;
    for (at, char) in content.char_indices() {
        if escaped {
            escaped = false;
        } else if char == '\\' && quote.starts_with('"') {
            escaped = true;
        } else if content.get(at..).is_some_and(|rest| rest.starts_with(quote)) {
            return at + quote.len();
        } else if char == '\n' && quote.len() == 1 {
            return at;
        }
    }
    content.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o6_a_password_is_hidden_however_it_is_written() {
        for (text, broken, expected) in [
            ("a = { password = \"hunter2\", b = 1 }", false, "a = { password = *********, b = 1 }"),
            ("check.\"password\"= 'hunter2' # c", false, "check.\"password\"= ********* # c"),
            ("pasword = \"hun\\\"ter2\"\nb = 1", false, "pasword = ***********\nb = 1"),
            ("Password = hunter2\nb = 1", false, "Password = *******\nb = 1"),
            ("password = [\"hunter2\"]\nb = 1", false, "password = ***********\nb = 1"),
            ("password = \"\"\"\nhunter2\n\"\"\"\nb = 1", false, "password = ***\n*******\n***\nb = 1"),
            ("password = \"hünter2\"", false, "password = **********"),
            ("password = \"hunter2\nb = 1", true, "password = ********\nb = 1"),
            ("password = \"hun\"ter2\"\nb = 1", true, "password = **********\nb = 1"),
            ("password: hunter2\nb = 1", true, "password: *******\nb = 1"),
            ("password \"hunter2\"\nb = 1", true, "password \"********\nb = 1"),
            ("password =\n\"hunter2\"\nb = 1", true, "password =\n*********\nb = 1"),
        ] {
            let shown = without_secrets(text, broken);
            assert_eq!((&*shown, shown.len()), (expected, text.len()), "{text}");
        }
    }

    #[test]
    fn what_is_no_password_is_shown() {
        for text in [
            "password = \"env:CHECK_PASSWORD\", b = 1",
            "password = 'file:a'",
            "[pool.bypass]\npath = \"/\"\npool = \"pass-1\"\n",
            "password =\n[listener.a]",
            "path = \"/a\"\nport = 1\n",
        ] {
            assert_eq!(without_secrets(text, false), text);
        }
    }
}
