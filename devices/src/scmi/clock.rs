//! The clock protocol: the host's clocks, which a guest finds running, at the host's rates (DEN0056E,
//! 4.6, version 2.0).

use super::message::{Answer, Request, Status, name_words};
use crate::ratelimit::LogLimit;

const ATTRIBUTES: u8 = 0x3;
const DESCRIBE_RATES: u8 = 0x4;
const RATE_SET: u8 = 0x5;
const RATE_GET: u8 = 0x6;
const CONFIG_SET: u8 = 0x7;

pub(super) const COMMANDS: &[u8] = &[ATTRIBUTES, DESCRIBE_RATES, RATE_SET, RATE_GET, CONFIG_SET];

/// What they are called, in that order.
pub(super) const NAMES: &[&str] = &[
    "CLOCK_ATTRIBUTES",
    "CLOCK_DESCRIBE_RATES",
    "CLOCK_RATE_SET",
    "CLOCK_RATE_GET",
    "CLOCK_CONFIG_SET",
];

/// Which argument says which clock: RATE_SET has its flags first.
pub(super) fn number_at(command: u8) -> usize {
    usize::from(command == RATE_SET)
}

/// Of the attributes of a clock, and of those that CONFIG_SET gives it: it is enabled.
const ENABLED: u32 = 1 << 0;

/// A clock of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Its name in the guest, of at most [`MAX_NAME`](super::MAX_NAME) bytes, and no other's.
    pub name: String,
    /// What it is of, for the log.
    pub of: String,
    /// Its rate in Hz.
    pub rate: u64,
    /// It is known to be off on the host. The guest can't turn it on.
    pub off: bool,
}

pub(super) fn answer(request: &Request, clocks: &[Clock], log: &LogLimit) -> Answer {
    let clock = request.named(number_at(request.command()), clocks)?;
    match request.command() {
        ATTRIBUTES => {
            const LATENCY_UNKNOWN: u32 = 0;
            let attributes = [if clock.off { 0 } else { ENABLED }];
            let words = attributes.into_iter().chain(name_words(&clock.name));
            Ok(words.chain([LATENCY_UNKNOWN]).collect())
        }
        DESCRIBE_RATES => {
            // A list of one, from the index on that the guest asks for.
            let list = if request.argument(1)? == 0 { Some(clock.rate) } else { None };
            let count = u32::from(list.is_some());
            Ok([count].into_iter().chain(list.into_iter().flat_map(halves)).collect())
        }
        RATE_GET => Ok(halves(clock.rate).to_vec()),
        RATE_SET => {
            let (low, high) = (request.argument(2)?, request.argument(3)?);
            let wanted = u64::from(high) << 32 | u64::from(low);
            if wanted == clock.rate {
                return Ok(Vec::new());
            }
            log.warn(format_args!(
                "{} stays at {} Hz, as the host has it: the guest asked for {wanted}",
                clock.of, clock.rate
            ));
            Err(Status::Denied)
        }
        CONFIG_SET => {
            if request.argument(1)? & ENABLED != 0 && clock.off {
                log.warn(format_args!(
                    "{} is off on the host, and the guest can't turn it on",
                    clock.of
                ));
                return Err(Status::Denied);
            }
            // What a guest turns off runs on: the host may use it too.
            Ok(Vec::new())
        }
        _ => Err(Status::NotSupported),
    }
}

/// A 64-bit number as two words, the low one first.
fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    [value as u32, (value >> 32) as u32]
}
