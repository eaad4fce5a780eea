//! `strait device list --cdi`: what container engines read to give a container what strait opens
//! (Container Device Interface, SPEC.md).

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use devices::vfio::host::{Host, HostBus};
use serde::Serialize;

use crate::error::Error;

/// The version that allows names of devices to begin with a digit; Podman 4.3 reads it.
const VERSION: &str = "0.5.0";

/// What the devices are called: `strait.dev/device=2c0a0000.dma`.
const KIND: &str = "strait.dev/device";

/// What a guest may use without devices of the host, each by a name of its own: KVM, the host's end of
/// virtio devices in its kernel, and taps.
const HELPERS: [(&str, &str); 4] = [
    ("kvm", "/dev/kvm"),
    ("vhost-net", "/dev/vhost-net"),
    ("vhost-vsock", "/dev/vhost-vsock"),
    ("tun", "/dev/net/tun"),
];

/// A specification, to be put into `/etc/cdi`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Specification {
    cdi_version: &'static str,
    kind: &'static str,
    devices: Vec<Device>,
}

/// What can be given to a container by one name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    device_nodes: Vec<DeviceNode>,
}

#[derive(Debug, Serialize)]
struct DeviceNode {
    path: String,
    permissions: &'static str,
}

impl Specification {
    /// That of this host: of the devices that are bound to VFIO, and of what else a guest may use.
    ///
    /// # Errors
    ///
    /// A device's attributes can't be read.
    pub fn of(host: &Host) -> Result<Self, Error> {
        let helpers = HELPERS.into_iter().filter(|(_, path)| Path::new(path).exists());
        let helpers = helpers.map(|(name, path)| Device::new(name, vec![path.to_owned()]));
        let mut devices: Vec<Device> = helpers.collect();
        for device in HostBus::ALL.into_iter().flat_map(|bus| host.devices_on(bus)) {
            if !device.is_with_vfio()? {
                continue;
            }
            let files = host.files_of(&device).into_iter().filter(|path| path.exists());
            let files: Vec<String> = files.map(|path| path.display().to_string()).collect();
            let files = with_iommu(files, |path| Path::new(path).exists());
            if !files.is_empty() {
                devices.push(Device::new(device.name(), files));
            }
        }
        Ok(Self { cdi_version: VERSION, kind: KIND, devices })
    }
}

impl Display for Specification {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?)
    }
}

impl Device {
    fn new(name: &str, files: Vec<String>) -> Self {
        let node = |path| DeviceNode { path, permissions: "rw" };
        let device_nodes = files.into_iter().map(node).collect();
        Self { name: cdi_name(name), container_edits: Edits { device_nodes } }
    }
}

/// A device's files, with those of the IOMMU interface that each needs.
fn with_iommu(mut files: Vec<String>, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let cdev = files.iter().any(|path| path.starts_with("/dev/vfio/devices/"));
    let group = files.iter().any(|path| !path.starts_with("/dev/vfio/devices/"));
    for (needed, path) in [(group, "/dev/vfio/vfio"), (cdev, "/dev/iommu")] {
        if needed && exists(path) {
            files.push(path.to_owned());
        }
    }
    files
}

/// A name that CDI allows: letters, digits, and within them `_`, `-`, `.` and `:`.
fn cdi_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    let name: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_cdi_allows() {
        for (name, expected) in [
            ("2c0a0000.dma", "2c0a0000.dma"),
            ("0000:00:05.0", "0000:00:05.0"),
            ("2c0b0000.qcom,dma", "2c0b0000.qcom_dma"),
            ("usb@1-", "usb_1"),
        ] {
            assert_eq!(cdi_name(name), expected);
        }
    }

    #[test]
    fn each_file_comes_with_the_one_that_maps_dma() {
        let files = |paths: &[&str], exists: bool| {
            with_iommu(paths.iter().map(|path| (*path).to_owned()).collect(), |_| exists)
        };
        let both = ["/dev/vfio/3", "/dev/vfio/devices/vfio0"];
        let all = ["/dev/vfio/3", "/dev/vfio/devices/vfio0", "/dev/vfio/vfio", "/dev/iommu"];
        assert_eq!(files(&both, true), all);
        assert_eq!(files(&both, false), both);
        assert_eq!(files(&both[..1], true), ["/dev/vfio/3", "/dev/vfio/vfio"]);
        assert_eq!(files(&both[1..], true), ["/dev/vfio/devices/vfio0", "/dev/iommu"]);
        assert_eq!(files(&[], true), [""; 0]);
    }

    /// The rules of CDI's schema.json and its validation that this could break.
    #[test]
    fn the_specification_has_the_form_of_the_schema() {
        let files = vec!["/dev/vfio/3".to_owned()];
        let devices = vec![Device::new("2c0a0000.dma", files)];
        let text = Specification { cdi_version: VERSION, kind: KIND, devices }.to_string();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "cdiVersion": "0.5.0",
                "kind": "strait.dev/device",
                "devices": [{
                    "name": "2c0a0000.dma",
                    "containerEdits": {
                        "deviceNodes": [{ "path": "/dev/vfio/3", "permissions": "rw" }],
                    },
                }],
            })
        );
    }
}
