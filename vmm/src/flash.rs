//! A guest's flash: its firmware, and what keeps the firmware's variables.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arch::layout;
use boot::fdt::Node;
use boot::firmware::Firmware;
use devices::bus::{Bus, MemorySlots};
use devices::flash::{self, Bank, VariableFile};
use vm_memory::GuestMemoryMmap;

use crate::cli::FirmwareOptions;
use crate::error::Error;

/// Flash to be.
#[derive(Debug)]
pub struct FlashPlan {
    firmware: Firmware,
    /// The path of the file with variables, and that file, if there is one.
    variables: Option<(PathBuf, Option<VariableFile>)>,
}

impl FlashPlan {
    /// Opens its files.
    ///
    /// # Errors
    ///
    /// One can't be had, or isn't what it is to be.
    #[cold]
    pub fn new(options: &FirmwareOptions) -> Result<Self, Error> {
        let size = layout::FIRMWARE.end - layout::FIRMWARE.start;
        let firmware = Firmware::open(&options.path, size)?;
        let open = |path: &PathBuf| VariableFile::open(path).map(|file| (path.clone(), file));
        let variables = options.variables.as_ref().map(open).transpose()?;
        Ok(Self { firmware, variables })
    }

    /// What is in it, as a person reads it: the firmware and the variables.
    pub fn names(&self) -> [String; 2] {
        let variables = match &self.variables {
            None => "not kept".to_owned(),
            Some((path, Some(_))) => format!("kept in {}", path.display()),
            Some((path, None)) => format!("kept in {}, which will be made", path.display()),
        };
        [
            format!("firmware, {}", self.firmware.name()),
            format!("firmware's variables, {variables}"),
        ]
    }

    /// The firmware's file.
    pub fn firmware(&self) -> String {
        self.firmware.name()
    }

    /// Its node.
    pub fn node() -> Node {
        flash::node(&[layout::FIRMWARE, layout::VARIABLES])
    }

    /// Makes the flash.
    ///
    /// # Errors
    ///
    /// The firmware can't be read, the file for variables can't be made or read, or the host has no room.
    #[cold]
    pub fn make(self) -> Result<Flash, Error> {
        let name = self.firmware.name();
        let code = Bank::read_only(layout::FIRMWARE.start, self.firmware.content());
        let code = code.map_err(|e| Error::new(format!("firmware {name} can't be read: {e}")))?;
        let create = |(path, file): (PathBuf, _)| match file {
            Some(file) => Ok(file),
            None => VariableFile::open_or_create(&path),
        };
        let file = self.variables.map(create).transpose()?;
        let variables = Bank::writable(layout::VARIABLES.start, file)
            .map_err(|e| Error::new(format!("firmware's variables can't be read: {e}")))?;
        Ok(Flash { banks: [Arc::new(code), Arc::new(variables)] })
    }
}

/// The flash of a guest with firmware.
#[derive(Debug)]
pub struct Flash {
    banks: [Arc<Bank>; 2],
}

impl Flash {
    /// Puts it on the bus, and into the guest by memory slots.
    ///
    /// # Errors
    ///
    /// Something else is there, or KVM refused.
    pub fn attach(
        &self,
        slots: &Arc<impl MemorySlots + 'static>,
        bus: &mut Bus,
    ) -> Result<(), Error> {
        for (name, bank) in ["firmware flash", "variables flash"].into_iter().zip(&self.banks) {
            bus.add(name, bank.range(), bank.clone())?;
            bank.map_through(slots.clone())
                .map_err(|e| Error::new(format!("KVM can't map the {name}: {e}")))?;
        }
        Ok(())
    }

    /// RAM and flash.
    ///
    /// # Errors
    ///
    /// They overlap.
    pub fn with(&self, ram: &GuestMemoryMmap) -> Result<GuestMemoryMmap, Error> {
        self.banks.iter().try_fold(ram.clone(), |memory, bank| {
            memory.insert_region(bank.memory().clone()).map_err(|e| Error::new(e.to_string()))
        })
    }

    /// Starts what keeps the variables.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn start(&self) -> io::Result<()> {
        self.banks.iter().try_for_each(|bank| bank.start())
    }

    /// Waits until the variables are on the disk, once the guest runs no more.
    pub fn finish(&self) {
        for error in self.banks.iter().filter_map(|bank| bank.finish().err()) {
            log::error!("{}", Error::from(error).log_text());
        }
    }
}
