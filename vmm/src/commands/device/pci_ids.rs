//! The names of PCI vendors, devices and classes, from the list that Debian installs (package
//! pci.ids; its syntax: `man 5 pci.ids`).

use std::fs;

use devices::vfio::host::PciIdentity;

/// Where Debian has it.
const FILE: &str = "/usr/share/misc/pci.ids";

/// The list; empty where it isn't installed.
#[derive(Debug, Default)]
pub struct PciIds(String);

impl PciIds {
    /// The host's.
    #[cold]
    pub fn installed() -> Self {
        Self(
            fs::read(FILE)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default(),
        )
    }

    /// What a function is: class, vendor and device by name as far as they are known, and by number.
    #[cold]
    pub fn describe(&self, identity: PciIdentity) -> String {
        let PciIdentity { class, vendor, device } = identity;
        let class_code = class >> 8;
        let class = self.class(class_code).unwrap_or_else(|| format!("class {class_code:04x}"));
        let (vendor_name, device_name) = self.function(vendor, device);
        let names: Vec<&str> = [vendor_name, device_name].into_iter().flatten().collect();
        let space = if names.is_empty() { "" } else { " " };
        format!("{class}: {}{space}[{vendor:04x}:{device:04x}]", names.join(" "))
    }

    /// The name of a class by base class and subclass.
    fn class(&self, code: u32) -> Option<String> {
        let (base, sub) = (format!("C {:02x}", code >> 8 & 0xff), format!("{:02x}", code & 0xff));
        let (name, below) = self.entry(&base)?;
        Some(entry_below(below, &sub).unwrap_or(name).to_owned())
    }

    /// The names of a vendor and of a device of theirs.
    fn function(&self, vendor: u16, device: u16) -> (Option<&str>, Option<&str>) {
        let Some((name, below)) = self.entry(&format!("{vendor:04x}")) else { return (None, None) };
        (Some(name), entry_below(below, &format!("{device:04x}")))
    }

    /// What is said of the entry that begins a line with this key, and what is below it.
    fn entry(&self, key: &str) -> Option<(&str, &str)> {
        let mut rest = self.0.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            if let Some(name) = line.strip_prefix(key).and_then(|name| name.strip_prefix("  ")) {
                return Some((name.trim(), after));
            }
            rest = after;
        }
        None
    }
}

/// The name of the entry with this key among those that are indented once, up to the next that
/// isn't indented.
fn entry_below<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut below = lines.take_while(|line| line.starts_with('\t'));
    below.find_map(|line| {
        line.strip_prefix('\t')?.strip_prefix(key)?.strip_prefix("  ").map(str::trim)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# Syntax\n\
        1b36  Red Hat, Inc.\n\
        \t0005  QEMU PCI Test Device\n\
        \t\t1af4 1100  QEMU Virtual Machine\n\
        # a comment\n\
        \t0010  QEMU NVM Express Controller\n\
        8086  Intel Corporation\n\
        \t10d3  82574L Gigabit Network Connection\n\
        C 01  Mass storage controller\n\
        \t08  Non-Volatile memory controller\n\
        \t\t02  NVM Express\n\
        C 02  Network controller\n";

    fn describe(class: u32, vendor: u16, device: u16) -> String {
        PciIds(LIST.into()).describe(PciIdentity { class, vendor, device })
    }

    #[test]
    fn functions_are_described_by_name_and_number() {
        let cases = [
            (
                (0x1_0802, 0x1b36, 0x0010),
                "Non-Volatile memory controller: Red Hat, Inc. QEMU NVM Express Controller \
                 [1b36:0010]",
            ),
            (
                (0x2_0000, 0x8086, 0x10d3),
                "Network controller: Intel Corporation 82574L Gigabit Network Connection \
                 [8086:10d3]",
            ),
            // A device of another vendor, and one of nobody.
            ((0x2_0000, 0x8086, 0x0010), "Network controller: Intel Corporation [8086:0010]"),
            ((0xff_0000, 0x1234, 0x11e8), "class ff00: [1234:11e8]"),
            // A subsystem's line is none of a device.
            ((0xff_0000, 0x1b36, 0x1af4), "class ff00: Red Hat, Inc. [1b36:1af4]"),
        ];
        for ((class, vendor, device), expected) in cases {
            assert_eq!(describe(class, vendor, device), expected);
        }
        let none = PciIds::default();
        let identity = PciIdentity { class: 0x1_0802, vendor: 0x1b36, device: 0x10 };
        assert_eq!(none.describe(identity), "class 0108: [1b36:0010]");
    }
}
