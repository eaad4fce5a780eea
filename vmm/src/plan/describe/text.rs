//! The plan as text.

use std::fmt::{self, Display, Formatter};

use devices::extent::Extent;
use devices::irq::Trigger;
use devices::vfio::node::PropertyReport;

use super::{
    Area, Description, Device, DeviceInterrupt, Interrupt, KvmFacts, MessageSpis, PciFunction,
    PciHost, Region, ScmiClock, ScmiDescription, VirtioFunction,
};
use crate::assigned::{Obstacle, unbound_note};
use crate::cli::Size;

impl Display for Description {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let KvmFacts { gic, its, cpu_features: features, sve_lengths, .. } = &self.kvm;
        let its = if *its { " with an ITS" } else { "" };
        let memory = Size::from(self.memory);
        write!(f, "machine: {} vCPU(s), {gic}{its}, {memory} of RAM", self.vcpus)?;
        match self.hugepages.as_deref() {
            None => writeln!(f)?,
            Some("thp") => writeln!(f, " in transparent huge pages")?,
            Some(size) => writeln!(f, " in huge pages of {size}")?,
        }
        writeln!(f, "CPU features: {}", cpu_features(features, sve_lengths))?;
        self.firmware.iter().try_for_each(|name| writeln!(f, "firmware: {name}"))?;
        for (kernel, packaging) in self.kernel.iter().zip(&self.packaging) {
            writeln!(f, "kernel: {kernel}, {packaging}")?;
        }
        writeln!(f, "command line: {}", self.cmdline)?;
        self.control.iter().try_for_each(|path| writeln!(f, "controlled at: {path}"))?;
        self.registered.iter().try_for_each(|name| writeln!(f, "registered as: {name}"))?;
        self.restarts.iter().try_for_each(|when| writeln!(f, "begins anew: {when}"))?;
        self.gdb.iter().try_for_each(|place| writeln!(f, "GDB: target remote {place}"))?;
        self.traces.iter().try_for_each(|trace| writeln!(f, "trace: {trace}"))?;
        writeln!(f, "\nmemory map (guest physical addresses):")?;
        for Area { extent, what, in_ram } in &self.memory_map {
            let indent = if *in_ram { "  " } else { "" };
            writeln!(f, "  {}  {indent}{what}", in_columns(extent))?;
        }
        writeln!(f, "\ninterrupts:")?;
        for Interrupt { spi, what, trigger } in &self.interrupts {
            writeln!(f, "  SPI {spi:<3}  {what}, {}", signalling(*trigger))?;
        }
        if let Some(iommu) = self.iommu {
            writeln!(f, "\nIOMMU: {}", iommu.name())?;
        }
        if !self.obstacles.is_empty() {
            writeln!(f, "\n{}", unbound_note())?;
        }
        for Obstacle { what, help } in &self.obstacles {
            writeln!(f, "  {what}")?;
            help.iter().try_for_each(|help| writeln!(f, "    help: {help}"))?;
        }
        self.scmi.iter().try_for_each(|scmi| write!(f, "\n{scmi}"))?;
        self.devices.iter().try_for_each(|device| write!(f, "\n{device}"))?;
        self.pci.iter().try_for_each(|host| write!(f, "\n{host}"))?;
        write!(f, "\ndevice tree:\n{}", self.device_tree)
    }
}

/// First and last address in columns; nothing has no last one.
fn in_columns(Extent { start, size }: &Extent) -> String {
    match size.checked_sub(1) {
        Some(rest) => format!("{start:#011x}-{:#011x}", start.saturating_add(rest)),
        None => format!("{start:#011x}, 0 bytes   "),
    }
}

/// Features of vCPUs as a person reads them, SVE with the lengths of its vectors.
pub fn cpu_features(names: &[&str], sve_lengths: &[u32]) -> String {
    if names.is_empty() {
        return "none beyond the base architecture".to_owned();
    }
    let lengths: Vec<_> = sve_lengths.iter().map(u32::to_string).collect();
    let name = |name: &&str| match *name {
        "sve" => format!("SVE ({} bits)", lengths.join(", ")),
        "pauth" => "pointer authentication".to_owned(),
        _ => "PMU".to_owned(),
    };
    names.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// How the trigger is handled.
fn signalling(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Edge => "edge",
        Trigger::Level => "level, resampled",
    }
}

impl Display for ScmiDescription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "SCMI:")?;
        for (number, ScmiClock { of, rate, off, .. }) in self.clocks.iter().enumerate() {
            let off = if *off { ", off" } else { "" };
            writeln!(f, "  clock {number}: {of}, {rate} Hz{off}")?;
        }
        for (what, names) in [("reset", &self.resets), ("power domain", &self.power_domains)] {
            let mut numbered = names.iter().enumerate();
            numbered.try_for_each(|(number, name)| writeln!(f, "  {what} {number}: {name}"))?;
        }
        Ok(())
    }
}

impl Display for PciHost {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "PCI functions:")?;
        for PciFunction { address, name, root_port, details, .. } in &self.functions {
            match root_port {
                Some(port) => writeln!(f, "  {address}  {name}, in the slot of root port {port}")?,
                None => writeln!(f, "  {address}  {name}")?,
            }
            details.to_string().lines().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        for VirtioFunction { address, name, id, what, .. } in &self.virtio {
            writeln!(f, "  {address}  {name}, virtio {id}: {what}")?;
        }
        if let Some(MessageSpis { first, count }) = self.messages {
            let last = first.saturating_add(count).saturating_sub(1);
            writeln!(f, "  {count} vectors of MSI and MSI-X in all, SPI {first} to {last}, edge")?;
        }
        self.without_messages.iter().try_for_each(|why| writeln!(f, "  {why}"))
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let binding = self.binding.map_or_else(String::new, |name| format!(", a {name}"));
        writeln!(f, "{}{binding}:", self.name)?;
        for (index, Region { extent, access }) in self.regions.iter().enumerate() {
            let Extent { start, size } = extent;
            writeln!(f, "  region {index}: {start:#x}, {size:#x} bytes, {access}")?;
        }
        for (index, DeviceInterrupt { spi, trigger }) in self.interrupts.iter().enumerate() {
            writeln!(f, "  interrupt {index}: SPI {spi}, {}", signalling(*trigger))?;
        }
        writeln!(f, "  of the host's node:")?;
        let with_reason = |property: &&PropertyReport| property.disposition.reason().is_some();
        for name in ["kept", "rewritten", "made"] {
            let of_name = self.properties.iter().filter(|p| p.disposition.name() == name);
            let paths = of_name.filter(|property| !with_reason(property));
            let paths: Vec<String> = paths.map(PropertyReport::path).collect();
            if !paths.is_empty() {
                writeln!(f, "    {name:<10}{}", paths.join(" "))?;
            }
        }
        for property in self.properties.iter().filter(with_reason) {
            let (name, path) = (property.disposition.name(), property.path());
            let reason = property.disposition.reason().unwrap_or_default();
            writeln!(f, "    {name:<10}{path}: {reason}")?;
        }
        writeln!(f, "  the guest's node:")?;
        self.node.lines().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_with_their_last_byte_if_they_have_one() {
        let text = |start, size| in_columns(&Extent { start, size });
        assert_eq!(text(0xc01_0000, 0x1000), "0x00c010000-0x00c010fff");
        assert_eq!(text(0xc01_0000, 0), "0x00c010000, 0 bytes   ");
        assert_eq!(text(u64::MAX, 1).len(), 37);
    }
}
