//! `strait device kconfig`.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;

use devices::vfio::assign::{self, DeviceRef};
use devices::vfio::bindings;
use devices::vfio::host::{Host, HostDevice};
use serde::Serialize;

use crate::error::Error;
use crate::kconfig::{Answer, Query, Tree};

/// Drivers of classes of PCI functions: base class, subclass and interface, as far as they count.
const PCI_CLASSES: [(&str, &str); 4] = [
    ("bc01sc06i01", "CONFIG_SATA_AHCI"),
    ("bc01sc08i02", "CONFIG_BLK_DEV_NVME"),
    ("bc0Csc03i30", "CONFIG_USB_XHCI_PCI"),
    ("bc08sc05", "CONFIG_MMC_SDHCI_PCI"),
];

/// What a guest's kernel needs for a device: a fragment of its configuration.
#[derive(Debug, Serialize)]
pub struct Requirements {
    name: String,
    /// What the device is, as drivers know it.
    compatible: Vec<String>,
    modalias: Option<String>,
    /// The modules that this host's kernel would load for it.
    modules: Vec<String>,
    /// The drivers, the likeliest first.
    drivers: Vec<Answer>,
}

impl Requirements {
    /// Those of the device of this name, by a tree of Linux' sources if there is one.
    ///
    /// # Errors
    ///
    /// There is no such device or tree, or nobody knows its driver.
    #[cold]
    pub fn of(host: &Host, name: &str, tree: Option<&Path>) -> Result<Self, Error> {
        let mut assessed = assign::assess_all(host, [&DeviceRef::from(name)])?;
        let device = assessed.pop().ok_or_else(|| Error::new("there is no such device"))?.device;
        let mut query = Query::of_compatible(device.compatible()?);
        query.amba_id = amba_id(&device).or(query.amba_id);
        let modalias = attribute(&device, "modalias");
        query.modules = modalias.as_deref().map(modules_for).unwrap_or_default();
        let drivers = match tree {
            Some(tree) => Tree::read(tree)?.ask(&query),
            None => known(&query, modalias.as_deref()).into_iter().collect(),
        };
        if drivers.is_empty() {
            return Err(nothing(device.name(), &query, tree));
        }
        let Query { compatible, modules, .. } = query;
        let name = device.name().to_owned();
        Ok(Self { name, compatible, modalias, modules, drivers })
    }
}

impl Display for Requirements {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let what = if self.compatible.is_empty() {
            self.modalias.clone().unwrap_or_default()
        } else {
            self.compatible.join(" ")
        };
        writeln!(f, "# {}: {what}", self.name)?;
        if !self.modules.is_empty() {
            writeln!(f, "# on this host: module {}", self.modules.join(" "))?;
        }
        let Some((first, others)) = self.drivers.split_first() else { return Ok(()) };
        writeln!(f, "# {} ({})", first.file, first.matched)?;
        first.options.iter().try_for_each(|option| writeln!(f, "{option}=y"))?;
        if first.options.is_empty() {
            writeln!(f, "# every kernel has it")?;
        }
        if !first.selects.is_empty() {
            writeln!(f, "# which selects {}", first.selects.join(" "))?;
        }
        for other in others {
            let option = other.option.as_deref().unwrap_or("every kernel");
            writeln!(f, "# or {option}: {} ({})", other.file, other.matched)?;
        }
        Ok(())
    }
}

/// What is known without a tree.
fn known(query: &Query, modalias: Option<&str>) -> Option<Answer> {
    let binding = bindings::find(&query.compatible);
    let of_binding = binding.and_then(|binding| Some((binding.name, binding.kernel_option?)));
    let class = modalias.filter(|modalias| modalias.starts_with("pci:"));
    let of_class = class.and_then(|modalias| {
        let found = PCI_CLASSES.iter().find(|(class, _)| modalias.contains(class));
        found.map(|(class, option)| (*class, *option))
    });
    of_binding.or(of_class).map(|(matched, option)| Answer {
        matched: matched.to_owned(),
        file: "strait's own table; --tree LINUX finds what it needs".to_owned(),
        option: Some(option.to_owned()),
        options: vec![option.to_owned()],
        selects: Vec::new(),
    })
}

