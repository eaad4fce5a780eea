//! What the options about VFIO share: the way to the IOMMU, and descriptors that strait is started
//! with.

use std::os::fd::RawFd;

use devices::vfio::assign::DeviceRef;
use devices::vfio::iommu::Backend;

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
