//! The one task that changes what runs: it takes orders one after the other.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use rustls::crypto::CryptoProvider;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::Limits;
use crate::{
    admin::{self, control::UpgradeOrder},
    config::{
        Config, Diagnostic,
        code::{CERTIFICATE_KEPT, NO_FILE},
        difference::{self, Difference},
    },
    crew::Crew,
    doors::Doors,
    load::{self, Before, Loaded, Text},
    metrics::Registry,
    offload::Offload,
    ports::{self, Passed, Port},
    rejections::Rejections,
    running::{LastReload, Live, Order, Orders, Task, Verdict, Who},
    service,
    upgrade::{Launch, Successor},
    warden::Warden,
};

/// What it has in hand.
#[derive(Debug)]
pub(super) struct Governor {
    pub(super) live: Arc<Live>,
    /// What the process was started with: some of it lasts as long as the process.
    pub(super) started: Config,
    /// Sockets belong to the process: a member of a reuseport group that closes takes its queue with it (traps A5).
    pub(super) ports: Vec<Port>,
    /// Whether the order that is being carried out has changed what runs.
    pub(super) swapped: Arc<AtomicBool>,
    /// For the life of the process, whether a listener has them or not.
    pub(super) passed: Passed,
    /// Of each port.
    pub(super) sockets: usize,
    pub(super) limits: Limits,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) registry: Arc<Registry>,
    pub(super) crew: Arc<Crew>,
    pub(super) admin: Arc<admin::State>,
    pub(super) warden: Arc<Warden>,
    pub(super) rejections: Arc<Rejections>,
    pub(super) doors: Doors,
    pub(super) offload: Arc<Offload>,
    pub(super) launch: Result<Launch, String>,
    /// Who has taken the place of this process.
    pub(super) successor: Option<Successor>,
}

/// Where its orders come from, and who is told when it has nothing to do any more.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) orders: Orders,
    pub(super) upgrades: mpsc::Receiver<UpgradeOrder>,
    pub(super) replaced: oneshot::Sender<()>,
    pub(super) retired: oneshot::Receiver<()>,
}

/// What is taken, and what is not, of a configuration that follows another.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// A list that has lost most of its networks.
    force: bool,
    /// The certificate that is served, in the place of one that cannot be used: nobody is there to be told, and who
    /// renews it may have written one of the two files.
    keep_certificates: bool,
}

/// A configuration that was read, for better or worse.
struct Candidate {
    source: Text,
    loaded: Result<Loaded, Vec<Diagnostic>>,
}

impl Governor {
    /// Carries out orders until it retires, then gives back what it has. An order that is not carried out by then is
    /// dropped: nothing has happened up to the moment when everything does. After that moment it is told what happened.
    pub(super) async fn govern(mut self, desk: Desk) -> Self {
        let Desk { mut orders, mut upgrades, replaced, mut retired } = desk;
        let swapped = Arc::clone(&self.swapped);
        loop {
            let Order { who, task, reply } = tokio::select! {
                biased;
                _ = &mut retired => return self,
                Some(reply) = upgrades.recv() => {
                    self.successor = tokio::select! {
                        biased;
                        _ = &mut retired => return self,
                        successor = self.upgrade(reply) => successor,
                    };
                    if self.successor.is_some() {
                        // It is nobody's concern but that of who stops the process.
                        let _ = replaced.send(());
                        return self;
                    }
                    continue;
                }
                order = orders.next() => order,
            };
            swapped.store(false, Ordering::Relaxed);
            let (verdict, is_retired) = {
                let mut carrying = pin!(self.carry_out(who, task));
                tokio::select! {
                    biased;
                    _ = &mut retired => (if swapped.load(Ordering::Relaxed) { Some(carrying.await) } else { None }, true),
                    verdict = &mut carrying => (Some(verdict), false),
                }
            };
            // Who asked may have lost patience.
            if let Some((reply, verdict)) = reply.zip(verdict) {
                drop(reply.send(verdict));
            }
            if is_retired {
                return self;
            }
        }
    }

    async fn carry_out(&mut self, who: Who, task: Task) -> Verdict {
        match task {
            Task::Plan { config, force } => self.plan(config.as_deref(), force).await,
            Task::Reload { .. } if who == Who::Watch && self.live.config.is_none() => self.renew().await,
            Task::Reload { force } => {
                // Who asked waits to hear it, whether there is anything to do or not.
                if who != Who::Watch {
                    service::reloading();
                }
                let (verdict, is_news) = self.reload(who, force).await;
                // A file that was touched is no news, unless it was put right again.
                if is_news || who != Who::Watch || self.live.last().is_some_and(|last| last.error.is_some()) {
                    self.note(who, &verdict);
                }
                if who == Who::Watch && !verdict.accepted {
                    drop(self.renew().await);
                }
                service::ready();
                verdict
            }
        }
    }

