//! SCMI, the System Control and Management Interface, by which a guest's kernel asks for the clocks,
//! resets and power domains of its devices: the platform's side of it (Arm DEN0056E, "SCMI Platform
//! Design Document").
//!
//! [`Scmi`] is the platform for one guest, which is the one agent. What the guest can name is what
//! [`Resources`] has, by its number there: nothing of the host's, nor of another guest's. The transport
//! is one area of shared memory, with a call to the hypervisor as its doorbell
//! (Documentation/devicetree/bindings/firmware/arm,scmi.yaml, `arm,scmi-smc`).
//!
//! The area isn't RAM: the guest's accesses to it trap. So a message can't change while it is read, and
//! a guest that maps the area as a device's registers, as Linux does, sees what was written whatever
//! the caches do: where a CPU has no FEAT_S2FWB, it would go past them.

mod base;
mod channel;
mod clock;
mod message;
mod node;
mod power;
mod reset;

use std::sync::{Arc, Mutex};

use channel::Channel;
use message::{Answer, Protocol, Request, Status};

use crate::bus::{Action, SharedDevice};
use crate::ratelimit::LogLimit;
use crate::sync::lock;

pub use clock::Clock;
pub use message::{MAX_NAME, numbered_name};
pub use node::{CLOCKS, POWER_DOMAINS, RESETS, nodes};
pub use power::PowerDomain;
pub use reset::{Reset, ResetDomain};

/// The size of the shared memory in bytes.
pub const SIZE: u64 = channel::SIZE as u64;

/// What the guest's devices need of the host: what it can name, by the numbers of these lists.
#[derive(Default)]
pub struct Resources {
    /// Clocks.
    pub clocks: Vec<Clock>,
    /// Reset domains.
    pub resets: Vec<ResetDomain>,
    /// Power domains.
    pub power_domains: Vec<PowerDomain>,
}

impl Resources {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.clocks.is_empty() && self.resets.is_empty() && self.power_domains.is_empty()
    }

    /// The protocols for what there is, but for the base protocol.
    fn protocols(&self) -> impl Iterator<Item = Protocol> {
        let offered = [
            (Protocol::Power, !self.power_domains.is_empty()),
            (Protocol::Clock, !self.clocks.is_empty()),
            (Protocol::Reset, !self.resets.is_empty()),
        ];
        offered.into_iter().filter_map(|(protocol, offered)| offered.then_some(protocol))
    }
}

/// The platform: what the guest's shared memory is, and who answers the messages in it.
pub struct Scmi {
    channel: Mutex<Channel>,
    resources: Resources,
    log: LogLimit,
}

impl Scmi {
    /// The platform of a guest with these resources.
    pub fn new(resources: Resources) -> Arc<Self> {
        let channel = Mutex::default();
        Arc::new(Self { channel, resources, log: LogLimit::new("SCMI") })
    }

    /// What the guest can name.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// As [`ring_noting`](Self::ring_noting), and nobody is told.
    pub fn ring(&self) -> bool {
        self.ring_noting(&|_| ())
    }

    /// The guest rings: answers the message in the shared memory. Says whether there was one, which the
    /// guest has marked the channel busy for. A call that names something is handed to `note`.
    pub fn ring_noting(&self, note: &dyn Fn(Call)) -> bool {
        // Nothing is locked while a device is reset: another vCPU may look whether the channel is free.
        let Some(request) = lock(&self.channel).take() else { return false };
        let answer = request.and_then(|request| {
            let answer = self.answer(&request);
            Call::of(&request, &answer).into_iter().for_each(note);
            answer
        });
        lock(&self.channel).answer(&answer);
        true
    }

