//! The power domain protocol: the host keeps them on (DEN0056E, 4.3, version 2.0).

use std::sync::atomic::{AtomicU32, Ordering};

use super::message::{Answer, Request, Status, name_words};

const ATTRIBUTES: u8 = 0x3;
const STATE_SET: u8 = 0x4;
const STATE_GET: u8 = 0x5;

pub(super) const COMMANDS: &[u8] = &[ATTRIBUTES, STATE_SET, STATE_GET];

/// What they are called, in that order.
pub(super) const NAMES: &[&str] =
    &["POWER_DOMAIN_ATTRIBUTES", "POWER_STATE_SET", "POWER_STATE_GET"];

/// Which argument says which domain: STATE_SET has its flags first.
pub(super) fn number_at(command: u8) -> usize {
    usize::from(command == STATE_SET)
}

/// The states: on; off, and what was in it lost.
const ON: u32 = 0;
const OFF: u32 = 1 << 30;

/// Of a domain's attributes: its state can be set at once.
const SYNCHRONOUS: u32 = 1 << 29;

/// A power domain of the host's. It stays on: what the guest sets is what it reads back, since Linux
/// looks whether it was obeyed.
#[derive(Debug)]
pub struct PowerDomain {
    name: String,
    state: AtomicU32,
}

impl PowerDomain {
    /// One with this name in the guest, of at most [`MAX_NAME`](super::MAX_NAME) bytes, and no other's.
    pub fn new(name: String) -> Self {
        Self { name, state: AtomicU32::new(ON) }
    }

    /// Has it as it is at first.
    pub(super) fn reset(&self) {
        self.state.store(ON, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

pub(super) fn answer(request: &Request, domains: &[PowerDomain]) -> Answer {
    let domain = request.named(number_at(request.command()), domains)?;
    match request.command() {
        ATTRIBUTES => Ok([SYNCHRONOUS].into_iter().chain(name_words(&domain.name)).collect()),
        STATE_SET => {
            let state = request.argument(2)?;
            if !matches!(state, ON | OFF) {
                return Err(Status::InvalidParameters);
            }
            domain.state.store(state, Ordering::Relaxed);
            Ok(Vec::new())
        }
        STATE_GET => Ok(vec![domain.state.load(Ordering::Relaxed)]),
        _ => Err(Status::NotSupported),
    }
}
