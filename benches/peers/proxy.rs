//! Who is compared: sluicegate and its peers, each with one worker on CPU 0.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    programs::{Server, Tools},
    stage::{PROXY_CPU, nginx_command},
    workload::Listener,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    Sluicegate,
    Haproxy,
    /// Splice forced both ways: better in bulk, worse on small messages.
    HaproxySplice,
    Nginx,
}

impl Proxy {
    pub const ALL: [Self; 4] = [Self::Sluicegate, Self::Haproxy, Self::HaproxySplice, Self::Nginx];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sluicegate => "sluicegate",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
        }
    }

    pub fn template(self) -> &'static str {
        match self {
            Self::Sluicegate => include_str!("configs/sluicegate.toml"),
            Self::Haproxy | Self::HaproxySplice => include_str!("configs/haproxy.cfg"),
            Self::Nginx => include_str!("configs/nginx.conf"),
        }
    }

    /// What its template has and others do not.
    pub fn values(self, tools: &Tools) -> Vec<(&'static str, String)> {
        match self {
            Self::Sluicegate => Vec::new(),
            Self::Haproxy => vec![("forced", String::new())],
            Self::HaproxySplice => vec![("forced", "  option splice-request\n  option splice-response\n".to_owned())],
            Self::Nginx => {
                let module = tools.stream_module.as_ref();
                vec![("load_module", module.map(|path| format!("load_module {};", path.display())).unwrap_or_default())]
            }
        }
    }

    /// How it is started with a configuration file that is in `directory`.
    pub fn command(self, tools: &Tools, file: &str, directory: &Path) -> Result<Vec<String>> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let pinned = |words: &[&str]| -> Result<Vec<String>> {
            let taskset = text(&tools.taskset)?;
            Ok([&taskset, "-c", PROXY_CPU].iter().chain(words).map(|word| (*word).to_owned()).collect())
        };
        match self {
            Self::Sluicegate => pinned(&[env!("CARGO_BIN_EXE_sluicegate"), "run", "--config", file]),
            Self::Haproxy | Self::HaproxySplice => pinned(&[&text(&tools.haproxy)?, "-db", "-f", file]),
            Self::Nginx => nginx_command(tools, PROXY_CPU, file, directory),
        }
    }
}

/// A proxy that serves until it is dropped.
#[derive(Debug)]
pub struct Running {
    pub server: Server,
    pub plain: u16,
    pub tls: u16,
}

impl Running {
    pub fn port(&self, listener: Listener) -> u16 {
        match listener {
            Listener::Plain => self.plain,
            Listener::Tls => self.tls,
        }
    }
}
