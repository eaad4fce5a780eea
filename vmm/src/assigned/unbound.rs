//! Devices that VFIO doesn't have yet, planned from their nodes and sysfs: nothing on the host is
//! changed, and nothing runs.

use std::sync::Arc;

use boot::fdt::host::HostTree;
use boot::layout::Ram;
use devices::vfio::assign::{self, AssignError, Assignment, Found};
use devices::vfio::host::{Host, HostDevice};
use devices::vfio::iommu::{DmaConstraints, Iommu, IommuOptions, MapError};
use devices::vfio::memlock::Memlock;
use devices::vfio::pci::PciFunction;
use devices::vfio::platform::{self, PlatformDevice};
use devices::vfio::region::host_page_size;
use devices::vfio::unbound::{UNKNOWN_UNTIL_BOUND, UnboundDevice};
use serde::Serialize;

use super::{Assigned, check_buses, place, which};
use crate::allocator::Places;
use crate::cli::{PciOptions, PlatformOptions};
use crate::error::Error;
use crate::functions::Functions;
use crate::limits;

/// What stands in the way of a run with devices that were foreseen.
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

/// The line that tells of plans with devices that were foreseen, and what they lack.
pub fn caveat() -> String {
    format!("foreseen from the host's device tree and sysfs, without VFIO: {UNKNOWN_UNTIL_BOUND}")
}

impl Assigned {
    /// As [`of_host`](Self::of_host), but devices that can't be had as things are, because they
    /// aren't bound to VFIO above all, are foreseen: a run can be planned with them.
    ///
    /// # Errors
    ///
    /// A device isn't there, or can't be a guest's in any way.
    #[cold]
    pub fn foresee(
        wanted: &[PlatformOptions],
        functions: &[PciOptions],
        options: IommuOptions,
        ram: Ram,
        places: &mut Places,
    ) -> Result<Self, Error> {
        if wanted.is_empty() && functions.is_empty() {
            return Ok(Self::default());
        }
        let host = Host::default();
        let found = assign::survey(&host, which(wanted, functions))?;
        check_buses(found.iter().map(|found| &found.device), wanted.len())?;
        let mut obstacles = Vec::new();
        let (mut devices, mut assignments) = (Vec::new(), Vec::new());
        for Found { device, assessed } in found {
            devices.push(device);
            match assessed {
                Ok(assignment) => assignments.push(assignment),
                Err(error) => obstacles.push(mendable(error)?),
            }
        }
        if obstacles.is_empty() {
            match Iommu::open(&host, &assignments, options) {
                Ok(iommu) => {
                    return Self::opened(iommu, &assignments, wanted, functions, ram, places);
                }
                Err(error) => obstacles.push(mendable(error)?),
            }
        }
        obstacles.extend(room(&host, &assignments, ram));
        let (described, enumerated) = devices.split_at(wanted.len().min(devices.len()));
        let functions = foresee_functions(enumerated, functions)?;
        let devices = place(foresee_devices(described, wanted)?, wanted, places)?;
        Ok(Self { devices, functions, obstacles, ..Self::default() })
    }
}

/// What a person can do away with.
fn mendable(error: AssignError) -> Result<Obstacle, Error> {
    if !error.can_be_mended() {
        return Err(error.into());
    }
    Ok(Error::from(error).into())
}

/// What stands in the way of RAM's being pinned, as far as is known.
fn room(host: &Host, assignments: &[Assignment], ram: Ram) -> Vec<Obstacle> {
    let constraints = DmaConstraints::of(host, assignments).map_err(Error::from);
    let window = constraints
        .and_then(|constraints| Ok(constraints.check_ram(ram.base, ram.size).map(drop)?));
    let memlock = Memlock::current().check(ram.size).map_err(MapError::Memlock);
    let checks = [window, memlock.map_err(Error::from), limits::check_pinning(ram.size)];
    checks.into_iter().filter_map(Result::err).map(Obstacle::from).collect()
}

fn foresee_devices(
    devices: &[HostDevice],
    wanted: &[PlatformOptions],
) -> Result<Vec<PlatformDevice>, Error> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let tree = HostTree::system()?;
    let options = wanted.iter().map(|options| &options.device);
    let nodes: Vec<_> = devices.iter().zip(options.clone().map(|options| &options.node)).collect();
    let drafts = platform::drafts(&Host::default(), &tree, &nodes)?;
    let all = devices.iter().zip(options).zip(drafts);
    all.map(|((device, options), draft)| {
        Ok(PlatformDevice::foresee(&tree, device, draft, options.clone())?)
    })
    .collect()
}

fn foresee_functions(devices: &[HostDevice], wanted: &[PciOptions]) -> Result<Functions, Error> {
    let mut functions = Functions::default();
    for (device, options) in devices.iter().zip(wanted) {
        let (name, calls) = (device.name(), Arc::new(UnboundDevice::pci(device)?));
        let function = PciFunction::open(calls, name, options.function, host_page_size())?;
        functions.add(name, function, options.address);
    }
    Ok(functions)
}
