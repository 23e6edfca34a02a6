//! What the process opens beside its listeners: the admin listener, the admin socket, the access log.

use std::{io, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use tokio::net::{TcpListener, UnixListener};

use super::cannot_start;
use crate::{
    access_log::{self, AccessLog},
    config::{self, Config, Diagnostic, code::CANNOT_LISTEN},
    metrics::Registry,
    ports::cannot_listen,
};

pub(super) fn bind_admin(config: &Config) -> Result<(TcpListener, SocketAddr), Vec<Diagnostic>> {
    let bind = || -> io::Result<_> {
        let listener = std::net::TcpListener::bind(config.admin.bind)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, address))
    };
    bind().map_err(|error| {
        let diagnostic = cannot_listen(config.admin.bind, &error, None);
        vec![diagnostic.note("this is the admin listener: [admin] bind")]
    })
}

/// A unix socket in the file system.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds `[admin] socket` for its owner alone. What a process that was killed has left behind is replaced.
pub(super) fn bind_socket(config: &Config) -> Result<Option<(UnixListener, SocketFile)>, Vec<Diagnostic>> {
    let Some(path) = &config.admin.socket else { return Ok(None) };
    let bind = || -> io::Result<_> {
        if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        let file = SocketFile(path.clone());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Some((listener, file)))
    };
    bind().map_err(|error| {
        let message = format!("cannot listen on `{}`: {error}", path.display());
        let help = "its folder must exist and be writable, and no other process may listen there";
        vec![Diagnostic::error(CANNOT_LISTEN, message).note("this is [admin] socket").help(help)]
    })
}

pub(super) fn start_log(
    log: &config::Log,
    registry: &Registry,
) -> Result<(Option<AccessLog>, Option<access_log::Guard>), Vec<Diagnostic>> {
    if log.access == config::AccessLog::Off {
        return Ok((None, None));
    }
    match AccessLog::start(&log.access, log.format, Arc::clone(registry.log_records_dropped())) {
        Ok((log, guard)) => Ok((Some(log), Some(guard))),
        Err(error) => Err(vec![cannot_start("the access log cannot be opened", &error).note("this is [log] access")]),
    }
}
