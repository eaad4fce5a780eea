//! Parts of what is said when a device can't be assigned, above all what to type.

use std::fmt::Display;
use std::path::Path;

use super::super::host::GroupMember;

/// What is like a name that no device has, or else what there is.
pub(super) fn which(near: &[String], candidates: &[String]) -> Option<String> {
    if !near.is_empty() {
        return Some(format!("did you mean {}?", near.join(" or ")));
    }
    const SHOWN: usize = 8;
    let shown = candidates.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match candidates.len() {
        0 => Some("no device of these buses is behind an IOMMU on this host".to_owned()),
        1..=SHOWN => Some(format!("behind an IOMMU are: {shown}")),
        more => Some(format!("behind an IOMMU are: {shown} and {} more", more - SHOWN)),
    }
}

/// Devices with their drivers.
pub(super) fn with_drivers(members: &[GroupMember]) -> String {
    let member =
        |m: &GroupMember| format!("{} (driver {})", m.name, m.driver.as_deref().unwrap_or("none"));
    members.iter().map(member).collect::<Vec<_>>().join(", ")
}

/// What brings the file of a group, which has this `major:minor` if the kernel has such a group.
pub(super) fn group_node(path: &Path, number: Option<&str>) -> String {
    match number.and_then(|number| number.split_once(':')) {
        Some((major, minor)) => mknod(path, major, minor),
        None => "the host's kernel needs CONFIG_VFIO_GROUP".to_owned(),
    }
}

/// What brings a file.
pub(super) fn mknod(path: &Path, major: impl Display, minor: impl Display) -> String {
    let path = path.display();
    format!("mknod {path} c {major} {minor}; in a container, let it have that device")
}

/// What lets this user open a file.
pub(super) fn permit(path: &Path, uid: u32) -> String {
    if uid == 0 {
        return format!(
            "a container or service must be let have {} (docker --device, systemd DeviceAllow=)",
            path.display()
        );
    }
    let which = if path.ends_with("iommu") {
        "KERNEL==\"iommu\""
    } else if path.parent().is_some_and(|parent| parent.ends_with("devices")) {
        "SUBSYSTEM==\"vfio-dev\""
    } else {
        "SUBSYSTEM==\"vfio\""
    };
    format!(
        "sudo chown {uid} {}, or to keep it so: echo '{which}, OWNER=\"{uid}\"' | sudo tee -a \
         /etc/udev/rules.d/60-vfio.rules",
        path.display()
    )
}
