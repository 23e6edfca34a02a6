//! Which backend a pool gives, in every state that backends can be in.

mod queue;
mod simulation;
mod slow_start;

use std::{
    collections::HashSet,
    num::{NonZeroU32, NonZeroUsize},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::{balance::Balance, random::Random};
use config::Role::{Active, Backup};

fn member(index: u16, role: config::Role) -> config::Backend {
    let address = ([127, 0, 0, 1], 1000 + index).into();
    config::Backend { name: format!("b{index}"), address, weight: 1, role, max_connections: None }
}

/// Backends `b0`, `b1`, ... that are up, and the defaults of the configuration.
fn config(roles: &[config::Role]) -> config::Pool {
    config::Pool {
        name: "web".to_owned(),
        backends: roles.iter().zip(0..).map(|(&role, index)| member(index, role)).collect(),
        balance: Balance::RoundRobin,
        retries: 2,
        connect_timeout: Duration::from_secs(1),
        check: None,
        outlier: Some(Outlier { connect_failures: 5, eject: Duration::from_secs(30), max_ejected: 50 }),
        slow_start: Duration::from_secs(10),
        send_proxy: config::SendProxy::Off,
        on_down: OnDown::Keep,
        on_all_down: OnAllDown::Open,
        queue: Duration::from_secs(5),
        max_queued: NonZeroUsize::new(1024).unwrap(),
        panic_threshold: 0,
    }
}

fn check(fall: u32) -> config::Check {
    let (every, timeout) = (Duration::from_secs(1), Duration::from_secs(1));
    config::Check { kind: config::CheckKind::Tcp, every, timeout, rise: 2, fall, address: None, port: None }
}

fn build(config: &config::Pool) -> Pool {
    Pool::new(config, &[0; 16], &Registry::new(1), None, at(0))
}

fn pool(roles: &[config::Role]) -> Pool {
    build(&config(roles))
}

fn at(seconds: u64) -> Moment {
    Moment::from_millis(1_000_000 + seconds * 1_000)
}

fn begin(pool: &Pool) -> Search {
    pool.search([127, 0, 0, 1].into(), 7)
}

fn lease(pick: Pick) -> Option<Lease> {
    match pick {
        Pick::Lease(lease) => Some(lease),
        Pick::Full | Pick::Nothing => None,
    }
}

/// Every backend of one search, all of which fail.
fn all_of_a_search(pool: &Pool, now: Moment) -> Vec<String> {
    let mut search = begin(pool);
    let names = std::iter::from_fn(|| {
        let lease = lease(pool.pick(&mut search, now))?;
        search.failed(lease.backend());
        Some(lease.backend().name.to_string())
    });
    names.collect()
}

fn nth(pool: &Pool, index: usize) -> &Backend {
    pool.backends().find(|backend| *backend.name == *format!("b{index}")).unwrap()
}

#[test]
fn b1_a_search_tries_every_active_backend_once_and_then_the_backups() {
    let pool = pool(&[Active, Backup, Active]);
    let names = all_of_a_search(&pool, at(0));
    assert_eq!(names.len(), 3);
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), 3);
    assert_eq!(names.last().unwrap(), "b1");
}

#[test]
fn a_backup_is_tried_when_the_retries_among_the_active_ones_are_used_up() {
    let pool = pool(&[Active, Active, Active, Active, Backup]);
    let names = all_of_a_search(&pool, at(0));
    assert_eq!((names.len(), names.last().unwrap().as_str()), (4, "b4"));
}

#[test]
fn f10_a_lease_is_counted_until_dropped() {
    let pool = pool(&[Active]);
    let lease = lease(pool.pick(&mut begin(&pool), at(0))).unwrap();
    assert_eq!(nth(&pool, 0).live(), 1);
    drop(lease);
    assert_eq!(nth(&pool, 0).live(), 0);
}

