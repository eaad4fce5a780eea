//! Tokens of functions with SR-IOV: where VFIO has both, whoever opens a virtual function must know the token that
//! was set by whoever opened the physical one (`vfio_pci_validate_vf_token` of Linux'
//! drivers/vfio/pci/vfio_pci_core.c).

use std::fmt;
use std::str::FromStr;

use super::super::host::{Host, HostBus, HostDevice};
use super::super::uapi::IoctlError;
use super::Assignment;
use super::error::AssignError;

/// A token: a UUID, its bytes in the order in which they are written (RFC 4122, 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfToken([u8; 16]);

/// Where the dashes are in a UUID as it is written, whose length this is.
const DASHES: [usize; 4] = [8, 13, 18, 23];
const LENGTH: usize = 36;

impl VfToken {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for VfToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || {
            format!(
                "`{text}` is no UUID, such as bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3 \
                 (cat /proc/sys/kernel/random/uuid makes one)"
            )
        };
        let (mut bytes, mut digits) = ([0_u8; 16], 0);
        for (place, character) in text.chars().enumerate() {
            if DASHES.contains(&place) {
                if character != '-' {
                    return Err(malformed());
                }
                continue;
            }
            let digit = character.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (Some(digit), Some(byte)) = (digit, bytes.get_mut(digits / 2)) else {
                return Err(malformed());
            };
            *byte = *byte << 4 | digit;
            digits += 1;
        }
        if text.len() == LENGTH { Ok(Self(bytes)) } else { Err(malformed()) }
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl Assignment {
    /// The same, with this token.
    ///
    /// # Errors
    ///
    /// [`AssignError::NoVfToken`]: VFIO asks for no token of this device.
    pub fn with_vf_token(
        mut self,
        host: &Host,
        token: Option<VfToken>,
    ) -> Result<Self, AssignError> {
        let Some(token) = token else { return Ok(self) };
        let physical = self.device.physical_function()?;
        let takes_token = match &physical {
            Some(name) => match host.find_on(HostBus::Pci, name)? {
                Some(physical) => physical.is_with_vfio()?,
                None => false,
            },
            None => self.device.has_virtual_functions(),
        };
        if !takes_token {
            return Err(AssignError::NoVfToken { name: self.name().to_owned(), physical });
        }
        self.vf_token = Some(token);
        Ok(self)
    }
}

impl AssignError {
    /// VFIO wants a token, or another one than was `given`, before it opens this device.
    #[cold]
    pub(crate) fn vf_token(device: &HostDevice, given: bool, source: IoctlError) -> Self {
        let physical = device.physical_function().ok().flatten();
        Self::VfToken { name: device.name().to_owned(), physical, given, source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeHost;
    use super::super::{DeviceRef, preflight};
    use super::*;
    use boot::help::Help;

    const TEXT: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";

    #[test]
    fn a_token_is_a_uuid() {
        let token: VfToken = TEXT.to_uppercase().parse().unwrap();
        assert_eq!((token.bytes()[0], token.bytes()[15]), (0xbd, 0xf3));
        assert_eq!(token.to_string(), TEXT);
        let malformed = [
            "".to_owned(),
            TEXT[..35].to_owned(),
            format!("{TEXT}0"),
            TEXT.replace('-', ""),
            TEXT.replace('-', "0"),
            TEXT.replace('b', "g"),
            TEXT.replace("-5a5f", "5a5f-"),
            TEXT.replace("f3", "ü"),
        ];
        for text in malformed {
            let error = text.parse::<VfToken>().unwrap_err();
            assert!(error.contains("no UUID"), "{text}: {error}");
        }
    }

    #[test]
    fn only_who_takes_a_token_is_given_one() {
        let fake = FakeHost::with_vfio();
        let names = ["0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:02:00.0"];
        let [physical, of_vfio, of_host, other] = names;
        for (group, name) in (1..).zip(names) {
            fake.device("pci", name, Some("vfio-pci"), Some(group));
        }
        fake.device("pci", "0000:03:00.0", Some("nvme"), Some(9));
        fake.write(format!("sys/devices/pci/{physical}/sriov_totalvfs"), "2\n");
        fake.link(
            format!("sys/devices/pci/{of_vfio}/physfn"),
            format!("sys/devices/pci/{physical}"),
        );
        fake.link(format!("sys/devices/pci/{of_host}/physfn"), "sys/devices/pci/0000:03:00.0");
        let given = |name: &str| {
            let assignment = preflight(&fake.host(), &[DeviceRef::from(name)]).unwrap().remove(0);
            let token = TEXT.parse().unwrap();
            assert_eq!(
                assignment.clone().with_vf_token(&fake.host(), None).unwrap().vf_token,
                None
            );
            assignment.with_vf_token(&fake.host(), Some(token))
        };
        for name in [physical, of_vfio] {
            assert_eq!(given(name).unwrap().vf_token.unwrap().to_string(), TEXT);
        }
        for (name, why) in [(of_host, "0000:03:00.0 isn't bound to VFIO"), (other, "SR-IOV")] {
            let error = given(name).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.help().as_deref(), Some(format!("--vfio-pci {name}").as_str()));
        }
        let device = fake.host().find(of_vfio).unwrap().unwrap();
        let refused = || IoctlError::new("VFIO_GROUP_GET_DEVICE_FD", libc::EACCES);
        let error = AssignError::vf_token(&device, false, refused());
        assert!(error.to_string().contains("asks for the VF token of 0000:01:00.0"), "{error}");
        assert!(error.help().unwrap().starts_with("--vfio-pci 0000:01:00.1,vf-token="));
        let error = AssignError::vf_token(&device, true, refused());
        assert!(error.to_string().contains("doesn't take this VF token"), "{error}");
    }
}
