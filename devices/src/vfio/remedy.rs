//! The remedies that errors and `strait check` name: what to type, or what to change on the host.

use std::io;
use std::path::Path;

use super::host::DeviceNumber;

/// Where the reason is that only the kernel knows.
pub const KERNEL_LOG: &str = "see dmesg for what the kernel logged";

/// For vfio-platform's refusal of devices without a reset function.
pub const RESET_REQUIRED: &str = "boot the host with vfio_platform.reset_required=0, or where it is a module: modprobe -r \
     vfio-platform; modprobe vfio-platform reset_required=0";

/// For what a vfio-user server refuses.
pub const START_AGAIN: &str = "the server's own output says why; start it again";

/// For a device that is in no IOMMU group.
pub const BEHIND_IOMMU: &str = "the device's node in the host's device tree needs an iommus property (PCI: its host \
     bridge's node an iommu-map), and the kernel the IOMMU's driver (Arm: CONFIG_ARM_SMMU, CONFIG_ARM_SMMU_V3)";

/// For a missing `/dev/iommu`.
pub const IOMMUFD: &str =
    "modprobe iommufd (CONFIG_IOMMUFD); in a container, give it access to /dev/iommu";

/// For a missing `/dev/vfio/vfio`.
pub const CONTAINER: &str = "modprobe vfio_iommu_type1 (CONFIG_VFIO_CONTAINER, CONFIG_VFIO_IOMMU_TYPE1); in a \
     container, give it access to /dev/vfio";

/// For devices without a file of their own, which iommufd needs.
pub const DEVICE_CDEV: &str =
    "build the host's kernel with CONFIG_VFIO_DEVICE_CDEV, or --iommu container";

/// For what the kernel refused to a process, most of the time because there is no more of it; `None` where what
/// helps is the same whoever asks.
pub fn host_refused(error: &io::Error) -> Option<String> {
    Some(match error.raw_os_error() {
        Some(libc::ENOMEM | libc::ENFILE | libc::ENOBUFS) => return None,
        // epoll_ctl(2)
        Some(libc::ENOSPC) => "sudo sysctl fs.epoll.max_user_watches=1000000".to_owned(),
        Some(libc::EMFILE) | None => "raise the limit of open files (ulimit -n)".to_owned(),
        Some(_) => KERNEL_LOG.to_owned(),
    })
}

/// For IOMMU groups (of this number, or pattern of numbers) that the host itself uses untranslated. The kernel
/// changes a group's type while nothing uses its devices; VFIO's driver may have them
/// (`iommu_group_store_type`).
pub fn translate_by_default(groups: &str) -> String {
    format!(
        "boot the host with iommu.passthrough=0, or while only VFIO's driver has the group's devices and no guest: \
         echo DMA | sudo tee /sys/kernel/iommu_groups/{groups}/type"
    )
}

/// For a device that isn't bound to VFIO's driver.
pub fn bind(name: &str) -> String {
    format!("strait device bind {name}")
}

/// For a module that isn't loaded, and is only there if the kernel was built with `option`.
pub fn load_module(module: &str, option: &str) -> String {
    format!("modprobe {module} ({option})")
}

/// For devices whose message-signalled interrupts aren't isolated from each other's; `module` is
/// `iommufd` or `vfio_iommu_type1`.
pub fn allow_unsafe_interrupts(module: &str) -> String {
    format!(
        "echo Y | sudo tee /sys/module/{module}/parameters/allow_unsafe_interrupts, or boot the host \
         with {module}.allow_unsafe_interrupts=1"
    )
}

/// For a file in `/dev` that is missing though the kernel has its device.
pub fn create_node(path: &Path, number: DeviceNumber) -> String {
    let (path, DeviceNumber { major, minor }) = (path.display(), number);
    format!("mknod {path} c {major} {minor}; in a container, give it access to that device")
}

/// For files that even root may not open.
pub fn allow_in_container(paths: &[String]) -> String {
    let paths = paths.join(" ");
    format!(
        "give the container or service access to {paths} (docker --device, systemd DeviceAllow=)"
    )
}

/// For the files of the IOMMU, which give access to no device by themselves.
pub fn permit_all(paths: &[String]) -> String {
    format!("sudo chmod 666 {}", paths.join(" "))
}

/// For files of devices (of these names) that user `uid` may not open.
pub fn permit_devices(uid: u32, names: &[&str]) -> String {
    format!("sudo strait device bind --owner {uid} {}", names.join(" "))
}

/// For all files that user `uid` may not open, now and after each reboot, through iommufd and containers
/// alike.
///
/// Group files are of class `vfio`, devices' own of class `vfio-dev`; the container and the iommufd are
/// `misc` devices, which give access to no device by themselves.
pub fn udev_rules(uid: u32) -> String {
    format!(
        "printf '%s\\n' 'SUBSYSTEM==\"vfio\", OWNER=\"{uid}\"' 'SUBSYSTEM==\"vfio-dev\", \
         OWNER=\"{uid}\"' 'SUBSYSTEM==\"misc\", KERNEL==\"vfio|iommu\", MODE=\"0666\"' | sudo tee \
         /etc/udev/rules.d/60-strait.rules && sudo udevadm control --reload && sudo udevadm trigger \
         -s vfio -s vfio-dev -s misc"
    )
}

/// For files that another process has open.
pub fn show_users(files: &[impl AsRef<Path>]) -> String {
    let files: Vec<_> = files.iter().map(|path| path.as_ref().display().to_string()).collect();
    format!("fuser -v {}", files.join(" "))
}

/// For a limit of locked memory (`RLIMIT_MEMLOCK`) below `bytes`.
pub fn lock_memory(bytes: u64) -> String {
    format!(
        "ulimit -l {} (as far as the hard limit goes), sudo prlimit --pid $$ --memlock=unlimited, or \
         LimitMEMLOCK=infinity in a systemd unit",
        bytes.div_ceil(1 << 10)
    )
}

/// For a limit of open files (`RLIMIT_NOFILE`) below `files`.
pub fn open_files(files: u64) -> String {
    format!(
        "ulimit -n {files} by root, sudo prlimit --pid $$ --nofile={files}, or LimitNOFILE={files} in a \
         systemd unit"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refused_is_mended_where_it_is_short() {
        for (number, expected) in [
            (libc::EMFILE, Some("ulimit -n")),
            (libc::ENOSPC, Some("max_user_watches")),
            (libc::EPERM, Some("dmesg")),
            (libc::ENOMEM, None),
        ] {
            let help = host_refused(&io::Error::from_raw_os_error(number));
            let is_expected = match (&help, expected) {
                (Some(help), Some(part)) => help.contains(part),
                (help, part) => help.is_none() && part.is_none(),
            };
            assert!(is_expected, "{number}: {help:?}");
        }
    }
}