#[test]
fn b6_backups_come_when_no_active_one_is_up_and_leave_again() {
    let pool = pool(&[Active, Active, Backup]);
    let first = |now| all_of_a_search(&pool, now).first().cloned();
    pool.set_health(nth(&pool, 0), Health::Down, at(0));
    assert_eq!(first(at(0)).as_deref(), Some("b1"));
    pool.set_health(nth(&pool, 1), Health::Down, at(0));
    assert_eq!(all_of_a_search(&pool, at(0)), ["b2"], "those that are down are not tried");
    pool.set_health(nth(&pool, 0), Health::Up, at(5));
    assert_eq!(first(at(5)).as_deref(), Some("b0"), "also in slow start: it is alone");
    nth(&pool, 0).set_draining(true);
    assert_eq!(first(at(5)).as_deref(), Some("b2"));
}

#[test]
fn b6_everything_down_is_tried_all_the_same_or_refused_and_told_once() {
    let mut pool = pool(&[Active, Active, Backup]);
    let told: Vec<_> = (0..3).map(|n| pool.set_health(nth(&pool, n), Health::Down, at(0))).collect();
    assert_eq!(told, [None, None, Some(Mode::Open)]);
    assert_eq!(pool.set_health(nth(&pool, 0), Health::Down, at(1)), None);
    assert_eq!(all_of_a_search(&pool, at(1)).len(), 3);
    pool.rules.on_all_down = OnAllDown::Close;
    assert_eq!(all_of_a_search(&pool, at(1)).len(), 0);
    assert_eq!(pool.set_health(nth(&pool, 1), Health::Up, at(2)), Some(Mode::Checked));
    assert_eq!(all_of_a_search(&pool, at(2)), ["b1"], "what is up has failed, and that is all");
}

#[test]
fn b6_below_the_panic_threshold_checks_are_not_believed() {
    let mut pool = pool(&[Active, Active, Active, Active]);
    pool.rules.panic_threshold = 50;
    for n in 0..2 {
        pool.set_health(nth(&pool, n), Health::Down, at(0));
    }
    assert_eq!(all_of_a_search(&pool, at(0)).len(), 2, "half are up");
    assert_eq!(pool.set_health(nth(&pool, 2), Health::Down, at(0)), Some(Mode::Panic));
    assert_eq!(all_of_a_search(&pool, at(0)).len(), 3, "as many as the retries allow");
    assert_eq!(pool.set_health(nth(&pool, 0), Health::Up, at(1)), Some(Mode::Checked));
}

#[test]
fn b6_with_no_active_backend_up_the_panic_threshold_hides_neither_backups_nor_on_all_down() {
    let mut pool = pool(&[Active, Active, Backup]);
    pool.rules.panic_threshold = 60;
    pool.rules.on_all_down = OnAllDown::Close;
    assert_eq!(pool.set_health(nth(&pool, 0), Health::Down, at(0)), Some(Mode::Panic));
    assert_eq!(pool.set_health(nth(&pool, 1), Health::Down, at(0)), Some(Mode::Checked));
    assert_eq!(all_of_a_search(&pool, at(0)), ["b2"]);
    assert_eq!(pool.set_health(nth(&pool, 2), Health::Down, at(0)), Some(Mode::Closed));
    assert_eq!(all_of_a_search(&pool, at(0)).len(), 0);
}

#[test]
fn b6_what_is_told_is_what_happens_also_to_backends_that_drain() {
    let pool = pool(&[Active, Active]);
    let drain = |index, draining| pool.set_draining(nth(&pool, index), draining, at(0));
    assert_eq!(pool.set_health(nth(&pool, 0), Health::Down, at(0)), None);
    assert_eq!(drain(1, true), Some(Mode::Open), "the only one that is up takes nothing");
    assert_eq!(all_of_a_search(&pool, at(0)), ["b0"]);
    assert_eq!(drain(0, true), Some(Mode::Closed), "there is nothing to open to");
    assert_eq!(all_of_a_search(&pool, at(0)).len(), 0);
    assert_eq!((drain(0, true), drain(1, false)), (None, Some(Mode::Checked)));
    assert_eq!(all_of_a_search(&pool, at(0)), ["b1"]);
}

