//! What is known of sources, in memory of a fixed size.
//!
//! A keyed hash chooses one of many buckets, and a source is looked for there alone: a client cannot aim at a bucket without
//! the key, and a look costs the same whatever is in the table. Each bucket has a lock of its own, held for some 50 ns: two
//! workers meet there only when two clients of one bucket come in the same moment.

use std::{
    fmt,
    hash::Hasher,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use siphasher::sip::SipHasher13;

use crate::address::Source;

/// Sources in a bucket. With half of the table in use by sources that have to stay, one of 300 buckets is full.
const WAYS: usize = 16;

/// An entry for each of a bounded number of sources.
pub struct Table<T> {
    buckets: Box<[Mutex<Bucket<T>>]>,
    key: [u8; 16],
    used: AtomicUsize,
}

/// Where the entry of a source is, as long as it has to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// What came of asking for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<R> {
    pub result: R,
    pub slot: Slot,
    /// Another source was forgotten for this one.
    pub evicted: bool,
}

/// Sources at the front, in no order; `used` of them.
struct Bucket<T> {
    used: usize,
    sources: [Source; WAYS],
    entries: [T; WAYS],
}

impl<T: Copy + Default> Table<T> {
    /// For at least so many sources, at most 2^28. The key should be random and secret.
    pub fn new(sources: usize, key: [u8; 16]) -> Self {
        const MOST: usize = 1 << 28;
        let buckets = sources.min(MOST).div_ceil(WAYS).next_power_of_two();
        let empty = || Bucket { used: 0, sources: [Source::default(); WAYS], entries: [T::default(); WAYS] };
        Self { buckets: (0..buckets).map(|_| Mutex::new(empty())).collect(), key, used: AtomicUsize::new(0) }
    }

    /// Lets `work` see the entry of a source, which is a new one if it had none. Where there is no room, the one with the
    /// least `age` of its bucket is forgotten; those without an `age` have to stay. `None`: all of them have to.
    pub fn with<R>(
        &self,
        source: Source,
        age: impl Fn(&T) -> Option<u64>,
        work: impl FnOnce(&mut T) -> R,
    ) -> Option<Found<R>> {
        let number = self.bucket_of(source);
        let mut bucket = self.buckets.get(number)?.lock().unwrap_or_else(PoisonError::into_inner);
        let Bucket { used, sources, entries } = &mut *bucket;
        let mut evicted = false;
        let known = sources.iter().take(*used).position(|known| *known == source);
        let way = if let Some(way) = known {
            way
        } else {
            let way = if *used < WAYS {
                self.used.fetch_add(1, Ordering::Relaxed);
                *used += 1;
                *used - 1
            } else {
                evicted = true;
                let ages = entries.iter().enumerate().filter_map(|(way, entry)| Some((age(entry)?, way)));
                ages.min()?.1
            };
            *sources.get_mut(way)? = source;
            *entries.get_mut(way)? = T::default();
            way
        };
        let result = work(entries.get_mut(way)?);
        let slot = Slot(u32::try_from(number * WAYS + way).ok()?);
        Some(Found { result, slot, evicted })
    }

    /// Lets `work` see an entry that has had to stay since it was found.
    pub fn at(&self, Slot(slot): Slot, work: impl FnOnce(&mut T)) {
        let (number, way) = (slot as usize / WAYS, slot as usize % WAYS);
        let Some(bucket) = self.buckets.get(number) else { return };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = bucket.entries.get_mut(way) {
            work(entry);
        }
    }

    /// Lets `work` see what is known of every source, one bucket after the other.
    pub fn for_each(&self, mut work: impl FnMut(Source, &mut T)) {
        for bucket in &self.buckets {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let Bucket { used, sources, entries } = &mut *bucket;
            sources.iter().zip(entries).take(*used).for_each(|(source, entry)| work(*source, entry));
        }
    }

