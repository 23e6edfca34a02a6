//! From a configuration file to everything it needs, read and checked: the one way for `run`, `check` and `up`.
//!
//! Nothing is put to work here. Every mistake in every file is found before the first is reported.

mod bans;
mod certificates;
mod checks;
mod files;
mod lint;
mod reload;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::crypto::CryptoProvider;
use serde::Serialize;

use crate::{
    bans::SavedBan,
    cidr::Cidr,
    config::{
        self, Config, Diagnostic, FirewallTest, Networks,
        code::{BAD_LIST_LINE, BAD_TEXT, FIREWALL_TEST, LIST_CUT, LIST_LINE, UNREADABLE},
        diagnostic::Origin,
        difference::Part,
    },
    firewall::{List, RuleSet, Table, parse_list},
    sys::file::{ReadError, read_bounded},
    tls::certificates::Certificate,
};
use files::Files;

/// Larger files are somebody's mistake.
pub const LIST_LIMIT: u64 = 256 << 20;

pub use checks::CheckMaterials;
pub use files::named;
pub use reload::reload;

/// A configuration text and where it came from.
#[derive(Debug, Clone)]
pub struct Text {
    pub path: PathBuf,
    pub text: String,
}

/// A configuration with everything that it names.
#[derive(Debug)]
pub struct Loaded {
    pub source: Text,
    pub config: Config,
    pub warnings: Vec<Diagnostic>,
    /// In the order of the listeners.
    pub listeners: Vec<Materials>,
    /// Networks of each rule by family (IPv4, IPv6), in the order of the rules.
    pub prefixes: Vec<(usize, usize)>,
    /// By path.
    pub lists: Vec<ReadList>,
    /// In the order of the pools.
    pub checks: Vec<CheckMaterials>,
    /// Of a file that is not in use yet.
    pub bans: Vec<SavedBan>,
    /// What was read.
    files: Files,
}

/// What a list file said.
#[derive(Debug, Serialize)]
pub struct ReadList {
    pub path: PathBuf,
    pub networks: usize,
    /// Lines that say what another one says.
    pub duplicates: usize,
    /// Networks inside others of the list.
    pub covered: usize,
}

impl ReadList {
    fn of((path, list): (PathBuf, List)) -> Self {
        Self { path, networks: list.networks.len(), duplicates: list.duplicates, covered: list.covered }
    }
}

/// What one listener needs from files.
#[derive(Debug)]
pub struct Materials {
    /// Shared by listeners with the same rules.
    pub table: Arc<Table>,
    /// The rules the table was built from, as indices into the configuration's.
    pub rules: Arc<[usize]>,
    pub certificates: Vec<Certificate>,
}

/// What runs when a configuration is loaded to follow it. What it serves is not refused for having expired since.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    pub loaded: &'a Loaded,
    /// Whether a certificate that cannot be used is left as it was, with a warning: somebody may be about to write it.
    pub keep_certificates: bool,
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<Text, Box<Diagnostic>> {
    let at = || Origin::File { path: path.to_owned(), span: None };
    let bytes = read_bounded(path, config::MAX_BYTES as u64).map_err(|error| match error {
        ReadError::TooLarge { .. } => config::too_large().from(at()),
        error => Diagnostic::error(UNREADABLE, format!("cannot use configuration `{}`: {error}", path.display()))
            .from(at())
            .help("a process reads the file again that it was started with: --config FILE or $SLUICEGATE_CONFIG"),
    });
    let bytes = bytes.map_err(Box::new)?;
    String::from_utf8(bytes).map(|text| Text { path: path.to_owned(), text }).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|&&byte| byte == b'\n').count() + 1;
        let message = format!("configuration `{}` is not UTF-8: byte {valid}, line {line}", path.display());
        let help = "TOML is UTF-8: save the file again with this encoding";
        Box::new(Diagnostic::error(BAD_TEXT, message).from(at()).help(help))
    })
}

/// Parses the text and reads everything it names.
pub fn load(source: &Text, provider: &CryptoProvider) -> Result<Loaded, Vec<Diagnostic>> {
    load_after(source, provider, None)
}

/// As [`load`], where something runs already.
fn load_after(source: &Text, provider: &CryptoProvider, before: Option<Before<'_>>) -> Result<Loaded, Vec<Diagnostic>> {
    let base = source.path.parent().unwrap_or(Path::new(""));
    let (config, mut found) = config::parse(&source.text, base)?;
    let mut files = Files::default();
    let lists = read_lists(&config, &mut files, &mut found);
    let certificates = certificates::read_certificates(&config, provider, &mut files, before, &mut found);
    let checks = checks::read_checks(&config, provider, &mut files, &mut found);
    let bans = bans::read_bans(&config, before.map(|before| &before.loaded.config), &mut found);
    if found.iter().any(Diagnostic::is_error) {
        return Err(found);
    }
    let listeners = materials(&config, &lists, certificates, before.map(|before| before.loaded));
    lint::lint(&source.text, &config, &listeners, |rule| networks(&config, &lists, rule), &mut found);
    run_tests(&config, &listeners, &mut found);
    if found.iter().any(Diagnostic::is_error) {
        return Err(found);
    }
    let prefixes = (0..config.firewall.rules.len()).map(|rule| families(networks(&config, &lists, rule))).collect();
    let mut lists: Vec<_> = lists.into_iter().map(ReadList::of).collect();
    lists.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Loaded { source: source.clone(), config, warnings: found, listeners, prefixes, lists, checks, bans, files })
}

