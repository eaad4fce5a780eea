//! The reset protocol: a domain is a device of the guest's, which is reset as strait can (DEN0056E, 4.8,
//! version 1.0).

use std::sync::Arc;

use super::message::{Answer, Request, Status, name_words};
use crate::ratelimit::LogLimit;

const ATTRIBUTES: u8 = 0x3;
const RESET: u8 = 0x4;

pub(super) const COMMANDS: &[u8] = &[ATTRIBUTES, RESET];

/// What they are called, in that order.
pub(super) const NAMES: &[&str] = &["RESET_DOMAIN_ATTRIBUTES", "RESET"];

/// Of the flags of RESET: do all of it; else begin it, or, without, end it.
const AUTONOMOUS: u32 = 1 << 0;
const ASSERT: u32 = 1 << 1;

/// Of the states of RESET: one that the vendor defines. The others say what is lost, which is all.
const VENDOR_STATE: u32 = 1 << 31;

/// Resets a device.
pub trait Reset: Send + Sync {
    /// Resets it. A vCPU waits for that.
    ///
    /// # Errors
    ///
    /// Why it isn't.
    fn reset(&self) -> Result<(), String>;
}

/// A device that can be reset.
pub struct ResetDomain {
    /// Its name in the guest, of at most [`MAX_NAME`](super::MAX_NAME) bytes, and no other's.
    pub name: String,
    /// What it is of, for the log.
    pub of: String,
    /// The device.
    pub device: Arc<dyn Reset>,
}

pub(super) fn answer(request: &Request, domains: &[ResetDomain], log: &LogLimit) -> Answer {
    let domain = request.named(0, domains)?;
    match request.command() {
        ATTRIBUTES => {
            const LATENCY_UNKNOWN: u32 = u32::MAX;
            let words = [0, LATENCY_UNKNOWN].into_iter();
            Ok(words.chain(name_words(&domain.name)).collect())
        }
        RESET => {
            let (flags, state) = (request.argument(1)?, request.argument(2)?);
            if flags & !(AUTONOMOUS | ASSERT) != 0 || state & VENDOR_STATE != 0 {
                return Err(Status::InvalidParameters);
            }
            // It is out of reset already: it was when that began.
            if flags == 0 {
                return Ok(Vec::new());
            }
            domain.device.reset().map_err(|error| {
                log.error(format_args!("{} wasn't reset: {error}", domain.of));
                Status::HardwareError
            })?;
            log.debug(format_args!("{} was reset", domain.of));
            Ok(Vec::new())
        }
        _ => Err(Status::NotSupported),
    }
}
