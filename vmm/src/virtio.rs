//! The guest's virtio devices: opened while planning, attached while building, stopped at the end.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::bus::IoEvents;
use devices::irq::{IrqLine, MsiRouter};
use devices::pci::{Function, Intx, Slot, SlotAllocator};
use devices::sync::lock;
use devices::virtio::{
    Balloon, Console, ConsolePort, Device, Entropy, STOP_TIMEOUT, VirtioAttachment, VirtioFunction,
};
use vm_memory::GuestMemoryMmap;

use crate::allocator::Allocator;
use crate::cli::RunOptions;
use crate::disks::open_disks;
use crate::error::Error;
use crate::network::{open_networks, open_sockets};
use crate::pci_slots::allocate;
use crate::vhost_user::{self, Backends};

/// A device in its slot of the guest's bus.
pub struct VirtioDevice {
    /// What it is called in messages: its option with a number, as in `block0`.
    pub name: String,
    /// What it is, for people.
    pub what: String,
    /// Its slot.
    pub slot: Slot,
    function: Arc<Mutex<VirtioFunction>>,
}

/// A device that is open, before it has its slot.
struct OpenDevice {
    name: String,
    what: String,
    device: Box<dyn Device>,
}

/// What devices are attached by to the guest.
pub struct VirtioBackends<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemoryMmap,
    /// Routes messages, if the guest's interrupt controller takes any.
    pub router: Option<Arc<dyn MsiRouter>>,
    /// Signals notifications.
    pub ioevents: Arc<dyn IoEvents>,
    /// Makes the line of a level-triggered SPI.
    pub line: &'a dyn Fn(u32) -> Box<dyn IrqLine>,
}

/// The devices, in order of their slots.
#[derive(Default)]
pub struct VirtioDevices {
    devices: Vec<VirtioDevice>,
    /// The console's, where there is one.
    console: Option<Arc<ConsolePort>>,
}

impl VirtioDevices {
    /// Whether options ask for any.
    pub fn are_wanted(options: &RunOptions) -> bool {
        let kernel = !options.net.is_empty() || options.vsock.is_some();
        let of_strait = options.virtio_console.is_on() || options.balloon;
        options.has_processes() || kernel || !options.block.is_empty() || of_strait
    }

