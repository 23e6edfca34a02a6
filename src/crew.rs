//! The workers as others see them. Each has an inbox, and whoever holds its [`Handle`] sends it [`Command`]s, from any
//! thread. It is for what happens now and then; nothing of a connection's bytes goes this way.
//!
//! The kernel spreads new clients over the workers by a hash, which is even for many and lumpy for few. So a worker that
//! has far more connections than its share sends fresh clients to others (traps A7), never one that is already served.
//! What it has counted for them so far stays in its own cells, what follows is counted by the worker that serves.

use std::{
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    backend,
    connection::{Admitted, Connection},
    drain::inquiry::{Answers, Filter},
    frontend::Frontend,
    local::Local,
    metrics::Registry,
    ports,
};

/// How many connections above the mean are no reason to do anything, however few there are.
const SLACK: u64 = 16;

/// How long a worker may take to answer. One that is stuck must not hold up who asks.
const ANSWER: Duration = Duration::from_secs(3);

/// Something that a worker has to do on its own thread.
#[derive(Debug)]
pub enum Command {
    /// Accepts no more, ends its connections, then itself.
    Stop,
    /// Accepts no more and leaves its connections this long to end by themselves, then ends as `Stop` does.
    Drain(Departing),
    /// Asks its connections who they are.
    Ask(Box<Question>),
    /// Sends something back, to say that it does what it is told.
    Ping(oneshot::Sender<()>),
    /// Changes what it listens on, and by which policies.
    Arrange(Box<Arrangement>),
    /// Ends its connections to this backend.
    EndBackend(backend::Id),
    /// Serves a client that another worker accepted and admitted.
    Adopt { client: Admitted, waiting: Waiting },
}

/// What a worker listens on from now on.
#[derive(Debug)]
pub struct Arrangement {
    /// Duplicates of sockets that it does not have yet.
    pub open: Vec<(ports::Id, OwnedFd)>,
    /// Every port, with its policy. One that is not here closes when those whom the kernel has connected are served.
    pub frontends: Vec<(ports::Id, Arc<Frontend>)>,
    /// Dropped when all of it is done.
    pub settled: mpsc::Sender<()>,
}

/// How a worker leaves.
#[derive(Debug, Clone)]
pub struct Departing {
    pub patience: Duration,
    /// Ports that another process has too: who waits there is left to it.
    pub given: Arc<[ports::Id]>,
}

/// A question to the connections of one worker.
#[derive(Debug)]
pub struct Question {
    pub filter: Filter,
    /// Whether those that are meant have to end.
    pub ends: bool,
    /// Most of them that are described.
    pub most: usize,
    pub reply: oneshot::Sender<Answers>,
}

/// Sends commands to one worker.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Line>);

#[derive(Debug)]
struct Line {
    sender: mpsc::UnboundedSender<Command>,
    /// Clients in the inbox: without them a burst would go to a worker that is already full when it looks.
    waiting: AtomicU64,
}

/// A client in an inbox, counted until dropped.
#[derive(Debug)]
pub struct Waiting(Handle);

/// Where a worker finds its commands, in the order in which they were sent.
#[derive(Debug)]
pub struct Inbox(mpsc::UnboundedReceiver<Command>);

/// All workers.
#[derive(Debug)]
pub struct Crew {
    handles: Vec<Handle>,
    registry: Arc<Registry>,
}

/// The two ends for one worker.
pub fn channel() -> (Handle, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Handle(Arc::new(Line { sender, waiting: AtomicU64::new(0) })), Inbox(receiver))
}

impl Departing {
    /// With every port closed, and every connection ended.
    pub fn at_once() -> Self {
        Self { patience: Duration::ZERO, given: Arc::default() }
    }
}

impl Crew {
    /// `handles` in the order of the workers' numbers, which `registry` counts by.
    pub fn new(handles: Vec<Handle>, registry: Arc<Registry>) -> Self {
        Self { handles, registry }
    }

    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Sends the same to every worker.
    pub fn tell(&self, command: impl Fn() -> Command) {
        for handle in &self.handles {
            // A worker that has ended needs no telling.
            let _ = handle.send(command());
        }
    }

