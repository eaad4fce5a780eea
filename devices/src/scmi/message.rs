//! Messages: a header and 32-bit words (DEN0056E, 4.1).

/// The longest name in bytes: 16 with the zero at its end.
pub const MAX_NAME: usize = 15;

/// Commands that every protocol has, by their numbers.
const VERSION: u8 = 0x0;
const ATTRIBUTES: u8 = 0x1;
const MESSAGE_ATTRIBUTES: u8 = 0x2;

/// What a message is answered with: words behind the status, or another status than success.
pub(super) type Answer = Result<Vec<u32>, Status>;

/// Why a message has no answer (DEN0056E, 4.1.4 "Status codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Success,
    NotSupported,
    InvalidParameters,
    Denied,
    NotFound,
    HardwareError,
    ProtocolError,
}

impl Status {
    /// The number that the guest reads, of two's complement.
    pub(super) fn code(self) -> u32 {
        let code: i32 = match self {
            Self::Success => 0,
            Self::NotSupported => -1,
            Self::InvalidParameters => -2,
            Self::Denied => -3,
            Self::NotFound => -4,
            Self::HardwareError => -9,
            Self::ProtocolError => -10,
        };
        code.cast_unsigned()
    }
}

/// The protocols that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Base,
    Power,
    Clock,
    Reset,
}

impl Protocol {
    /// Its number.
    pub(super) fn id(self) -> u8 {
        match self {
            Self::Base => 0x10,
            Self::Power => 0x11,
            Self::Clock => 0x14,
            Self::Reset => 0x16,
        }
    }

    /// Its version: the oldest that has all there is, since Linux takes those older than itself, and not
    /// always newer ones.
    fn version(self) -> u32 {
        match self {
            Self::Reset => 0x1_0000,
            Self::Base | Self::Power | Self::Clock => 0x2_0000,
        }
    }
}

/// A message's header: which command it is in bits 7 to 0, of which type in 9 and 8, of which protocol in
/// 17 to 10. The rest is the guest's (DEN0056E, 4.1.2 "Message headers").
#[derive(Clone, Copy, Debug)]
pub(super) struct Header(pub(super) u32);

/// A message of the guest.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) header: Header,
    pub(super) arguments: Vec<u32>,
}

impl Request {
    /// Which protocol it is of.
    ///
    /// # Errors
    ///
    /// It is no command, or of a protocol that isn't there.
    pub(super) fn protocol(&self) -> Result<Protocol, Status> {
        const COMMAND: u32 = 0;
        if self.header.0 >> 8 & 3 != COMMAND {
            return Err(Status::ProtocolError);
        }
        let id = self.header.0 >> 10 & 0xff;
        let all = [Protocol::Base, Protocol::Power, Protocol::Clock, Protocol::Reset];
        let protocol = all.into_iter().find(|protocol| u32::from(protocol.id()) == id);
        protocol.ok_or(Status::NotSupported)
    }

    /// Which command it is.
    pub(super) fn command(&self) -> u8 {
        let [command, ..] = self.header.0.to_le_bytes();
        command
    }

    /// An argument.
    ///
    /// # Errors
    ///
    /// There are fewer.
    pub(super) fn argument(&self, index: usize) -> Result<u32, Status> {
        self.arguments.get(index).copied().ok_or(Status::ProtocolError)
    }

    /// What the argument at `index` names in `all`.
    ///
    /// # Errors
    ///
    /// Nothing.
    pub(super) fn named<'a, T>(&self, index: usize, all: &'a [T]) -> Result<&'a T, Status> {
        let number = usize::try_from(self.argument(index)?).unwrap_or(usize::MAX);
        all.get(number).ok_or(Status::NotFound)
    }

    /// The answer to what every protocol is asked; `attributes` are what it says of itself, and `commands` those
    /// that it has of its own.
    pub(super) fn common(
        &self,
        protocol: Protocol,
        commands: &[u8],
        attributes: Vec<u32>,
    ) -> Option<Answer> {
        Some(match self.command() {
            VERSION => Ok(vec![protocol.version()]),
            ATTRIBUTES => Ok(attributes),
            MESSAGE_ATTRIBUTES => self.argument(0).and_then(|command| {
                let common = [VERSION, ATTRIBUTES, MESSAGE_ATTRIBUTES];
                let mut known = common.iter().chain(commands);
                let is_known = known.any(|known| u32::from(*known) == command);
                is_known.then(|| vec![0]).ok_or(Status::NotFound)
            }),
            command if !commands.contains(&command) => Err(Status::NotSupported),
            _ => return None,
        })
    }
}

/// A name of at most [`MAX_NAME`] bytes for what has this number, which no other has: a guest's kernel has
/// its clocks by their names.
pub fn numbered_name(name: &str, number: u32) -> String {
    let number = format!(".{number}");
    let room = MAX_NAME.saturating_sub(number.len());
    let name = name.chars().filter(char::is_ascii_graphic).take(room);
    name.chain(number.chars()).collect()
}

/// A name as messages have it: 16 bytes, cut off where it is too long, the rest zero.
pub(super) fn name_words(name: &str) -> [u32; 4] {
    let mut bytes = [0; MAX_NAME + 1];
    for (byte, of_name) in bytes.iter_mut().zip(name.bytes().take(MAX_NAME)) {
        *byte = of_name;
    }
    let (words, _) = bytes.as_chunks();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    [(); 4].map(|()| words.next().unwrap_or_default())
}
