//! VFIO: the IOMMU behind it, its drivers and parameters, and the files in front of it.

use std::fs;
use std::path::PathBuf;

use boot::order;
use devices::vfio::assign::may_open;
use devices::vfio::host::{Host, HostBus, HostDevice};
use devices::vfio::remedy;

use super::System;
use super::backends::{self, Backends};
use super::drivers;
use super::finding::Finding;
use super::kind::{ConfinedDevices, Kind};
use crate::error::Error;

/// Checks VFIO.
#[cold]
pub fn findings(system: &System, confined: &ConfinedDevices) -> Result<Vec<Finding>, Error> {
    let host = &system.host;
    let mut findings = vec![iommu(host, confined)];
    findings.extend(drivers::findings(system, confined));
    let (works, backends) = backends::findings(system, confined);
    findings.extend(backends);
    findings.push(drivers::reset_required(system, confined)?);
    findings.extend(drivers::unconfined(system, confined)?);
    findings.push(devices(host, &works)?);
    Ok(findings)
}

fn iommu(host: &Host, confined: &ConfinedDevices) -> Finding {
    const SUBJECT: &str = "IOMMU";
    let names = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(host.sysfs().join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        order::sort(&mut names);
        names
    };
    let iommus = names("class/iommu");
    if iommus.is_empty() {
        return Finding::blocks(
            SUBJECT,
            &Kind::OF_HOST,
            "the host uses none: nothing would confine a device's DMA",
            "the host's device tree needs an IOMMU with status \"okay\", its kernel \
             CONFIG_ARM_SMMU_V3 or CONFIG_ARM_SMMU, and no iommu.passthrough quirk of the firmware",
        );
    }
    let [platform, amba, pci] = Kind::OF_HOST.map(|kind| confined.count(kind));
    let groups = names("kernel/iommu_groups").len();
    let text = format!(
        "{}; {groups} groups; behind it {platform} platform, {amba} AMBA and {pci} PCI \
         devices",
        iommus.join(", ")
    );
    if platform + amba + pci == 0 {
        return Finding::blocks(SUBJECT, &Kind::OF_HOST, text, remedy::BEHIND_IOMMU);
    }
    Finding::fine(SUBJECT, text)
}

/// The files of a device that is with VFIO, by ways that work.
struct Files {
    kind: Kind,
    text: String,
    /// This user may open one.
    open: bool,
}

impl Files {
    fn of(host: &Host, works: &Backends, device: &HostDevice) -> Result<Option<Self>, Error> {
        let Some(group) = device.group()?.filter(|_| matches!(device.is_with_vfio(), Ok(true)))
        else {
            return Ok(None);
        };
        let kind = Kind::on(device.bus());
        let (iommufd, container) = (works.iommufd.contains(&kind), works.container.contains(&kind));
        let cdev = host.cdev(device)?.filter(|_| iommufd).map(|cdev| cdev.path);
        // Where nothing works, another finding says so.
        let group = (container || !iommufd).then(|| host.group_node(group));
        let files: Vec<PathBuf> = cdev.into_iter().chain(group).collect();
        let (open, closed): (Vec<_>, Vec<_>) =
            files.iter().partition(|path| may_open(path).is_ok());
        let shown = if open.is_empty() { closed } else { open.clone() };
        let shown: Vec<_> = shown.iter().map(|path| path.display().to_string()).collect();
        let text = format!("{} ({})", shown.join(" or "), device.name());
        Ok(Some(Self { kind, text, open: !open.is_empty() }))
    }
}

/// The devices that are with VFIO, and whether this user can have them by a way that works.
fn devices(host: &Host, works: &Backends) -> Result<Finding, Error> {
    const SUBJECT: &str = "VFIO devices";
    let mut bound = Vec::new();
    for device in HostBus::ALL.into_iter().flat_map(|bus| host.devices_on(bus)) {
        bound.extend(Files::of(host, works, &device)?);
    }
    let texts = |open: bool| {
        let texts = bound.iter().filter(|files| files.open == open);
        texts.map(|files| files.text.as_str()).collect::<Vec<_>>().join(", ")
    };
    if bound.is_empty() {
        let text = "no device is bound: strait device bind NAME, or strait run --bind";
        return Ok(Finding::fine(SUBJECT, text));
    }
    if bound.iter().all(|files| files.open) {
        return Ok(Finding::fine(SUBJECT, texts(true)));
    }
    let text = format!("this user may not open {}", texts(false));
    // SAFETY: takes nothing and never fails.
    let help = remedy::udev_rules(unsafe { libc::geteuid() });
    let closed = |kind: &Kind| {
        let mut of_kind = bound.iter().filter(|files| files.kind == *kind).peekable();
        of_kind.peek().is_some() && of_kind.all(|files| !files.open)
    };
    let mut closed: Vec<Kind> = Kind::OF_HOST.into_iter().filter(closed).collect();
    if !bound.iter().any(|files| files.open) {
        // What isn't bound yet is no more open to this user.
        closed = Kind::OF_HOST.into();
    }
    Ok(if closed.is_empty() {
        Finding::degraded(SUBJECT, text, help)
    } else {
        Finding::blocks(SUBJECT, &closed, text, help)
    })
}
