//! The file of bans: written by the process, read at the start.

use crate::{
    bans::{SavedBan, parse_saved},
    config::{Config, Diagnostic, code::BAD_BAN, diagnostic::Origin},
    sys::file::{ReadError, read_bounded},
};

/// The process keeps fewer bans than fit into this.
const LIMIT: u64 = 256 << 20;

/// The bans that were saved. Nothing is there before the first ban, and nothing is read that a process has in force already.
pub fn read_bans(config: &Config, before: Option<&Config>, found: &mut Vec<Diagnostic>) -> Vec<SavedBan> {
    let Some(file) = &config.firewall.bans_file else { return Vec::new() };
    if before.is_some_and(|before| before.firewall.bans_file.as_ref() == Some(file)) {
        return Vec::new();
    }
    let at = || Origin::File { path: file.value.clone(), span: Some(file.span.clone()) };
    let path = file.value.display();
    let bytes = match read_bounded(&file.value, LIMIT) {
        Ok(bytes) => bytes,
        Err(ReadError::Open(error)) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            found.push(super::unreadable(format!("cannot use the bans in `{path}`: {error}"), at()));
            return Vec::new();
        }
    };
    parse_saved(&bytes).unwrap_or_else(|bad| {
        let column = 0..bad.text.len();
        let origin = Origin::Line { path: file.value.clone(), line: bad.line, column, text: bad.text };
        let told = Diagnostic::error(BAD_BAN, format!("not a ban: {}", bad.reason)).from(origin);
        found.push(told.help("cut the line out; without the whole file those would come in who were banned"));
        Vec::new()
    })
}
