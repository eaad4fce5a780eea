//! The address of a function, and its interrupt pin.

use boot::help::Help;
use std::fmt;
use std::str::FromStr;

/// A function's address: bus, device and function number (PCI Local Bus 3.0, 3.2.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    bus: u8,
    devfn: u8,
}

/// A text that isn't the address of a function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a PCI function")]
pub struct AddressError(pub String);

impl Help for AddressError {
    fn help(&self) -> Option<String> {
        Some("device and function in hexadecimal, as in 03.0: up to 1f.7".into())
    }
}

impl Bdf {
    /// The function with these numbers: a device is below 32, a function below 8.
    pub fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { bus, devfn: device << 3 | function })
    }

    /// The function with this device and function number in one, as configuration addresses have
    /// them.
    pub fn from_devfn(bus: u8, devfn: u8) -> Self {
        Self { bus, devfn }
    }

    /// The bus.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus: 0 to 31.
    pub fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// The function of its device: 0 to 7.
    pub fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function in one.
    pub fn devfn(self) -> u8 {
        self.devfn
    }

    /// Its requester ID (PCI Express 3.0, 2.2.6.2), which is the DeviceID of its messages.
    pub fn requester_id(self) -> u16 {
        u16::from_be_bytes([self.bus, self.devfn])
    }
}

/// `BB:DD.F`, in hexadecimal as lspci writes it.
impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device(), self.function())
    }
}

/// `BB:DD.F`, or `DD.F` for one of bus 0.
impl FromStr for Bdf {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        let (bus, slot) = text.split_once(':').unwrap_or(("0", text));
        let (device, function) = slot.split_once('.').ok_or_else(wrong)?;
        let number = |digits: &str| {
            let plain = digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        let parts = number(bus).zip(number(device)).zip(number(function));
        parts
            .and_then(|((bus, device), function)| Self::new(bus, device, function))
            .ok_or_else(wrong)
    }
}

/// An interrupt pin, INTA to INTD (PCI Local Bus 3.0, 6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterruptPin(u8);

impl InterruptPin {
    /// That of a function which has one only.
    pub const INTA: Self = Self(1);

    /// Another.
    pub const INTB: Self = Self(2);

    /// The pin with this number in the interrupt pin register: 1 to 4; 0 is none.
    pub fn from_register(value: u8) -> Option<Self> {
        (1..=4).contains(&value).then_some(Self(value))
    }

    /// Its number in the interrupt pin register.
    pub fn number(self) -> u8 {
        self.0
    }
}

/// `INTA` to `INTD`.
impl fmt::Display for InterruptPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "INTA",
            2 => "INTB",
            3 => "INTC",
            _ => "INTD",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_and_read() {
        for (text, bus, device, function, id) in [
            ("00:00.0", 0, 0, 0, 0x0000),
            ("00:02.0", 0, 2, 0, 0x0010),
            ("00:1f.7", 0, 31, 7, 0x00ff),
            ("ab:10.3", 0xab, 16, 3, 0xab83),
        ] {
            let bdf = Bdf::new(bus, device, function).unwrap();
            assert_eq!((bdf.to_string().as_str(), bdf.requester_id()), (text, id));
            assert_eq!(text.parse(), Ok(bdf));
            assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (bus, device, function));
            assert_eq!(Bdf::from_devfn(bus, bdf.devfn()), bdf);
        }
        assert_eq!("2.1".parse(), Ok(Bdf::new(0, 2, 1).unwrap()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", ".", "2", "20.0", "2.8", "2.", ".1", "+2.0", "002.0", "0:2:0.0", "g.0", "100:0.0"]
        {
            assert_eq!(text.parse::<Bdf>(), Err(AddressError(text.into())));
        }
        assert_eq!(Bdf::new(0, 32, 0), None);
        assert_eq!(Bdf::new(0, 0, 8), None);
    }

    #[test]
    fn pins_are_a_to_d() {
        let pins: Vec<_> =
            (0..=255).filter_map(InterruptPin::from_register).map(InterruptPin::number).collect();
        assert_eq!(pins, [1, 2, 3, 4]);
        let names: Vec<_> =
            (1..=4).filter_map(InterruptPin::from_register).map(|pin| pin.to_string()).collect();
        assert_eq!(names, ["INTA", "INTB", "INTC", "INTD"]);
    }
}
