//! Little-endian fields of a header that may be cut short.

/// The start of a file: every access is checked.
#[derive(Clone, Copy)]
pub(crate) struct Le<'a>(pub(crate) &'a [u8]);

impl Le<'_> {
    /// The bytes of one field at `offset`.
    fn field<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    /// 16 bits at `offset`.
    pub(crate) fn u16(self, offset: usize) -> Option<u16> {
        self.field(offset).map(u16::from_le_bytes)
    }

    /// 32 bits at `offset`.
    pub(crate) fn u32(self, offset: usize) -> Option<u32> {
        self.field(offset).map(u32::from_le_bytes)
    }

    /// 64 bits at `offset`.
    pub(crate) fn u64(self, offset: usize) -> Option<u64> {
        self.field(offset).map(u64::from_le_bytes)
    }

    /// Whether `magic` is at `offset`.
    pub(crate) fn has(self, offset: usize, magic: &[u8]) -> bool {
        self.0.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    }
}
