//! VFIO's drivers, the modules of the host's kernel, and the reset functions that vfio-platform asks for.

use std::fs;
use std::path::{Path, PathBuf};

use devices::vfio::bindings;
use devices::vfio::host::HostBus;
use devices::vfio::remedy;

use super::System;
use super::finding::Finding;
use super::kind::{ConfinedDevices, Kind};
use crate::error::Error;

/// The VFIO drivers of the buses whose devices strait assigns.
pub fn findings(system: &System, confined: &ConfinedDevices) -> Vec<Finding> {
    let finding = |bus: HostBus| {
        let subject = bus.vfio_driver();
        if system.host.has_vfio_driver(bus) {
            return Finding::fine(subject, "there");
        }
        let kind = Kind::on(bus);
        let absence = if system.modules.has(subject) {
            "a module that isn't loaded"
        } else {
            "not in the host's kernel"
        };
        if !confined.kinds().contains(&kind) {
            return Finding::fine(subject, format!("{absence}, and no device needs it"));
        }
        let text = match confined.count(kind) {
            0 => absence.to_owned(),
            count => format!("{absence}: {count} {} devices can't be assigned", kind.name()),
        };
        let help = system.modules.remedy(subject, bus.vfio_option());
        Finding::blocks(subject, &[kind], text, help)
    };
    HostBus::ALL.map(finding).into()
}

/// Whether vfio-platform takes devices for which the kernel has no reset function. vfio-amba never
/// asks for one (`vfio_amba_probe` in the kernel).
pub fn reset_required(system: &System, confined: &ConfinedDevices) -> Result<Finding, Error> {
    const SUBJECT: &str = "reset_required";
    match system.host.flag("vfio_platform", "reset_required")? {
        Some(true) => {}
        Some(false) => return Ok(Finding::fine(SUBJECT, "off")),
        None => return Ok(Finding::fine(SUBJECT, "not known: vfio-platform isn't there")),
    }
    let resettable = system.modules.resettable();
    let mut without = Vec::new();
    for device in confined.devices(Kind::Platform) {
        // One that VFIO's driver has taken has a reset function.
        let mut names = device.compatible()?.into_iter();
        if !device.is_with_vfio()? && !names.any(|name| resettable.contains(&name)) {
            without.push(device.name());
        }
    }
    if without.is_empty() {
        return Ok(Finding::fine(SUBJECT, "on, and no device lacks a reset function"));
    }
    let text = format!(
        "on: vfio-platform refuses devices for which the kernel has no reset function: {}",
        without.join(", ")
    );
    Ok(if without.len() == confined.count(Kind::Platform) {
        Finding::blocks(SUBJECT, &[Kind::Platform], text, remedy::RESET_REQUIRED)
    } else {
        Finding::degraded(SUBJECT, text, remedy::RESET_REQUIRED)
    })
}

/// Devices of the platform and AMBA buses that nothing can stop, and that the IOMMU keeps from nothing once
/// their guest has ended: `strait run` refuses them. Nothing where there are none.
pub fn unconfined(system: &System, confined: &ConfinedDevices) -> Result<Option<Finding>, Error> {
    const SUBJECT: &str = "IOMMU passthrough";
    let resettable = system.modules.resettable();
    let mut unconfined = Vec::new();
    for device in [Kind::Platform, Kind::Amba].into_iter().flat_map(|kind| confined.devices(kind)) {
        let Some(group) = device.group()? else { continue };
        let compatible = device.compatible()?;
        let can_be_stopped = bindings::find(&compatible).is_some()
            || compatible.iter().any(|name| resettable.contains(name));
        if !can_be_stopped && system.host.group(group).is_identity()? {
            unconfined.push((device.name(), group.to_string()));
        }
    }
    let names: Vec<_> = unconfined.iter().map(|(name, _)| *name).collect();
    let groups = match &unconfined[..] {
        [] => return Ok(None),
        [(_, group)] => group.as_str(),
        _ => "GROUP",
    };
    let text = format!(
        "on: without a guest, the IOMMU keeps these from none of the host's memory, and nothing can stop what a \
         guest leaves running: {}",
        names.join(", ")
    );
    Ok(Some(Finding::degraded(SUBJECT, text, remedy::translate_by_default(groups))))
}

/// The directory of the running kernel's modules (`kmod(8)`).
pub struct Modules(PathBuf);

impl Modules {
    /// In `root`, those of the kernel whose `/proc` is `proc`.
    pub fn of(root: &Path, proc: &Path) -> Self {
        let release = fs::read_to_string(proc.join("sys/kernel/osrelease")).unwrap_or_default();
        Self(root.join(release.trim()))
    }

    /// Whether there is one of this name.
    pub fn has(&self, module: &str) -> bool {
        let text = fs::read_to_string(self.0.join("modules.dep")).unwrap_or_default();
        // Files have either separator, whatever the module's name; compressed ones have an ending.
        let wanted = module.replace('-', "_");
        text.lines().any(|line| {
            let file = line.split(':').next().and_then(|path| path.rsplit('/').next());
            let stem = file.and_then(|file| file.split(".ko").next());
            stem.is_some_and(|stem| stem.replace('-', "_") == wanted)
        })
    }

