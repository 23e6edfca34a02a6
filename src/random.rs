//! Drawn numbers for tests and benchmarks: the same from the same seed.

/// `SplitMix64`.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if there is none.
    pub fn below<T: TryFrom<u64> + Default>(&mut self, end: T) -> T
    where
        u64: TryFrom<T>,
    {
        let end = u64::try_from(end).unwrap_or_default().max(1);
        T::try_from(self.draw() % end).unwrap_or_default()
    }
}
