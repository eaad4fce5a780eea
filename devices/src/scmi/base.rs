//! The base protocol: who the platform and its agents are, and which protocols there are (DEN0056E, 4.2).

use super::Resources;
use super::message::{Answer, Protocol, Request, Status, name_words};

const DISCOVER_VENDOR: u8 = 0x3;
const DISCOVER_SUB_VENDOR: u8 = 0x4;
const DISCOVER_IMPLEMENTATION_VERSION: u8 = 0x5;
const DISCOVER_LIST_PROTOCOLS: u8 = 0x6;
const DISCOVER_AGENT: u8 = 0x7;

pub(super) const COMMANDS: &[u8] = &[
    DISCOVER_VENDOR,
    DISCOVER_SUB_VENDOR,
    DISCOVER_IMPLEMENTATION_VERSION,
    DISCOVER_LIST_PROTOCOLS,
    DISCOVER_AGENT,
];

/// The guest is the one agent; the platform isn't counted.
const AGENTS: u32 = 1;

/// The guest's number, and what it may call itself.
const GUEST: u32 = 1;
const CALLER: u32 = u32::MAX;

/// How many protocols there are in bits 7 to 0, agents in 15 to 8.
pub(super) fn attributes(resources: &Resources) -> Vec<u32> {
    let protocols = u32::try_from(resources.protocols().count()).unwrap_or_default();
    vec![AGENTS << 8 | protocols]
}

pub(super) fn answer(request: &Request, resources: &Resources) -> Answer {
    match request.command() {
        DISCOVER_VENDOR => Ok(name_words("strait").to_vec()),
        DISCOVER_SUB_VENDOR => Ok(name_words("KVM").to_vec()),
        DISCOVER_IMPLEMENTATION_VERSION => Ok(vec![1]),
        DISCOVER_LIST_PROTOCOLS => {
            let skipped = usize::try_from(request.argument(0)?).unwrap_or(usize::MAX);
            let ids: Vec<u8> = resources.protocols().map(Protocol::id).collect();
            let left = ids.get(skipped..).ok_or(Status::InvalidParameters)?;
            let count = u32::try_from(left.len()).unwrap_or_default();
            let words = left
                .chunks(size_of::<u32>())
                .map(|ids| ids.iter().rev().fold(0, |word, id| word << 8 | u32::from(*id)));
            Ok([count].into_iter().chain(words).collect())
        }
        DISCOVER_AGENT => {
            let (agent, name) = match request.argument(0)? {
                0 => (0, "strait"),
                GUEST | CALLER => (GUEST, "guest"),
                _ => return Err(Status::NotFound),
            };
            Ok([agent].into_iter().chain(name_words(name)).collect())
        }
        _ => Err(Status::NotSupported),
    }
}
