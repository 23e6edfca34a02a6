//! CRC-32C (Castagnoli; RFC 3720, appendix B.4), a byte at a time.

const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

/// A checksum in the making.
#[derive(Debug, Clone, Copy)]
pub struct Crc32c(u32);

impl Crc32c {
    pub fn new() -> Self {
        Self(u32::MAX)
    }

    #[expect(clippy::indexing_slicing, reason = "a byte is an index of 256 entries")]
    pub fn add(&mut self, byte: u8) {
        let [low, ..] = self.0.to_le_bytes();
        self.0 = TABLE[usize::from(low ^ byte)] ^ (self.0 >> 8);
    }

    pub fn value(self) -> u32 {
        !self.0
    }
}

/// Of all these bytes.
pub fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    for byte in bytes {
        crc.add(*byte);
    }
    crc.value()
}

#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "counted to 256 when it is compiled")]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let (mut value, mut bit) = (byte as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ REVERSED_POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3720, and the usual check value.
    #[test]
    fn the_checksums_of_the_rfc() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(checksum(&ascending), 0x46dd_794e);
    }
}
