//! The codes of every diagnostic: stable, so that they can be searched for. A code is never given a second meaning.

/// A code and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    pub id: &'static str,
    pub meaning: &'static str,
    pub stage: Stage,
}

/// When a mistake can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From the configuration text alone.
    Text,
    /// Only with the files it names, or when it is run.
    Files,
}

pub const SYNTAX: &str = "E001";
pub const WRONG_TYPE: &str = "E020";
pub const UNKNOWN_KEY: &str = "E021";
pub const MISSING_KEY: &str = "E022";
pub const UNKNOWN_WORD: &str = "E023";
pub const OUT_OF_RANGE: &str = "E024";
pub const BAD_DURATION: &str = "E025";
pub const BAD_NAME: &str = "E026";
pub const CONFLICTING_KEYS: &str = "E027";
pub const BAD_TEXT: &str = "E028";
pub const BAD_ADDRESS: &str = "E030";
pub const BAD_NETWORK: &str = "E031";
pub const BAD_IP: &str = "E032";
pub const NOTHING_TO_DO: &str = "E040";
pub const EMPTY_LIST: &str = "E041";
pub const DUPLICATE: &str = "E042";
pub const DUPLICATE_ADDRESS: &str = "E043";
pub const UNKNOWN_POOL: &str = "E044";
pub const UNKNOWN_LISTENER: &str = "E045";
pub const NO_USABLE_BACKEND: &str = "E046";
pub const UNREADABLE: &str = "E100";
pub const TOO_LARGE: &str = "E101";
pub const BAD_LIST_LINE: &str = "E102";
pub const BAD_CERTIFICATE: &str = "E103";
pub const BAD_KEY: &str = "E104";
pub const KEY_MISMATCH: &str = "E105";
pub const EXPIRED: &str = "E106";
pub const FIREWALL_TEST: &str = "E107";
pub const CANNOT_LISTEN: &str = "E108";
pub const CANNOT_START: &str = "E109";
pub const LIST_SHRANK: &str = "E110";
pub const NO_FILE: &str = "E111";
pub const BAD_BAN: &str = "E130";
pub const POOL_UNUSED: &str = "W001";
pub const WEIGHT_ZERO: &str = "W002";
pub const DENIES_EVERYONE: &str = "W003";
pub const RULE_UNREACHABLE: &str = "W004";
pub const NO_EFFECT: &str = "W005";
pub const DENIES_ITSELF: &str = "W006";
pub const TRUSTS_EVERYONE: &str = "W120";
pub const PROXY_LIMITED: &str = "W130";
pub const LIST_LINE: &str = "W100";
pub const EXPIRED_SERVED: &str = "W101";
pub const BIND_KEPT: &str = "W102";
pub const CERTIFICATE_KEPT: &str = "W103";
pub const LIST_CUT: &str = "W104";
pub const LIST_EMPTY: &str = "W105";

/// Every code, in order.
pub const CODES: &[Code] = &[
    text(SYNTAX, "the text is not TOML"),
    text(WRONG_TYPE, "a value of another type is expected"),
    text(UNKNOWN_KEY, "the key does not exist here"),
    text(MISSING_KEY, "a key without a default is missing"),
    text(UNKNOWN_WORD, "the value is not one of the words that are known"),
    text(OUT_OF_RANGE, "a number or a duration is too small or too large"),
    text(BAD_DURATION, "the value is not a duration with units"),
    text(BAD_NAME, "the name has other characters than a metric label may have, or is reserved"),
    text(CONFLICTING_KEYS, "two keys exclude each other"),
    text(BAD_TEXT, "a string does not have the form that is needed"),
    text(BAD_ADDRESS, "the value is not an address with a port"),
    text(BAD_NETWORK, "the value is not a network in CIDR notation"),
    text(BAD_IP, "the value is not an IP address"),
    text(NOTHING_TO_DO, "there is no listener or no pool"),
    text(EMPTY_LIST, "a list that needs an entry is empty"),
    text(DUPLICATE, "a name or a value is written twice"),
    text(DUPLICATE_ADDRESS, "an address is written twice"),
    text(UNKNOWN_POOL, "no pool has this name"),
    text(UNKNOWN_LISTENER, "no listener has this name"),
    text(NO_USABLE_BACKEND, "no backend of the pool can take traffic"),
    files(UNREADABLE, "a file cannot be read"),
    files(TOO_LARGE, "a file is too large"),
    files(BAD_LIST_LINE, "a line of a list file is not a network"),
    files(BAD_CERTIFICATE, "a certificate file holds no usable certificate"),
    files(BAD_KEY, "a key file holds no usable key"),
    files(KEY_MISMATCH, "key and certificate do not belong together"),
    files(EXPIRED, "a certificate is not valid now"),
    files(FIREWALL_TEST, "a firewall test gives another answer than expected"),
    files(CANNOT_LISTEN, "an address cannot be bound"),
    files(CANNOT_START, "the host does not allow what is asked for"),
    files(LIST_SHRANK, "a list has lost more than half of its networks since the configuration that runs"),
    files(NO_FILE, "the process runs without a configuration file, so there is none to read again"),
    files(BAD_BAN, "a line of the file of bans is no ban"),
    text(POOL_UNUSED, "no listener uses the pool"),
    text(WEIGHT_ZERO, "the backend takes no traffic"),
    text(DENIES_EVERYONE, "the firewall denies every client"),
    files(RULE_UNREACHABLE, "earlier rules always decide first"),
    text(NO_EFFECT, "what is written has no effect beside something else"),
    files(DENIES_ITSELF, "a listener denies this host, and only this host connects to it"),
    text(TRUSTS_EVERYONE, "everyone may say who the client is"),
    text(PROXY_LIMITED, "a balancer that brings clients is under the limits of a single source"),
    files(LIST_LINE, "a line of a list file is used, but not as it is written"),
    files(EXPIRED_SERVED, "a certificate that is served has expired"),
    files(BIND_KEPT, "a listening socket stays as it is until a restart"),
    files(CERTIFICATE_KEPT, "a certificate that changed cannot be used, so the one before is still served"),
    files(LIST_CUT, "a list file ends inside a line"),
    files(LIST_EMPTY, "a list file has no network"),
];

const fn text(id: &'static str, meaning: &'static str) -> Code {
    Code { id, meaning, stage: Stage::Text }
}

const fn files(id: &'static str, meaning: &'static str) -> Code {
    Code { id, meaning, stage: Stage::Files }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique() {
        let unique: BTreeSet<_> = CODES.iter().map(|code| code.id).collect();
        assert_eq!(unique.len(), CODES.len());
    }
}