    /// Opens the devices and allocates their slots, behind those of assigned functions; `backends` are
    /// what was made for some. A guest that has a PCI host has an entropy device too, the last.
    ///
    /// # Errors
    ///
    /// A device can't be opened, or there is no slot for it.
    pub fn plan(
        options: &RunOptions,
        backends: Backends,
        slots: &mut SlotAllocator,
        allocator: &mut Allocator,
    ) -> Result<Self, Error> {
        check_balloon(options)?;
        let mut open = Vec::new();
        let disks = open_disks(options)?.into_iter();
        let networks = open_networks(&options.net)?.into_iter();
        let sockets = options.vsock.map(open_sockets).transpose()?;
        let of = |(name, what, device)| OpenDevice { name, what, device };
        open.extend(disks.chain(networks).chain(sockets).map(of));
        open.extend(vhost_user::open_all(options, backends)?.into_iter().map(of));
        let console = options.virtio_console.is_on().then(|| Console::new("console"));
        let port = console.as_ref().map(|console| console.port().clone());
        open.extend(console.map(|console| OpenDevice {
            name: "console".to_owned(),
            what: format!("a console, hvc0 to Linux, {}", options.virtio_console),
            device: Box::new(console),
        }));
        open.extend(options.balloon.then(|| OpenDevice {
            name: "balloon".to_owned(),
            what: "gives memory that the guest doesn't use back to the host".to_owned(),
            device: Box::new(Balloon::new("balloon")),
        }));
        open.push(OpenDevice {
            name: "entropy".to_owned(),
            what: "the host's randomness".to_owned(),
            device: Box::new(Entropy::new("entropy")),
        });
        open.into_iter()
            .map(|device| place(device, options.virtio_access_platform, slots, allocator))
            .collect::<Result<_, _>>()
            .map(|devices| Self { devices, console: port })
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &VirtioDevice> {
        self.devices.iter()
    }

    /// What the console's end on the host is connected to, if there is a console.
    pub fn console(&self) -> Option<&Arc<ConsolePort>> {
        self.console.as_ref()
    }

    /// The number of descriptors that they can take while the guest runs: two for each queue and what
    /// works on it, as many for its interrupt by message.
    pub fn max_descriptors(&self) -> u64 {
        let of_device = |device: &VirtioDevice| {
            let queues = u64::try_from(lock(&device.function).queues()).unwrap_or(u64::MAX);
            queues.saturating_add(1).saturating_mul(6)
        };
        self.iter().map(of_device).fold(0, u64::saturating_add)
    }

    /// Attaches them to the guest, whose interrupt controller is complete.
    ///
    /// # Errors
    ///
    /// The process has no more descriptors.
    pub fn attach(&self, backends: &VirtioBackends<'_>) -> Result<(), Error> {
        for VirtioDevice { name, slot, function, .. } in self.iter() {
            let spi = slot.intx.map_or(0, |intx: Intx| intx.spi.0);
            let attachment = VirtioAttachment {
                bdf: slot.bdf,
                memory: backends.memory.clone(),
                router: backends.router.clone(),
                ioevents: backends.ioevents.clone(),
                line: (backends.line)(spi),
            };
            lock(function).attach(attachment).map_err(|e| {
                Error::new(format!("{name} can't be attached to the guest: {e}"))
                    .help("ulimit -n 4096")
            })?;
        }
        Ok(())
    }

    /// Makes the threads that will work on their queues, and what else may not be made any more once the
    /// guest runs.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub fn prepare(&self) -> Result<(), Error> {
        for VirtioDevice { name, function, .. } in self.iter() {
            lock(function).prepare().map_err(|e| {
                Error::new(format!("{name} has no threads to work with: {e}"))
                    .help("ulimit -u and ulimit -n tell how many threads and files there may be")
            })?;
        }
        Ok(())
    }

    /// Makes them as they were before the guest ran, which begins anew.
    ///
    /// # Errors
    ///
    /// One does not stop.
    #[cold]
    pub fn restart(&self) -> Result<(), Error> {
        self.iter().try_for_each(|device| {
            lock(&device.function).restart().map_err(|_| {
                Error::new(format!(
                    "the guest can't begin anew: {} still works on a request",
                    device.name
                ))
                .help("--on-reset exit ends the run instead")
            })
        })
    }

    /// Stops them; no vCPU runs any more. They have one time for that together: they may all wait for the
    /// same storage.
    pub fn release(&self) {
        self.iter().for_each(|device| lock(&device.function).begin_release());
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.iter().for_each(|device| lock(&device.function).release(deadline));
    }
}

impl VirtioDevice {
    /// The function as the PCI host has it.
    pub fn shared(&self) -> Arc<Mutex<dyn Function>> {
        self.function.clone()
    }

    /// Its vendor and device ID.
    pub fn ids(&self) -> (u16, u16) {
        let (vendor, device, _) = lock(&self.function).ids();
        (vendor, device)
    }
}

/// Checks that the host can take back memory of the guest, unless it is a file's.
fn check_balloon(options: &RunOptions) -> Result<(), Error> {
    if !options.balloon || options.shares_ram() || Balloon::can_discard() {
        return Ok(());
    }
    Err(Error::new("--balloon: this host's kernel takes no memory back: it has no madvise")
        .help("a kernel with CONFIG_ADVISE_SYSCALLS=y"))
}

/// Allocates the slot of a device.
fn place(
    OpenDevice { name, what, device }: OpenDevice,
    access_platform: bool,
    slots: &mut SlotAllocator,
    allocator: &mut Allocator,
) -> Result<VirtioDevice, Error> {
    let function = VirtioFunction::new(&name, device, access_platform)
        .map_err(|e| Error::new(format!("{name} can't be a device of the guest: {e}")))?;
    let slot = allocate(&name, None, Some(function.pin()), slots, allocator)?;
    Ok(VirtioDevice { name, what, slot, function: Arc::new(Mutex::new(function)) })
}
