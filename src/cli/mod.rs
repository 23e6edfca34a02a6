//! The command line: one file per verb, and what they share.

mod ask;
mod backend;
mod bans;
mod certificates;
mod check;
mod connections;
mod demo;
mod explain;
mod reload;
mod replay;
mod run;
mod signals;
mod status;
mod table;
mod up;
mod upgrade;

use std::{
    fmt,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand};
use rustls::crypto::CryptoProvider;

use crate::{
    config::{Diagnostic, diagnostic},
    load::{self, Loaded, Text},
    sys::memory,
    tls::acceptor,
};

/// Exit codes (product contract): the input is wrong; no process answers; the running process goes on as it is; the command
/// line is wrong.
const WRONG_INPUT: u8 = 1;
const UNREACHABLE: u8 = 2;
const REFUSED: u8 = 3;
const USAGE: u8 = 64;

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/sluicegate/sluicegate.toml";

/// A layer-4 TCP load balancer: TLS termination, CIDR firewall, zero-copy relay, Prometheus metrics.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Three backends, a certificate and the balancer in front of them: nothing else needed
    Demo(demo::Arguments),
    /// Run in the foreground
    Run(run::Arguments),
    /// Check a configuration and everything it names, without running it
    Check(check::Arguments),
    /// Tell what would happen to a client, and where that is written
    Explain(explain::Arguments),
    /// Judge past clients by a configuration
    Firewall(replay::Arguments),
    /// Run without a configuration file: HTTPS for HOST in front of some backends
    Up(up::Arguments),
    /// Show the running process: listeners, pools, backends, and what differs from the file
    Status(status::Arguments),
    /// Have the running process read its configuration again and put it to work, without losing a connection
    Reload(reload::Reload),
    /// Tell what a reload would change in the running process
    Plan(reload::Plan),
    /// Take a backend of the running process out of the traffic, in again, or give it another weight
    Backend(backend::Arguments),
    /// List the connections of the running process
    Conns(connections::List),
    /// End connections of the running process
    Kill(connections::Kill),
    /// Shut addresses or networks out of the running process
    Ban(bans::Arguments),
    /// End bans of the running process
    Unban(bans::End),
    /// The bans of the running process
    Bans(bans::List),
    /// The certificates of the running process
    Cert(certificates::Arguments),
    /// Put a new binary in the place of the running process, without losing a connection
    Upgrade(upgrade::Arguments),
}

/// Which configuration file.
#[derive(Debug, clap::Args)]
struct ConfigArgument {
    /// Configuration file
    #[arg(long, short, value_name = "FILE", env = "SLUICEGATE_CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// Runs the verb that was asked for.
pub fn main() -> ExitCode {
    memory::give_large_blocks_back();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.verb {
        Verb::Demo(arguments) => demo::demo(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Check(arguments) => check::check(&arguments),
        Verb::Explain(arguments) => explain::explain(&arguments),
        Verb::Firewall(arguments) => replay::firewall(&arguments),
        Verb::Up(arguments) => up::up(&arguments),
        Verb::Status(arguments) => status::status(&arguments),
        Verb::Reload(arguments) => reload::reload(&arguments),
        Verb::Plan(arguments) => reload::plan(&arguments),
        Verb::Backend(arguments) => backend::backend(&arguments),
        Verb::Conns(arguments) => connections::list(&arguments),
        Verb::Kill(arguments) => connections::kill(&arguments),
        Verb::Ban(arguments) => bans::ban(&arguments),
        Verb::Unban(arguments) => bans::unban(&arguments),
        Verb::Bans(arguments) => bans::list(&arguments),
        Verb::Cert(arguments) => certificates::certificates(&arguments),
        Verb::Upgrade(arguments) => upgrade::upgrade(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Refused(refused)) => {
            print_diagnostics(&refused);
            ExitCode::from(WRONG_INPUT)
        }
        Err(Failure::Other(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(WRONG_INPUT)
        }
        Err(Failure::Unreachable(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(UNREACHABLE)
        }
        Err(Failure::Kept(error)) => {
            error.inspect(|error| eprintln!("error: {error:#}"));
            ExitCode::from(REFUSED)
        }
    }
}

/// Why a verb did not do its work.
#[derive(Debug)]
enum Failure {
    /// The configuration is wrong, or cannot be put to work here.
    Refused(Refused),
    Other(anyhow::Error),
    /// No running process answers.
    Unreachable(anyhow::Error),
    /// The running process goes on as it was. `None`: why is told already.
    Kept(Option<anyhow::Error>),
}

/// Diagnostics and the text they point into.
#[derive(Debug)]
struct Refused {
    diagnostics: Vec<Diagnostic>,
    source: Text,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    fn refused(diagnostics: Vec<Diagnostic>, source: &Text) -> Self {
        Self::Refused(Refused { diagnostics, source: source.clone() })
    }
}

/// Reads a configuration file with everything it names. Warnings are shown.
fn load_file(path: &Path, provider: &CryptoProvider) -> Result<(Text, Loaded), Failure> {
    let nothing = || Text { path: path.to_owned(), text: String::new() };
    let source = load::read(path).map_err(|error| Failure::refused(vec![*error], &nothing()))?;
    let loaded = load_text(&source, provider)?;
    Ok((source, loaded))
}

/// As [`load_file`], for a text that is at hand.
fn load_text(source: &Text, provider: &CryptoProvider) -> Result<Loaded, Failure> {
    let loaded = load::load(source, provider).map_err(|errors| Failure::refused(errors, source))?;
    if !loaded.warnings.is_empty() {
        print_diagnostics(&Refused { diagnostics: loaded.warnings.clone(), source: source.clone() });
    }
    Ok(loaded)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => f.write_str(refused.text(false).trim_end()),
            Self::Other(error) | Self::Unreachable(error) | Self::Kept(Some(error)) => write!(f, "{error:#}"),
            Self::Kept(None) => Ok(()),
        }
    }
}

impl Refused {
    fn text(&self, styled: bool) -> String {
        diagnostic::render(&self.diagnostics, &self.source.path, &self.source.text, styled)
    }
}

fn print_diagnostics(refused: &Refused) {
    if refused.diagnostics.is_empty() {
        return;
    }
    let text = refused.text(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
}

/// Prints to standard output.
fn say(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(|error| Failure::Other(error.into()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(acceptor::provider())
}