#[test]
fn b3_nothing_is_told_before_the_first_verdicts() {
    let mut config = config(&[Active, Active]);
    config.check = Some(check(1));
    let pool = build(&config);
    assert_eq!(pool.set_health(nth(&pool, 0), Health::Down, at(0)), None, "the other may be up");
    assert_eq!(pool.set_health(nth(&pool, 1), Health::Up, at(0)), None);
}

/// One thread takes it down while another picks: either there is no lease, or it knows that it is too old.
#[test]
fn b8_a_lease_is_never_newer_than_the_end_of_the_backend_it_was_picked_for() {
    const ROUNDS: usize = 20_000;
    let mut config = config(&[Active]);
    config.on_all_down = OnAllDown::Close;
    let pool = build(&config);
    // Even: the checker's turn to prepare, odd: both at once.
    let (round, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=ROUNDS {
                while round.load(Ordering::SeqCst) < number {
                    std::hint::spin_loop();
                }
                pool.set_health(nth(&pool, 0), Health::Down, at(0));
                done.store(number, Ordering::SeqCst);
            }
        });
        for number in 1..=ROUNDS {
            pool.set_health(nth(&pool, 0), Health::Up, at(0));
            let mut search = begin(&pool);
            round.store(number, Ordering::SeqCst);
            let lease = lease(pool.pick(&mut search, at(0)));
            while done.load(Ordering::SeqCst) < number {
                std::hint::spin_loop();
            }
            assert!(lease.is_none_or(|lease| lease.is_outdated()), "round {number}");
        }
    });
}

#[test]
fn b4_failed_connects_in_a_row_eject_at_most_half() {
    let pool = pool(&[Active, Active, Active, Active]);
    let fail =
        |index: usize, times: usize, now| (0..times).filter(|_| pool.connect_failed(nth(&pool, index), now)).count();
    assert_eq!(fail(0, 4, at(0)), 0);
    pool.connect_succeeded(nth(&pool, 0), at(0));
    assert_eq!(fail(0, 4, at(0)), 0, "only in a row");
    assert_eq!(fail(0, 1, at(0)), 1);
    assert_eq!(fail(0, 20, at(0)), 0, "it is ejected already");
    assert_eq!(fail(1, 5, at(1)), 1);
    assert_eq!(fail(2, 50, at(2)), 0, "half are enough");
    let names = all_of_a_search(&pool, at(2));
    assert!(
        names.starts_with(&["b2".to_owned(), "b3".to_owned()])
            || names.starts_with(&["b3".to_owned(), "b2".to_owned()]),
        "{names:?}"
    );
    assert_eq!(names.len(), 3, "an ejected one is better than none");
    assert_eq!(fail(2, 5, at(30)), 1, "the first is back");
}

#[test]
fn b4_the_end_of_an_ejection_is_told_once_by_the_first_success() {
    let pool = pool(&[Active, Active]);
    assert!((0..5).any(|_| pool.connect_failed(nth(&pool, 0), at(0))));
    let succeed = |index, now| pool.connect_succeeded(nth(&pool, index), now);
    assert!(!succeed(0, at(29)), "it was better than none, and is still out");
    assert!(!succeed(1, at(30)), "it was never out");
    assert!(succeed(0, at(30)) && !succeed(0, at(31)));
}

#[test]
fn l6_an_unchanged_backend_survives_a_new_configuration() {
    let old = pool(&[Active, Active]);
    let held = lease(old.pick(&mut begin(&old), at(0))).unwrap();
    nth(&old, 1).eject(at(30));
    let mut config = config(&[Active, Active, Active]);
    config.backends[0].address.set_port(7);
    config.backends[1].weight = 3;
    config.backends[1].max_connections = NonZeroU32::new(9);
    let new = Pool::new(&config, &[0; 16], &Registry::new(1), Some(&old), at(9));
    assert_eq!(held.backend().name, nth(&old, 0).name);
    assert_eq!((nth(&new, 0).live(), nth(&new, 0).health()), (0, Health::Up));
    assert_eq!(nth(&new, 1).id, nth(&old, 1).id);
    assert!(nth(&new, 1).is_ejected(at(9)));
    assert_eq!(nth(&old, 1).cap(), 0, "the new configuration is not in force yet");
    assert_eq!(new.adopt(at(9)), None);
    assert_eq!(nth(&old, 1).cap(), 9);
    let slow = Duration::from_secs(10);
    assert!(nth(&new, 2).warmth(at(9), slow) < u32::MAX, "it is new in a pool that works");
}