    /// What became of it, and whether that changed anything or could not.
    async fn reload(&mut self, who: Who, force: bool) -> (Verdict, bool) {
        let manner = Manner { force, keep_certificates: who == Who::Watch };
        let Candidate { source, loaded } = self.read(None, manner).await;
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(errors) => return (refused(source, errors), true),
        };
        let verdict = self.accepted(source, &loaded);
        let running = self.live.running();
        let is_same = running.loaded.is_same(&loaded) && running.needs_restart == verdict.needs_restart;
        drop(running);
        if is_same {
            return (verdict, false);
        }
        service::reloading();
        match self.prepare(loaded).await {
            Ok(prepared) => self.swap(prepared, &verdict).await,
            Err(errors) => {
                // Names that were new have left series behind.
                self.registry.forget_unused();
                return (refused(verdict.source, errors), true);
            }
        }
        (verdict, true)
    }

    /// A configuration that cannot be used must not keep a renewed certificate or list from the one that runs.
    async fn renew(&mut self) -> Verdict {
        let source = self.live.running().loaded.source.clone();
        let manner = Manner { force: false, keep_certificates: true };
        let Candidate { source, loaded } = self.load(move || Ok(source), manner).await;
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(errors) => return refused(source, errors),
        };
        let verdict = self.accepted(source, &loaded);
        if verdict.differences.is_empty() {
            return verdict;
        }
        tell_kept(&verdict);
        let changes = told(&verdict.differences);
        match self.prepare(loaded).await {
            Ok(prepared) => self.swap(prepared, &verdict).await,
            Err(errors) => return refused(verdict.source, errors),
        }
        info!(changes, "files renewed, under the configuration that runs");
        verdict
    }

    async fn plan(&self, config: Option<&Path>, force: bool) -> Verdict {
        let Candidate { source, loaded } = self.read(config, Manner { force, keep_certificates: false }).await;
        let possible = loaded.and_then(|loaded| {
            self.limits.after(&loaded.config)?;
            ports::try_more(&loaded.config, &self.ports, &self.passed)?;
            Ok(loaded)
        });
        match possible {
            Ok(loaded) => self.accepted(source, &loaded),
            Err(errors) => refused(source, errors),
        }
    }

    /// Reads the configuration and all that it names.
    async fn read(&self, other: Option<&Path>, manner: Manner) -> Candidate {
        let Some(path) = other.or(self.live.config.as_deref()) else {
            let message = "this process was started without a configuration file";
            let error = Diagnostic::error(NO_FILE, message).help("`sluicegate run --config FILE` can be reloaded");
            return Candidate { source: nothing(Path::new("")), loaded: Err(vec![error]) };
        };
        let path = self.as_named(path);
        self.load(move || load::read(&path).map_err(|error| (nothing(&path), error)), manner).await
    }

    /// What a text comes to beside the configuration that runs, on a thread where that may take its time.
    async fn load(
        &self,
        read: impl FnOnce() -> Result<Text, (Text, Box<Diagnostic>)> + Send + 'static,
        Manner { force, keep_certificates }: Manner,
    ) -> Candidate {
        let (running, provider) = (self.live.running(), Arc::clone(&self.provider));
        let load = move || match read() {
            Ok(source) => {
                let before = Before { loaded: &running.loaded, keep_certificates };
                Candidate { loaded: load::reload(&source, &provider, before, force), source }
            }
            Err((source, error)) => Candidate { source, loaded: Err(vec![*error]) },
        };
        let candidate = tokio::task::spawn_blocking(load).await;
        candidate.unwrap_or_else(|panic| Candidate {
            source: nothing(self.live.config.as_deref().unwrap_or(Path::new(""))),
            loaded: Err(vec![super::cannot_start("the configuration cannot be read", &panic)]),
        })
    }

    /// A path as the configuration that runs would be named if it stood there: what it names is told apart by its path.
    fn as_named(&self, path: &Path) -> PathBuf {
        let Some(own) = self.live.config.as_deref() else { return path.to_owned() };
        if matches!((own.canonicalize(), path.canonicalize()), (Ok(own), Ok(other)) if own == other) {
            return own.to_owned();
        }
        let here = std::env::current_dir().ok().filter(|_| own.is_relative());
        here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).to_owned()
    }

    fn accepted(&self, source: Text, loaded: &Loaded) -> Verdict {
        let mut diagnostics = loaded.warnings.clone();
        diagnostics.extend(ports::kept_otherwise(&loaded.config, &self.ports));
        Verdict {
            accepted: true,
            differences: self.live.running().loaded.differences(loaded),
            needs_restart: difference::needs_restart(&self.started, &loaded.config),
            diagnostics,
            source,
        }
    }

    /// Says what happened, once, and keeps it for those who ask.
    fn note(&self, who: Who, verdict: &Verdict) {
        let Verdict { accepted, differences, needs_restart, source, .. } = verdict;
        self.registry.count_reload(*accepted);
        let error = verdict.error().map(|error| format!("{}: {}", error.code, error.message));
        let (uid, pid) = match who {
            Who::Operator { uid, pid } => (Some(uid), pid),
            Who::Signal | Who::Watch => (None, None),
        };
        let (by, config) = (who.as_str(), source.path.display());
        if let Some(error) = &error {
            let errors = verdict.diagnostics.iter().filter(|found| found.is_error()).count();
            warn!(by, uid, pid, %config, errors, error, "configuration refused: the one before goes on");
        } else {
            tell_kept(verdict);
            let (changes, needs_restart) = (told(differences), needs_restart.join(", "));
            info!(by, uid, pid, %config, changes, needs_restart, "configuration reloaded");
        }
        self.live.set_last(LastReload { at: SystemTime::now(), by: who, error });
    }
}

fn told(differences: &[Difference]) -> String {
    let changes: Vec<_> = differences.iter().map(ToString::to_string).collect();
    changes.join("; ")
}

/// Says which certificates wait for their other half.
fn tell_kept(verdict: &Verdict) {
    for kept in verdict.diagnostics.iter().filter(|found| found.code == CERTIFICATE_KEPT) {
        warn!(problem = kept.message, "certificate not taken");
    }
}

fn refused(source: Text, diagnostics: Vec<Diagnostic>) -> Verdict {
    let (differences, needs_restart) = (Vec::new(), Vec::new());
    Verdict { accepted: false, differences, needs_restart, diagnostics, source }
}

fn nothing(path: &Path) -> Text {
    Text { path: path.to_owned(), text: String::new() }
}
