//! The whole address space of one family as sorted, disjoint ranges, each with the number of its class.

/// Ranges per block. 16 starts are one cache line for IPv4 and four for IPv6, which the processor fetches at once; halving
/// the whole table instead would wait for memory some ten times in a row.
const BLOCK: usize = 16;

/// An address as a number.
pub trait Bits: Copy + Ord {
    const ZERO: Self;
    const LAST: Self;
    /// The last address of the network that starts here.
    fn last_of(self, prefix: u8) -> Self;
    /// `None` after the last address of all.
    fn next(self) -> Option<Self>;
    /// The first address has none, and is its own.
    fn before(self) -> Self;
}

impl Bits for u32 {
    const ZERO: Self = 0;
    const LAST: Self = Self::MAX;

    fn last_of(self, prefix: u8) -> Self {
        self | Self::MAX.checked_shr(prefix.into()).unwrap_or(0)
    }

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Self {
        self.saturating_sub(1)
    }
}

impl Bits for u128 {
    const ZERO: Self = 0;
    const LAST: Self = Self::MAX;

    fn last_of(self, prefix: u8) -> Self {
        self | Self::MAX.checked_shr(prefix.into()).unwrap_or(0)
    }

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Self {
        self.saturating_sub(1)
    }
}

/// One network of one rule. The order of the fields is the order of the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry<A> {
    pub first: A,
    pub prefix: u8,
    pub rule: u16,
}

/// Immutable. At most two ranges per network, because a network splits the range it falls in.
///
/// The shape is a B+ tree without pointers: children of the block at `i` are the blocks from `i * BLOCK` of the next level.
#[derive(Debug, PartialEq, Eq)]
pub struct Ranges<A> {
    /// Each level samples the first start of every block of the one after it, the last level samples `blocks`; the first
    /// is a single block. All but the largest stay in the processor's caches.
    index: Vec<Vec<[A; BLOCK]>>,
    blocks: Vec<Block<A>>,
    /// Ranges in `blocks`.
    len: usize,
}

/// Ranges in order. The end of the last block is filled up with its last range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
struct Block<A> {
    /// First address of each range, ascending, the very first one zero; a range ends before the next.
    starts: [A; BLOCK],
    /// The class of each range, beside its start so that finding both waits for memory once.
    classes: [u32; BLOCK],
}

impl<A: Bits> Ranges<A> {
    /// Addresses outside every entry are of class `outside`; `refined` names the class of a network from the class around
    /// it and the entries (all of the same network) that make it.
    ///
    /// Networks are nested or apart, never crossing, so one pass over them in order with a stack of the open ones sees
    /// every boundary: sort, then linear time.
    pub fn build(mut entries: Vec<Entry<A>>, outside: u32, mut refined: impl FnMut(u32, &[Entry<A>]) -> u32) -> Self {
        entries.sort_unstable();
        let mut sweep = Sweep::new(outside, entries.len());
        for network in entries.chunk_by(|a, b| (a.first, a.prefix) == (b.first, b.prefix)) {
            let Some(Entry { first, prefix, .. }) = network.first().copied() else { continue };
            sweep.close_before(Some(first));
            let around = sweep.class();
            let class = refined(around, network);
            if class != around {
                sweep.open(first, first.last_of(prefix), class);
            }
        }
        sweep.close_before(None);
        drop(entries);
        sweep.finish()
    }

    /// The class of an address.
    pub fn class_of(&self, address: A) -> u32 {
        let mut at = 0;
        for level in &self.index {
            let (at_most, starts) = child(level, at);
            at = at_most * BLOCK + starts.map_or(0, |starts| place(starts, address));
        }
        let (_, block) = child(&self.blocks, at);
        block.and_then(|block| block.classes.get(place(&block.starts, address))).copied().unwrap_or(0)
    }

    /// The class of every range that has an address from `first` to `last`; the same one comes several times.
    pub fn classes_between(&self, first: A, last: A) -> impl Iterator<Item = u32> {
        let at = self.blocks.partition_point(|block| block.starts[0] <= first).saturating_sub(1);
        let blocks = self.blocks.get(at..).unwrap_or_default();
        let ranges = blocks.iter().flat_map(|block| block.starts.into_iter().zip(block.classes));
        let later = ranges.skip_while(move |(start, _)| *start <= first).take_while(move |(start, _)| *start <= last);
        std::iter::once(self.class_of(first)).chain(later.map(|(_, class)| class))
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The class of every range; the same one comes many times.
    pub fn classes(&self) -> impl Iterator<Item = u32> {
        // What fills up the last block repeats its last range.
        self.blocks.iter().flat_map(|block| block.classes)
    }

    /// Every range: its first and its last address and its class, in order.
    pub fn iter(&self) -> impl Iterator<Item = (A, A, u32)> {
        let all = || self.blocks.iter().flat_map(|block| block.starts.into_iter().zip(block.classes)).take(self.len);
        let lasts = all().skip(1).map(|(next, _)| next.before()).chain([A::LAST]);
        all().zip(lasts).map(|((first, class), last)| (first, last, class))
    }

    pub fn heap_bytes(&self) -> usize {
        let index: usize = self.index.iter().map(Vec::capacity).sum();
        index * size_of::<[A; BLOCK]>() + self.blocks.capacity() * size_of::<Block<A>>()
    }
}

/// The block at `at`, or the last one: the repeated starts at the end of a level lead past it.
fn child<T>(level: &[T], at: usize) -> (usize, Option<&T>) {
    let at = at.min(level.len().saturating_sub(1));
    (at, level.get(at))
}

/// The last start that is not behind `address`. Counting all is faster than stopping: no branch can be guessed wrong.
fn place<A: Bits>(starts: &[A; BLOCK], address: A) -> usize {
    starts.iter().filter(|start| **start <= address).count().saturating_sub(1)
}

/// The pass from the first address to the last.
struct Sweep<A> {
    outside: u32,
    /// Last address and class of the networks that are open, the innermost on top.
    open: Vec<(A, u32)>,
    /// The newest boundary; a later word on the same address replaces it.
    pending: (A, u32),
    writer: Writer<A>,
}

impl<A: Bits> Sweep<A> {
    fn new(outside: u32, entries: usize) -> Self {
        let most = (entries * 2 + 1).div_ceil(BLOCK);
        let writer = Writer { blocks: Vec::with_capacity(most), len: 0, newest: None };
        Self { outside, open: Vec::new(), pending: (A::ZERO, outside), writer }
    }