#[test]
fn l6_another_check_makes_no_other_backend() {
    let mut config = config(&[Active, Active]);
    config.check = Some(check(1));
    for backend in &mut config.backends {
        backend.max_connections = NonZeroU32::new(1);
    }
    let old = build(&config);
    pool_is(&old, Health::Up);
    let held = lease(old.pick(&mut begin(&old), at(0))).unwrap();
    let (full, other) = (held.backend(), usize::from(nth(&old, 0).id == held.backend().id));
    nth(&old, other).eject(at(30));
    config.check = Some(check(2));
    let new = Pool::new(&config, &[0; 16], &Registry::new(1), Some(&old), at(1));
    new.adopt(at(1));
    let known = nth(&new, 1 - other);
    assert_eq!((known.id, known.live(), known.health(), known.downs()), (full.id, 1, Health::Up, 0));
    assert!(!known.has_room(), "a limit is a limit");
    assert!(nth(&new, other).is_ejected(at(1)));
}

#[test]
fn l6_a_configuration_that_is_not_adopted_changes_nothing() {
    let mut config = config(&[Active, Active]);
    config.check = Some(check(1));
    let old = build(&config);
    pool_is(&old, Health::Down);
    nth(&old, 1).set_draining(true);
    assert_eq!(old.told(), Mode::Open);
    config.check = None;
    let new = Pool::new(&config, &[0; 16], &Registry::new(1), Some(&old), at(1));
    assert_eq!((nth(&old, 0).health(), nth(&old, 1).is_draining()), (Health::Down, true));
    // Nobody is asked any more, so nobody would ever be found up again.
    assert_eq!(new.adopt(at(1)), Some(Mode::Checked));
    assert_eq!((nth(&new, 0).health(), nth(&new, 1).is_draining()), (Health::Up, true));
    // And what is asked from now on is answered before anybody suffers.
    config.check = Some(check(2));
    let checked = Pool::new(&config, &[0; 16], &Registry::new(1), Some(&new), at(2));
    assert_eq!((checked.adopt(at(2)), nth(&checked, 0).health()), (None, Health::Up));
}

fn pool_is(pool: &Pool, health: Health) {
    for backend in pool.backends() {
        pool.set_health(backend, health, at(0));
    }
}

#[test]
fn a_weight_set_by_the_operator_holds_until_the_configuration_has_a_new_one() {
    let mut config = config(&[Active, Active, Backup]);
    config.balance = Balance::LeastConn;
    let registry = Registry::new(1);
    let pool = Pool::new(&config, &[0; 16], &registry, None, at(0));
    let first = |pool: &Pool| pool.shares(Active).next().map(|(_, weight, written)| (weight, written));
    let picks = |pool: &Pool| {
        let picks = (0..100).filter_map(|_| lease(pool.pick(&mut begin(pool), at(0))));
        picks.filter(|lease| &*lease.backend().name == "b0").count()
    };
    assert_eq!(picks(&pool), 50);
    pool.set_weight(nth(&pool, 0), 0, at(0));
    assert_eq!((picks(&pool), first(&pool)), (0, Some((0, 1))));
    let unchanged = Pool::new(&config, &[0; 16], &registry, Some(&pool), at(1));
    assert_eq!((picks(&unchanged), first(&unchanged)), (0, Some((0, 1))));
    config.backends[0].weight = 2;
    let changed = Pool::new(&config, &[0; 16], &registry, Some(&unchanged), at(2));
    assert_eq!(first(&changed), Some((2, 2)));
    assert!(picks(&changed) > 50);
}
