//! The language of the control channel between the harness and the agent in the model host.
//!
//! A frame is a kind (1 byte), the number of the process it is about (4 bytes), the payload's
//! length (4 bytes), and the payload; numbers are little-endian. The harness chooses the numbers.

use std::io::{self, Read, Write};

/// The name of the virtio-serial port, in QEMU and in `/sys/class/virtio-ports/*/name`.
pub const PORT: &str = "agent";

/// The longest payload: more than this is a broken channel, not a message.
pub const LONGEST: usize = 1 << 20;

/// What a frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the agent: run the payload with `/bin/sh -c`, its input and output pipes.
    Start,
    /// To the agent: the same on a terminal of its own (a pty of 24 lines by 80 columns).
    StartOnTerminal,
    /// To the agent: the payload is input of the process.
    Input,
    /// To the agent: no more input; a terminal is hung up.
    EndOfInput,
    /// To the agent: send the process the signal whose number is the payload's one byte.
    Signal,
    /// From the agent: it is there.
    Hello,
    /// From the agent: the process runs; the payload is its process id, 4 bytes.
    Started,
    /// From the agent: the process wrote this to its standard output or terminal.
    Output,
    /// From the agent: the process wrote this to its standard error.
    Error,
    /// From the agent: the process ended; the payload is its exit status, 4 bytes, or 128 and
    /// the number of the signal that killed it.
    Exited,
}

const KINDS: [Kind; 10] = [
    Kind::Start,
    Kind::StartOnTerminal,
    Kind::Input,
    Kind::EndOfInput,
    Kind::Signal,
    Kind::Hello,
    Kind::Started,
    Kind::Output,
    Kind::Error,
    Kind::Exited,
];

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: Kind,
    /// The process it is about.
    pub process: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame about `process`.
    pub fn new(kind: Kind, process: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, process, payload: payload.into() }
    }

    /// The payload as a number, for the kinds that carry one.
    pub fn number(&self) -> Option<u32> {
        self.payload.as_slice().try_into().ok().map(u32::from_le_bytes)
    }

    /// Writes the frame in one piece, so that writers that share a channel under a lock never
    /// leave half a frame behind when one of them fails before it begins.
    ///
    /// # Errors
    ///
    /// What the channel refused it with; `InvalidInput` for a payload longer than [`LONGEST`].
    pub fn write_to(&self, channel: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(self.payload.len())
            .ok()
            .filter(|_| self.payload.len() <= LONGEST)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "payload too long"))?;
        let kind = KINDS.iter().position(|&kind| kind == self.kind).unwrap_or_default();
        let mut bytes = Vec::with_capacity(9 + self.payload.len());
        bytes.push(u8::try_from(kind).unwrap_or_default());
        bytes.extend_from_slice(&self.process.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        channel.write_all(&bytes)
    }

    /// Reads the next frame.
    ///
    /// # Errors
    ///
    /// What reading failed with; `InvalidData` for a kind that doesn't exist or a payload longer
    /// than [`LONGEST`].
    pub fn read_from(channel: &mut impl Read) -> io::Result<Self> {
        let mut kind = [0; 1];
        let mut number = [0; 4];
        channel.read_exact(&mut kind)?;
        let kind = KINDS.get(usize::from(kind[0])).copied().ok_or_else(|| invalid("kind"))?;
        channel.read_exact(&mut number)?;
        let process = u32::from_le_bytes(number);
        channel.read_exact(&mut number)?;
        let length = usize::try_from(u32::from_le_bytes(number))
            .ok()
            .filter(|&length| length <= LONGEST)
            .ok_or_else(|| invalid("length"))?;
        let mut payload = vec![0; length];
        channel.read_exact(&mut payload)?;
        Ok(Self { kind, process, payload })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame's {what} makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::{Frame, KINDS, Kind, LONGEST};
    use std::io;

    #[test]
    fn every_kind_survives_the_channel() {
        for kind in KINDS {
            let frame = Frame::new(kind, 7, *b"abc");
            let mut bytes = Vec::new();
            frame.write_to(&mut bytes).expect("writing to memory");
            assert_eq!(Frame::read_from(&mut bytes.as_slice()).expect("reading"), frame);
        }
    }

    #[test]
    fn invalid_frames_are_refused() {
        for (bytes, kind) in [
            (&b"\xff\0\0\0\0\0\0\0\0"[..], io::ErrorKind::InvalidData),
            (&b"\0\0\0\0\0\xff\xff\xff\xff"[..], io::ErrorKind::InvalidData),
            (&b"\0\0\0"[..], io::ErrorKind::UnexpectedEof),
            (&b"\0\0\0\0\0\x02\0\0\0x"[..], io::ErrorKind::UnexpectedEof),
        ] {
            let error = Frame::read_from(&mut &bytes[..]).expect_err("nonsense");
            assert_eq!(error.kind(), kind, "{bytes:?}");
        }
    }

    #[test]
    fn a_payload_too_long_is_not_sent() {
        let mut bytes = Vec::new();
        let frame = Frame::new(Kind::Input, 1, vec![0; LONGEST + 1]);
        assert!(frame.write_to(&mut bytes).is_err());
        assert!(bytes.is_empty());
    }
}
