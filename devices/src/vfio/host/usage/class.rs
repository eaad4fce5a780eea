//! Devices of other classes in use, and what of a device itself tells that others need it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::super::processes::FileKind;
use super::super::{HostDevice, canonical, link_name, read_line};
use super::below::{Below, Node};
use super::mounts::Mount;
use super::{HostUse, Usage};

/// `IFF_UP` of an interface's flags (netdevice(7)).
const UP: u32 = 1;

/// Virtio's device types, as sysfs has them (Virtio 1.3, 5).
const VIRTIO_CONSOLE: &str = "0x0003";
const VIRTIO_9P: &str = "0x0009";
const VIRTIO_FS: &str = "0x001a";

/// The uses of all but block devices.
pub(super) fn uses(
    usage: &Usage<'_>,
    device: &HostDevice,
    along: &[HostDevice],
    below: &Below,
) -> Vec<HostUse> {
    let mut uses = of_itself(device, along);
    if below.hidden_interfaces {
        uses.push(told("its network interface is in another network namespace"));
    }
    for node in &below.nodes {
        match node.subsystem.as_str() {
            "net" => uses.extend(interface(usage, node)),
            "virtio" => uses.extend(virtio(usage, node)),
            "tty" => uses.extend(console(usage, node)),
            "graphics" => uses.extend(text_console(usage, node)),
            "watchdog" if node.attribute("state").as_deref() == Some("active") => {
                uses.push(told(format!("{} is running", node.name())));
            }
            "dma" if node.attribute("in_use").is_some_and(|clients| clients != "0") => {
                uses.push(told(format!("a driver has DMA channel {}", node.name())));
            }
            "mtd" => uses.extend(attached(usage, node)),
            "iommu" => uses.push(told(format!("it is the IOMMU {}", node.name()))),
            _ => (),
        }
        if node.subsystem != "block" {
            uses.extend(open(usage, node));
        }
    }
    uses
}

fn told(what: impl Into<String>) -> HostUse {
    HostUse { what: what.into(), end: None }
}

/// What the device itself says.
fn of_itself(device: &HostDevice, along: &[HostDevice]) -> Vec<HostUse> {
    let attribute = |name: &str| read_line(&device.path().join(name)).ok().flatten();
    let mut uses = Vec::new();
    if let Some(functions) = attribute("sriov_numvfs").filter(|functions| functions != "0") {
        uses.push(HostUse {
            what: format!("{functions} virtual functions depend on it"),
            end: Some(format!("echo 0 > {}/sriov_numvfs", device.path().display())),
        });
    }
    for (property, what) in [
        ("#iommu-cells", "it is an IOMMU"),
        ("interrupt-controller", "it is an interrupt controller"),
        ("msi-controller", "it is an interrupt controller"),
    ] {
        if device.path().join("of_node").join(property).exists() {
            uses.push(told(what));
        }
    }
    uses.dedup();
    let entries = fs::read_dir(device.path()).into_iter().flatten().flatten();
    for entry in
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("consumer:"))
    {
        uses.extend(consumer(&entry.path(), along));
    }
    uses
}

/// A device whose driver needs this one, and loses it with this one
/// (`Documentation/ABI/testing/sysfs-class-devlink`).
fn consumer(link: &Path, along: &[HostDevice]) -> Option<HostUse> {
    let ordering_only = read_line(&link.join("sync_state_only")).ok().flatten();
    let consumer = canonical(&link.join("consumer")).ok().flatten()?;
    let driver = link_name(&consumer.join("driver")).ok().flatten()?;
    let goes_along = along.iter().any(|device| device.path() == consumer);
    if ordering_only.as_deref() == Some("1") || driver.starts_with("vfio-") || goes_along {
        return None;
    }
    let name = consumer.file_name()?.to_string_lossy().into_owned();
    Some(told(format!("{name} needs it (driver {driver})")))
}

/// A network interface that is up.
fn interface(usage: &Usage<'_>, node: &Node) -> Option<HostUse> {
    let flags = node.attribute("flags")?;
    let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
    if flags & UP == 0 {
        return None;
    }
    let names = with_uppers(usage.host.sysfs(), node.name());
    let (name, others) = names.split_first()?;
    let mut what = format!("{name} is up");
    if !others.is_empty() {
        what += &format!(", below {}", others.join(" and "));
    }
    if let Some(routed) = names.iter().find(|name| has_default_route(usage, name)) {
        what += &format!(", and the default route is by {routed}");
    }
    Some(HostUse { what, end: Some(format!("ip link set {name} down")) })
}

/// An interface and those that are made of it: bridges, bonds, VLANs
/// (`Documentation/ABI/testing/sysfs-class-net`).
fn with_uppers(sysfs: &Path, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let mut seen: BTreeSet<String> = names.iter().cloned().collect();
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        let directory = sysfs.join("class/net").join(name);
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let entry = entry.file_name().to_string_lossy().into_owned();
            if let Some(upper) = entry.strip_prefix("upper_").filter(|u| seen.insert((*u).into())) {
                names.push(upper.to_owned());
            }
        }
        next += 1;
    }
    names
}

