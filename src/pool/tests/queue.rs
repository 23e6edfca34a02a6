//! B15: caps are exact, who waits is served in turn, and nobody who left takes a place.

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    task::{Context, Poll, Wake, Waker},
};

use super::*;
use crate::pool::{Turn, queue::Served};

fn capped(count: usize, cap: u32, change: impl FnOnce(&mut config::Pool)) -> Arc<Pool> {
    let mut config = config(&vec![Active; count]);
    for backend in &mut config.backends {
        backend.max_connections = NonZeroU32::new(cap);
    }
    change(&mut config);
    Arc::new(build(&config))
}

fn take(pool: &Pool) -> Lease {
    lease(pool.pick(&mut begin(pool), at(0))).expect("room")
}

fn queued(pool: &Arc<Pool>) -> Turn {
    let mut search = begin(pool);
    assert!(matches!(pool.pick(&mut search, at(0)), Pick::Full));
    pool.wait(search, at(0)).expect("room in the queue")
}

fn poll(turn: &mut Turn) -> Poll<Served> {
    pin!(turn).poll(&mut Context::from_waker(Waker::noop()))
}

fn served(turn: &mut Turn) -> Option<Lease> {
    match poll(turn) {
        Poll::Ready((_, lease)) => lease,
        Poll::Pending => panic!("it still waits"),
    }
}

#[test]
fn b15_who_waits_is_served_in_turn_and_newcomers_come_last() {
    let pool = capped(2, 1, |_| ());
    let (first, second) = (take(&pool), take(&pool));
    let mut turns: Vec<_> = (0..3).map(|_| queued(&pool)).collect();
    assert_eq!(pool.waiting(), 3);
    drop(first);
    assert!(matches!(pool.pick(&mut begin(&pool), at(0)), Pick::Full), "nobody passes the queue");
    let held = served(&mut turns[0]).unwrap();
    assert!(poll(&mut turns[1]).is_pending() && poll(&mut turns[2]).is_pending());
    drop((second, held));
    assert!(served(&mut turns[1]).is_some() && served(&mut turns[2]).is_some());
    drop(turns);
    assert_eq!((pool.waiting(), nth(&pool, 0).live(), nth(&pool, 1).live()), (0, 0, 0));
}

#[test]
fn b15_who_leaves_takes_no_place_waiting_or_served() {
    let pool = capped(1, 1, |_| ());
    let held = take(&pool);
    let (waiting, given, mut last) = (queued(&pool), queued(&pool), queued(&pool));
    drop(waiting);
    assert_eq!(pool.waiting(), 2);
    drop(held);
    // The second has its lease now and does not know it.
    assert_eq!(pool.waiting(), 1);
    drop(given);
    assert!(served(&mut last).is_some());
}

#[test]
fn b15_the_queue_has_a_bound_and_can_be_off() {
    let pool = capped(1, 1, |config| config.max_queued = NonZeroUsize::new(2).unwrap());
    let held = take(&pool);
    let _turns = (queued(&pool), queued(&pool));
    assert!(pool.wait(begin(&pool), at(0)).is_none());
    let pool = capped(1, 1, |config| config.queue = Duration::ZERO);
    let _held = (held, take(&pool));
    assert!(matches!(pool.pick(&mut begin(&pool), at(0)), Pick::Full));
    assert!(pool.wait(begin(&pool), at(0)).is_none());
}

#[test]
fn b15_full_active_backends_make_a_client_wait_and_not_use_a_backup() {
    let pool = capped(1, 1, |config| config.backends.push(member(1, Backup)));
    let held = take(&pool);
    let mut turn = queued(&pool);
    pool.set_health(nth(&pool, 0), Health::Down, at(1));
    assert_eq!(&*served(&mut turn).expect("a backup, as it is down now").backend().name, "b1");
    drop(held);
}

