//! `--vfio-platform NAME|fd=N[,OPTION…]`.

use std::str::FromStr;

use devices::vfio::assign::DeviceRef;
use devices::vfio::platform::PlatformDeviceOptions;

use super::values::{device_ref, split, switch, take_each};

/// A platform device to assign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioPlatformOptions {
    /// Which one.
    pub which: DeviceRef,
    /// What is done with it.
    pub device: PlatformDeviceOptions,
    /// Where its regions go: one for all, or one for each.
    pub addresses: Vec<RegionAddress>,
    /// Whether it has clocks, resets and power domains by SCMI.
    pub scmi: ScmiMode,
}

/// Whether a guest has by SCMI what a device's node names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScmiMode {
    /// Where its kernel and the host have it.
    #[default]
    Auto,
    /// Yes, whatever its kernel has.
    On,
    /// No: clocks are fixed, the rest is left out.
    Off,
}

/// Where a region goes in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionAddress {
    /// Where there is room.
    Auto,
    /// Where it is on the host, by physical address.
    Host,
    /// At this GPA.
    At(u64),
}

impl VfioPlatformOptions {
    /// A device with the defaults.
    pub fn new(which: DeviceRef) -> Self {
        let device = PlatformDeviceOptions::default();
        Self { which, device, addresses: vec![RegionAddress::Auto], scmi: ScmiMode::Auto }
    }

    /// Where each of so many regions goes.
    ///
    /// # Errors
    ///
    /// For how many there are addresses, if that isn't as many.
    pub fn addresses_of(&self, regions: usize) -> Result<Vec<RegionAddress>, usize> {
        match self.addresses.as_slice() {
            [all @ (RegionAddress::Auto | RegionAddress::Host)] => Ok(vec![*all; regions]),
            each if each.len() == regions => Ok(each.to_vec()),
            each => Err(each.len()),
        }
    }

    /// Takes one `KEY=VALUE`.
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        let node = &mut self.device.node;
        match key {
            "addr" => self.addresses = value.split(':').map(address).collect::<Result<_, _>>()?,
            "scmi" => self.scmi = scmi_mode(value)?,
            "quiesce" => self.device.quiesce = switch(key, value)?,
            "mmap" => self.device.mmap = switch(key, value)?,
            "clock-rate" => node.clock_rates.push(clock_rate(value)?),
            "compatible" => node.compatible.push(some(key, value)?),
            "drop" => node.drop.push(some(key, value)?),
            "alias" => node.aliases.push(some(key, value)?),
            _ => node.name = Some(some(key, value)?),
        }
        Ok(())
    }
}

impl FromStr for VfioPlatformOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, given) = split(text)?;
        let mut options = Self::new(device_ref(device, "2c0a0000.dma")?);
        let once = ["addr", "quiesce", "mmap", "node-name", "scmi"];
        let repeated = ["clock-rate", "compatible", "drop", "alias"];
        take_each(given, "a device", &once, &repeated, |key, value| options.take(key, value))?;
        Ok(options)
    }
}

fn some(key: &str, value: &str) -> Result<String, String> {
    if value.is_empty() { Err(format!("{key} has no value")) } else { Ok(value.to_owned()) }
}

fn address(text: &str) -> Result<RegionAddress, String> {
    match text {
        "auto" => Ok(RegionAddress::Auto),
        "host" => Ok(RegionAddress::Host),
        _ => {
            let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
            let address = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            address.map(RegionAddress::At).ok_or_else(|| {
                format!("addr is auto, host or an address such as 0x2c0a0000, and not `{text}`")
            })
        }
    }
}

fn scmi_mode(text: &str) -> Result<ScmiMode, String> {
    match text {
        "auto" => Ok(ScmiMode::Auto),
        "on" => Ok(ScmiMode::On),
        "off" => Ok(ScmiMode::Off),
        _ => Err(format!("scmi is auto, on or off, and not `{text}`")),
    }
}