/// Every list file once, however many rules name it.
fn read_lists(config: &Config, files: &mut Files, found: &mut Vec<Diagnostic>) -> HashMap<PathBuf, List> {
    let mut lists = HashMap::new();
    for rule in &config.firewall.rules {
        let Networks::File(file) = &rule.networks else { continue };
        if lists.contains_key(&file.value) {
            continue;
        }
        let at = || Origin::File { path: file.value.clone(), span: Some(file.span.clone()) };
        let list = match files.read(Part::List, &file.value, LIST_LIMIT) {
            Ok(bytes) => parse_list(&bytes),
            Err(error) => {
                let message = format!("cannot use list `{}`: {error}", file.value.display());
                found.push(unreadable(message, at()));
                continue;
            }
        };
        match list {
            Ok(list) => {
                if list.host_bits > 0 {
                    let lines = if list.host_bits == 1 { "line has" } else { "lines have" };
                    let message = format!(
                        "{} {lines} bits set beyond the prefix in `{}`; the whole network is meant",
                        list.host_bits,
                        file.value.display()
                    );
                    found.push(Diagnostic::warning(LIST_LINE, message).from(at()));
                }
                if let Some(line) = list.unfinished {
                    let message = format!("list `{}` ends inside line {line}", file.value.display());
                    let help = "a network that is cut off may be a much larger one: end the file with a newline";
                    let told = Diagnostic::warning(LIST_CUT, message).from(at()).label("was it written to the end?");
                    found.push(told.help(help));
                }
                lists.insert(file.value.clone(), list);
            }
            Err(errors) => {
                let shown = errors.first.len();
                found.extend(errors.first.into_iter().enumerate().map(|(index, error)| {
                    let mut diagnostic = Diagnostic::error(BAD_LIST_LINE, format!("not a network: {}", error.reason))
                        .from(Origin::Line {
                            path: file.value.clone(),
                            line: error.line,
                            column: error.columns,
                            text: error.text,
                        });
                    if index + 1 == shown && errors.total > shown {
                        diagnostic = diagnostic.note(format!("{} more lines are wrong", errors.total - shown));
                    }
                    diagnostic
                }));
            }
        }
    }
    lists
}

fn unreadable(message: String, at: Origin) -> Diagnostic {
    let help =
        "relative paths begin at the folder of the configuration; `ls -lL` tells what is there and who may read it";
    Diagnostic::error(UNREADABLE, message).from(at).label("named here").help(help)
}

/// One table for each distinct set of rules; the one of `before`, where it says the same.
fn materials(
    config: &Config,
    lists: &HashMap<PathBuf, List>,
    certificates: Vec<Vec<Certificate>>,
    before: Option<&Loaded>,
) -> Vec<Materials> {
    let mut tables: HashMap<Arc<[usize]>, Arc<Table>> = HashMap::new();
    let listeners = config.listeners.iter().zip(certificates).map(|(listener, certificates)| {
        let applies = |rule: &config::Rule| rule.listeners.is_empty() || rule.listeners.contains(&listener.name);
        let all = config.firewall.rules.iter().enumerate();
        let rules: Arc<[usize]> = all.filter(|(_, rule)| applies(rule)).map(|(index, _)| index).collect();
        let table = tables.entry(Arc::clone(&rules)).or_insert_with(|| {
            let sets: Vec<_> = rules.iter().filter_map(|&index| rule_set(config, lists, index)).collect();
            let table = Table::build(&sets, config.firewall.default);
            let mut known = before.iter().flat_map(|before| &before.listeners).map(|listener| &listener.table);
            known.find(|known| ***known == table).map_or_else(|| Arc::new(table), Arc::clone)
        });
        Materials { table: Arc::clone(table), rules, certificates }
    });
    listeners.collect()
}

fn rule_set<'a>(config: &'a Config, lists: &'a HashMap<PathBuf, List>, index: usize) -> Option<RuleSet<'a>> {
    let rule = config.firewall.rules.get(index)?;
    Some(RuleSet { networks: networks(config, lists, index), action: rule.action, shadow: rule.shadow })
}

fn networks<'a>(config: &'a Config, lists: &'a HashMap<PathBuf, List>, rule: usize) -> &'a [Cidr] {
    match config.firewall.rules.get(rule).map(|rule| &rule.networks) {
        Some(Networks::Inline(networks)) => networks,
        Some(Networks::File(file)) => lists.get(&file.value).map_or(&[], |list| &list.networks),
        None => &[],
    }
}

fn families(networks: &[Cidr]) -> (usize, usize) {
    let v4 = networks.iter().filter(|network| network.network().is_ipv4()).count();
    (v4, networks.len() - v4)
}

/// Asks every question of `[firewall] tests`.
fn run_tests(config: &Config, listeners: &[Materials], found: &mut Vec<Diagnostic>) {
    for test in &config.firewall.tests {
        for (listener, materials) in config.listeners.iter().zip(listeners) {
            if test.listener.as_ref().is_none_or(|name| *name == listener.name)
                && let Some(failure) = run_test(config, test, listener, materials)
            {
                found.push(failure);
            }
        }
    }
}

fn run_test(
    config: &Config,
    test: &FirewallTest,
    listener: &config::Listener,
    materials: &Materials,
) -> Option<Diagnostic> {
    let verdict = materials.table.verdict(test.from);
    if verdict.action == test.expect {
        return None;
    }
    let rule = verdict.rule.and_then(|rule| materials.rules.get(usize::from(rule)));
    let rule = rule.and_then(|&rule| config.firewall.rules.get(rule)).map_or("the default", |rule| &rule.name);
    let message = format!("{} is not treated as expected by listener `{}`", test.from, listener.name);
    Some(
        Diagnostic::error(FIREWALL_TEST, message)
            .at(test.span.clone())
            .label(format!("`{rule}` says {}", verdict.action.as_str()))
            .help("change the rules, their order, or the expectation"),
    )
}
