//! Devices of other classes in use, and other devices that depend on the device itself.

use std::fs;
use std::path::Path;

use boot::order;

use super::super::processes::FileKind;
use super::super::{HostDevice, attribute, canonical, entries, file_name, link_name};
use super::children::{ChildDevice, ChildDevices};
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
    children: &ChildDevices,
) -> Vec<HostUse> {
    let mut uses = direct_uses(device, along);
    if children.hidden_interfaces {
        uses.push(HostUse::new("its network interface is in another network namespace"));
    }
    for node in &children.devices {
        match node.subsystem.as_str() {
            "net" => uses.extend(interface(usage, node)),
            "virtio" => uses.extend(virtio(usage, node)),
            "tty" => uses.extend(console(usage, node)),
            "graphics" => uses.extend(text_console(usage, node)),
            "watchdog" if node.attribute("state").as_deref() == Some("active") => {
                uses.push(HostUse::new(format!("{} is running", node.name())));
            }
            "dma" if node.attribute("in_use").is_some_and(|clients| clients != "0") => {
                uses.push(HostUse::new(format!("a driver has DMA channel {}", node.name())));
            }
            "mtd" => uses.extend(attached(usage, node)),
            "iommu" => uses.push(HostUse::new(format!("it is the IOMMU {}", node.name()))),
            _ => (),
        }
        if node.subsystem != "block" {
            uses.extend(open(usage, node));
        }
    }
    uses
}

/// The uses of the device itself.
fn direct_uses(device: &HostDevice, along: &[HostDevice]) -> Vec<HostUse> {
    let mut uses = Vec::new();
    let functions = attribute(&device.path().join("sriov_numvfs"));
    if let Some(functions) = functions.filter(|functions| functions != "0") {
        let what = format!("{functions} virtual functions depend on it");
        let command = format!("echo 0 > {}/sriov_numvfs", device.path().display());
        uses.push(HostUse::ended_by(what, command));
    }
    for (property, what) in [
        ("#iommu-cells", "it is an IOMMU"),
        ("interrupt-controller", "it is an interrupt controller"),
        ("msi-controller", "it is an interrupt controller"),
    ] {
        if device.path().join("of_node").join(property).exists() {
            uses.push(HostUse::new(what));
        }
    }
    uses.dedup();
    let links = entries(device.path()).filter(|path| file_name(path).starts_with("consumer:"));
    uses.extend(links.filter_map(|link| consumer(&link, along)));
    uses
}

/// A device whose driver depends on this one, and is unbound with it
/// (`Documentation/ABI/testing/sysfs-class-devlink`).
fn consumer(link: &Path, along: &[HostDevice]) -> Option<HostUse> {
    let ordering_only = attribute(&link.join("sync_state_only"));
    let consumer = canonical(&link.join("consumer")).ok().flatten()?;
    let driver = link_name(&consumer.join("driver")).ok().flatten()?;
    let goes_along = along.iter().any(|device| device.path() == consumer);
    if ordering_only.as_deref() == Some("1") || driver.starts_with("vfio-") || goes_along {
        return None;
    }
    Some(HostUse::new(format!("{} needs it (driver {driver})", file_name(&consumer))))
}

/// A network interface that is up.
fn interface(usage: &Usage<'_>, node: &ChildDevice) -> Option<HostUse> {
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
    Some(HostUse::ended_by(what, format!("ip link set {name} down")))
}

/// An interface and those above it: bridges, bonds, VLANs
/// (`Documentation/ABI/testing/sysfs-class-net`).
fn with_uppers(sysfs: &Path, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let mut seen = order::set(names.iter().cloned());
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        let directory = sysfs.join("class/net").join(name);
        for path in entries(&directory) {
            let upper = file_name(&path).strip_prefix("upper_");
            names.extend(upper.filter(|upper| seen.insert((*upper).into())).map(str::to_owned));
        }
        next += 1;
    }
    names
}

/// Whether a default route is by this interface (`/proc/net/route`, `/proc/net/ipv6_route`).
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
fn virtio(usage: &Usage<'_>, node: &ChildDevice) -> Vec<HostUse> {
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
            // Kernels before 6.9 don't tell which device has which tag.
            None => shared("virtiofs", None, ", perhaps by it"),
        },
        Some(VIRTIO_CONSOLE) => {
            let consoles = usage.consoles.iter().filter(|(name, _)| name.starts_with("hvc"));
            let of =
                |name: &str| HostUse::new(format!("{name} is the host's console, perhaps by it"));
            consoles.map(|(name, _)| of(name)).collect()
        }
        _ => Vec::new(),
    }
}

/// The tag of a virtiofs device (`Documentation/ABI/testing/sysfs-fs-virtiofs`).
fn virtiofs_tag(usage: &Usage<'_>, node: &ChildDevice) -> Option<String> {
    let mut instances = entries(&usage.host.sysfs().join("fs/virtiofs"));
    let instance = instances.find(|instance| {
        canonical(&instance.join("device")).ok().flatten().is_some_and(|path| path == node.path)
    })?;
    attribute(&instance.join("tag"))
}

/// A serial port that is the kernel's console.
fn console(usage: &Usage<'_>, node: &ChildDevice) -> Option<HostUse> {
    let number = node.number()?;
    let is_console = usage.consoles.iter().any(|(_, console)| *console == Some(number));
    is_console.then(|| HostUse::new(format!("{} is the host's console", node.name())))
}

/// A frame buffer that shows the host's text consoles
/// (`Documentation/ABI/testing/sysfs-class-vtconsole`).
fn text_console(usage: &Usage<'_>, node: &ChildDevice) -> Option<HostUse> {
    let mut consoles = entries(&usage.host.sysfs().join("class/vtconsole"));
    let console = consoles.find(|console| {
        attribute(&console.join("bind")).as_deref() == Some("1")
            && attribute(&console.join("name")).is_some_and(|name| name.contains("frame buffer"))
    })?;
    let what = format!("{} shows the host's text consoles", node.name());
    Some(HostUse::ended_by(what, format!("echo 0 > {}/bind", console.display())))
}

/// A flash memory that is attached to UBI (`Documentation/ABI/stable/sysfs-class-ubi`).
fn attached(usage: &Usage<'_>, node: &ChildDevice) -> Option<HostUse> {
    let number = node.name().strip_prefix("mtd")?;
    let mut volumes = entries(&usage.host.sysfs().join("class/ubi"));
    let volume =
        volumes.find(|volume| attribute(&volume.join("mtd_num")).as_deref() == Some(number))?;
    let what = format!("{} is attached as {}", node.name(), file_name(&volume));
    Some(HostUse::ended_by(what, format!("ubidetach -m {number}")))
}

/// A device file that processes have open, of any class.
fn open(usage: &Usage<'_>, node: &ChildDevice) -> Option<HostUse> {
    let users = usage.open.users(FileKind::Character, node.number()?);
    if users.is_empty() {
        return None;
    }
    let names: Vec<_> = users.iter().map(ToString::to_string).collect();
    Some(HostUse::new(format!("/dev/{} is open in {}", node.file(), names.join(" and "))))
}
