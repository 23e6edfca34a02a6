//! S29: a pool under random events in any order, from a seed that a failure prints: clients, failures, checks, draining,
//! time, new configurations. After every event each decision is compared with a plain reading of the rules.
//!
//! `SLUICEGATE_SIMULATION_SEEDS` runs more seeds than the usual 256, `SLUICEGATE_SIMULATION_SEED` only one.

mod model;

use std::{
    collections::HashMap,
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::*;
use crate::{
    backend::Id,
    pool::{Turn, queue::Served},
    threshold::{Change, Threshold},
};
use model::{Answers, Expected, Model};

const SEEDS: u64 = 256;
const STEPS: usize = 3_000;

/// One that holds a lease; its connect may still fail.
struct Holder {
    model: Model,
    search: Search,
    lease: Lease,
}

struct Waiting {
    model: Model,
    turn: Turn,
}

struct World {
    random: Random,
    now: Moment,
    config: config::Pool,
    registry: Registry,
    pool: Arc<Pool>,
    holders: Vec<Holder>,
    waiting: Vec<Waiting>,
    /// The check of each backend, and all that it answered.
    checks: HashMap<Id, (Threshold, Answers)>,
    /// As the log has it.
    told: Mode,
    clients: u64,
    served: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut config = config(&[]);
        config.balance = Balance::ALL[random.below(Balance::ALL.len())];
        config.retries = random.below(4);
        let roles: Vec<_> = (0..=random.below(5)).map(|_| Active).chain((0..random.below(3)).map(|_| Backup)).collect();
        config.backends = roles.iter().zip(0..).map(|(role, index)| member(index, *role)).collect();
        config.outlier = (random.below(4) > 0).then_some(Outlier {
            connect_failures: 1 + random.below(3),
            eject: Duration::from_secs(1 + random.below(10)),
            max_ejected: random.below(101),
        });
        config.slow_start = Duration::from_secs(10 * random.below(2));
        config.on_all_down = if random.below(2) == 0 { OnAllDown::Open } else { OnAllDown::Close };
        config.panic_threshold = if random.below(4) == 0 { 50 } else { 0 };
        config.check = Some(check(1 + random.below(3)));
        config.max_queued = NonZeroUsize::new(1 + random.below(6)).unwrap();
        let registry = Registry::new(1);
        let pool = Arc::new(Pool::new(&config, &[0; 16], &registry, None, at(0)));
        let (holders, waiting, checks) = (Vec::new(), Vec::new(), HashMap::new());
        let (now, told) = (at(0), Mode::default());
        let mut world =
            Self { random, now, config, registry, pool, holders, waiting, checks, told, clients: 0, served: 0 };
        world.reconfigure();
        world
    }

    /// Other limits and weights, sometimes a backend that has moved, and seldom another check. The old pool stays with those who came under it.
    fn reconfigure(&mut self) {
        let random = &mut self.random;
        for backend in &mut self.config.backends {
            backend.weight = random.below(4);
            backend.max_connections = NonZeroU32::new(if random.below(3) == 0 { 0 } else { 1 + random.below(4) });
            if random.below(5) == 0 {
                backend.address.set_port(2_000 + random.below(50_000));
            }
        }
        self.config.backends[0].weight = 1;
        if random.below(10) == 0 {
            self.config.check = Some(check(1 + random.below(3)));
            self.checks.clear();
        }
        let before = self.states();
        let new = Arc::new(Pool::new(&self.config, &[0; 16], &self.registry, Some(&self.pool), self.now));
        assert_eq!(self.states(), before, "what is not adopted changes nothing");
        self.pool = new;
        let news = self.pool.adopt(self.now);
        self.hear(news);
    }

    /// What is told is what is so, and is new.
    fn hear(&mut self, news: Option<Mode>) {
        let mode = model::mode(&self.pool);
        if let Some(news) = news {
            assert_eq!((news, news != self.told), (mode, true), "{:?}", self.states());
            self.told = news;
        }
        // Draining or not: without the first verdict of somebody nothing is told.
        let known = self.pool.backends().all(|backend| backend.health() != Health::Unknown);
        assert!(!known || self.told == mode, "{:?}, and {mode:?} was not told: {:?}", self.told, self.states());
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..6 => self.arrive(),
            6..9 => self.end_one(),
            9 | 10 => self.fail_one(),
            11 if !self.waiting.is_empty() => {
                let index = self.random.below(self.waiting.len());
                drop(self.waiting.remove(index));
            }
            12 => {
                for _ in 0..3 {
                    self.check_one();
                    self.collect();
                }
            }
            13 => {
                let draining = self.random.below(4) == 0;
                let backend = self.any_backend();
                let news = self.pool.set_draining(&backend, draining, self.now);
                self.hear(news);
            }
            14 => {
                self.now = self.now.after(Duration::from_millis(self.random.below(2_000)));
                self.pool.serve_waiting(self.now);
            }
            15 if self.random.below(20) == 0 => self.reconfigure(),
            _ => {}
        }
        self.collect();
        self.judge();
    }

    fn any_backend(&mut self) -> Arc<Backend> {
        let all: Vec<_> = self.pool.backends().cloned().collect();
        Arc::clone(&all[self.random.below(all.len())])
    }

    fn arrive(&mut self) {
        let source = std::net::Ipv4Addr::from_bits(self.random.below(u32::MAX));
        let search = self.pool.search(source.into(), self.random.draw());
        self.clients += 1;
        self.look(search, Model::new(&self.pool, self.clients));
    }

    fn end_one(&mut self) {
        if !self.holders.is_empty() {
            let index = self.random.below(self.holders.len());
            let lease = self.holders.swap_remove(index).lease;
            self.give_back(lease);
        }
    }

    fn give_back(&self, lease: Lease) {
        let was_unlimited = lease.queue.is_none();
        drop(lease);
        if was_unlimited {
            // It was taken before its backend had a limit and tells nobody; who waits looks by itself once a second.
            self.pool.serve_waiting(self.now);
        }
    }

    /// A connect fails, is counted, and the search goes on.
    fn fail_one(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let index = self.random.below(self.holders.len());
        let Holder { mut model, mut search, lease } = self.holders.swap_remove(index);
        let tier = if model.pool.backup.has(lease.backend()) { &model.pool.backup } else { &model.pool.active };
        let ejected = || tier.backends.iter().filter(|b| b.is_ejected(self.now)).count();
        let before = ejected();
        if model.pool.connect_failed(lease.backend(), self.now) {
            let most = self.config.outlier.map_or(0, |o| usize::from(o.max_ejected)) * tier.backends.len() / 100;
            assert!(ejected() == before + 1 && ejected() <= most.max(1), "{} of {most} are ejected", ejected());
        }
        search.failed(lease.backend());
        model.tried.push(lease.backend().id);
        self.give_back(lease);
        self.look(search, model);
    }

    fn check_one(&mut self) {
        let backend = self.any_backend();
        let good = self.random.below(3) > 0;
        let check = self.config.check.as_ref().unwrap();
        let new = || {
            let threshold = Threshold::new(check.rise, check.fall);
            match backend.health() {
                Health::Unknown => (threshold, Answers::default()),
                known => (threshold.knowing(known == Health::Up), Answers::known(known)),
            }
        };
        let (threshold, answers) = self.checks.entry(backend.id).or_insert_with(new);
        let expected = answers.add(good, backend.health(), check);
        let news = threshold.take(good).and_then(|(Change::First { up } | Change::Turned { up })| {
            let health = if up { Health::Up } else { Health::Down };
            self.pool.set_health(&backend, health, self.now)
        });
        assert_eq!(backend.health(), expected);
        self.hear(news);
    }

    fn look(&mut self, mut search: Search, model: Model) {
        self.collect();
        let expected = model.expected(self.now);
        let picked = model.pool.pick(&mut search, self.now);
        let passed = matches!(picked, Pick::Full) && !self.waiting.is_empty() && model.pool.has_limits;
        match picked {
            Pick::Lease(lease) => {
                assert!(self.waiting.is_empty() || !model.pool.has_limits, "it passed the queue");
                self.hold(model, search, lease, &expected);
            }
            Pick::Nothing => assert_eq!(expected, Expected::Nothing, "{:?}", self.states()),
            Pick::Full => {
                assert!(passed || expected == Expected::Full, "{expected:?}: {:?}", self.states());
                let room = self.waiting.len() < self.config.max_queued.get() || !model.tried.is_empty();
                let turn = model.pool.wait(search, self.now);
                assert_eq!(turn.is_some(), room, "{} wait", self.waiting.len());
                if let Some(turn) = turn {
                    self.waiting.push(Waiting { model, turn });
                }
            }
        }
    }

    fn hold(&mut self, mut model: Model, search: Search, lease: Lease, expected: &Expected) {
        let id = lease.backend().id;
        assert!(
            matches!(expected, Expected::Any(ids) if ids.contains(&id)),
            "{id:?}, {expected:?}: {:?}",
            self.states()
        );
        model.took(&lease);
        self.holders.push(Holder { model, search, lease });
    }

    /// Those whose turn has come. What they got was right when they got it: nothing has changed in this step since.
    fn collect(&mut self) {
        let mut served = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            match pin!(&mut waiting.turn).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.waiting.push(waiting),
                Poll::Ready(result) => served.push((waiting.model, result)),
            }
        }
        for (model, result) in served {
            self.serve(model, result);
        }
    }

    fn serve(&mut self, mut model: Model, (search, lease): Served) {
        let Some(lease) = lease else {
            assert_eq!(model.expected(self.now), Expected::Nothing, "{:?}", self.states());
            return;
        };
        let backend = lease.backend();
        assert!(!backend.is_draining() && !model.tried.contains(&backend.id), "{:?}", self.states());
        assert!(backend.cap() == 0 || backend.live() <= backend.cap().max(1), "{:?}", self.states());
        // Whoever came earlier, before any failure, and still waits, does not wait for this one.
        for earlier in self.waiting.iter().map(|waiting| &waiting.model).filter(|other| other.number < model.number) {
            let passed = earlier.group(self.now).iter().any(|wanted| wanted.id == backend.id);
            assert!(!passed, "{} was served before {}: {:?}", model.number, earlier.number, self.states());
        }
        self.served += 1;
        model.took(&lease);
        self.holders.push(Holder { model, search, lease });
    }

    fn states(&self) -> Vec<String> {
        let state = |(b, weight): (&Arc<Backend>, u16)| {
            let (live, cap) = (b.live(), b.cap());
            let (ejected, draining) = (b.is_ejected(self.now), b.is_draining());
            format!("{:?} {:?} {live}/{cap} weight {weight} ejected {ejected} draining {draining}", b.id, b.health())
        };
        self.pool.members().map(state).collect()
    }

    /// What must hold whatever happened.
    fn judge(&self) {
        for backend in self.pool.backends() {
            let held = self.holders.iter().filter(|holder| holder.lease.backend().id == backend.id).count();
            assert_eq!(usize::try_from(backend.live()).unwrap(), held, "leases of {:?}", backend.id);
        }
        assert_eq!(self.pool.waiting(), self.waiting.len());
        for waiting in &self.waiting {
            // Nobody waits while there is room for it.
            assert_eq!(
                waiting.model.expected(self.now),
                Expected::Full,
                "{} waits: {:?}",
                waiting.model.number,
                self.states()
            );
        }
    }

    fn finish(mut self) -> u64 {
        self.holders.clear();
        self.collect();
        self.waiting.clear();
        self.holders.clear();
        self.judge();
        self.served
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Says which seed it was when the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: SLUICEGATE_SIMULATION_SEED={}", self.0);
        }
    }
}

#[test]
fn s29_every_decision_of_a_pool_follows_the_rules() {
    let one = number("SLUICEGATE_SIMULATION_SEED");
    let seeds = one.map_or(0..number("SLUICEGATE_SIMULATION_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let mut served = 0;
    for seed in seeds {
        let said = Seed(seed);
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        served += world.finish();
        drop(said);
    }
    println!("{served} were served out of the queue");
    assert!(served > 0, "the queue was tried");
}
