//! The program that drives the served device in a guest.

use super::{DONE, FAULT, IDENTITY, VECTORS, register};
use crate::CommandError;
use crate::noiommu::{Event, MappedRegion, NoIommuDevice};

const REGISTERS: u32 = 0;
const MEMORY: u32 = 2;
const INTX: u32 = 0;
const MSIX: u32 = 2;
/// Words of a page.
const WORDS: usize = 1024;
/// Pages of the source, and of the destination behind it.
const PAGES: usize = 16;

struct Device(NoIommuDevice);

impl Device {
    fn read(&self, register: u64) -> Result<u32, CommandError> {
        Ok(u32::from_le_bytes(self.0.read(REGISTERS, register)?))
    }

    fn write(&self, register: u64, value: u32) -> Result<(), CommandError> {
        Ok(self.0.write(REGISTERS, register, &value.to_le_bytes())?)
    }

    fn write64(&self, register: u64, value: u64) -> Result<(), CommandError> {
        Ok(self.0.write(REGISTERS, register, &value.to_le_bytes())?)
    }

    /// Starts a copy; what it came to is known once its interrupt has come.
    fn copy(&self, from: u64, to: u64, length: u32, vector: u32) -> Result<(), CommandError> {
        self.write64(register::SOURCE, from)?;
        self.write64(register::DESTINATION, to)?;
        self.write(register::LENGTH, length)?;
        self.write(register::GO, vector)
    }

    fn expect(&self, register: u64, expected: u32) -> Result<(), CommandError> {
        match self.read(register)? {
            value if value == expected => Ok(()),
            value => Err(format!("register {register:#x} is {value:#x}, not {expected:#x}").into()),
        }
    }
}

/// Drives all that the device has, and verifies it.
pub(crate) fn drive(name: &str) -> Result<(), CommandError> {
    let device = Device(NoIommuDevice::open(name)?);
    registers(&device)?;
    memory(&device.0.map(MEMORY)?, &device.0)?;
    let copied = copies(&device, 4)?;
    println!("copies: {copied} on {VECTORS} vectors, each with its interrupt");
    faults(&device)?;
    line(&device)?;
    println!("passed");
    Ok(())
}

/// Drives what it has without messages, and verifies it.
pub(crate) fn by_line(name: &str) -> Result<(), CommandError> {
    let device = Device(NoIommuDevice::open(name)?);
    registers(&device)?;
    line(&device)
}

/// Copies pages this many times, and says how many copies were made.
pub(crate) fn copy(name: &str, rounds: u64) -> Result<(), CommandError> {
    println!("copied {}", copies(&Device(NoIommuDevice::open(name)?), rounds)?);
    Ok(())
}

/// Has the server go wrong in this way, and says what is left of the device.
pub(crate) fn wrong(name: &str, way: &str) -> Result<(), CommandError> {
    let device = Device(NoIommuDevice::open(name)?);
    let memory = device.0.map(MEMORY)?;
    memory.write(0, 0x1234_5678);
    device.expect(register::IDENTITY, IDENTITY)?;
    device.write(register::WRONG, crate::number32(way)?)?;
    remains(&device, &memory)
}

/// Says what is left of the device.
pub(crate) fn look(name: &str) -> Result<(), CommandError> {
    let device = Device(NoIommuDevice::open(name)?);
    remains(&device, &device.0.map(MEMORY)?)
}

fn remains(device: &Device, memory: &MappedRegion) -> Result<(), CommandError> {
    println!("identity {:#010x}", device.read(register::IDENTITY)?);
    println!("memory {:#010x}", memory.read(0));
    Ok(())
}

fn registers(device: &Device) -> Result<(), CommandError> {
    device.expect(register::IDENTITY, IDENTITY)?;
    for value in [0, u32::MAX, 0x1234_5678] {
        device.write(register::SCRATCH, value)?;
        device.expect(register::SCRATCH, value)?;
    }
    let bytes: [u8; 2] = device.0.read(REGISTERS, register::SCRATCH + 1)?;
    if bytes != [0x56, 0x34] {
        return Err(format!("two bytes of a register are {bytes:x?}").into());
    }
    println!("registers: as they should be");
    Ok(())
}

