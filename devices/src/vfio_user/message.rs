//! Messages: their header, their commands, and the payloads that strait sends.
//!
//! All numbers are in the machine's own byte order: both sides are on it.

/// The size of a message's header in bytes.
pub(super) const HEADER_SIZE: usize = 16;

/// The most data that one message may carry to or from this side, in bytes; what `max_data_xfer_size`
/// tells the server.
pub(super) const MOST_DATA: usize = 64 << 10;

/// The most that follows the header of a message to this side whose size isn't known by what it
/// answers, in bytes: that much data, behind where they go.
pub(super) const MOST_PAYLOAD: usize = 16 + MOST_DATA;

/// The most descriptors that one message may carry to this side; what `max_msg_fds` tells the
/// server.
pub(super) const MOST_FDS: usize = 16;

/// Set in the identities of messages that want no reply.
pub(super) const NOTICE_ID: u16 = 0x8000;

/// The commands ("Commands" in the specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    GetInfo = 4,
    GetRegionInfo = 5,
    GetIrqInfo = 7,
    SetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    Reset = 13,
}

impl Command {
    /// Its name in the specification.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Version => "VFIO_USER_VERSION",
            Self::DmaMap => "VFIO_USER_DMA_MAP",
            Self::DmaUnmap => "VFIO_USER_DMA_UNMAP",
            Self::GetInfo => "VFIO_USER_DEVICE_GET_INFO",
            Self::GetRegionInfo => "VFIO_USER_DEVICE_GET_REGION_INFO",
            Self::GetIrqInfo => "VFIO_USER_DEVICE_GET_IRQ_INFO",
            Self::SetIrqs => "VFIO_USER_DEVICE_SET_IRQS",
            Self::RegionRead => "VFIO_USER_REGION_READ",
            Self::RegionWrite => "VFIO_USER_REGION_WRITE",
            Self::DmaRead => "VFIO_USER_DMA_READ",
            Self::DmaWrite => "VFIO_USER_DMA_WRITE",
            Self::Reset => "VFIO_USER_DEVICE_RESET",
        }
    }

    /// Its number in a header.
    pub(super) fn number(self) -> u16 {
        self as u16
    }
}

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A command that wants a reply.
    Command,
    /// A command that wants none.
    Notice,
    /// A reply.
    Reply,
    /// A reply that refuses, with an error number (`errno`), which may be 0.
    Refusal(u32),
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: u16,
    /// What follows the header, in bytes.
    pub(super) payload: usize,
    pub(super) kind: Kind,
}

impl Header {
    /// The header's bytes; `None` for a payload whose size doesn't fit.
    pub(super) fn to_bytes(self) -> Option<[u8; HEADER_SIZE]> {
        let size = u32::try_from(self.payload.checked_add(HEADER_SIZE)?).ok()?;
        let (flags, error) = match self.kind {
            Kind::Command => (TYPE_COMMAND, 0),
            Kind::Notice => (TYPE_COMMAND | NO_REPLY, 0),
            Kind::Reply => (TYPE_REPLY, 0),
            Kind::Refusal(error) => (TYPE_REPLY | ERROR, error),
        };
        let mut bytes = [0; HEADER_SIZE];
        let ids = [self.id, self.command].map(u16::to_ne_bytes);
        let words = [size, flags, error].map(u32::to_ne_bytes);
        let all = ids.as_flattened().iter().chain(words.as_flattened());
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        Some(bytes)
    }

    /// Reads a header; the error says what of it makes no sense.
    pub(super) fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        let mut next = || reader.u32().unwrap_or(0);
        let (ids, size, flags, error) = (next(), next(), next(), next());
        let [a, b, c, d] = ids.to_ne_bytes();
        let payload = usize::try_from(size).ok().and_then(|size| size.checked_sub(HEADER_SIZE));
        let payload = payload.ok_or_else(|| format!("a message of {size} bytes"))?;
        let kind = match (flags & TYPE_MASK, flags & NO_REPLY != 0, flags & ERROR != 0) {
            (TYPE_COMMAND, false, _) => Kind::Command,
            (TYPE_COMMAND, true, _) => Kind::Notice,
            (TYPE_REPLY, _, false) => Kind::Reply,
            (TYPE_REPLY, _, true) => Kind::Refusal(error),
            _ => return Err(format!("a message with flags {flags:#x}")),
        };
        let (id, command) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        Ok(Self { id, command, payload, kind })
    }
}

/// A payload that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Payload(pub(super) Vec<u8>);

impl Payload {
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// A payload that is being read: each number is `None` once it is too short.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_what_the_specification_describes() {
        let cases = [
            (Kind::Command, 0, 0),
            (Kind::Notice, 0x10, 0),
            (Kind::Reply, 1, 0),
            (Kind::Refusal(22), 0x21, 22),
        ];
        for (kind, flags, error) in cases {
            let command = Command::RegionRead.number();
            let header = Header { id: 0x1234, command, payload: 16, kind };
            let bytes = header.to_bytes().unwrap();
            let mut expected = [0x1234u16, 9].map(u16::to_ne_bytes).concat();
            expected.extend([32, flags, error].map(u32::to_ne_bytes).concat());
            assert_eq!(bytes.as_slice(), expected, "{kind:?}");
            assert_eq!(Header::parse(&bytes), Ok(header), "{kind:?}");
        }
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        for (size, flags) in [(0, 0), (15, 1), (16, 2), (16, 0xf), (u32::MAX, 3)] {
            let words = [0, size, flags, 0].map(u32::to_ne_bytes).concat();
            Header::parse(words.as_slice().try_into().unwrap()).unwrap_err();
        }
        let huge = Header { id: 0, command: 1, payload: usize::MAX, kind: Kind::Command };
        assert_eq!(huge.to_bytes(), None);
    }
}
