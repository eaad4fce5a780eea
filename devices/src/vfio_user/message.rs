//! Messages: their header, their commands, and the payloads that strait sends.
//!
//! All numbers are in the machine's own byte order: both sides are on it.

/// The size of a message's header in bytes.
pub(super) const HEADER_SIZE: usize = 16;

/// The most data that one message may carry to or from this side, in bytes; what `max_data_xfer_size`
/// tells the server.
pub(super) const MAX_DATA: usize = 64 << 10;

/// The most that follows the header of a request of the server's or of an error reply, in bytes: that
/// much data behind their address and size.
pub(super) const MAX_PAYLOAD: usize = 16 + MAX_DATA;

/// The most descriptors that one message may carry to this side; what `max_msg_fds` tells the
/// server.
pub(super) const MAX_FDS: usize = 16;

/// Set in the message IDs of commands without a reply.
pub(super) const NO_REPLY_ID: u16 = 0x8000;

/// A command ("Commands" in the specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its number in a header.
    pub(super) number: u16,
    /// Its name in the specification.
    pub(super) name: &'static str,
}

impl Command {
    pub(super) const VERSION: Self = Self::new(1, "VFIO_USER_VERSION");
    pub(super) const DMA_MAP: Self = Self::new(2, "VFIO_USER_DMA_MAP");
    pub(super) const DMA_UNMAP: Self = Self::new(3, "VFIO_USER_DMA_UNMAP");
    pub(super) const GET_INFO: Self = Self::new(4, "VFIO_USER_DEVICE_GET_INFO");
    pub(super) const GET_REGION_INFO: Self = Self::new(5, "VFIO_USER_DEVICE_GET_REGION_INFO");
    pub(super) const GET_IRQ_INFO: Self = Self::new(7, "VFIO_USER_DEVICE_GET_IRQ_INFO");
    pub(super) const SET_IRQS: Self = Self::new(8, "VFIO_USER_DEVICE_SET_IRQS");
    pub(super) const REGION_READ: Self = Self::new(9, "VFIO_USER_REGION_READ");
    pub(super) const REGION_WRITE: Self = Self::new(10, "VFIO_USER_REGION_WRITE");
    pub(super) const DMA_READ: Self = Self::new(11, "VFIO_USER_DMA_READ");
    pub(super) const DMA_WRITE: Self = Self::new(12, "VFIO_USER_DMA_WRITE");
    pub(super) const RESET: Self = Self::new(13, "VFIO_USER_DEVICE_RESET");

    const fn new(number: u16, name: &'static str) -> Self {
        Self { number, name }
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
    /// A command that is to be replied to.
    Command,
    /// A command without a reply.
    CommandNoReply,
    /// A reply.
    Reply,
    /// A reply with an error number (`errno`), which may be 0.
    ErrorReply(u32),
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
            Kind::CommandNoReply => (TYPE_COMMAND | NO_REPLY, 0),
            Kind::Reply => (TYPE_REPLY, 0),
            Kind::ErrorReply(error) => (TYPE_REPLY | ERROR, error),
        };
        let mut bytes = [0; HEADER_SIZE];
        let ids = [self.id, self.command].map(u16::to_ne_bytes);
        let words = [size, flags, error].map(u32::to_ne_bytes);
        let all = ids.as_flattened().iter().chain(words.as_flattened());
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        Some(bytes)
    }

    /// Reads a header; the error says what in it is invalid.
    pub(super) fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        let [id, command] = [reader.u16(), reader.u16()].map(Option::unwrap_or_default);
        let [size, flags, error] = reader.u32s().unwrap_or_default();
        let payload = usize::try_from(size).ok().and_then(|size| size.checked_sub(HEADER_SIZE));
        let payload = payload.ok_or_else(|| format!("a message of {size} bytes"))?;
        let kind = match (flags & TYPE_MASK, flags & NO_REPLY != 0, flags & ERROR != 0) {
            (TYPE_COMMAND, false, _) => Kind::Command,
            (TYPE_COMMAND, true, _) => Kind::CommandNoReply,
            (TYPE_REPLY, _, false) => Kind::Reply,
            (TYPE_REPLY, _, true) => Kind::ErrorReply(error),
            _ => return Err(format!("a message with flags {flags:#x}")),
        };
        Ok(Self { id, command, payload, kind })
    }
}

/// A payload that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Payload(pub(super) Vec<u8>);

impl Payload {
    pub(super) fn u32s(mut self, values: &[u32]) -> Self {
        values.iter().for_each(|value| self.0.extend(value.to_ne_bytes()));
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

    pub(super) fn u32s<const N: usize>(&mut self) -> Option<[u32; N]> {
        let (chunks, _) = self.0.as_chunks::<4>();
        let values = chunks.first_chunk::<N>()?.map(u32::from_ne_bytes);
        self.0 = self.0.get(size_of_val(&values)..)?;
        Some(values)
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
    fn headers_follow_the_specification() {
        let cases = [
            (Kind::Command, 0, 0),
            (Kind::CommandNoReply, 0x10, 0),
            (Kind::Reply, 1, 0),
            (Kind::ErrorReply(22), 0x21, 22),
        ];
        for (kind, flags, error) in cases {
            let command = Command::REGION_READ.number;
            let header = Header { id: 0x1234, command, payload: 16, kind };
            let bytes = header.to_bytes().unwrap();
            let mut expected = [0x1234u16, 9].map(u16::to_ne_bytes).concat();
            expected.extend([32, flags, error].map(u32::to_ne_bytes).concat());
            assert_eq!(bytes.as_slice(), expected, "{kind:?}");
            assert_eq!(Header::parse(&bytes), Ok(header), "{kind:?}");
        }
    }

    #[test]
    fn invalid_headers_are_refused() {
        for (size, flags) in [(0, 0), (15, 1), (16, 2), (16, 0xf), (u32::MAX, 3)] {
            let words = [0, size, flags, 0].map(u32::to_ne_bytes).concat();
            Header::parse(words.as_slice().try_into().unwrap()).unwrap_err();
        }
        let huge = Header { id: 0, command: 1, payload: usize::MAX, kind: Kind::Command };
        assert_eq!(huge.to_bytes(), None);
    }
}
