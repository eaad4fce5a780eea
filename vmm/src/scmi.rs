//! What a guest's devices have by SCMI: the clocks, resets and power domains that their nodes name on the
//! host.

use std::path::Path;

use boot::fdt::host::{ClockStates, SYSTEM_CLOCKS};
use boot::kernel::{Kernel, ScmiDrivers};
use devices::scmi::{Clock, PowerDomain, ResetDomain, Resources, Scmi};
use devices::vfio::node::{ScmiClock, ScmiIds};

use crate::assigned::{AssignedDevice, AssignedDevices};
use crate::cli::{ScmiMode, VfioPlatformOptions};
use crate::error::Error;
use crate::host_clocks::KEEP_ON;

/// Gives devices by SCMI what their nodes name, where their options, the guest's kernel and KVM have it:
/// else their clocks are fixed, and the rest is left out, as it is planned before. `forward` has KVM
/// forward the guest's calls, and says whether it can.
///
/// # Errors
///
/// An option asks for it, and KVM hasn't it, or KVM refused.
pub fn offer(
    assigned: &mut AssignedDevices,
    options: &[VfioPlatformOptions],
    kernel: Option<&Kernel>,
    forward: impl FnOnce() -> Result<bool, Error>,
) -> Result<(), Error> {
    let named = |device: &AssignedDevice| device.device.node_builder().names_firmware();
    let modes: Vec<ScmiMode> = assigned
        .platform
        .iter()
        .zip(options)
        .map(|(device, options)| if named(device) { options.scmi } else { ScmiMode::Off })
        .collect();
    let (auto, on) = (modes.contains(&ScmiMode::Auto), modes.contains(&ScmiMode::On));
    let of_kernel = if auto { kernel.map(Kernel::scmi_drivers) } else { None };
    let of_kernel = of_kernel.unwrap_or_default();
    if !on && of_kernel == ScmiDrivers::default() {
        if auto {
            log::info!("the guest's kernel has no SCMI by SMC built in: devices' clocks are fixed");
        }
        return Ok(());
    }
    if !forward()? {
        let why = "this host's KVM forwards no calls to strait, as Linux 6.4 and later do";
        if on {
            return Err(Error::new(format!("scmi=on: {why}")).help("scmi=off, or scmi=auto"));
        }
        log::warn!("{why}: devices' clocks are fixed, and they have no resets and power domains");
        return Ok(());
    }
    let mut first = ScmiIds { clocks: Some(0), resets: Some(0), power_domains: Some(0) };
    let mut resources = Resources::default();
    let mut states = None;
    let mut unknown = Vec::new();
    for (device, mode) in assigned.platform.iter_mut().zip(modes) {
        let drivers = match mode {
            ScmiMode::Off => continue,
            ScmiMode::On => ScmiDrivers::ALL,
            ScmiMode::Auto => of_kernel,
        };
        device.renumber(ScmiIds {
            clocks: first.clocks.filter(|_| drivers.clocks),
            resets: first.resets.filter(|_| drivers.resets),
            power_domains: first.power_domains.filter(|_| drivers.power_domains),
        })?;
        let states = states.get_or_insert_with(|| ClockStates::read(Path::new(SYSTEM_CLOCKS)));
        let name = device.name().to_owned();
        let names = &device.nodes.scmi;
        resources.clocks.extend(names.clocks.iter().map(|clock| {
            let on = clock.host.name.as_deref().and_then(|name| states.is_on(name));
            let of = described(&name, clock);
            match on {
                Some(true) => {}
                Some(false) => log::warn!("{of} is off on the host; {KEEP_ON}"),
                None => unknown.push(of.clone()),
            }
            let off = on == Some(false);
            Clock { name: clock.name.clone(), of, rate: clock.rate.into(), off }
        }));
        resources.resets.extend(names.resets.iter().map(|reset| ResetDomain {
            name: reset.clone(),
            of: name.clone(),
            device: device.device.resetter(),
        }));
        let domains = names.power_domains.iter();
        resources.power_domains.extend(domains.map(|domain| PowerDomain::new(domain.clone())));
        first = first.after(names);
    }
    if !unknown.is_empty() {
        log::warn!(
            "{SYSTEM_CLOCKS}/clk_summary doesn't tell whether these are on, so they are taken to be: {}",
            unknown.join(", ")
        );
    }
    if !resources.is_empty() {
        assigned.scmi = Some(Scmi::new(resources));
    }
    Ok(())
}

/// What a clock is, for the log.
fn described(device: &str, clock: &ScmiClock) -> String {
    let host = clock.host.name.as_deref().unwrap_or(&clock.host.provider);
    format!("{device}: its clock {} ({host} on the host)", clock.name)
}