#[test]
fn b15_when_nothing_is_left_to_wait_for_the_wait_ends() {
    let pool = capped(1, 1, |config| config.on_all_down = OnAllDown::Close);
    let held = take(&pool);
    let mut turn = queued(&pool);
    pool.set_health(nth(&pool, 0), Health::Down, at(1));
    assert!(served(&mut turn).is_none());
    drop(held);
}

#[test]
fn b15_one_that_comes_back_serves_the_queue() {
    let pool = capped(2, 1, |_| ());
    pool.set_health(nth(&pool, 1), Health::Down, at(0));
    let held = take(&pool);
    let mut turn = queued(&pool);
    assert!(poll(&mut turn).is_pending());
    pool.set_health(nth(&pool, 1), Health::Up, at(5));
    assert_eq!(&*served(&mut turn).unwrap().backend().name, "b1");
    nth(&pool, 1).eject(at(20));
    let mut turn = queued(&pool);
    let mut behind = queued(&pool);
    pool.look_around(turn.ticket(), at(10));
    pool.look_around(behind.ticket(), at(20));
    assert!(poll(&mut turn).is_pending(), "only the first looks");
    pool.look_around(turn.ticket(), at(20));
    let back = served(&mut turn).expect("the ejection is over");
    assert!(poll(&mut behind).is_pending());
    drop((held, back));
}

#[test]
fn b15_a_second_try_comes_before_the_first_of_the_others() {
    let pool = capped(2, 1, |_| ());
    let held = take(&pool);
    let mut search = begin(&pool);
    let failed = lease(pool.pick(&mut search, at(0))).unwrap();
    let mut patient = queued(&pool);
    search.failed(failed.backend());
    let mut again = pool.wait(search, at(0)).unwrap();
    let place = *held.backend().name == *failed.backend().name;
    assert!(!place);
    drop(held);
    assert!(served(&mut again).is_some(), "it has waited before");
    drop(failed);
    assert!(served(&mut patient).is_some(), "what failed for one is good enough for the next");
}

/// Fails what it was given and waits again.
fn fails(pool: &Arc<Pool>, turn: &mut Turn) -> (Turn, Lease) {
    let Poll::Ready((mut search, Some(lease))) = poll(turn) else { panic!("it was not served") };
    search.failed(lease.backend());
    (pool.wait(search, at(0)).expect("it was served before, so it is not sent away"), lease)
}

#[test]
fn b15_who_comes_back_stands_where_it_stood_and_is_never_sent_away() {
    let pool = capped(2, 1, |config| config.max_queued = NonZeroUsize::new(3).unwrap());
    let (a, b) = (take(&pool), take(&pool));
    let mut turns: Vec<_> = (0..3).map(|_| queued(&pool)).collect();
    let tickets: Vec<_> = turns.iter().map(Turn::ticket).collect();
    // One backend refuses from now on: its place goes from one to the next, and all come back.
    drop(b);
    let mut place = None;
    for (index, turn) in turns.iter_mut().enumerate() {
        drop(place.take());
        let (again, lease) = fails(&pool, turn);
        *turn = again;
        place = Some(lease);
        if index == 0 {
            // Whoever comes meanwhile fills the queue up.
            let newcomer = pool.wait(begin(&pool), at(0));
            assert!(newcomer.is_none(), "three wait, and one more is too many");
        }
    }
    assert_eq!(turns.iter().map(Turn::ticket).collect::<Vec<_>>(), tickets);
    assert_eq!(pool.waiting(), 3);
    let mut free = Some(a);
    for index in 0..3 {
        assert!(turns[index..].iter_mut().all(|turn| poll(turn).is_pending()), "{index}");
        drop(free.take());
        free = served(&mut turns[index]);
        assert!(free.is_some(), "{index}: in the order of coming");
    }
}