    /// The command or the option that brings one that isn't loaded.
    pub fn remedy(&self, module: &str, option: &str) -> String {
        if self.has(module) {
            format!("modprobe {module}")
        } else {
            format!("build the host's kernel with {option}")
        }
    }

    /// The devices, by `compatible`, for which the kernel has reset functions: modules of which each says
    /// by its aliases, `vfio-reset:COMPATIBLE`, what it is for (`drivers/vfio/platform/reset` in the
    /// kernel).
    pub fn resettable(&self) -> Vec<String> {
        // Of modules, and of what is built in (kbuild.rst).
        let files = ["modules.alias", "modules.builtin.modinfo"];
        let texts = files.map(|file| fs::read(self.0.join(file)).unwrap_or_default());
        texts.iter().flat_map(|text| aliases(text)).collect()
    }
}

/// The devices that such a file has reset functions for.
fn aliases(text: &[u8]) -> Vec<String> {
    let words = text.split(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | b'='));
    let named = words.filter_map(|word| word.strip_prefix(b"vfio-reset:"));
    named.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_whatever_their_files_are_called() {
        let root = std::env::temp_dir().join(format!("strait-modules-{}", std::process::id()));
        fs::create_dir_all(root.join("6.12")).unwrap();
        fs::create_dir_all(root.join("sys/kernel")).unwrap();
        let list = "kernel/vfio/vfio-platform.ko.xz: kernel/vfio/vfio.ko.xz\n";
        fs::write(root.join("6.12/modules.dep"), list).unwrap();
        let of_release = |release| {
            fs::write(root.join("sys/kernel/osrelease"), format!("{release}\n")).unwrap();
            Modules::of(&root, &root)
        };
        let (there, other) = (of_release("6.12"), of_release("6.13"));
        let found = ["vfio-platform", "vfio_platform", "vfio"].map(|name| there.has(name));
        let remedies = [&there, &other].map(|modules| modules.remedy("vfio_platform", "CONFIG_X"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [true, true, false]);
        assert_eq!(remedies, ["modprobe vfio_platform", "build the host's kernel with CONFIG_X"]);
    }

    #[test]
    fn what_nothing_can_stop_is_told_where_its_group_is_not_translated() {
        let root = std::env::temp_dir().join(format!("strait-identity-{}", std::process::id()));
        for (device, compatible, group, kind) in [
            ("1.plain", "a,b", 1, "identity"),
            ("2.known", "arm,pl330", 2, "identity"),
            ("3.kept", "a,b", 3, "DMA"),
            ("4.reset", "a,reset", 4, "identity"),
        ] {
            let at = root.join("bus/platform/devices").join(device);
            let (node, domain) = (at.join("of_node"), format!("kernel/iommu_groups/{group}"));
            let domain = root.join(domain);
            fs::create_dir_all(&node).unwrap();
            fs::create_dir_all(&domain).unwrap();
            fs::write(node.join("compatible"), format!("{compatible}\0")).unwrap();
            fs::write(node.join("iommus"), [0; 8]).unwrap();
            fs::write(domain.join("type"), format!("{kind}\n")).unwrap();
            std::os::unix::fs::symlink(&domain, at.join("iommu_group")).unwrap();
        }
        fs::write(root.join("modules.alias"), "alias vfio-reset:a,reset x\n").unwrap();
        let host = devices::vfio::host::Host::at(&root, &root, &root, &root);
        let modules = Modules(root.clone());
        let system = System { host, proc: root.clone(), modules };
        let confined = ConfinedDevices::of(&system.host).unwrap();
        let finding = unconfined(&system, &confined).unwrap();
        fs::write(root.join("kernel/iommu_groups/1/type"), "DMA-FQ\n").unwrap();
        let none = unconfined(&system, &confined).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let finding = finding.unwrap();
        assert!(finding.text.ends_with("leaves running: 1.plain"), "{finding:?}");
        assert!(finding.help.unwrap().ends_with("/iommu_groups/1/type"));
        assert_eq!(none, None);
    }

    #[test]
    fn reset_functions_are_found_by_their_aliases() {
        let modules = b"alias vfio-reset:calxeda,hb-xgmac vfio_platform_calxedaxgmac\n\
                        alias of:N*T*Cx x\nalias vfio-reset:a b\n";
        assert_eq!(aliases(modules), ["calxeda,hb-xgmac", "a"]);
        let builtin = b"vfio.license=GPL\0vfio_platform_amdxgbe.alias=vfio-reset:amd,xgbe\0x.y=z\0";
        assert_eq!(aliases(builtin), ["amd,xgbe"]);
        assert!(aliases(b"").is_empty());
    }
}