    /// Asks the connections of every worker who they are, and ends those that are meant if `ends`. At most `most` are
    /// described.
    pub async fn ask(&self, filter: &Filter, ends: bool, most: usize) -> Answers {
        let ask = |handle: &Handle| {
            let (reply, answer) = oneshot::channel();
            let question = Question { filter: filter.clone(), ends, most, reply };
            handle.send(Command::Ask(Box::new(question))).ok().map(|()| answer)
        };
        // All of them are asked before the first answer is waited for.
        let answers: Vec<_> = self.handles.iter().filter_map(ask).collect();
        let mut all = Answers::default();
        for answer in answers {
            if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, answer).await {
                all.add(answer);
            }
        }
        all.sights.truncate(most);
        all
    }

    /// Whether every worker does what it is told within this time.
    pub async fn is_alive(&self, limit: Duration) -> bool {
        let ping = |handle: &Handle| {
            let (sender, answer) = oneshot::channel();
            handle.send(Command::Ping(sender)).ok().map(|()| answer)
        };
        let answers: Vec<_> = self.handles.iter().map(ping).collect();
        let all = async {
            for answer in answers {
                // Without an answer it has ended.
                let Some(answer) = answer else { return false };
                if answer.await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(limit, all).await.unwrap_or(false)
    }

    /// Connections of all workers.
    pub fn connections(&self) -> u64 {
        self.registry.workers().sum(|cells| cells.connections.value())
    }

    /// Has a client served by the worker that accepted it, or by a less loaded one.
    pub fn serve(&self, client: Admitted, local: &Rc<Local>) {
        let left = match self.relief(local, client.peers() as u64) {
            Some(other) => other.adopt(client).err(),
            None => Some(client),
        };
        if let Some(client) = left {
            Connection::begin(client, local);
        }
    }

    /// Who should serve the next client of this worker, if somebody else: the less loaded of two. All workers have `total`
    /// connections. While loads are even this is two loads of what this thread has just written.
    fn relief(&self, local: &Local, total: u64) -> Option<&Handle> {
        let own = self.registry.workers().at(local.index).connections.value();
        if !is_too_full(own, total, self.handles.len() as u64) {
            return None;
        }
        let (first, second) = two_others(local.index, self.handles.len(), local.random())?;
        let (load, least) = [first, second].into_iter().map(|worker| (self.load(worker), worker)).min()?;
        self.handles.get(least).filter(|_| load < own)
    }

    /// What a worker serves and what waits for it.
    fn load(&self, worker: usize) -> u64 {
        let waiting = self.handles.get(worker).map_or(0, |handle| handle.0.waiting.load(Ordering::Relaxed));
        self.registry.workers().at(worker).connections.value() + waiting
    }
}

/// Whether one of `workers` that has `own` of `total` connections has more than 1.25 times the mean, and not only by a few.
fn is_too_full(own: u64, total: u64, workers: u64) -> bool {
    own * workers * 4 > total * 5 && own * workers > total + SLACK * workers
}

/// Two of the workers beside number `own`, by chance; twice the same if there is only one.
fn two_others(own: usize, workers: usize, random: u64) -> Option<(usize, usize)> {
    let others = (workers as u64).checked_sub(1).filter(|others| *others > 0)?;
    let first = random % others;
    let step = (random >> 32).checked_rem(others - 1).unwrap_or_default();
    let second = (first + 1 + step) % others;
    let number = |other| usize::try_from(other).ok().map(|other| if other < own { other } else { other + 1 });
    Some((number(first)?, number(second)?))
}

impl Handle {
    /// Never waits. A worker that has closed its inbox gives the command back.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.0.sender.send(command).map_err(|refused| refused.0)
    }

    /// Gives a client to this worker; or back, if it is ending.
    pub fn adopt(&self, client: Admitted) -> Result<(), Admitted> {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self.clone());
        match self.send(Command::Adopt { client, waiting }) {
            Err(Command::Adopt { client, .. }) => Err(client),
            Err(_) | Ok(()) => Ok(()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Self(Handle(line)) = self;
        line.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inbox {
    /// The next command. `None` when nobody can send one any more, or the inbox is closed and empty.
    pub async fn next(&mut self) -> Option<Command> {
        self.0.recv().await
    }

    /// Takes nothing new; what was sent before is still to be had. So a command is either received or given back.
    pub fn close(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a7_a_worker_is_too_full_above_five_quarters_of_the_mean_and_never_by_a_few() {
        assert!(is_too_full(1251, 4000, 4));
        assert!(!is_too_full(1250, 4000, 4));
        assert!(!is_too_full(16, 16, 4), "a few");
        assert!(is_too_full(33, 33, 2), "all of 33, 16.5 above the mean");
        assert!(!is_too_full(32, 32, 2));
        assert!(!is_too_full(1_000_000, 1_000_000, 1), "one worker has everything");
    }

    #[test]
    fn a7_two_others_are_others_and_everyone_is_chosen() {
        assert_eq!(two_others(0, 1, 7), None);
        assert_eq!(two_others(0, 2, 7), Some((1, 1)));
        assert_eq!(two_others(1, 2, 7), Some((0, 0)));
        let mut seen = [0; 5];
        for random in (0..1000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let (first, second) = two_others(2, 5, random).unwrap();
            assert!(first != second && first != 2 && second != 2, "{first} {second}");
            seen[first] += 1;
            seen[second] += 1;
        }
        assert!([0, 1, 3, 4].iter().all(|worker| seen[*worker] > 400), "{seen:?}");
    }

    #[test]
    fn a_command_is_received_or_given_back() {
        const SENDERS: usize = 4;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            let (handle, mut inbox) = channel();
            let (received, sent) = std::thread::scope(|scope| {
                let send = |handle: Handle| move || (0..100).take_while(|_| handle.send(Command::Stop).is_ok()).count();
                let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send(handle.clone()))).collect();
                let received = runtime.block_on(async {
                    let first = usize::from(inbox.next().await.is_some());
                    inbox.close();
                    let mut rest = 0;
                    while inbox.next().await.is_some() {
                        rest += 1;
                    }
                    first + rest
                });
                (received, senders.into_iter().map(|sender| sender.join().unwrap()).sum::<usize>())
            });
            assert_eq!(received, sent);
            assert!(handle.send(Command::Stop).is_err());
        }
    }
}