#[test]
fn b15_what_one_frees_is_not_looked_for_once_for_each_that_waits() {
    const BACKENDS: usize = 100;
    let most = |config: &mut config::Pool| config.max_queued = NonZeroUsize::new(2_000).unwrap();
    let old = capped(BACKENDS, 1, most);
    let mut held: VecDeque<_> = (0..BACKENDS).map(|_| take(&old)).collect();
    let mut turns: VecDeque<_> = (0..1_500).map(|_| queued(&old)).collect();
    // Those behind them came under another configuration.
    let mut config = config(&[Active; BACKENDS]);
    for backend in &mut config.backends {
        backend.max_connections = NonZeroU32::new(1);
    }
    most(&mut config);
    let new = Arc::new(Pool::new(&config, &[0; 16], &Registry::new(1), Some(&old), at(1)));
    turns.extend((0..20).map(|_| queued(&new)));
    // To look at 100 backends for each of 1,500 each time would take minutes.
    let begin = std::time::Instant::now();
    for _ in 0..500 {
        drop(held.pop_front());
        held.push_back(served(&mut turns.pop_front().unwrap()).unwrap());
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn l6_a_new_configuration_goes_on_with_the_same_queue() {
    let old = capped(1, 1, |_| ());
    let held = take(&old);
    let mut turn = queued(&old);
    let mut config = config(&[Active]);
    config.backends[0].max_connections = NonZeroU32::new(2);
    let new = Pool::new(&config, &[0; 16], &Registry::new(1), Some(&old), at(1));
    assert!(poll(&mut turn).is_pending());
    new.adopt(at(1));
    assert!(served(&mut turn).is_some(), "one more is allowed now");
    drop((held, turn));
    assert_eq!(nth(&new, 0).live(), 0);
}

const LONG: Duration = Duration::from_secs(20);

/// Wakes a thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block(mut turn: Pin<&mut Turn>) -> Served {
    let waker = Arc::new(Unpark(std::thread::current())).into();
    loop {
        match turn.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(served) => return served,
            Poll::Pending => {
                let begin = std::time::Instant::now();
                std::thread::park_timeout(LONG);
                assert!(begin.elapsed() < LONG, "forgotten");
            }
        }
    }
}

#[test]
fn b15_a_cap_of_10_is_never_exceeded_by_8_threads_and_nobody_is_forgotten() {
    let pool = capped(2, 5, |_| ());
    let (most, served, waited) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    // Everything is taken until all of them wait, however they are scheduled.
    let all: Vec<_> = (0..10).map(|_| take(&pool)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (pool, most, served, waited) = (&pool, &most, &served, &waited);
            scope.spawn(move || {
                let mut held = VecDeque::new();
                for turn in 0..3_000_u64 {
                    let mut search =
                        pool.search([10, 0, 0, 1].into(), turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ thread);
                    let lease = match pool.pick(&mut search, at(0)) {
                        Pick::Lease(lease) => lease,
                        Pick::Nothing => panic!("everything is up"),
                        // Whoever waits holds nothing, or everyone would wait for everyone.
                        Pick::Full => {
                            held.clear();
                            waited.fetch_add(1, Ordering::Relaxed);
                            let mut turn = pin!(pool.wait(search, at(0)).expect("a long queue"));
                            block(turn.as_mut()).1.expect("a lease")
                        }
                    };
                    let live = pool.backends().map(|backend| backend.live()).max().unwrap();
                    most.fetch_max(usize::try_from(live).unwrap(), Ordering::Relaxed);
                    served.fetch_add(1, Ordering::Relaxed);
                    held.push_back(lease);
                    if held.len() > 2 {
                        held.pop_front();
                    }
                    std::thread::yield_now();
                }
            });
        }
        let begin = std::time::Instant::now();
        while pool.waiting() < 8 {
            assert!(begin.elapsed() < LONG, "{} wait", pool.waiting());
            std::thread::yield_now();
        }
        drop(all);
    });
    let (most, waited) = (most.into_inner(), waited.into_inner());
    println!("at most {most} of 5 were seen on one backend, {waited} of 24,000 waited");
    assert!(most <= 5 && waited >= 8, "{most} at once, {waited} waited");
    assert_eq!(served.into_inner(), 24_000);
    assert_eq!((pool.waiting(), nth(&pool, 0).live(), nth(&pool, 1).live()), (0, 0, 0));
}
