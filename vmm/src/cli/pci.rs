//! `--vfio-pci BDF|fd=N[,OPTION…]`.

use boot::help::Help;
use std::str::FromStr;

use devices::pci::Bdf;
use devices::vfio::assign::DeviceRef;
use devices::vfio::pci::PciOptions as FunctionOptions;

use super::once::Once;
use super::vfio::{device_ref, split};

/// A PCI function to assign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciOptions {
    /// Which one: what sysfs calls it (`0000:05:00.0`), without the domain if that is 0000, its path
    /// below sysfs, or a descriptor.
    pub which: DeviceRef,
    /// What is done with it.
    pub function: FunctionOptions,
    /// Where it is on the guest's bus.
    pub address: Option<Bdf>,
}

impl PciOptions {
    /// A function with the defaults.
    pub fn new(which: DeviceRef) -> Self {
        Self { which, function: FunctionOptions::default(), address: None }
    }
}

/// Takes one `KEY=VALUE` of a PCI function: what is done with it, and where it is.
pub(super) fn take(
    function: &mut FunctionOptions,
    at: &mut Option<Bdf>,
    once: &mut Once,
    (key, value): (&str, &str),
) -> Result<(), String> {
    for single in ["addr", "mmap", "reset"] {
        if key == single {
            once.note(single, value.as_ref())?;
        }
    }
    match key {
        "addr" => *at = Some(address(value)?),
        "mmap" => function.mmap = super::platform::switch(key, value)?,
        "reset" => function.reset = super::platform::switch(key, value)?,
        _ => {
            return Err(format!("`{key}` is no option of a PCI device; addr, mmap and reset are"));
        }
    }
    Ok(())
}

impl FromStr for PciOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, given) = split(text)?;
        let mut options = Self::new(device_ref(device, "0000:05:00.0")?);
        let mut once = Once::default();
        for option in given {
            take(&mut options.function, &mut options.address, &mut once, option)?;
        }
        Ok(options)
    }
}

/// Reads where a function is to be on the guest's bus.
fn address(text: &str) -> Result<Bdf, String> {
    text.parse::<Bdf>().map_err(|error| {
        let help = error.help().map(|help| format!("; addr is {help}")).unwrap_or_default();
        format!("{error}{help}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_name() {
        let parse = |text: &str| text.parse::<PciOptions>().unwrap();
        assert_eq!(parse("05:00.0"), PciOptions::new("05:00.0".into()));
        let all = parse("0000:05:00.0,addr=1f.7,mmap=off,reset=off");
        assert_eq!(all.which, "0000:05:00.0".into());
        assert_eq!(all.address, Bdf::new(0, 31, 7));
        assert_eq!((all.function.mmap, all.function.reset), (false, false));
        let path = "/sys/devices/platform/1c00000.qcom,pcie/pci0000:00/0000:00:00.0";
        assert_eq!(parse(&format!("{path},mmap=off")).which, path.into());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",mmap=off",
            "x,",
            "x,,mmap=off",
            "x,mmap=maybe",
            "x,addr=",
            "x,addr=20.0",
            "x,addr=02",
            "x,reset=",
            "x,colour=red",
            "x,mmap=off,mmap=on",
            "x,addr=1.0,reset=off,addr=1.0",
        ] {
            assert!(text.parse::<PciOptions>().is_err(), "{text}");
        }
    }
}
