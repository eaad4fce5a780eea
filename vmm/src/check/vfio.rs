//! VFIO: its drivers, its parameters, the IOMMU behind it and the files in front of it.

use std::fs;

use devices::vfio::assign::may_open;
use devices::vfio::host::{Bus, Host};
use devices::vfio::sys::{Container, IommuKind};

use super::Premises;
use super::finding::Finding;
use super::kernel::{self, Presence};
use crate::error::Error;

/// Looks at VFIO.
#[cold]
pub fn findings(premises: &Premises) -> Result<Vec<Finding>, Error> {
    let host = &premises.host;
    let mut findings = vec![iommu(host)?];
    findings.extend(drivers(premises)?);
    findings.push(container(premises));
    findings.push(unsafe_interrupts(host)?);
    findings.push(reset_required(host)?);
    findings.push(iommufd(host));
    findings.push(groups(host)?);
    Ok(findings)
}

/// The devices of a bus that an IOMMU confines.
#[cold]
fn confined(host: &Host, bus: Bus) -> Result<usize, Error> {
    let devices = host.devices_on(bus);
    let behind = devices.iter().map(|device| device.behind_iommu());
    Ok(behind.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|behind| *behind).count())
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
    let [platform, amba] = Bus::DESCRIBED.map(|bus| confined(host, bus));
    let (platform, amba) = (platform?, amba?);
    let groups = names("kernel/iommu_groups").len();
    let text = format!(
        "{}; {groups} groups; behind it {platform} platform and {amba} AMBA devices",
        iommus.join(", ")
    );
    if platform + amba == 0 {
        return Ok(Finding::blocks(
            SUBJECT,
            text,
            "the device's node in the host's device tree needs an iommus property",
        ));
    }
    Ok(Finding::fine(SUBJECT, text))
}

/// The VFIO drivers of the buses whose devices strait assigns.
fn drivers(premises: &Premises) -> Result<Vec<Finding>, Error> {
    let host = &premises.host;
    let release = kernel::release(&premises.proc);
    let any = Bus::DESCRIBED.into_iter().any(|bus| host.has_vfio_driver(bus));
    let mut findings = Vec::new();
    for (bus, subject) in [(Bus::Platform, "vfio-platform"), (Bus::Amba, "vfio-amba")] {
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

fn container(premises: &Premises) -> Finding {
    const SUBJECT: &str = "VFIO containers";
    let path = premises.host.container_node();
    let container = match Container::open(&path) {
        Ok(container) => container,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Finding::blocks(
                SUBJECT,
                format!("this user may not open {}", path.display()),
                format!(
                    "sudo chmod 666 {}, as udev's own rules have it: it gives access to \
                    nothing by itself",
                    path.display()
                ),
            );
        }
        Err(error) => {
            return Finding::blocks(
                SUBJECT,
                format!("{} can't be opened: {error}", path.display()),
                "modprobe vfio, which is there if the kernel was built with CONFIG_VFIO and \
                 CONFIG_VFIO_CONTAINER; in a container, let it have /dev/vfio",
            );
        }
    };
    if matches!(container.supports(IommuKind::Type1v2), Ok(true)) {
        return Finding::fine(SUBJECT, format!("{}, type 1", path.display()));
    }
    let release = kernel::release(&premises.proc);
    let presence = Presence::of(false, &premises.modules, &release, "vfio_iommu_type1");
    Finding::blocks(
        SUBJECT,
        format!("{} has no type 1 IOMMU model", path.display()),
        kernel::help(presence, "vfio_iommu_type1", "CONFIG_VFIO_IOMMU_TYPE1"),
    )
}

fn unsafe_interrupts(host: &Host) -> Result<Finding, Error> {
    const SUBJECT: &str = "allow_unsafe_interrupts";
    Ok(match host.flag("vfio_iommu_type1", "allow_unsafe_interrupts")? {
        Some(true) => Finding::fine(SUBJECT, "on"),
        Some(false) => Finding::blocks(
            SUBJECT,
            "off, and platform devices have no message-signalled interrupts to isolate: VFIO \
             refuses them",
            "echo Y | sudo tee /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts, \
             or boot the host with vfio_iommu_type1.allow_unsafe_interrupts=1",
        ),
        None => Finding::fine(SUBJECT, "not known: vfio_iommu_type1 isn't there"),
    })
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

fn iommufd(host: &Host) -> Finding {
    let there = host.dev().join("iommu").exists();
    Finding::fine("iommufd", if there { "there, not needed" } else { "none, and not needed" })
}

/// The files of the groups that are with VFIO.
fn groups(host: &Host) -> Result<Finding, Error> {
    const SUBJECT: &str = "VFIO groups";
    let mut open = Vec::new();
    let mut closed = Vec::new();
    for device in Bus::DESCRIBED.into_iter().flat_map(|bus| host.devices_on(bus)) {
        let Some(group) = device.group()?.filter(|_| matches!(device.is_with_vfio(), Ok(true)))
        else {
            continue;
        };
        let path = host.group_node(group);
        let list = if may_open(&path).is_ok() { &mut open } else { &mut closed };
        list.push(format!("{} ({})", path.display(), device.name()));
    }
    Ok(match (&open[..], &closed[..]) {
        ([], []) => Finding::fine(
            SUBJECT,
            "no device is bound: strait device bind NAME, or strait run --bind",
        ),
        (_, []) => Finding::fine(SUBJECT, open.join(", ")),
        (open, closed) => {
            let text = format!("this user may not open {}", closed.join(", "));
            // SAFETY: takes nothing and never fails.
            let uid = unsafe { libc::geteuid() };
            let help = format!(
                "echo 'SUBSYSTEM==\"vfio\", OWNER=\"{uid}\"' | sudo tee \
                 /etc/udev/rules.d/60-vfio.rules && sudo udevadm trigger -s vfio"
            );
            if open.is_empty() {
                Finding::blocks(SUBJECT, text, help)
            } else {
                Finding::degraded(SUBJECT, text, help)
            }
        }
    })
}