/// Whether what goes to the world at large goes by this interface (`/proc/net/route` and
/// `/proc/net/ipv6_route`).
fn has_default_route(usage: &Usage<'_>, interface: &str) -> bool {
    let text =
        |name: &str| fs::read_to_string(usage.host.proc.join("net").join(name)).unwrap_or_default();
    let by_ipv4 = text("route").lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], [name, "00000000", _, _, _, _, _, "00000000", ..] if name == interface)
    });
    let nowhere = "0".repeat(32);
    by_ipv4
        || text("ipv6_route").lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], [to, "00", _, _, _, _, _, _, _, name]
                if to == nowhere && name == interface)
        })
}

/// A share or a console over virtio.
fn virtio(usage: &Usage<'_>, node: &Node) -> Vec<HostUse> {
    let shared = |kind: &str, tag: Option<&str>, whose: &str| {
        let mounts = usage.mounts.of_kind(kind, tag);
        let of = |mount: &Mount| HostUse {
            what: format!("{kind} share {} is mounted on {}{whose}", mount.source, mount.place()),
            end: mount.end(),
        };
        mounts.into_iter().map(of).collect::<Vec<_>>()
    };
    match node.attribute("device").as_deref() {
        Some(VIRTIO_9P) => match node.attribute("mount_tag") {
            Some(tag) => shared("9p", Some(tag.trim_end_matches('\0')), ""),
            None => Vec::new(),
        },
        Some(VIRTIO_FS) => match virtiofs_tag(usage, node) {
            Some(tag) => shared("virtiofs", Some(&tag), ""),
            // A kernel that doesn't tell which device has which tag (before 6.9).
            None => shared("virtiofs", None, ", perhaps by it"),
        },
        Some(VIRTIO_CONSOLE) => {
            let consoles = usage.consoles.iter().filter(|(name, _)| name.starts_with("hvc"));
            let of = |name: &str| told(format!("{name} is the host's console, perhaps by it"));
            consoles.map(|(name, _)| of(name)).collect()
        }
        _ => Vec::new(),
    }
}

/// The tag of a virtiofs device (`Documentation/ABI/testing/sysfs-fs-virtiofs`).
fn virtiofs_tag(usage: &Usage<'_>, node: &Node) -> Option<String> {
    let entries = fs::read_dir(usage.host.sysfs().join("fs/virtiofs")).ok()?.flatten();
    let mut entries = entries.map(|entry| entry.path());
    let entry = entries.find(|entry| {
        canonical(&entry.join("device")).ok().flatten().is_some_and(|path| path == node.path)
    })?;
    read_line(&entry.join("tag")).ok().flatten()
}

/// A serial port that is the kernel's console.
fn console(usage: &Usage<'_>, node: &Node) -> Option<HostUse> {
    let number = node.number()?;
    let is_console = usage.consoles.iter().any(|(_, console)| *console == Some(number));
    is_console.then(|| told(format!("{} is the host's console", node.name())))
}

/// A frame buffer on which the host's text consoles are
/// (`Documentation/ABI/testing/sysfs-class-vtconsole`).
fn text_console(usage: &Usage<'_>, node: &Node) -> Option<HostUse> {
    let entries = fs::read_dir(usage.host.sysfs().join("class/vtconsole")).ok()?.flatten();
    let mut consoles = entries.map(|entry| entry.path());
    let console = consoles.find(|console| {
        let attribute = |name: &str| read_line(&console.join(name)).ok().flatten();
        attribute("bind").as_deref() == Some("1")
            && attribute("name").is_some_and(|name| name.contains("frame buffer"))
    })?;
    Some(HostUse {
        what: format!("{} shows the host's text consoles", node.name()),
        end: Some(format!("echo 0 > {}/bind", console.display())),
    })
}

/// A flash memory that UBI has (`Documentation/ABI/stable/sysfs-class-ubi`).
fn attached(usage: &Usage<'_>, node: &Node) -> Option<HostUse> {
    let number = node.name().strip_prefix("mtd")?;
    let entries = fs::read_dir(usage.host.sysfs().join("class/ubi")).ok()?.flatten();
    let mut volumes = entries.map(|entry| entry.path());
    let volume = volumes.find(|volume| {
        read_line(&volume.join("mtd_num")).ok().flatten().is_some_and(|of| of == number)
    })?;
    Some(HostUse {
        what: format!("{} is attached as {}", node.name(), volume.file_name()?.to_string_lossy()),
        end: Some(format!("ubidetach -m {number}")),
    })
}

/// A file that processes have open: a terminal, a card, whatever there is.
fn open(usage: &Usage<'_>, node: &Node) -> Option<HostUse> {
    let users = usage.open.users(FileKind::Character, node.number()?);
    if users.is_empty() {
        return None;
    }
    let names: Vec<_> = users.iter().map(ToString::to_string).collect();
    Some(told(format!("/dev/{} is open in {}", node.file(), names.join(" and "))))
}
