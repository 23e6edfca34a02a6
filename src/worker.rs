//! A data-plane thread: one runtime, its own listening sockets, one scratch buffer, its own counters. Nothing crosses
//! threads once a client is served.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::runtime;

use crate::{
    access_log::AccessLog,
    alarm::Alarms,
    config::ZeroCopy,
    connection::Connection,
    crew::{Arrangement, Command, Crew, Departing, Inbox, Question},
    drain::{fade::Fade, inquiry::Inquiry},
    frontend::Frontend,
    listener::Door,
    local::Local,
    metrics::Registry,
    ports,
    relay::{self, Resources},
    sys::{listen::Acceptor, timer::Timer},
};

/// What a worker is made from.
#[derive(Debug)]
pub struct Assignment {
    pub index: usize,
    /// A duplicate of one listening socket of each bind, and its policy.
    pub sockets: Vec<(ports::Id, OwnedFd, Arc<Frontend>)>,
    /// Most pipes lent at once.
    pub pipes: usize,
    pub zero_copy: ZeroCopy,
    /// TLS records by rustls instead of our own record layer.
    pub rustls_records: bool,
    pub registry: Arc<Registry>,
    pub crew: Arc<Crew>,
    /// `None`: no access log.
    pub log: Option<AccessLog>,
    /// Any number; two workers should not have the same.
    pub seed: u64,
}

/// How long connections may take to say goodbye when all have to end at once.
const GOODBYE: Duration = relay::PATIENCE.saturating_add(Duration::from_millis(500));

/// The same when there was time to end before.
const HASTE: Duration = Duration::from_millis(400);

/// Starts the thread, which does what it finds in `inbox`. It says through `ready` when it accepts, or why it does not.
pub fn start(assignment: Assignment, inbox: Inbox, ready: mpsc::Sender<io::Result<()>>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{}", assignment.index)).spawn(move || {
        // Without timers: see `alarm`.
        let runtime = runtime::Builder::new_current_thread().enable_io().build_local(runtime::LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(work(assignment, inbox, ready)),
            Err(error) => drop(ready.send(Err(error))),
        }
    })
}

async fn work(assignment: Assignment, mut inbox: Inbox, ready: mpsc::Sender<io::Result<()>>) {
    let Assignment { index, sockets, pipes, zero_copy, rustls_records, registry, crew, log, seed } = assignment;
    let resources = Resources::new(index, pipes, zero_copy, Arc::clone(&registry));
    let local = Rc::new(Local::new(index, resources, registry, log, rustls_records, seed));
    let ticking = match Timer::new() {
        Ok(timer) => tokio::task::spawn_local(tick(Rc::clone(&local.alarms), timer)),
        Err(error) => return drop(ready.send(Err(error))),
    };
    let mut worker = Worker { local, crew, doors: HashMap::new() };
    for (port, fd, frontend) in sockets {
        if let Err(error) = worker.open(port, fd, frontend) {
            let _ = ready.send(Err(error));
            return;
        }
    }
    let _ = ready.send(Ok(()));
    drop(ready);
    let departing = worker.work_until_told(&mut inbox).await;
    worker.leave(&mut inbox, departing).await;
    ticking.abort();
}

async fn tick(alarms: Rc<Alarms>, timer: Timer) {
    let error = alarms.tick(&timer).await;
    tracing::error!(%error, "the deadlines of a worker are not watched any more");
}

/// What a worker has in hand.
struct Worker {
    local: Rc<Local>,
    crew: Arc<Crew>,
    /// An inherited port may have several sockets here.
    doors: HashMap<ports::Id, Vec<Door>>,
}

impl Worker {
    fn open(&mut self, port: ports::Id, fd: OwnedFd, frontend: Arc<Frontend>) -> io::Result<()> {
        let door = Door::open(Acceptor::new(fd)?, frontend, &self.local, &self.crew);
        self.doors.entry(port).or_default().push(door);
        Ok(())
    }

    /// Does what it is told, until that is to leave: within the time that it gives.
    async fn work_until_told(&mut self, inbox: &mut Inbox) -> Departing {
        while let Some(command) = inbox.next().await {
            match command {
                Command::Drain(departing) => return departing,
                Command::Stop => break,
                Command::Arrange(arrangement) => self.arrange(*arrangement),
                command => obey(command, &self.local).await,
            }
        }
        Departing::at_once()
    }