/// What is written through a mapping is what the server reads, and the other way round.
fn memory(shown: &MappedRegion, device: &NoIommuDevice) -> Result<(), CommandError> {
    for (index, offset) in [(0usize, 0u64), (1023, 4092), (4095, 16380)] {
        let value = 0xc0de_0000 | u32::try_from(index)?;
        shown.write(index, value);
        let seen = u32::from_le_bytes(device.read(MEMORY, offset)?);
        device.write(MEMORY, offset, &(!value).to_le_bytes())?;
        if seen != value || shown.read(index) != !value {
            return Err(format!("memory at {offset:#x}: {seen:#x}, {value:#x}").into());
        }
    }
    println!("memory: mapped");
    Ok(())
}

/// Copies a page of each to each other by each vector in turn; the number of copies.
fn copies(device: &Device, rounds: u64) -> Result<u64, CommandError> {
    let events = (0..VECTORS).map(|_| Event::new()).collect::<Result<Vec<_>, _>>()?;
    device.0.signal(MSIX, &events)?;
    let pages = MappedRegion::pages(2 * PAGES)?;
    let addresses = pages.addresses()?;
    let before = device.read(register::COUNT)?;
    let mut copies = 0u64;
    for round in 0..rounds {
        for page in 0..PAGES {
            let (from, to) = (page, PAGES + (page * 5 + 3) % PAGES);
            let (first, last) = (from * WORDS, to * WORDS);
            let salt = u32::try_from(round * 0x1_0000 + u64::try_from(page)?)?;
            for word in 0..WORDS {
                let value = salt.wrapping_mul(0x9e37_79b9).rotate_left(u32::try_from(word % 32)?);
                pages.write(first + word, value ^ u32::try_from(word)?);
            }
            let vector = copies % u64::from(VECTORS);
            let event = events.get(usize::try_from(vector)?).ok_or("no such vector")?;
            let addresses = addresses.get(from).zip(addresses.get(to));
            let (source, destination) = addresses.ok_or("no such page")?;
            device.copy(*source, *destination, 4096, u32::try_from(vector)?)?;
            let count = event.wait()?;
            if count != 1 {
                return Err(format!("copy {copies} interrupted {count} times").into());
            }
            device.expect(register::STATUS, DONE)?;
            if let Some(word) =
                (0..WORDS).find(|word| pages.read(first + word) != pages.read(last + word))
            {
                return Err(format!("copy {copies}: word {word} differs").into());
            }
            copies += 1;
        }
    }
    let made = device.read(register::COUNT)?.wrapping_sub(before);
    if u64::from(made) != copies || events.iter().any(|event| event.count().is_some()) {
        return Err(format!("{made} copies were made of {copies}, or interrupts too many").into());
    }
    device.0.silence(MSIX)?;
    Ok(copies)
}

/// An address that is nobody's is a fault, and changes nothing.
fn faults(device: &Device) -> Result<(), CommandError> {
    let events = [Event::new()?];
    device.0.signal(MSIX, &events)?;
    let page = MappedRegion::pages(1)?;
    let address = page.addresses()?.first().copied().ok_or("no page")?;
    page.write(0, 7);
    for (from, to) in [(0x1000, address), (address, u64::MAX - 4095), (1 << 39, address)] {
        device.copy(from, to, 4096, 0)?;
        events.first().ok_or("no vector")?.wait()?;
        device.expect(register::STATUS, FAULT)?;
    }
    if page.read(0) != 7 {
        return Err("a fault changed memory".into());
    }
    device.0.silence(MSIX)?;
    println!("faults: noticed");
    Ok(())
}

/// The interrupt line: a level that comes again until it is quenched.
fn line(device: &Device) -> Result<(), CommandError> {
    let events = [Event::new()?];
    let [event] = &events;
    device.0.signal(INTX, &events)?;
    for _ in 0..3 {
        device.copy(0, 0, 0, 0)?;
        event.wait()?;
        device.expect(register::LINE, 1)?;
        // Not quenched, so it comes again.
        device.0.unmask(INTX)?;
        event.wait()?;
        device.write(register::LINE, 0)?;
        device.0.unmask(INTX)?;
    }
    device.expect(register::LINE, 0)?;
    if event.count().is_some() {
        return Err("the line interrupts though it is quenched".into());
    }
    device.0.silence(INTX)?;
    println!("line: a level");
    Ok(())
}
