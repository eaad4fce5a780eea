//! Configuration space as it was read from a function.

/// The bytes of a configuration space; what lies beyond them reads as all ones, as from a function
/// that isn't there.
#[derive(Clone, Debug, Default)]
pub struct Image(Vec<u8>);

impl Image {
    /// These bytes, of which there may be 64 to 4096.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// How many bytes there are.
    pub fn size(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// Whether these bytes are there.
    pub fn contains(&self, offset: u16, length: u16) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size())
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: u16) -> u8 {
        self.0.get(usize::from(offset)).copied().unwrap_or(u8::MAX)
    }

    /// The little-endian number at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset.saturating_add(1))])
    }

    /// The little-endian number at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        let (low, high) = (self.u16(offset), self.u16(offset.saturating_add(2)));
        u32::from(high) << 16 | u32::from(low)
    }
}
