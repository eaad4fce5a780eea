//! The PCI devices of other processes that a guest is given: connected to while planning, handed
//! over while building, taken back at the end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::gic::Gic;
use arch::{GuestRam, layout};
use devices::irq::MessageRouter;
use devices::pci::{Function, Newcomer};
use devices::vfio::pci::{Attachment, FunctionError, PciFunction, PciOptions};
use devices::vfio::region::host_page_size;
use devices::vfio::sys::{DmaCalls, IoctlError};
use devices::vfio::user::UserDevice;

use crate::cli::UserOptions;
use crate::error::Error;
use crate::pci::Seated;
use crate::wiring::KvmWiring;

/// The devices of other processes that a guest is given.
#[derive(Default)]
pub struct Served(Vec<ServedFunction>);

/// A function and the connection to its server.
struct ServedFunction {
    // Dropped in this order: the function is stopped before the connection ends.
    function: Arc<Mutex<PciFunction>>,
    device: Arc<UserDevice>,
    options: UserOptions,
}

impl Served {
    /// Connects to the servers and looks at what their devices have.
    ///
    /// # Errors
    ///
    /// A server can't be reached, or its device can't be a guest's.
    pub fn plan(wanted: &[UserOptions]) -> Result<Self, Error> {
        check_different(wanted)?;
        wanted.iter().map(ServedFunction::open).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The functions for which seats are wanted, in the order given.
    pub fn newcomers(&self) -> impl Iterator<Item = Newcomer> {
        self.0.iter().map(|served| Newcomer {
            name: served.name(),
            address: served.options.address,
            pin: served.function().pin(),
        })
    }

    /// Hands the devices over: resets them, lends `ram` to their servers and connects their
    /// interrupts. `seats` are those of the [`newcomers`](Self::newcomers).
    ///
    /// # Errors
    ///
    /// A server refused a step, or is gone.
    pub fn attach<'a>(
        &self,
        seats: impl Iterator<Item = &'a Seated>,
        gic: &Gic,
        wiring: &Arc<KvmWiring>,
        ram: &GuestRam,
    ) -> Result<Vec<Arc<Mutex<dyn Function>>>, Error> {
        let mut functions: Vec<Arc<Mutex<dyn Function>>> = Vec::new();
        for (served, Seated { seat, .. }) in self.0.iter().zip(seats) {
            let refused = |error| served.refused(&error);
            let mut function = served.function();
            function.quiesce().map_err(refused)?;
            served.lend(ram)?;
            let router = gic.has_its().then(|| wiring.clone() as Arc<dyn MessageRouter>);
            let attachment = Attachment { seat: *seat, slots: wiring.clone(), router };
            // SAFETY: the run drops `self` only after all vCPU threads are gone.
            unsafe { function.attach(attachment, &**wiring) }.map_err(refused)?;
            functions.push(served.function.clone());
        }
        Ok(functions)
    }

    /// Lets the devices' interrupts through: the last step before the guest runs.
    ///
    /// # Errors
    ///
    /// A device has failed since it was attached.
    pub fn arm(&self) -> Result<(), Error> {
        for served in &self.0 {
            served.device.serve_guest().map_err(|why| {
                Error::new(format!("{} can't be assigned: {why}", served.name())).help(START_AGAIN)
            })?;
            served.function().arm();
        }
        Ok(())
    }

    /// The run is ending: nothing waits long for a server any more.
    pub fn hurry(&self) {
        self.0.iter().for_each(|served| served.device.hurry());
    }

    /// Takes the devices back; no vCPU runs any more.
    pub fn release(self) {
        for served in self.0 {
            if let Err(error) = served.function().release() {
                log::error!("{}", served.refused(&error).report().trim_end());
            }
        }
    }
}

/// What mends a server that went wrong.
const START_AGAIN: &str = "the server's own output says why; start it again";

impl ServedFunction {
    fn open(options: &UserOptions) -> Result<Self, Error> {
        let device = Arc::new(UserDevice::connect(&options.path)?);
        let name = options.path.display().to_string();
        let function =
            PciFunction::open(device.clone(), &name, PciOptions::default(), host_page_size())
                .map_err(|error| Error::chain(&error).help(START_AGAIN))?;
        let (function, options) = (Arc::new(Mutex::new(function)), options.clone());
        Ok(Self { function, device, options })
    }

    fn name(&self) -> String {
        self.options.path.display().to_string()
    }

    fn function(&self) -> MutexGuard<'_, PciFunction> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, error: &FunctionError) -> Error {
        Error::chain(error).help(START_AGAIN)
    }

    /// Lets the server reach the guest's RAM, by its file.
    fn lend(&self, ram: &GuestRam) -> Result<(), Error> {
        let (host, size) = (ram.host_address(), ram.size() as u64);
        if let Some(file) = ram.file() {
            self.device.back_ram(file.try_clone()?, host, size);
        }
        // SAFETY: guest RAM is never unmapped, and nothing but the guest and its devices is affected
        // by what is written into it.
        let lent = unsafe { self.device.map_dma(layout::RAM_START, host, size) };
        lent.map_err(|error: IoctlError| {
            Error::new(format!("{} doesn't take the guest's RAM: {}", self.name(), error.source))
                .help(START_AGAIN)
        })
    }
}

/// Checks that no server is wanted twice: it would leave the second connection waiting.
fn check_different(wanted: &[UserOptions]) -> Result<(), Error> {
    for (index, options) in wanted.iter().enumerate() {
        let path = |options: &UserOptions| {
            options.path.canonicalize().unwrap_or_else(|_| options.path.clone())
        };
        let earlier = wanted.get(..index).unwrap_or_default();
        if earlier.iter().any(|other| path(other) == path(options)) {
            return Err(Error::usage(format!("--vfio-user {} twice", options.path.display()))
                .help("a server for each device, with a socket of its own"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_wanted_once() {
        let options = |path: &str| path.parse::<UserOptions>().unwrap();
        check_different(&[options("/tmp/a"), options("/tmp/b")]).unwrap();
        let error = check_different(&[options("/tmp"), options("/tmp/../tmp,addr=2.0")]);
        assert!(error.unwrap_err().report().contains("twice"));
    }
}
