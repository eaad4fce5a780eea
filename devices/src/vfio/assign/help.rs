//! Parts of what is said when a device can't be assigned, above all what to type.

use std::fmt::Display;
use std::path::Path;

use super::super::host::Bus;
use super::error::{AssignError, ClosedFile};

impl AssignError {
    /// What mends it: what to type, or where to look.
    #[cold]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoDevice { near, candidates, .. } => return which(near, candidates),
            Self::Twice { .. } => "name each device once".to_owned(),
            Self::OtherBus { name, bus: Bus::Pci } => format!("--vfio-pci {name}"),
            Self::OtherBus { name, .. } => format!("--vfio-platform {name}"),
            Self::Bridge { .. } => "strait device list".to_owned(),
            Self::OwnDriver { name, .. } | Self::Unbound { name, .. } => {
                format!("strait device bind {name}")
            }
            Self::ResetRequired { name } => format!(
                "boot the host with vfio_platform.reset_required=0 on its command line, or where \
                 it is a module: modprobe -r vfio-platform; modprobe vfio-platform \
                 reset_required=0; strait device bind {name}"
            ),
            Self::NoVfioDriver { bus, .. } => format!(
                "modprobe {}, which is there if the kernel was built with {}",
                bus.vfio_driver(),
                bus.vfio_option()
            ),
            Self::NoGroup { .. } => "its node in the host's device tree needs an iommus property \
                (PCI: its host bridge's, an iommu-map), and the kernel that IOMMU's driver (Arm: CONFIG_ARM_SMMU, CONFIG_ARM_SMMU_V3)"
                .to_owned(),
            Self::NoIommu { .. } => {
                "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, and see that \
                 the device is behind an IOMMU"
                    .to_owned()
            }
            Self::NotViable { name, .. } => format!("strait device bind --group {name}"),
            Self::GroupInUse { group, .. } => {
                format!("ls -l /sys/kernel/iommu_groups/{group}/devices/*/driver")
            }
            Self::NoContainer { .. } => "modprobe vfio_iommu_type1, which is there if the kernel \
                was built with CONFIG_VFIO_CONTAINER and CONFIG_VFIO_IOMMU_TYPE1; in a container, \
                let it have /dev/vfio"
                .to_owned(),
            Self::NoGroupNode { path, number, .. } => group_node(path, number.as_deref()),
            Self::NoIommufd { .. } => {
                "modprobe iommufd, which is there if the kernel was built with \
                CONFIG_IOMMUFD; in a container, let it have /dev/iommu"
                    .to_owned()
            }
            Self::NoCdev { .. } => {
                "build the host's kernel with CONFIG_VFIO_DEVICE_CDEV, or --iommu container"
                    .to_owned()
            }
            Self::NoCdevNode { path, number, .. } => mknod(path, number.major, number.minor),
            Self::NotPermitted { closed, uid, .. } => permit(*uid, closed),
            Self::Busy { files, .. } => {
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                format!("fuser -v {}", files.join(" "))
            }
            Self::UnsafeInterrupts { module, .. } => format!(
                "echo Y > /sys/module/{module}/parameters/allow_unsafe_interrupts, or boot the \
                 host with {module}.allow_unsafe_interrupts=1"
            ),
            Self::Inherited(error) => return error.help(),
            Self::AlreadyBound { .. } => "whoever starts strait opens the device's file anew, and leaves \
                VFIO_DEVICE_BIND_IOMMUFD to strait"
                .to_owned(),
            Self::InheritedWithContainer => "--iommu iommufd".to_owned(),
            Self::NoType1 => "modprobe vfio_iommu_type1, which is there if the kernel was built \
                with CONFIG_VFIO_IOMMU_TYPE1"
                .to_owned(),
            Self::Attach { .. } | Self::OpenDevice { .. } => {
                "dmesg has the driver's own words".to_owned()
            }
            Self::Nothing
            | Self::Open { .. }
            | Self::ApiVersion
            | Self::Setup(_)
            | Self::Read(_) => return None,
            Self::Tree(error) => return error.help(),
        })
    }
}

/// What is like a name that no device has, or else what there is.
fn which(near: &[String], candidates: &[String]) -> Option<String> {
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

/// What brings the file of a group, which has this `major:minor` if the kernel has such a group.
fn group_node(path: &Path, number: Option<&str>) -> String {
    match number.and_then(|number| number.split_once(':')) {
        Some((major, minor)) => mknod(path, major, minor),
        None => "the host's kernel needs CONFIG_VFIO_GROUP".to_owned(),
    }
}

/// What brings a file.
fn mknod(path: &Path, major: impl Display, minor: impl Display) -> String {
    let path = path.display();
    format!("mknod {path} c {major} {minor}; in a container, let it have that device")
}

/// What lets this user open files that are closed.
fn permit(uid: u32, closed: &[ClosedFile]) -> String {
    let paths = |of: fn(&ClosedFile) -> bool| -> Vec<String> {
        closed.iter().filter(|file| of(file)).map(|file| file.path.display().to_string()).collect()
    };
    if uid == 0 {
        return format!(
            "a container or service must be let have {} (docker --device, systemd DeviceAllow=)",
            paths(|_| true).join(" ")
        );
    }
    let mut devices: Vec<&str> = closed.iter().filter_map(|file| file.device.as_deref()).collect();
    devices.dedup();
    let shared = paths(|file| file.device.is_none());
    let mut commands = Vec::new();
    if !devices.is_empty() {
        commands.push(format!("sudo strait device bind --owner {uid} {}", devices.join(" ")));
    }
    if !shared.is_empty() {
        commands.push(format!("sudo chmod 666 {}", shared.join(" ")));
    }
    format!("{}\nor, also after a reboot: {}", commands.join(" && "), udev_rules(uid))
}

/// The command that lets this user have all devices that are given to VFIO, now and after each
/// reboot, by either way to the IOMMU.
///
/// The group's file is of class `vfio`, a device's own of class `vfio-dev`; the container and the
/// iommufd are `misc` devices, which give access to nothing by themselves.
pub fn udev_rules(uid: u32) -> String {
    format!(
        "printf '%s\\n' 'SUBSYSTEM==\"vfio\", OWNER=\"{uid}\"' 'SUBSYSTEM==\"vfio-dev\", \
         OWNER=\"{uid}\"' 'SUBSYSTEM==\"misc\", KERNEL==\"vfio|iommu\", MODE=\"0666\"' | sudo tee \
         /etc/udev/rules.d/60-strait.rules && sudo udevadm control --reload && sudo udevadm trigger \
         -s vfio -s vfio-dev -s misc"
    )
}
