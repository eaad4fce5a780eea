//! `strait device show --vfio-user PATH`: what a server reports of its device.

use std::fmt::{self, Display, Formatter};

use devices::vfio::uapi::{DeviceCalls, IoctlError};
use devices::vfio_user::VfioUserDevice;
use serde::Serialize;
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use super::vfio_info::VfioInfo;
use crate::cli::VfioUserOptions;
use crate::error::Error;

/// What a server reports of its device.
#[derive(Debug, Serialize)]
pub struct ServerInfo {
    socket: String,
    /// The protocol's.
    version: String,
    /// Vendor and device.
    identity: String,
    /// Base class, subclass and programming interface.
    class: String,
    #[serde(flatten)]
    vfio: VfioInfo,
}

impl ServerInfo {
    /// Queries the server at the path of these options.
    ///
    /// # Errors
    ///
    /// There is none, or it doesn't answer as it should.
    pub fn of(options: &VfioUserOptions) -> Result<Self, Error> {
        let path = &options.path;
        let device = VfioUserDevice::connect(path, options.peer)?;
        Self::ask(&device, path.display().to_string()).map_err(|error| {
            Error::chain(&error)
                .help(format!("the output of the server at {} may say why", path.display()))
        })
    }

    fn ask(device: &VfioUserDevice, socket: String) -> Result<Self, IoctlError> {
        let mut header = [0; 16];
        let config = device.region_info(VFIO_PCI_CONFIG_REGION_INDEX)?;
        device
            .read(&config, 0, &mut header)
            .map_err(|source| IoctlError { request: "VFIO_USER_REGION_READ", source })?;
        let [v0, v1, d0, d1, .., interface, sub, base, _, _, _, _] = header;
        let (vendor, number) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
        Ok(Self {
            socket,
            version: device.version().to_string(),
            identity: format!("{vendor:04x}:{number:04x}"),
            class: format!("{base:02x}{sub:02x}{interface:02x}"),
            vfio: VfioInfo::of(device)?,
        })
    }
}

impl Display for ServerInfo {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { socket, version, identity, class, vfio } = self;
        writeln!(f, "{socket}: a PCI device over vfio-user {version}")?;
        write!(f, "{identity}, class {class}\n{vfio}")
    }
}
