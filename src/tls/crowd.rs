//! The handshakes of one worker that are not complete, in the order of coming (traps T6).
//!
//! Who says nothing or little would keep a place that others need, each for the whole deadline. So when places run short
//! the oldest handshake ends: it has had the most time, and an honest one is over long before.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
};

use crate::{
    alarm::{Alarm, Bell},
    metrics::Level,
};

/// Most handshakes of one worker, whatever the limits: each may hold a hello of 16 KiB and a little more. A worker that
/// completes five thousand a second has as many in progress with clients a second and a half away.
const MOST: usize = 8_192;

/// All handshakes of one worker.
#[derive(Debug, Default)]
pub struct Crowd {
    members: RefCell<BTreeMap<u64, Place>>,
    next: Cell<u64>,
}

/// A handshake in progress, counted until this is dropped.
#[derive(Debug)]
pub struct Member<'a> {
    crowd: &'a Crowd,
    number: u64,
    levels: [&'a Level; 2],
}

/// How short places are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    None,
    /// Each worker may have so many handshakes of this listener.
    OfListener(usize),
    /// Each worker may have so many handshakes.
    OfProcess(usize),
}

#[derive(Debug)]
struct Place {
    listener: Arc<str>,
    bell: Bell,
}

impl Crowd {
    /// A new handshake of `listener`, whose deadline is `alarm`'s. `levels` count the handshakes of this worker: those of the
    /// listener, and all. When there is a shortage the oldest have to end, two at most: a worker that has too many gets
    /// down to its share, and one that has few keeps them.
    pub fn join<'a>(
        &'a self,
        listener: &Arc<str>,
        alarm: &Alarm,
        shortage: Shortage,
        levels: [&'a Level; 2],
    ) -> Member<'a> {
        let mut members = self.members.borrow_mut();
        let [of_listener, _] = levels;
        for _ in 0..2 {
            let oldest = match shortage {
                Shortage::OfListener(share) if of_listener.value() >= share as u64 => {
                    members.iter().find(|(_, place)| place.listener == *listener).map(|(number, _)| *number)
                }
                Shortage::OfProcess(share) if members.len() >= share => members.keys().next().copied(),
                _ if members.len() >= MOST => members.keys().next().copied(),
                _ => None,
            };
            let Some(place) = oldest.and_then(|number| members.remove(&number)) else { break };
            alarm.ring(&place.bell);
        }
        let number = self.next.replace(self.next.get() + 1);
        members.insert(number, Place { listener: Arc::clone(listener), bell: alarm.bell() });
        for level in levels {
            level.set(level.value() + 1);
        }
        Member { crowd: self, number, levels }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.crowd.members.borrow_mut().remove(&self.number);
        for level in self.levels {
            level.set(level.value().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, time::Duration};

    use super::*;
    use crate::alarm::Alarms;

    /// Which of four handshakes ends when a fifth comes: two of `a`, two of `b`, in turn, and one of `b`.
    fn ended_by(shortage: Shortage) -> Vec<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (alarms, crowd, [a, b, everyone]) =
                (Rc::new(Alarms::default()), Crowd::default(), [(); 3].map(|()| Level::default()));
            let names: [Arc<str>; 2] = ["a".into(), "b".into()];
            let all: Vec<_> = (0..5).map(|_| alarms.alarm()).collect();
            let limit = Duration::from_hours(1);
            let mut waiting: Vec<_> =
                all.iter().map(|alarm| Box::pin(alarm.within(limit, std::future::pending::<()>()))).collect();
            for future in &mut waiting {
                assert!(tokio::time::timeout(Duration::ZERO, future).await.is_err());
            }
            let levels = [[&a, &everyone], [&b, &everyone]];
            let join =
                |number: usize, name: usize, shortage| crowd.join(&names[name], &all[number], shortage, levels[name]);
            let mut members: Vec<_> = (0..4).map(|number| join(number, number % 2, Shortage::None)).collect();
            members.push(join(4, 1, shortage));
            assert_eq!((a.value(), b.value(), everyone.value()), (2, 3, 5));
            let mut ended = Vec::new();
            for (number, future) in waiting.iter_mut().enumerate() {
                if tokio::time::timeout(Duration::ZERO, future).await.is_ok() {
                    ended.push(number);
                }
            }
            drop(members);
            assert_eq!((b.value(), everyone.value(), crowd.members.borrow().len()), (0, 0, 0));
            ended
        })
    }

    #[test]
    fn t6_the_oldest_of_whoever_is_short_of_places_goes() {
        assert!(ended_by(Shortage::None).is_empty());
        assert_eq!(ended_by(Shortage::OfListener(2)), [1, 3]);
        assert!(ended_by(Shortage::OfListener(3)).is_empty());
        assert_eq!(ended_by(Shortage::OfProcess(0)), [0, 1]);
        assert_eq!(ended_by(Shortage::OfProcess(4)), [0]);
        assert!(ended_by(Shortage::OfProcess(5)).is_empty());
    }
}
