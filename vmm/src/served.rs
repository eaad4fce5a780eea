//! The servers of a guest's PCI functions that other processes have.

use std::sync::Arc;

use arch::{GuestRam, layout};
use devices::stop;
use devices::vfio::pci::PciFunction;
use devices::vfio::region::host_page_size;
use devices::vfio::user::UserDevice;

use crate::cli::UserOptions;
use crate::error::Error;
use crate::functions::OpenFunction;

/// What mends a server that went wrong.
const START_AGAIN: &str = "the server's own output says why; start it again";

/// The connections to servers, each with its name.
#[derive(Default)]
pub struct Served(Vec<(String, Arc<UserDevice>)>);

impl Served {
    /// Connects to the servers and adds their devices to `functions`.
    ///
    /// # Errors
    ///
    /// A server can't be reached, or its device can't be a guest's.
    pub fn connect(
        wanted: &[UserOptions],
        functions: &mut Vec<OpenFunction>,
    ) -> Result<Self, Error> {
        let mut served = Self::default();
        for (index, options) in wanted.iter().enumerate() {
            check_different(wanted.get(..index).unwrap_or_default(), options)?;
            stop::check()?;
            let name = options.path.display().to_string();
            let device = Arc::new(UserDevice::connect(&options.path, options.peer)?);
            let page_size = host_page_size();
            let function = PciFunction::open(device.clone(), &name, options.function, page_size)
                .map_err(|error| {
                    let show = format!("strait device show --vfio-user {name}");
                    Error::chain(&error).help(format!("{show} tells what its server offers"))
                })?;
            served.0.push((name.clone(), device));
            functions.push(OpenFunction { name, function, address: options.address });
        }
        Ok(served)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets the servers reach the guest's RAM, by its file.
    ///
    /// # Errors
    ///
    /// A server refuses it, or is gone.
    pub fn lend(&self, ram: &GuestRam) -> Result<(), Error> {
        for (name, device) in &self.0 {
            let (host, size) = (ram.host_address(), ram.size() as u64);
            if let Some(file) = ram.file() {
                device.back_ram(file.try_clone()?, host, size);
            }
            // SAFETY: guest RAM is never unmapped, and nothing but the guest and its devices is
            // affected by what is written into it.
            let lent = unsafe { device.map_dma(layout::RAM_START, host, size) };
            lent.map_err(|error| {
                let why = error.source;
                Error::new(format!("{name} doesn't take the guest's RAM: {why}")).help(START_AGAIN)
            })?;
        }
        Ok(())
    }

    /// The guest is about to run: whatever goes wrong with a server is its device's failure from
    /// here on.
    ///
    /// # Errors
    ///
    /// A device has failed already.
    pub fn begin(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|(name, device)| {
            device.serve_guest().map_err(|why| {
                Error::new(format!("{name} can't be assigned: {why}")).help(START_AGAIN)
            })
        })
    }

    /// The run is ending: nothing waits long for a server any more.
    pub fn hurry(&self) {
        self.0.iter().for_each(|(_, device)| device.hurry());
    }
}

/// Checks that a server isn't wanted twice: it would leave the second connection waiting.
fn check_different(earlier: &[UserOptions], options: &UserOptions) -> Result<(), Error> {
    let path = |options: &UserOptions| {
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
    fn a_server_is_wanted_once() {
        let options = |path: &str| path.parse::<UserOptions>().unwrap();
        check_different(&[options("/tmp/a")], &options("/tmp/b")).unwrap();
        let error = check_different(&[options("/tmp")], &options("/tmp/../tmp,addr=2.0"));
        assert!(error.unwrap_err().report().contains("twice"));
    }
}
