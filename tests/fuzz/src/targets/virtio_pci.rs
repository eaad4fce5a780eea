//! Virtio's transport over PCI: its registers, and the life of a device that they control.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use devices::pci::Function;
use devices::virtio::{Balloon, Console, Device, Entropy, VirtioAttachment, VirtioFunction};
use vm_memory::GuestMemoryMmap;

use crate::driver::{RAM, ram};
use crate::host::{Events, NoInterrupts, Routes};

/// The BAR with the registers, its size, and what is where in it (virtio 1.2, 4.1.4; the devices'
/// own layout).
const BAR: u8 = 0;
const BAR_SIZE: u32 = 0x8000;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;

/// Registers of the common configuration (virtio 1.2, 4.1.4.3).
const FEATURE_SELECT: u64 = 0x08;
const FEATURES: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];

pub fn run(data: &[u8]) {
    let _ = drive(&mut Unstructured::new(data));
}

/// A function that is attached to a guest.
pub fn attached(kind: u8, bdf: &str, memory: GuestMemoryMmap) -> VirtioFunction {
    let (name, device): (_, Box<dyn Device>) = match kind % 3 {
        0 => ("entropy", Box::new(Entropy::new("entropy"))),
        1 => ("balloon", Box::new(Balloon::new("balloon"))),
        _ => ("console", Box::new(Console::new("console"))),
    };
    let mut function = VirtioFunction::new(name, device, false).unwrap();
    let attachment = VirtioAttachment {
        bdf: bdf.parse().unwrap(),
        memory,
        router: (kind & 0x80 == 0).then(|| Arc::new(Routes::default()) as _),
        ioevents: Arc::new(Events::default()),
        line: Box::new(NoInterrupts),
    };
    function.attach(attachment).unwrap();
    function
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let mut function = attached(u.arbitrary()?, "00:03.0", ram());
    while !u.is_empty() {
        let kind = u.arbitrary::<u8>()?;
        let size = 1 << (kind >> 3 & 3);
        match kind & 7 {
            0 => function.read_bar(BAR, offset(u)?, &mut [0; 8][..size]),
            1 | 2 => {
                let (offset, data) = (offset(u)?, u.arbitrary::<[u8; 8]>()?);
                function.write_bar(BAR, offset, &data[..size]);
            }
            3 => function.read_config(register(u, size)?, &mut [0; 8][..size.min(4)]),
            4 | 5 => {
                let (register, data) = (register(u, size)?, u.arbitrary::<[u8; 8]>()?);
                function.write_config(register, &data[..size.min(4)]);
                let decoded = function.decoded();
                function.forward(&decoded);
            }
            6 => set_up(&mut function, u)?,
            _ => start(&mut function, u.arbitrary()?),
        }
    }
    Ok(())
}

/// An offset in the BAR, mostly where there is something.
fn offset(u: &mut Unstructured<'_>) -> Result<u64> {
    let (kind, low) = (u.arbitrary::<u8>()?, u32::from(u.arbitrary::<u8>()?));
    Ok(u64::from(match kind & 7 {
        0..=2 => low & 63,
        3 => 0x1000 | low & 7,
        4 => 0x2000 | low & 31,
        5 => NOTIFY | low & 31,
        6 => MSIX_TABLE | low & 63,
        _ => (low << 8 | u32::from(kind)) % BAR_SIZE,
    }))
}

/// A register of configuration space, as the bridge has it: aligned.
fn register(u: &mut Unstructured<'_>, size: usize) -> Result<u16> {
    let alignment = u16::try_from(size.min(4)).unwrap_or(1);
    Ok((u.arbitrary::<u16>()? & 0x1ff) / alignment * alignment)
}

/// Sets up a queue in RAM, and enables it.
fn set_up(function: &mut VirtioFunction, u: &mut Unstructured<'_>) -> Result<()> {
    let (queue, place) = (u.arbitrary::<u8>()?, u.arbitrary::<u8>()?);
    function.write_bar(BAR, QUEUE_SELECT, &u16::from(queue & 7).to_le_bytes());
    let page = RAM + u64::from(place) * 0x1000;
    for (register, at) in QUEUE_ADDRESSES.into_iter().zip([page, page + 0x800, page + 0xc00]) {
        function.write_bar(BAR, register, &at.to_le_bytes());
    }
    function.write_bar(BAR, QUEUE_ENABLE, &[1, 0]);
    Ok(())
}

/// Accepts features, and starts the device.
fn start(function: &mut VirtioFunction, features: u32) {
    for status in [1, 3] {
        function.write_bar(BAR, STATUS, &[status]);
    }
    for (select, features) in [(0, features), (1, 1 | features & 0x100)] {
        function.write_bar(BAR, FEATURE_SELECT, &u32::to_le_bytes(select));
        function.write_bar(BAR, FEATURES, &features.to_le_bytes());
    }
    for status in [0xb, 0xf] {
        function.write_bar(BAR, STATUS, &[status]);
    }
}
