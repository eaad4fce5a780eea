//! A guest's PCI functions that other processes serve over vfio-user.

use std::sync::Arc;

use arch::GuestRam;
use devices::stop;
use devices::vfio::pci::PciFunction;
use devices::vfio::region::host_page_size;
use devices::vfio::remedy;
use devices::vfio_user::VfioUserDevice;

use crate::cli::VfioUserOptions;
use crate::error::Error;
use crate::functions::OpenFunction;

/// The connected devices, each with its name.
#[derive(Default)]
pub struct VfioUserDevices(Vec<(String, Arc<VfioUserDevice>)>);

impl VfioUserDevices {
    /// Connects to the servers and adds their devices to `functions`.
    ///
    /// # Errors
    ///
    /// A server can't be reached, or its device can't be a guest's.
    pub fn connect(
        all: &[VfioUserOptions],
        functions: &mut Vec<OpenFunction>,
    ) -> Result<Self, Error> {
        let mut devices = Self::default();
        for (index, options) in all.iter().enumerate() {
            check_different(all.get(..index).unwrap_or_default(), options)?;
            stop::check()?;
            let name = options.path.display().to_string();
            let device = Arc::new(VfioUserDevice::connect(&options.path, options.peer)?);
            let page_size = host_page_size();
            let mut function =
                PciFunction::open(device.clone(), &name, options.function.device, page_size)
                    .map_err(|error| {
                        let show = format!("strait device show --vfio-user {name}");
                        Error::chain(&error).help(format!("{show} tells what its server offers"))
                    })?;
            function.set_of_server();
            devices.0.push((name.clone(), device));
            let address = options.function.address;
            functions.push(OpenFunction {
                name,
                function,
                address,
                is_of_host: false,
                hotplug: false,
            });
        }
        Ok(devices)
    }

    /// Maps the guest's RAM for DMA in the servers.
    ///
    /// # Errors
    ///
    /// A server refuses it, or is gone.
    pub fn map_ram(&self, ram: &GuestRam) -> Result<(), Error> {
        for (name, device) in &self.0 {
            let (host, size) = (ram.host_address(), ram.size() as u64);
            if let Some(file) = ram.file() {
                device.set_ram_file(file.try_clone()?, host, size);
            }
            // SAFETY: guest RAM is never unmapped, and nothing but the guest and its devices is
            // affected by what is written into it.
            let mapped = unsafe { device.map_dma(ram.base(), host, size) };
            mapped.map_err(|error| {
                let why = error.source;
                Error::new(format!("{name} doesn't take the guest's RAM: {why}"))
                    .help(remedy::START_AGAIN)
            })?;
        }
        Ok(())
    }

    /// The guest is about to run: from here on an error of a server is a failure of its device only.
    ///
    /// # Errors
    ///
    /// A device has failed already.
    pub fn start_guest(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|(name, device)| {
            device.start_guest().map_err(|why| {
                Error::new(format!("{name} can't be assigned: {why}")).help(remedy::START_AGAIN)
            })
        })
    }

    /// Ends the threads of the connections, while nothing is asked of their devices.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn pause(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|(name, device)| {
            device.pause().map_err(|e| {
                Error::new(format!("{name}: its connection's thread can't be ended: {e}"))
                    .help("ulimit -n tells how many files there may be")
            })
        })
    }

    /// Starts them again.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn resume(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|(name, device)| {
            device.resume().map_err(|e| {
                Error::new(format!("{name}: its connection has no thread: {e}"))
                    .help("ulimit -u tells how many there may be")
            })
        })
    }

    /// The run is ending: shortens the time that is left for replies of the servers.
    pub fn shorten_deadline(&self) {
        self.0.iter().for_each(|(_, device)| device.shorten_deadline());
    }
}

/// Refuses a socket that is given twice: its server would not accept the second connection.
fn check_different(earlier: &[VfioUserOptions], options: &VfioUserOptions) -> Result<(), Error> {
    let path = |options: &VfioUserOptions| {
        options.path.canonicalize().unwrap_or_else(|_| options.path.clone())
    };
    if earlier.iter().any(|other| path(other) == path(options)) {
        return Err(Error::usage(format!("--vfio-user {} twice", options.path.display()))
            .help("a server for each device, with a socket of its own"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_given_once() {
        let options = |path: &str| path.parse::<VfioUserOptions>().unwrap();
        check_different(&[options("/tmp/a")], &options("/tmp/b")).unwrap();
        let error = check_different(&[options("/tmp")], &options("/tmp/../tmp,addr=2.0"));
        assert!(error.unwrap_err().report().contains("twice"));
    }
}