    fn arrange(&mut self, arrangement: Arrangement) {
        let Arrangement { open, frontends, settled } = arrangement;
        for (_, doors) in self.doors.extract_if(|port, _| frontends.iter().all(|(kept, _)| kept != port)) {
            for door in doors {
                door.close(settled.clone());
            }
        }
        let mut open: HashMap<_, _> = open.into_iter().collect();
        for (port, frontend) in frontends {
            if let Some(doors) = self.doors.get(&port) {
                for door in doors {
                    door.set_frontend(Arc::clone(&frontend));
                }
            } else if let Some(fd) = open.remove(&port)
                && let Err(error) = self.open(port, fd, Arc::clone(&frontend))
            {
                // The kernel has no memory for one more watch; the other workers may have had it.
                tracing::error!(listener = &*frontend.name, %error, "a worker cannot listen on a new address");
            }
        }
    }

    /// Accepts no more, and waits until the connections have ended: first by themselves, then one after the other, in the end
    /// all at once (traps L8).
    async fn leave(self, inbox: &mut Inbox, Departing { patience, given }: Departing) {
        let Self { local, crew: _, doors } = self;
        for (port, doors) in doors {
            let is_given = given.contains(&port);
            for door in doors {
                if is_given { door.leave() } else { door.close(()) }
            }
        }
        let mut departure = Departure::new(patience, &local);
        // Each task holds it: when we are alone, everyone has ended.
        let alone = || Rc::strong_count(&local) == 1;
        loop {
            departure.advance(&local);
            if local.drain.is_triggered() || alone() {
                // What was sent before the others knew is still done: a client that comes so ends as the rest of ours do.
                inbox.close();
            }
            let woken = tokio::select! {
                biased;
                command = inbox.next() => Some(command),
                () = local.alarms.sleep(pause(&local)) => None,
            };
            match woken {
                Some(Some(Command::Stop)) => departure.hurry(),
                Some(Some(Command::Drain(_) | Command::Arrange(_))) => {}
                Some(Some(command)) => obey(command, &local).await,
                Some(None) if alone() || departure.is_over() => return,
                Some(None) => local.alarms.sleep(pause(&local)).await,
                None if departure.is_over() => return,
                None => {}
            }
        }
    }
}

async fn obey(command: Command, local: &Rc<Local>) {
    match command {
        Command::EndBackend(backend) => local.drain.end_backend(backend),
        Command::Adopt { client, waiting } => {
            Connection::begin(client, local);
            drop(waiting);
        }
        Command::Ask(question) => {
            let Question { filter, ends, most, reply } = *question;
            // Who asked may have lost patience.
            let _ = reply.send(local.drain.ask(Inquiry::new(filter, ends, most)).await);
        }
        Command::Ping(reply) => drop(reply.send(())),
        Command::Stop | Command::Drain(_) | Command::Arrange(_) => {}
    }
}

/// A worker on its way out.
#[derive(Debug)]
struct Departure {
    began: Instant,
    fade: Fade,
    /// Connections when the first was told to end.
    count: Option<usize>,
    luck: u32,
    /// When it ends, whoever is still there.
    end: Instant,
}

impl Departure {
    fn new(patience: Duration, local: &Local) -> Self {
        let began = Instant::now();
        let fade = Fade::within(patience);
        let goodbye = if patience.is_zero() { GOODBYE } else { HASTE };
        let luck = u32::try_from(local.random() >> 32).unwrap_or_default();
        Self { began, fade, count: None, luck, end: began + patience.max(fade.over() + goodbye) }
    }

    /// Tells those to end whose time has come.
    fn advance(&mut self, local: &Local) {
        let elapsed = self.began.elapsed();
        if !self.fade.has_begun(elapsed) || local.drain.is_triggered() {
            return;
        }
        let count = *self.count.get_or_insert_with(|| local.drain.staying());
        match self.fade.keep(elapsed, count, self.luck) {
            0 if elapsed >= self.fade.over() => local.drain.trigger(),
            keep => local.drain.thin_out(keep),
        }
    }

    /// Everyone has to end now.
    fn hurry(&mut self) {
        self.fade = Fade::within(Duration::ZERO);
        self.end = self.end.min(Instant::now() + HASTE);
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}

/// Until a departure is looked at again; never the same, so that workers do not fall into step.
fn pause(local: &Local) -> Duration {
    Duration::from_millis(2 + local.random() % 8)
}
