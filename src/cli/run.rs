//! `run`: the product in the foreground.

use std::{
    env,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use rustls::crypto::CryptoProvider;
use tokio::runtime::Runtime;
use tracing::info;

use super::{
    ConfigArgument, Failure, load_file, provider,
    signals::{Asked, Signals},
};
use crate::{
    load::{Loaded, Text},
    messages, service,
    supervisor::{self, Gate, Options},
    upgrade::Summons,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// One listening socket of each address for all workers, instead of one for each (`SO_REUSEPORT`)
    #[arg(long)]
    no_reuseport: bool,
    /// TLS records by rustls alone, instead of in batches by our own record layer
    #[arg(long)]
    rustls_records: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let summons = Summons::heard().context("cannot take the place of the process before")?;
    let result = load_and_serve(arguments, summons.as_ref());
    if let (Err(failure), Some(summons)) = (&result, &summons) {
        summons.refuse(&failure.to_string());
    }
    result
}

fn load_and_serve(arguments: &Arguments, summons: Option<&Summons>) -> Result<(), Failure> {
    let provider = provider();
    let read_at = SystemTime::now();
    let (source, loaded) = load_file(&arguments.config.config, &provider)?;
    if let Some(summons) = summons {
        summons.loaded().context("the upgrade broke off")?;
    }
    let options = Options {
        reuseport: !arguments.no_reuseport,
        rustls_records: arguments.rustls_records,
        config: Some(source.path.clone()),
        read_at,
        usual_socket: env::var_os("RUNTIME_DIRECTORY").as_deref().and_then(socket_in),
    };
    serve(&source, loaded, options, (&provider, summons), |_| Ok(()))
}

/// The admin socket in the folder that a service manager has made for the process: `$RUNTIME_DIRECTORY`, the first of several
/// with `:` between them (systemd.exec(5)).
fn socket_in(directories: &OsStr) -> Option<PathBuf> {
    let first = directories.as_bytes().split(|byte| *byte == b':').next().filter(|first| !first.is_empty())?;
    Some(Path::new(OsStr::from_bytes(first)).join("admin.sock"))
}

/// Runs until a signal, or until another process has taken its place; `started` is called when clients are served.
pub(super) fn serve(
    source: &Text,
    loaded: Loaded,
    options: Options,
    (provider, summons): (&Arc<CryptoProvider>, Option<&Summons>),
    started: impl FnOnce(&Gate) -> anyhow::Result<()>,
) -> Result<(), Failure> {
    let log = &loaded.config.log;
    let _messages = messages::init_messages(log.format, log.level).context("cannot set messages up")?;
    messages::tell_panics();
    let runtime = control_runtime()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::new(options.config.is_some()).context("cannot take signals over")?;
        let heir = match summons {
            Some(summons) => Some(summons.follow().await.context("the upgrade broke off")?),
            None => None,
        };
        // The start waits for the first verdicts of checks.
        let gate = tokio::select! {
            gate = supervisor::start(loaded, options, provider, heir) => gate,
            signal = signals.stop() => {
                info!(signal, "stopping before the start was complete");
                return Ok(());
            }
        };
        let mut gate = gate.map_err(|errors| Failure::refused(errors, source))?;
        announce(&gate);
        started(&gate)?;
        service::ready();
        loop {
            let asked = tokio::select! {
                () = gate.replaced() => break,
                asked = signals.next() => asked,
            };
            match asked {
                Asked::Reload => gate.hang_up(),
                Asked::Stop(signal) => {
                    info!(signal, "stopping; a second signal ends every connection at once");
                    break;
                }
            }
        }
        let hurry = async {
            let signal = signals.stop().await;
            info!(signal, "ending every connection");
        };
        gate.leave(hurry).await;
        info!("stopped");
        Ok(())
    });
    // Somebody may still be reading a file that never ends.
    runtime.shutdown_background();
    ended
}

/// The control thread is the one that calls; blocking work gets threads of its own.
pub(super) fn control_runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .context("cannot start the control runtime")
}

fn announce(gate: &Gate) {
    let limits = &gate.limits;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        workers = limits.workers,
        max_connections = limits.connections,
        descriptors = limits.descriptors,
        pipes = limits.pipes,
        "starting"
    );
    for (listener, address) in gate.listening() {
        info!(listener = &*listener, %address, "listening");
    }
    info!("ready");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_socket_is_in_the_first_folder_of_the_manager() {
        let socket = |text: &str| socket_in(OsStr::new(text));
        assert_eq!(socket("/run/sluicegate"), Some("/run/sluicegate/admin.sock".into()));
        assert_eq!(socket("/run/a:/run/b"), Some("/run/a/admin.sock".into()));
        assert_eq!(socket(""), None);
    }
}