    fn answer(&self, request: &Request) -> Answer {
        let protocol = request.protocol()?;
        if protocol != Protocol::Base && !self.resources.protocols().any(|p| p == protocol) {
            return Err(Status::NotSupported);
        }
        if let Some(answer) =
            request.common(protocol, commands(protocol), self.attributes(protocol))
        {
            return answer;
        }
        match protocol {
            Protocol::Base => base::answer(request, &self.resources),
            Protocol::Clock => clock::answer(request, &self.resources.clocks, &self.log),
            Protocol::Reset => reset::answer(request, &self.resources.resets, &self.log),
            Protocol::Power => power::answer(request, &self.resources.power_domains),
        }
    }

    /// What PROTOCOL_ATTRIBUTES answers.
    fn attributes(&self, protocol: Protocol) -> Vec<u32> {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        match protocol {
            Protocol::Base => base::attributes(&self.resources),
            Protocol::Clock => vec![count(self.resources.clocks.len())],
            Protocol::Reset => vec![count(self.resources.resets.len())],
            // No statistics: their address and their size are 0.
            Protocol::Power => vec![count(self.resources.power_domains.len()), 0, 0, 0],
        }
    }
}

/// A call of the guest's that names a clock, a reset or a power domain, with how it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    protocol: Protocol,
    command: u8,
    /// Which one it names, of its kind.
    pub number: u32,
    /// The argument behind that: the low half of a rate, attributes, flags or a state.
    pub argument: u32,
    /// The status of the answer: 0, or a negative number (DEN0056E, 4.1.4).
    pub status: i32,
}

impl Call {
    fn of(request: &Request, answer: &Answer) -> Option<Self> {
        let (protocol, command) = (request.protocol().ok()?, request.command());
        if !commands(protocol).contains(&command) {
            return None;
        }
        let at = match protocol {
            Protocol::Base => return None,
            Protocol::Clock => clock::number_at(command),
            Protocol::Power => power::number_at(command),
            Protocol::Reset => 0,
        };
        let argument = request.argument(at.saturating_add(1)).unwrap_or_default();
        let status = answer.as_ref().map_or_else(|status| *status, |_| Status::Success);
        let (number, status) = (request.argument(at).ok()?, status.code().cast_signed());
        Some(Self { protocol, command, number, argument, status })
    }

    /// What kind of thing it names, as in [`Resources`], and what it asks for, as DEN0056E has it.
    pub fn words(&self) -> (&'static str, &'static str) {
        let (kind, names) = match self.protocol {
            Protocol::Base => ("base", BASE_NAMES),
            Protocol::Clock => ("clock", clock::NAMES),
            Protocol::Reset => ("reset", reset::NAMES),
            Protocol::Power => ("power domain", power::NAMES),
        };
        let at = commands(self.protocol).iter().position(|command| *command == self.command);
        (kind, at.and_then(|at| names.get(at)).copied().unwrap_or_default())
    }

    /// The name in the guest of what it names.
    pub fn name_in<'a>(&self, resources: &'a Resources) -> Option<&'a str> {
        let number = usize::try_from(self.number).ok()?;
        match self.protocol {
            Protocol::Base => None,
            Protocol::Clock => resources.clocks.get(number).map(|clock| clock.name.as_str()),
            Protocol::Reset => resources.resets.get(number).map(|reset| reset.name.as_str()),
            Protocol::Power => resources.power_domains.get(number).map(PowerDomain::name),
        }
    }
}

/// None of the base protocol's calls names anything.
const BASE_NAMES: &[&str] = &[];

/// The commands that a protocol has of its own.
fn commands(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Base => base::COMMANDS,
        Protocol::Power => power::COMMANDS,
        Protocol::Clock => clock::COMMANDS,
        Protocol::Reset => reset::COMMANDS,
    }
}

impl SharedDevice for Scmi {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.channel).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        lock(&self.channel).write(offset, data);
        Action::None
    }

    fn reset(&self) {
        *lock(&self.channel) = Channel::default();
        self.resources.power_domains.iter().for_each(PowerDomain::reset);
    }
}

#[cfg(test)]
mod tests;