#[cold]
fn nothing(name: &str, query: &Query, tree: Option<&Path>) -> Error {
    let what = match (&query.compatible[..], &query.modules[..]) {
        ([], []) => String::new(),
        ([], modules) => format!(" (module {} on this host)", modules.join(" ")),
        (compatible, _) => format!(" ({})", compatible.join(" ")),
    };
    match tree {
        None => Error::new(format!("strait itself knows no driver of {name}{what}")).help(format!(
            "strait device kconfig {name} --tree LINUX, a tree of the guest's kernel"
        )),
        Some(tree) => Error::new(format!("no driver in {} knows {name}{what}", tree.display())),
    }
}

/// The peripheral ID of a device on the AMBA bus.
fn amba_id(device: &HostDevice) -> Option<u32> {
    u32::from_str_radix(&attribute(device, "id")?, 16).ok()
}

/// A file of the device in sysfs.
fn attribute(device: &HostDevice, name: &str) -> Option<String> {
    let text = fs::read_to_string(device.path().join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// The modules that this host's kernel would load for a device, or has built in (modules.alias of
/// modprobe(8); modules.builtin.modinfo, Documentation/kbuild/kbuild.rst).
fn modules_for(modalias: &str) -> Vec<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let directory = Path::new("/lib/modules").join(release.trim());
    let loaded = fs::read_to_string(directory.join("modules.alias")).unwrap_or_default();
    let builtin = fs::read(directory.join("modules.builtin.modinfo")).unwrap_or_default();
    let builtin = String::from_utf8_lossy(&builtin);
    let mut found = Vec::new();
    let loaded = loaded.lines().filter_map(|line| {
        let (pattern, module) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        Some((pattern, module))
    });
    let builtin = builtin.split('\0').filter_map(|entry| {
        let (module, pattern) = entry.split_once(".alias=")?;
        Some((pattern, module))
    });
    for (pattern, module) in loaded.chain(builtin) {
        let module = module.replace('-', "_");
        if matches(pattern.as_bytes(), modalias.as_bytes()) && !found.contains(&module) {
            found.push(module);
        }
    }
    found
}

/// Whether a pattern with `*` and `?` is all of a text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where to go on if what follows the last `*` doesn't match: that, and one byte later.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                again = Some((rest, text));
                pattern = rest;
            }
            (Some((expected, after)), Some((byte, rest)))
                if matches!(expected, b'?') || expected == byte =>
            {
                (pattern, text) = (after, rest);
            }
            (None, None) => return true,
            _ => {
                let Some((rest, [_, later @ ..])) = again else { return false };
                again = Some((rest, later));
                (pattern, text) = (rest, later);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_all_of_a_text() {
        for (pattern, text, expected) in [
            ("of:N*T*Ccdns,gem", "of:NethernetT(null)Ccdns,gem", true),
            ("of:N*T*Ccdns,gemC*", "of:NethernetT(null)Ccdns,gem", false),
            ("of:N*T*Ccdns,gemC*", "of:NethernetT(null)Ccdns,gemCcdns,macb", true),
            ("pci:v00001B36d00000010sv*", "pci:v00001B36d00000010sv00001AF4sd1", true),
            ("amba:d???41330", "amba:d00041330", true),
            ("*", "", true),
            ("a*b*c", "axbxbxc", true),
            ("a*b*c", "axbxbx", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_strait_knows_by_itself() {
        let option = |compatible: &str, modalias| {
            let query = Query::of_compatible(vec![compatible.to_owned()]);
            known(&query, modalias).and_then(|answer| answer.option)
        };
        assert_eq!(option("arm,pl330", None).as_deref(), Some("CONFIG_PL330_DMA"));
        let disk = Some("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02");
        assert_eq!(option("", disk).as_deref(), Some("CONFIG_BLK_DEV_NVME"));
        assert_eq!(option("vendor,thing", Some("of:NxT(null)Cbc01sc08i02")), None);
    }
}
