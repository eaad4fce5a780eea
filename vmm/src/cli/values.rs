//! How options' values are read: given once, and as `DEVICE[,KEY=VALUE…]`.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;

use devices::vfio::assign::DeviceRef;
use devices::vfio::iommu::Backend;
use lexopt::{Parser, ValueExt};

/// The options that were given, with their values: of two values, nobody can tell which one was
/// meant.
#[derive(Default)]
pub(super) struct GivenOnce(Vec<(&'static str, OsString)>);

impl GivenOnce {
    /// Notes an option's value.
    ///
    /// # Errors
    ///
    /// It has one already; both are named.
    pub(super) fn note(&mut self, option: &'static str, value: &OsStr) -> Result<(), String> {
        if let Some((_, first)) = self.0.iter().find(|(given, _)| *given == option) {
            let (first, second) = (first.display(), value.display());
            return Err(format!("{option} is given twice, as `{first}` and as `{second}`"));
        }
        self.0.push((option, value.to_owned()));
        Ok(())
    }

    /// Whether an option was given.
    pub(super) fn has(&self, option: &str) -> bool {
        self.0.iter().any(|(given, _)| *given == option)
    }

    /// The value of the option that was just parsed.
    pub(super) fn value(
        &mut self,
        option: &'static str,
        parser: &mut Parser,
    ) -> Result<OsString, lexopt::Error> {
        let value = parser.value()?;
        self.note(option, &value).map_err(|why| lexopt::Error::Custom(why.into()))?;
        Ok(value)
    }

    /// The same, read by `parse`; a failure names the option and the value.
    pub(super) fn parsed<T>(
        &mut self,
        option: &'static str,
        parser: &mut Parser,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, lexopt::Error> {
        read(option, self.value(option, parser)?, parse)
    }
}

/// Reads an option's value; a failure names the option and the value.
pub(super) fn read<T>(
    option: &str,
    text: OsString,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, lexopt::Error> {
    let text = text.string()?;
    parse(&text).map_err(|why| lexopt::Error::Custom(format!("{option} {text}: {why}").into()))
}

/// Hands each `KEY=VALUE` of a device to `take`. A key must be one of those that are given once or of
/// those that may be `repeated`, of such a `kind` of device.
pub(super) fn take_each<'a>(
    given: impl IntoIterator<Item = (&'a str, &'a str)>,
    kind: &str,
    once: &[&'static str],
    repeated: &[&'static str],
    mut take: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), String> {
    let mut noted = GivenOnce::default();
    for (key, value) in given {
        if let Some(key) = once.iter().find(|known| **known == key) {
            noted.note(key, value.as_ref())?;
        } else if !repeated.contains(&key) {
            let known = [once, repeated].concat();
            let (last, first) = known.split_last().unwrap_or((&"none", &[]));
            let first = first.join(", ");
            return Err(format!("`{key}` is no option of {kind}; {first} and {last} are"));
        }
        take(key, value)?;
    }
    Ok(())
}

/// Reads `on` or `off`.
pub(super) fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key} is on or off")),
    }
}

/// A device, and the options behind it as keys and values.
type Split<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// Splits `DEVICE[,KEY=VALUE…]`. A piece without `=` belongs to what is before it: names of devices,
/// and of properties, have commas themselves (`2c0b0000.qcom,dma`, `compatible=arm,pl330`).
pub(super) fn split(text: &str) -> Result<Split<'_>, String> {
    let mut rest = text;
    let mut options = Vec::new();
    // From the end, so that what is left is the device.
    let mut end = text.len();
    while let Some((before, _)) = rest.rsplit_once(',') {
        let begin = before.len().saturating_add(1);
        let piece = text.get(begin..end).unwrap_or_default();
        if piece.is_empty() || piece.starts_with(',') {
            return Err("there is nothing behind a comma; KEY=VALUE is an option".into());
        }
        let own = piece.split(',').next().unwrap_or_default();
        if let Some((key, _)) = own.split_once('=') {
            let value = piece.get(key.len().saturating_add(1)..).unwrap_or_default();
            options.push((key, value));
            end = before.len();
        }
        rest = before;
    }
    options.reverse();
    Ok((text.get(..end).unwrap_or_default(), options))
}

/// The device that begins an option's value: `fd=N`, or a name such as `example`.
pub(super) fn device_ref(text: &str, example: &str) -> Result<DeviceRef, String> {
    match text.strip_prefix("fd=") {
        Some(number) => descriptor(number).map(DeviceRef::Descriptor),
        None if text.is_empty() => {
            Err(format!("a device's name comes first, such as {example}, or fd=N"))
        }
        None => Ok(DeviceRef::from(text)),
    }
}

/// The number of a descriptor that is open. Looked at here, before strait has opened any file, which
/// might get the number.
pub(super) fn descriptor(text: &str) -> Result<RawFd, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<RawFd>().ok().filter(|_| digits);
    let number = number.ok_or_else(|| format!("a descriptor is a number, and not `{text}`"))?;
    // SAFETY: F_GETFD takes no pointer.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(format!(
            "descriptor {number} isn't open; whoever starts strait opens it, in a shell by \
             {number}<>FILE behind the command"
        ));
    }
    Ok(number)
}

/// The interface to the IOMMU; `None` for `auto`.
pub(super) fn backend(text: &str) -> Result<Option<Backend>, String> {
    match text {
        "auto" => Ok(None),
        "iommufd" => Ok(Some(Backend::Iommufd)),
        "container" => Ok(Some(Backend::Container)),
        _ => Err("auto, iommufd or container is needed".into()),
    }
}

/// Reads an address that is the value of `key`: hexadecimal, with underscores where one likes.
pub(super) fn address(key: &str, text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
    let address = digits.and_then(|digits| u64::from_str_radix(&digits.replace('_', ""), 16).ok());
    address.ok_or_else(|| format!("{key} is an address such as 0x100000000, and not `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_without_a_sign_belongs_to_what_is_before_it() {
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
        let cases: [Case<'_>; 7] = [
            ("", "", &[]),
            ("2c0a0000.dma", "2c0a0000.dma", &[]),
            ("2c0b0000.qcom,dma", "2c0b0000.qcom,dma", &[]),
            ("1.a,b,c,addr=host,mmap=off", "1.a,b,c", &[("addr", "host"), ("mmap", "off")]),
            (
                "/sys/devices/platform/1.a,b,drop=x,y,drop=z",
                "/sys/devices/platform/1.a,b",
                &[("drop", "x,y"), ("drop", "z")],
            ),
            ("fd=3,quiesce=off", "fd=3", &[("quiesce", "off")]),
            ("x,a=b=c,d", "x", &[("a", "b=c,d")]),
        ];
        for (text, device, options) in cases {
            assert_eq!(split(text), Ok((device, options.to_vec())), "{text}");
        }
        for text in ["x,", "x,,a=b", "x,a=b,", "x,a=b,,c", ",,"] {
            assert!(split(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_is_a_name_or_a_descriptor() {
        let device_ref = |text| device_ref(text, "2c0a0000.dma");
        assert_eq!(device_ref("2c0a0000.dma"), Ok(DeviceRef::Name("2c0a0000.dma".into())));
        assert_eq!(device_ref("fd=0"), Ok(DeviceRef::Descriptor(0)));
        assert_eq!(device_ref("fd3"), Ok(DeviceRef::Name("fd3".into())));
        for text in ["", "fd=", "fd=-1", "fd=+0", "fd=0x0", "fd=1048576", "fd=99999999999"] {
            assert!(device_ref(text).is_err(), "{text}");
        }
    }
}