fn clock_rate(text: &str) -> Result<(String, u32), String> {
    text.rsplit_once(':')
        .filter(|(name, _)| !name.is_empty())
        .and_then(|(name, rate)| Some((name.to_owned(), rate.parse().ok()?)))
        .filter(|(_, rate)| *rate > 0)
        .ok_or_else(|| "clock-rate is NAME:HZ, such as apb_pclk:24000000".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_has_the_defaults() {
        assert_eq!("2c0a0000.dma".parse(), Ok(VfioPlatformOptions::new("2c0a0000.dma".into())));
        assert!(VfioPlatformOptions::new("x".into()).device.quiesce);
    }

    #[test]
    fn options_follow_the_name() {
        let parse = |text: &str| text.parse::<VfioPlatformOptions>().unwrap();
        assert!(!parse("x,quiesce=off").device.quiesce);
        assert!(!parse("x,mmap=off").device.mmap);
        let modes = ["x", "x,scmi=auto", "x,scmi=on", "x,scmi=off"].map(|text| parse(text).scmi);
        assert_eq!(modes, [ScmiMode::Auto, ScmiMode::Auto, ScmiMode::On, ScmiMode::Off]);
        let all = parse(
            "x,addr=host:auto:0x2c0a0000,compatible=arm,pl011,compatible=arm,primecell,drop=\
             snps,axi-config,drop=mdio/phy@1,clock-rate=uartclk:24000000,clock-rate=a:b,c:1,\
             node-name=serial,alias=serial1,alias=uart1",
        );
        let expected = [RegionAddress::Host, RegionAddress::Auto, RegionAddress::At(0x2c0a_0000)];
        assert_eq!(all.addresses, expected);
        let node = all.device.node;
        assert_eq!(node.compatible, ["arm,pl011", "arm,primecell"]);
        assert_eq!(node.drop, ["snps,axi-config", "mdio/phy@1"]);
        let rates = [("uartclk".to_owned(), 24_000_000), ("a:b,c".to_owned(), 1)];
        assert_eq!(node.clock_rates, rates);
        assert_eq!(node.name.as_deref(), Some("serial"));
        assert_eq!(node.aliases, ["serial1", "uart1"]);
        let comma = parse("2c0b0000.qcom,dma,mmap=off");
        assert_eq!((comma.which, comma.device.mmap), ("2c0b0000.qcom,dma".into(), false));
        let passed = parse("fd=0,quiesce=off");
        assert_eq!((passed.which, passed.device.quiesce), (DeviceRef::Descriptor(0), false));
    }

    #[test]
    fn one_address_that_isnt_a_number_is_for_all_regions() {
        use RegionAddress::{At, Auto, Host};
        type Case<'a> = (&'a str, usize, Result<Vec<RegionAddress>, usize>);
        let cases: [Case<'_>; 6] = [
            ("x,addr=host", 3, Ok(vec![Host; 3])),
            ("x", 0, Ok(vec![])),
            ("x,addr=0x0", 1, Ok(vec![At(0)])),
            ("x,addr=0x1000", 2, Err(1)),
            ("x,addr=auto:host", 2, Ok(vec![Auto, Host])),
            ("x,addr=auto:host", 3, Err(2)),
        ];
        for (text, regions, expected) in cases {
            let options: VfioPlatformOptions = text.parse().unwrap();
            assert_eq!(options.addresses_of(regions), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",quiesce=off",
            "fd=",
            "fd=1048576",
            "quiesce=off,fd=0",
            "x,",
            "x,,quiesce=off",
            "x,quiesce=maybe",
            "x,quiesce=off,",
            "x,mmap=",
            "x,colour=red",
            "x,addr=",
            "x,addr=12",
            "x,addr=0x",
            "x,addr=0x+1",
            "x,addr=0x10000000000000000",
            "x,addr=host:",
            "x,clock-rate=24",
            "x,clock-rate=:24",
            "x,clock-rate=a:0",
            "x,clock-rate=a:5000000000",
            "x,compatible=",
            "x,drop=",
            "x,alias=",
            "x,scmi=",
            "x,scmi=yes",
            "x,scmi=on,scmi=on",
            "x,node-name=",
            "x,quiesce=off,quiesce=on",
            "x,addr=host,mmap=off,addr=host",
        ] {
            assert!(text.parse::<VfioPlatformOptions>().is_err(), "{text}");
        }
    }
}
