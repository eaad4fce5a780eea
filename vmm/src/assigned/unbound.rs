//! Devices that aren't bound to VFIO, planned from their nodes and sysfs: nothing on the host is
//! changed, and nothing runs.

use arch::RamPages;
use boot::layout::Ram;
use devices::vfio::assign::{AssignError, Assignment};
use devices::vfio::host::Host;
use devices::vfio::iommu::{DmaConstraints, MapError};
use devices::vfio::memlock::Memlock;
use devices::vfio::unbound::UNKNOWN_UNTIL_BOUND;
use serde::Serialize;

use crate::error::Error;

/// What stands in the way of a run with the devices that were planned.
#[derive(Clone, Debug, Serialize)]
pub struct Obstacle {
    /// What.
    pub what: String,
    /// What mends it.
    pub help: Option<String>,
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self { what: error.message().to_owned(), help: error.take_help() }
    }
}

/// The line that says how unbound devices were planned, and what isn't known of them.
pub fn unbound_note() -> String {
    format!("foreseen from the host's device tree and sysfs, without VFIO: {UNKNOWN_UNTIL_BOUND}")
}

/// What a step gave; where it failed by something that a person can mend and `unbound` devices are
/// allowed, that is an obstacle only.
pub(super) fn accept<T>(
    result: Result<T, AssignError>,
    unbound: bool,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if unbound && error.can_be_mended() => {
            obstacles.push(Error::from(error).into());
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// What stands in the way of RAM's being mapped for DMA and pinned, as far as is known.
#[cold]
pub(super) fn memory(
    host: &Host,
    assignments: &[Assignment],
    ram: Ram,
    pages: RamPages,
) -> Vec<Obstacle> {
    let constraints = DmaConstraints::of(host, assignments).map_err(Error::from);
    let window = constraints.and_then(|constraints| {
        let checked = constraints.check_ram(ram.base, ram.size).map(drop);
        checked.map_err(|error| super::out_of_reach(error, &constraints, ram, pages))
    });
    let memlock = Memlock::current().check(ram.size).map_err(MapError::Memlock);
    let checks = [window, memlock.map_err(Error::from), super::check_pinning(ram, pages)];
    checks.into_iter().filter_map(Result::err).map(Obstacle::from).collect()
}