    /// The class of the innermost open network.
    fn class(&self) -> u32 {
        self.open.last().map_or(self.outside, |(_, class)| *class)
    }

    fn open(&mut self, first: A, last: A, class: u32) {
        self.open.push((last, class));
        self.begin(first, class);
    }

    /// Closes the networks that end before `next`, or all of them.
    fn close_before(&mut self, next: Option<A>) {
        while let Some((last, _)) = self.open.pop_if(|(last, _)| next.is_none_or(|next| *last < next)) {
            if let Some(after) = last.next() {
                self.begin(after, self.class());
            }
        }
    }

    /// From here on the class is `class`. Called with ascending addresses.
    fn begin(&mut self, start: A, class: u32) {
        if self.pending.0 != start {
            self.writer.write(self.pending);
        }
        self.pending = (start, class);
    }

    fn finish(mut self) -> Ranges<A> {
        self.writer.write(self.pending);
        let Writer { mut blocks, len, .. } = self.writer;
        blocks.shrink_to_fit();
        let mut index: Vec<Vec<[A; BLOCK]>> = Vec::new();
        let mut below: Vec<A> = blocks.iter().map(|block| block.starts[0]).collect();
        while below.len() > 1 {
            let level: Vec<[A; BLOCK]> = below.chunks(BLOCK).map(filled_up).collect();
            below = level.iter().map(|starts| starts[0]).collect();
            index.push(level);
        }
        index.reverse();
        Ranges { index, blocks, len }
    }
}

/// Fills blocks with ranges; a range of the same class as the one before it is part of it.
struct Writer<A> {
    blocks: Vec<Block<A>>,
    len: usize,
    /// The class written last.
    newest: Option<u32>,
}

impl<A: Bits> Writer<A> {
    fn write(&mut self, (start, class): (A, u32)) {
        if self.newest == Some(class) {
            return;
        }
        let place = self.len % BLOCK;
        if place == 0 {
            self.blocks.push(Block { starts: [start; BLOCK], classes: [class; BLOCK] });
        } else if let Some(block) = self.blocks.last_mut() {
            block.starts.iter_mut().skip(place).for_each(|slot| *slot = start);
            block.classes.iter_mut().skip(place).for_each(|slot| *slot = class);
        }
        self.len += 1;
        self.newest = Some(class);
    }
}

/// At most `BLOCK` starts, the last one repeated.
fn filled_up<A: Bits>(starts: &[A]) -> [A; BLOCK] {
    let last = starts.last().copied().unwrap_or(A::ZERO);
    let mut block = [last; BLOCK];
    block.iter_mut().zip(starts).for_each(|(slot, start)| *slot = *start);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f3_tables_of_every_size_around_a_block_find_every_address() {
        for count in [0, 1, 7, 8, 9, 127, 128, 129, 2_047, 2_048, 2_049] {
            // Single addresses 2, 6, 10, ...: two ranges each.
            let entries = (0..count).map(|index| Entry { first: index * 4 + 2, prefix: 32, rule: 0 }).collect();
            let ranges = Ranges::<u32>::build(entries, 0, |_, network| network[0].first + 1);
            assert_eq!(ranges.len() as u64, u64::from(count) * 2 + 1);
            for address in (0..count * 4 + 8).chain([u32::MAX]) {
                let inside = address < count * 4 && address % 4 == 2;
                assert_eq!(ranges.class_of(address), if inside { address + 1 } else { 0 }, "{address} of {count}");
            }
        }
    }

    #[test]
    fn the_ranges_are_the_whole_space_in_order() {
        for count in [0, 1, 7, 8, 15, 16, 17, 255, 256] {
            let entries = (0..count).map(|index| Entry { first: index * 4 + 2, prefix: 31, rule: 0 }).collect();
            let ranges = Ranges::<u32>::build(entries, 9, |_, _| 1);
            let all: Vec<_> = ranges.iter().collect();
            assert_eq!(all.len(), ranges.len());
            assert_eq!((all[0].0, all[all.len() - 1].1), (0, u32::MAX));
            assert!(all.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{all:?}");
            assert!(all.iter().all(|(first, last, class)| ranges.class_of(*first) == *class
                && ranges.class_of(*last) == *class
                && (*class == 9 || last - first == 1)));
        }
    }

    #[test]
    fn the_last_address_of_all_ends_a_network() {
        let all = Entry { first: 0, prefix: 0, rule: 0 };
        let last = Entry { first: u128::MAX, prefix: 128, rule: 1 };
        let ranges = Ranges::build(vec![last, all], 0, |around, network| around * 10 + u32::from(network[0].rule) + 1);
        assert_eq!([0, 1, u128::MAX - 1, u128::MAX].map(|address| ranges.class_of(address)), [1, 1, 1, 12]);
    }
}
