//! VFIO: its drivers, its parameters, the IOMMU behind it and the files in front of it.

use std::fs;
use std::path::PathBuf;

use devices::vfio::assign::may_open;
use devices::vfio::host::{Bus, Host};

use super::Premises;
use super::backends::{self, Backends};
use super::finding::Finding;
use super::kernel::{self, Presence};
use crate::error::Error;

/// Looks at VFIO.
#[cold]
pub fn findings(premises: &Premises) -> Result<Vec<Finding>, Error> {
    let host = &premises.host;
    let mut findings = vec![iommu(host)?];
    findings.extend(drivers(premises)?);
    let (works, backends) = backends::findings(premises)?;
    findings.extend(backends);
    findings.push(reset_required(host)?);
    findings.push(devices(host, works)?);
    Ok(findings)
}

/// The devices of a bus that an IOMMU confines, bridges left out.
#[cold]
fn confined(host: &Host, bus: Bus) -> Result<usize, Error> {
    let mut confined = 0;
    for device in host.devices_on(bus) {
        confined += usize::from(device.behind_iommu()? && !device.is_bridge()?);
    }
    Ok(confined)
}

fn iommu(host: &Host) -> Result<Finding, Error> {
    const SUBJECT: &str = "IOMMU";
    let names = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(host.sysfs().join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    };
    let iommus = names("class/iommu");
    if iommus.is_empty() {
        return Ok(Finding::blocks(
            SUBJECT,
            "the host uses none: nothing would confine a device's DMA",
            "the host's device tree needs an IOMMU with status \"okay\", its kernel \
             CONFIG_ARM_SMMU_V3 or CONFIG_ARM_SMMU, and no iommu.passthrough quirk of the firmware",
        ));
    }
    let [platform, amba, pci] = Bus::ALL.map(|bus| confined(host, bus));
    let (platform, amba, pci) = (platform?, amba?, pci?);
    let groups = names("kernel/iommu_groups").len();
    let text = format!(
        "{}; {groups} groups; behind it {platform} platform, {amba} AMBA and {pci} PCI \
         devices",
        iommus.join(", ")
    );
    if platform + amba + pci == 0 {
        return Ok(Finding::blocks(
            SUBJECT,
            text,
            "the device's node in the host's device tree needs an iommus property, a PCI host \
             bridge's an iommu-map",
        ));
    }
    Ok(Finding::fine(SUBJECT, text))
}

/// The VFIO drivers of the buses whose devices strait assigns.
fn drivers(premises: &Premises) -> Result<Vec<Finding>, Error> {
    let host = &premises.host;
    let release = kernel::release(&premises.proc);
    let any = Bus::ALL.into_iter().any(|bus| host.has_vfio_driver(bus));
    let mut findings = Vec::new();
    for bus in Bus::ALL {
        let subject = bus.vfio_driver();
        let there = host.has_vfio_driver(bus);
        let presence = Presence::of(there, &premises.modules, &release, bus.vfio_driver());
        let help = kernel::help(presence, bus.vfio_driver(), bus.vfio_option());
        let without = confined(host, bus)?;
        findings.push(match presence {
            Presence::There => Finding::fine(subject, "there"),
            _ if !any => Finding::blocks(subject, absence(presence), help),
            _ if without == 0 => {
                Finding::fine(subject, format!("{}, and no device needs it", absence(presence)))
            }
            _ => {
                let text =
                    format!("{}: {without} {bus} devices can't be assigned", absence(presence));
                Finding::degraded(subject, text, help)
            }
        });
    }
    Ok(findings)
}

fn absence(presence: Presence) -> &'static str {
    match presence {
        Presence::Loadable => "a module that isn't loaded",
        _ => "not in the host's kernel",
    }
}

fn reset_required(host: &Host) -> Result<Finding, Error> {
    const SUBJECT: &str = "reset_required";
    Ok(match host.flag("vfio_platform", "reset_required")? {
        Some(true) => Finding::degraded(
            SUBJECT,
            "on: vfio-platform refuses devices for which the kernel has no reset function, such as \
             the PL330",
            "boot the host with vfio_platform.reset_required=0, or where it is a module: modprobe \
             -r vfio-platform; modprobe vfio-platform reset_required=0",
        ),
        Some(false) => Finding::fine(SUBJECT, "off"),
        None => Finding::fine(SUBJECT, "not known: vfio-platform isn't there"),
    })
}

/// The devices that are with VFIO, and whether this user can have them by a way that works.
fn devices(host: &Host, works: Backends) -> Result<Finding, Error> {
    const SUBJECT: &str = "VFIO devices";
    let mut open = Vec::new();
    let mut closed = Vec::new();
    for device in Bus::DESCRIBED.into_iter().flat_map(|bus| host.devices_on(bus)) {
        let Some(group) = device.group()?.filter(|_| matches!(device.is_with_vfio(), Ok(true)))
        else {
            continue;
        };
        let cdev = host.cdev(&device)?.filter(|_| works.iommufd).map(|cdev| cdev.path);
        // Where nothing works, another finding says so.
        let group = (works.container || !works.iommufd).then(|| host.group_node(group));
        let files: Vec<_> = cdev.into_iter().chain(group).collect();
        let list = |files: &[&PathBuf]| {
            let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
            format!("{} ({})", files.join(" or "), device.name())
        };
        let may: Vec<_> = files.iter().filter(|path| may_open(path).is_ok()).collect();
        if may.is_empty() {
            closed.push(list(&files.iter().collect::<Vec<_>>()));
        } else {
            open.push(list(&may));
        }
    }
    Ok(match (&open[..], &closed[..]) {
        ([], []) => Finding::fine(
            SUBJECT,
            "no device is bound: strait device bind NAME, or strait run --bind",
        ),
        (_, []) => Finding::fine(SUBJECT, open.join(", ")),
        (open, closed) => {
            let text = format!("this user may not open {}", closed.join(", "));
            let help = permit_all(if works.container { "vfio" } else { "vfio-dev" });
            if open.is_empty() {
                Finding::blocks(SUBJECT, text, help)
            } else {
                Finding::degraded(SUBJECT, text, help)
            }
        }
    })
}

/// How this user is let have all devices' files of a kind.
fn permit_all(subsystem: &str) -> String {
    // SAFETY: takes nothing and never fails.
    let uid = unsafe { libc::geteuid() };
    format!(
        "echo 'SUBSYSTEM==\"{subsystem}\", OWNER=\"{uid}\"' | sudo tee \
         /etc/udev/rules.d/60-vfio.rules && sudo udevadm trigger -s {subsystem}"
    )
}
