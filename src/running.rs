//! What runs now, and the orders to replace it.
//!
//! A configuration is put to work as a whole: whoever looks at [`Live`] sees one or the next, never a mixture. One task
//! carries out the orders, one after the other; everybody else only sends them.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    config::{Diagnostic, difference::Difference},
    health::Checkers,
    load::{Loaded, Text},
    site::Site,
};

/// Orders that wait. Each takes a moment, and who sends one waits for it.
const WAITING: usize = 16;

/// A configuration at work.
#[derive(Debug)]
pub struct Running {
    pub loaded: Loaded,
    pub site: Site,
    /// Listeners by name with the addresses they are bound to.
    pub addresses: Vec<(Arc<str>, SocketAddr)>,
    pub checkers: Checkers,
    /// What the file asks for and only a restart brings.
    pub needs_restart: Vec<String>,
}

/// What runs, for everyone who looks.
#[derive(Debug)]
pub struct Live {
    running: ArcSwap<Running>,
    last: Mutex<Option<LastReload>>,
    /// Where the configuration is read again; `None`: it came from no file.
    pub config: Option<PathBuf>,
}

/// How the last attempt to replace the configuration ended.
#[derive(Debug, Clone)]
pub struct LastReload {
    pub at: SystemTime,
    pub by: Who,
    /// What was wrong, first of all; `None`: it was applied.
    pub error: Option<String>,
}

/// Who gives an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// SIGHUP.
    Signal,
    /// A file has changed.
    Watch,
    /// Somebody at the admin socket.
    Operator { uid: u32, pid: Option<i32> },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Read the configuration again and put it to work. With `force`, also when a list has lost most of its networks.
    Reload { force: bool },
    /// Tell what a reload would do, with the file itself or with another one.
    Plan { config: Option<PathBuf>, force: bool },
}

#[derive(Debug)]
pub struct Order {
    pub who: Who,
    pub task: Task,
    /// `None`: nobody waits for the end.
    pub reply: Option<oneshot::Sender<Verdict>>,
}

/// What became of an order.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Whether the configuration is at work now, or would be.
    pub accepted: bool,
    pub differences: Vec<Difference>,
    pub needs_restart: Vec<String>,
    pub diagnostics: Vec<Diagnostic>,
    /// What the diagnostics point into.
    pub source: Text,
}

/// Takes orders, from any thread.
#[derive(Debug, Clone)]
pub struct Counter {
    orders: mpsc::Sender<Order>,
    hangup: Arc<Notify>,
}

/// Where orders come out.
#[derive(Debug)]
pub struct Orders {
    orders: mpsc::Receiver<Order>,
    hangup: Arc<Notify>,
}

/// The process is about to stop, so nothing is changed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopping;

impl Live {
    pub fn new(running: Running, config: Option<PathBuf>) -> Self {
        Self { running: ArcSwap::from_pointee(running), last: Mutex::default(), config }
    }

    pub fn running(&self) -> Arc<Running> {
        self.running.load_full()
    }

    /// The next takes the place of the one that runs.
    pub fn replace(&self, running: Running) {
        self.running.store(Arc::new(running));
    }

    pub fn last(&self) -> Option<LastReload> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_last(&self, last: LastReload) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
}

impl Who {
    /// For the log and for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::Watch => "watch",
            Self::Operator { .. } => "operator",
        }
    }
}

impl Counter {
    pub fn new() -> (Self, Orders) {
        let (sender, orders) = mpsc::channel(WAITING);
        let hangup = Arc::<Notify>::default();
        (Self { orders: sender, hangup: Arc::clone(&hangup) }, Orders { orders, hangup })
    }

    /// Has an order carried out, after those that were given before. It is carried out also when nobody waits for its end.
    pub async fn order(&self, who: Who, task: Task) -> Result<Verdict, Stopping> {
        let (reply, verdict) = oneshot::channel();
        self.orders.send(Order { who, task, reply: Some(reply) }).await.map_err(|_| Stopping)?;
        verdict.await.map_err(|_| Stopping)
    }

    /// Somebody sent SIGHUP. However often that comes before it is looked at, it is one order.
    pub fn hang_up(&self) {
        self.hangup.notify_one();
    }
}

impl Orders {
    pub async fn next(&mut self) -> Order {
        let reload = Task::Reload { force: false };
        tokio::select! {
            Some(order) = self.orders.recv() => order,
            () = self.hangup.notified() => Order { who: Who::Signal, task: reload, reply: None },
        }
    }
}

impl Verdict {
    /// The first error.
    pub fn error(&self) -> Option<&Diagnostic> {
        self.diagnostics.iter().find(|diagnostic| diagnostic.is_error())
    }
}