    /// Sources that are known.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Sources that fit.
    pub fn room(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// Memory held on the heap; it never changes.
    pub fn heap_bytes(&self) -> usize {
        self.buckets.len() * size_of::<Mutex<Bucket<T>>>()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are what is wanted")]
    fn bucket_of(&self, source: Source) -> usize {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write_u128(source.to_bits());
        hasher.finish() as usize & (self.buckets.len() - 1)
    }
}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is nobody's business.
        f.debug_struct("Table").field("buckets", &self.buckets.len()).field("used", &self.used).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::address::Prefixes;

    fn source(number: u32) -> Source {
        Prefixes::DEFAULT.source_of(Ipv4Addr::from_bits(number).into())
    }

    proptest! {
        /// As long as there is room, the table is a map.
        #[test]
        fn f9_it_knows_what_a_map_knows(visits in vec(0..200_u32, 0..2_000)) {
            let (table, mut model) = (Table::<u64>::new(4_096, [7; 16]), HashMap::new());
            for number in visits {
                let found = table.with(source(number), |_| Some(0), |entry| { *entry += 1; *entry }).unwrap();
                let count = model.entry(number).or_insert(0_u64);
                *count += 1;
                prop_assert_eq!((found.result, found.evicted), (*count, false));
                table.at(found.slot, |entry| assert_eq!(*entry, *count));
            }
            prop_assert_eq!(table.used(), model.len());
            let mut all = HashMap::new();
            table.for_each(|source, entry| assert_eq!(all.insert(source, std::mem::take(entry)), None));
            prop_assert_eq!(all, model.into_iter().map(|(number, count)| (source(number), count)).collect());
            table.for_each(|_, entry| assert_eq!(*entry, 0, "changed where it is"));
        }

        /// Entries that have to stay are never forgotten, and of the others the oldest goes.
        #[test]
        fn f9_what_has_to_stay_stays(visits in vec((0..400_u32, any::<bool>()), 0..2_000)) {
            // One bucket, so that every source meets every other.
            let (table, mut model) = (Table::<(u64, bool)>::new(1, [7; 16]), HashMap::<u32, (u64, bool)>::new());
            let age = |entry: &(u64, bool)| (!entry.1).then_some(entry.0);
            for (now, (number, stays)) in (1_u64..).zip(visits) {
                let known = model.contains_key(&number);
                let found = table.with(source(number), age, |entry| std::mem::replace(entry, (now, stays)));
                let oldest = model.iter().filter_map(|(number, entry)| Some((age(entry)?, *number))).min();
                match (known, model.len() < WAYS, oldest) {
                    (true, _, _) => prop_assert_eq!(found.map(|f| (f.result, f.evicted)), Some((model[&number], false))),
                    (false, true, _) => prop_assert_eq!(found.map(|f| (f.result, f.evicted)), Some(((0, false), false))),
                    (false, false, Some((_, oldest))) => {
                        model.remove(&oldest);
                        prop_assert_eq!(found.map(|f| (f.result, f.evicted)), Some(((0, false), true)));
                    }
                    (false, false, None) => {
                        prop_assert_eq!(found, None);
                        continue;
                    }
                }
                model.insert(number, (now, stays));
            }
        }
    }

    /// Sources that are chosen so that they would meet in one bucket under another key are spread like any others.
    #[test]
    fn f9_keys_that_collide_under_another_key_are_spread() {
        let (known, own) = (Table::<u64>::new(1 << 14, [1; 16]), Table::<u64>::new(1 << 14, [2; 16]));
        let crafted: Vec<_> = (0..4_000_000).map(source).filter(|one| known.bucket_of(*one) == 0).take(2_000).collect();
        assert_eq!(crafted.len(), 2_000);
        let mut buckets = vec![0; own.buckets.len()];
        for one in &crafted {
            buckets[own.bucket_of(*one)] += 1;
        }
        let fullest = buckets.iter().max().unwrap();
        println!("{} sources of one bucket: at most {fullest} in one of {}", crafted.len(), buckets.len());
        assert!(*fullest <= WAYS, "{fullest}");
    }
}
