use boot::help::Help;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::super::super::testing::{Call, FakeDevice, FakeFunction};
use super::super::super::uapi::IrqInfo;
use super::super::tap::{FunctionTaps, VectorTap};
use super::super::{Loss, RemovableFunction};
use super::*;
use crate::irq::Spi;
use crate::pci::testing::FakeMsiRouter;
use crate::pci::{Bdf, Intx};

const PAGE: u64 = 0x1000;
/// Where the capabilities are.
const PM: u16 = 0x40;
const EXPRESS: u16 = 0x80;
const MSIX: u16 = 0x70;

/// The slots of a guest: by GPA, how large.
#[derive(Default)]
struct Slots(Mutex<BTreeMap<u64, u64>>, AtomicBool);

impl Slots {
    /// Whether the hypervisor refuses to unmap anything.
    fn refuse(&self, refuse: bool) {
        self.1.store(refuse, Ordering::Relaxed);
    }

    fn all(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap().iter().map(|(gpa, size)| (*gpa, *size)).collect()
    }
}

impl MemorySlots for Slots {
    unsafe fn map(&self, gpa: u64, _: NonNull<u8>, size: u64) -> io::Result<()> {
        let mut slots = self.0.lock().unwrap();
        let overlaps = slots.iter().any(|(at, length)| *at < gpa + size && gpa < at + length);
        if overlaps || !gpa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        slots.insert(gpa, size);
        Ok(())
    }

    unsafe fn map_read_only(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees the same.
        unsafe { self.map(gpa, host, size) }
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let removed = self.0.lock().unwrap().remove(&gpa);
        removed.filter(|found| *found == size).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

/// Takes any line.
struct Gic;

impl InterruptController for Gic {
    fn connect_edge(&self, _: Spi, _: &EventFd) -> io::Result<()> {
        panic!("lines of PCI functions are levels")
    }

    fn connect_level(&self, spi: Spi, _: &EventFd, _: &EventFd) -> io::Result<()> {
        assert_eq!(spi, Spi(70));
        Ok(())
    }

    fn disconnect(&self, spi: Spi, _: &EventFd) -> io::Result<()> {
        assert_eq!(spi, Spi(70));
        Ok(())
    }
}

/// A function with a 64-bit BAR of 16 KiB in which its MSI-X table is, ports, a ROM, a line, power
/// management, MSI-X of four vectors, and PCI Express with its reset.
fn fake() -> FakeFunction {
    let mut function = FakeFunction::new(4096);
    function.bar(0, 0x4000, 0b0100);
    function.bar(2, 0x20, 0b01);
    function.regions[6].size = 0x800;
    function.put(0x04, &[0x02, 0, 0x10]);
    function.put(0x34, &[0x40]);
    function.put(0x3d, &[1]);
    function.put(PM.into(), &[0x01, 0x70]);
    function.put(MSIX.into(), &[0x11, 0x80, 3, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
    function.put(EXPRESS.into(), &[0x10, 0, 0x02, 0, 0, 0, 0, 0x10]);
    let line = IrqInfo { count: 1, eventfd: true, maskable: true, automasked: true };
    let messages = IrqInfo { count: 4, eventfd: true, maskable: false, automasked: false };
    function.irqs = vec![line, IrqInfo { count: 0, ..messages }, messages];
    function
}

struct Guest {
    device: Arc<FakeDevice>,
    slots: Arc<Slots>,
    router: Arc<FakeMsiRouter>,
    function: PciFunction,
}

fn guest_of(fake: &FakeFunction, routed: bool) -> Result<Guest, FunctionError> {
    guest_with(fake, routed, |_| ())
}

/// The same with a function that something is done to before it is attached.
fn guest_with(
    fake: &FakeFunction,
    routed: bool,
    before: impl FnOnce(&mut PciFunction),
) -> Result<Guest, FunctionError> {
    let device = fake.calls();
    let mut function = PciFunction::open(device.clone(), "x", PciOptions::default(), PAGE)?;
    before(&mut function);
    let (slots, router) = (Arc::new(Slots::default()), Arc::new(FakeMsiRouter::new(8)));
    let intx = function.pin().map(|pin| Intx { pin, spi: Spi(70) });
    let slot = Slot { bdf: Bdf::new(0, 1, 0).unwrap(), intx, port: None };
    let messages: Arc<dyn MsiRouter> = router.clone();
    let attachment = Attachment { slot, slots: slots.clone(), router: routed.then_some(messages) };
    // SAFETY: there is no guest.
    unsafe { function.attach(attachment, &Gic) }?;
    function.arm();
    Ok(Guest { device, slots, router, function })
}

fn guest() -> Guest {
    guest_of(&fake(), true).unwrap()
}

impl Guest {
    fn read<const N: usize>(&mut self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_config(offset, &mut data);
        data
    }

    /// Writes, and does the bridge's part, which forwards whatever is above 0x1000_0000.
    fn write(&mut self, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
        let mut windows = self.function.decoded();
        windows.retain(|window| window.range.start >= 0x1000_0000);
        self.function.forward(&windows);
    }

    fn turn_on_vector(&mut self, vector: u64, data: u8) {
        let entry = 0x2000 + 16 * vector;
        self.function.write_bar(0, entry, &[0x40, 0, 8, 8, 0, 0, 0, 0]);
        self.function.write_bar(0, entry + 8, &[data, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn table_page_is_never_mapped(&self) -> bool {
        let window = self.function.decoded().into_iter().find(|window| window.bar == 0);
        let start = window.map_or(u64::MAX, |window| window.range.start);
        let pages = [start.saturating_add(0x2000), start.saturating_add(0x3000)];
        !self
            .slots
            .all()
            .iter()
            .any(|(gpa, size)| pages.iter().any(|page| (*gpa..gpa + size).contains(page)))
    }
}

#[test]
fn registers_are_mapped_where_the_guest_puts_them_but_for_the_table() {
    let mut guest = guest();
    assert_eq!(guest.read(0x04), [0; 2], "what the host had turned on is off");
    guest.write(0x10, &[0xff; 4]);
    assert_eq!(guest.read(0x10), [0x04, 0xc0, 0xff, 0xff], "16 KiB of 64-bit memory");
    guest.write(0x10, &[0, 0, 0, 0x20]);
    assert_eq!(guest.slots.all(), [], "decoding is off");
    guest.write(0x04, &[0, 4]);
    assert!(!guest.function.has_been_enabled());
    guest.write(0x04, &[0x03, 0]);
    assert!(guest.function.has_been_enabled());
    assert_eq!(guest.slots.all(), [(0x2000_0000, 0x2000)]);
    // Moved while it decodes, then elsewhere than the bridge forwards.
    guest.write(0x10, &[0, 0, 0, 0x30]);
    assert_eq!(guest.slots.all(), [(0x3000_0000, 0x2000)]);
    guest.write(0x10, &[0, 0, 0, 0]);
    assert_eq!(guest.slots.all(), []);
    guest.write(0x10, &[0, 0, 0, 0x30]);
    guest.write(0x04, &[0x01]);
    assert_eq!(guest.slots.all(), [], "one byte is enough to turn it off");
    let windows = guest.function.decoded();
    assert_eq!(windows.iter().map(|window| window.bar).collect::<Vec<_>>(), [2], "ports");
}

#[test]
fn a_window_that_was_closed_meanwhile_is_not_mapped() {
    let mut guest = guest();
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0]);
    let stale = guest.function.decoded();
    guest.write(0x04, &[0, 0]);
    guest.function.forward(&stale);
    assert_eq!(guest.slots.all(), []);
}

#[test]
fn what_couldnt_be_unmapped_is_remembered_and_tried_again() {
    let mut guest = guest();
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0]);
    guest.slots.refuse(true);
    guest.write(0x10, &[0, 0, 0, 0x30]);
    assert_eq!(guest.slots.all(), [(0x2000_0000, 0x2000), (0x3000_0000, 0x2000)]);
    // Back where it still is: nothing is to be done, and the other is stuck now.
    guest.write(0x10, &[0, 0, 0, 0x20]);
    assert!(!guest.function.trap(), "nothing goes");
    guest.slots.refuse(false);
    guest.write(0x10, &[0, 0, 0, 0x40]);
    assert_eq!(guest.slots.all(), [(0x4000_0000, 0x2000)]);
    guest.slots.refuse(true);
    guest.write(0x04, &[0, 0]);
    guest.slots.refuse(false);
    guest.function.release().unwrap();
    assert_eq!(guest.slots.all(), []);
}

#[test]
fn a_window_is_decoded_by_address_memory_bit_and_power() {
    let mut guest = guest();
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0]);
    let window = guest.function.decoded()[0].clone();
    assert!(guest.function.decodes(&window));
    let away: [(u16, [&[u8]; 2]); 3] = [
        (0x10, [&[0, 0, 0, 0x30], &[0, 0, 0, 0x20]]),
        (0x04, [&[0], &[2]]),
        (PM + 4, [&[3], &[0]]),
    ];
    for (register, [off, on]) in away {
        guest.write(register, off);
        assert!(!guest.function.decodes(&window), "{register:#x}");
        guest.write(register, on);
        assert!(guest.function.decodes(&window), "{register:#x}");
    }
    // What the host can't give traps until something moves.
    assert!(guest.function.trap());
    assert_eq!((guest.slots.all(), guest.function.decodes(&window)), (vec![], true));
    guest.write(0x04, &[0]);
    guest.write(0x04, &[2]);
    assert_eq!(guest.slots.all().len(), 1);
}

#[test]
fn the_function_decodes_nothing_while_it_has_no_power() {
    let mut guest = guest();
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0, 0, 0]);
    assert_eq!(guest.slots.all().len(), 1);
    guest.write(PM + 4, &[3, 0]);
    assert_eq!((guest.slots.all(), guest.function.decoded()), (vec![], vec![]));
    guest.write(PM + 4, &[0, 0, 0, 0]);
    assert_eq!(guest.slots.all().len(), 1);
}

#[test]
fn a_function_that_a_neighbours_reset_has_powered_decodes_again() {
    let mut fake = fake();
    let mut guest = guest_of(&fake, true).unwrap();
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0]);
    guest.write(PM + 4, &[3, 0]);
    guest.write(EXPRESS + 8, &[0, 0]);
    assert_eq!((guest.slots.all(), guest.function.decoded()), (vec![], vec![]));
    fake.put((PM + 4).into(), &[0]);
    // What a driver's kernel restores; PMCSR, which reads D0, isn't written.
    guest.write(EXPRESS + 8, &[0, 0]);
    assert_eq!(guest.slots.all().len(), 1);
}

#[test]
fn line_and_messages_take_turns() {
    let mut guest = guest();
    let calls = guest.device.take_calls();
    assert!(matches!(calls[..], [Call::SetTrigger(0, _), Call::SetUnmask(0, _)]), "{calls:?}");
    assert_eq!(guest.function.in_use(), InUse::Intx);
    // On and masked, as Linux does it; then a vector; then all unmasked.
    guest.write(MSIX + 2, &[0, 0xc0]);
    let vectors = |start, on: &[bool]| Call::SetVectors(2, start, on.to_vec());
    assert_eq!(guest.device.take_calls(), [Call::ClearTrigger(0), vectors(0, &[false; 4])]);
    guest.turn_on_vector(1, 0x55);
    assert_eq!(guest.device.take_calls(), []);
    guest.write(MSIX + 2, &[0, 0x80]);
    assert_eq!(guest.device.take_calls(), [vectors(1, &[true])]);
    assert_eq!(guest.function.in_use(), InUse::Msix(1));
    guest.device.signal(2, 1);
    let messages = guest.router.poll();
    assert_eq!(
        messages.iter().map(|m| (m.address, m.data, m.requester)).collect::<Vec<_>>(),
        [(0x808_0040, 0x55, 8)]
    );
    // Masked by the function: pending, and delivered later.
    guest.write(MSIX + 2, &[0, 0xc0]);
    guest.device.signal(2, 1);
    let mut pending = [0; 8];
    guest.function.read_bar(0, 0x3000, &mut pending);
    assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
    guest.function.write_bar(0, 0x3000, &[0; 8]);
    guest.write(MSIX + 2, &[0, 0x80]);
    assert_eq!(guest.router.poll().len(), 1);
    assert_eq!(guest.device.take_calls(), []);
    guest.write(MSIX + 2, &[0, 0]);
    let calls = guest.device.take_calls();
    assert!(matches!(calls[..], [Call::ClearTrigger(2), Call::SetTrigger(0, _), _]), "{calls:?}");
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0]);
    assert_eq!(guest.slots.all().len(), 1);
}

/// Which of these has been signalled, and is passed on: its number and how often.
fn passed(taps: &[VectorTap]) -> Vec<(usize, u64)> {
    let mut passed = Vec::new();
    for (number, tap) in taps.iter().enumerate() {
        tap.pass(|count| passed.push((number, count)));
    }
    passed
}

#[test]
fn a_function_that_is_traced_traps_and_has_its_signals_passed_on() {
    let mut fake = fake();
    // And MSI of two vectors.
    fake.put(PM.into(), &[0x01, 0x50]);
    fake.put(0x50, &[0x05, 0x70, 0x02, 0]);
    fake.irqs[1].count = 2;
    let mut taps = None;
    let mut guest = guest_with(&fake, true, |function| taps = function.tap().ok()).unwrap();
    let FunctionTaps { intx, msi, msix } = taps.unwrap();
    assert_eq!((msi.len(), msix.len()), (2, 4));
    // No BAR is mapped.
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x02, 0]);
    assert_eq!((guest.function.decoded().len(), guest.slots.all()), (1, vec![]));
    // The host signals the line's tap, and has the guest's end of it from there.
    let intx = intx.unwrap();
    let (fired, ended) = intx.polled();
    assert!(ended.is_some());
    assert_eq!(guest.device.take_calls()[0], Call::SetTrigger(0, fired.as_raw_fd()));
    // The messages of MSI-X.
    guest.write(MSIX + 2, &[0, 0x80]);
    guest.turn_on_vector(1, 0x55);
    guest.device.signal(2, 1);
    assert_eq!((guest.router.poll().len(), passed(&msi)), (0, vec![]));
    assert_eq!((passed(&msix), guest.router.poll().len()), (vec![(1, 1)], 1));
    guest.write(MSIX + 2, &[0, 0]);
    msix[1].polled().write(1).unwrap();
    assert_eq!(passed(&msix), []);
    // And of MSI.
    guest.write(0x54, &[0x40, 0, 8, 8]);
    guest.write(0x58, &[0x66, 0]);
    guest.write(0x52, &[0x11, 0]);
    guest.device.signal(1, 1);
    assert_eq!((guest.router.poll().len(), passed(&msix)), (0, vec![]));
    assert_eq!(passed(&msi), [(1, 1)]);
    assert_eq!(guest.router.poll().iter().map(|m| m.data).collect::<Vec<_>>(), [0x67]);
}

#[test]
fn at_the_end_all_is_disarmed_and_reset() {
    for messages in [false, true] {
        let mut guest = guest();
        if messages {
            guest.write(MSIX + 2, &[0, 0x80]);
            guest.turn_on_vector(0, 1);
        }
        guest.write(0x10, &[0, 0, 0, 0x20]);
        guest.write(0x04, &[0x02, 0]);
        guest.device.take_calls();
        assert_eq!(guest.function.release().unwrap(), Quiesced::ByReset);
        let index = if messages { 2 } else { 0 };
        assert_eq!(guest.device.take_calls(), [Call::ClearTrigger(index), Call::Reset]);
        assert_eq!((guest.slots.all(), guest.router.messages()), (vec![], vec![]));
        drop(guest.function);
        assert_eq!(guest.device.take_calls(), [], "once is enough");
    }
}

#[test]
fn a_machine_that_is_reset_finds_the_function_as_at_first() {
    for messages in [false, true] {
        let mut guest = guest();
        let first: Vec<[u8; 4]> = (0..1024).map(|dword| guest.read(dword * 4)).collect();
        if messages {
            guest.write(MSIX + 2, &[0, 0x80]);
            guest.turn_on_vector(0, 1);
        }
        guest.write(0x10, &[0, 0, 0, 0x20]);
        guest.write(0x3c, &[9]);
        guest.write(EXPRESS + 8, &[7, 0]);
        guest.write(0x04, &[0x06, 0]);
        guest.write(PM + 4, &[3]);
        guest.device.take_calls();
        let intx = guest.function.pin().map(|pin| Intx { pin, spi: Spi(70) });
        guest.function.restart(&Gic, intx).unwrap();
        let index = if messages { 2 } else { 0 };
        assert_eq!(guest.device.take_calls(), [Call::ClearTrigger(index), Call::Reset]);
        assert_eq!((guest.slots.all(), guest.router.messages()), (vec![], vec![]));
        // VFIO's reset ends a low power state, too; this device's doesn't, and is told.
        let after: Vec<[u8; 4]> = (0..1024).map(|dword| guest.read(dword * 4)).collect();
        assert_eq!(after, first);
        guest.function.arm();
        assert!(matches!(guest.device.take_calls()[..], [Call::SetTrigger(0, _), _]));
    }
}

#[test]
fn whoever_cant_be_reset_masters_the_bus_no_more() {
    let mut unresettable = fake();
    unresettable.can_reset = false;
    let quiesced = |fake: &FakeFunction, refused: Option<(usize, i32)>| {
        let mut guest = guest_of(fake, true).unwrap();
        guest.write(0x04, &[0x06, 0]);
        if let Some((count, errno)) = refused {
            guest.device.refuse_resets(count, errno);
        }
        let released = guest.function.release();
        let mut command = [0; 2];
        fake.config().read_exact_at(&mut command, 4).unwrap();
        (released, command)
    };
    assert!(matches!(quiesced(&unresettable, None), (Ok(Quiesced::Unsupported), [0x02, 0])));
    // The host is busy with it for a while, then for good.
    let (released, _) = quiesced(&fake(), Some((3, libc::EAGAIN)));
    assert_eq!(released.unwrap(), Quiesced::ByReset);
    for (errno, what) in [(libc::EAGAIN, "the host holds it"), (libc::ENOTTY, "can't be reset")] {
        let (released, command) = quiesced(&fake(), Some((1000, errno)));
        let error = released.unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(error.help().unwrap().contains("power-cycle"), errno != libc::EAGAIN);
        assert_eq!(command, [0x02, 0], "{what}");
    }
}

#[test]
fn a_server_that_refuses_a_reset_is_told_about_as_a_server() {
    for errno in [libc::EBUSY, libc::EIO] {
        let mut guest = guest_with(&fake(), true, PciFunction::set_of_server).unwrap();
        guest.write(0x04, &[0x06, 0]);
        guest.device.refuse_resets(1, errno);
        let error = guest.function.release().unwrap_err();
        let help = error.help().unwrap();
        assert!(help.contains("--vfio-user x,reset=off"), "{help}");
        assert!(!help.contains("/sys/bus/pci") && !help.contains("board"), "{help}");
    }
}

#[test]
fn a_reset_by_the_guest_is_one_of_what_is_kept_here_too() {
    let mut guest = guest();
    guest.write(0x10, &[0, 0, 0, 0x20]);
    guest.write(0x04, &[0x06, 0]);
    guest.write(MSIX + 2, &[0, 0x80]);
    guest.turn_on_vector(0, 1);
    guest.write(0x0c, &[16]);
    guest.write(0x3c, &[9]);
    guest.write(EXPRESS + 8, &[0x47, 0]);
    guest.write(EXPRESS + 0x28, &[5, 0]);
    guest.write(PM + 4, &[3]);
    guest.device.take_calls();
    guest.write(EXPRESS + 8, &[0x47, 0x80]);
    assert_eq!((guest.read(0x0c), guest.read(0x3c)), ([0], [0]));
    // But Max_Payload_Size.
    assert_eq!((guest.read(EXPRESS + 8), guest.read(EXPRESS + 0x28)), ([0x40, 0], [0; 2]));
    assert_eq!(guest.read(PM + 4), [0]);
    assert_eq!(guest.read(0x04), [0; 2]);
    assert_eq!(guest.read(0x10), [0x04, 0, 0, 0]);
    assert_eq!(guest.read(MSIX), [0x11, 0x80, 3, 0]);
    assert_eq!(guest.slots.all(), []);
    let calls = guest.device.take_calls();
    assert!(matches!(calls[..], [Call::ClearTrigger(2), Call::SetTrigger(0, _), _]), "{calls:?}");
}

#[test]
fn without_a_router_there_is_the_line_or_nothing() {
    let mut guest = guest_of(&fake(), false).unwrap();
    assert_eq!(guest.read(PM), [0x01, 0x80], "past MSI-X");
    assert_eq!(guest.read(MSIX), [0; 4]);
    guest.write(MSIX + 2, &[0, 0x80]);
    assert_eq!(guest.function.in_use(), InUse::Intx);
    let mut lineless = fake();
    lineless.irqs[0].count = 0;
    let refused = guest_of(&lineless, false).err().map(|error| error.kind);
    assert!(matches!(refused, Some(FunctionErrorKind::NoInterrupt)));
    let mut guest = guest_of(&lineless, true).unwrap();
    assert_eq!(guest.read(0x3d), [0]);
}

#[test]
fn options_are_obeyed() {
    let options = PciOptions { mmap: false, reset: false };
    let fake = fake();
    let mut function = PciFunction::open(fake.calls(), "x", options, PAGE).unwrap();
    assert!(function.bars().iter().all(|bar| bar.mapped.is_empty()));
    assert_eq!(function.quiesce().unwrap(), Quiesced::Disabled);
    // Where the host's pages are large, the table's is all of the BAR.
    let function = PciFunction::open(fake.calls(), "x", PciOptions::default(), 0x1_0000).unwrap();
    assert!(function.bars().iter().all(|bar| bar.mapped.is_empty()));
    let mut unresettable = fake;
    unresettable.can_reset = false;
    let mut function =
        PciFunction::open(unresettable.calls(), "x", PciOptions::default(), PAGE).unwrap();
    assert_eq!(function.quiesce().unwrap(), Quiesced::Unsupported);
}

#[test]
fn whatever_a_guest_writes_the_table_is_out_of_its_reach() {
    let mut guest = guest();
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for _ in 0..20_000 {
        let bytes = next().to_le_bytes();
        let size = [1, 2, 4][usize::from(bytes[0]) % 3];
        // Mostly where something happens.
        let offset = if bytes[1] < 200 { next() % 0x90 } else { next() % 4096 };
        let offset = u16::try_from(offset).unwrap() & !u16::try_from(size - 1).unwrap();
        let data = next().to_le_bytes();
        guest.write(offset, &data[..size]);
        let mut read = [0; 4];
        guest.function.read_config(offset, &mut read[..size]);
        let place = u64::from(next() % 0x5000);
        guest.function.write_bar(bytes[2] % 8, place, &data[..size]);
        guest.function.read_bar(bytes[2] % 8, place, &mut read[..size]);
        assert!(guest.table_page_is_never_mapped());
    }
    guest.function.release().unwrap();
    assert_eq!((guest.slots.all(), guest.router.messages()), (vec![], vec![]));
    assert_eq!(guest.function.in_use(), InUse::None);
}

/// Where VFIO tells of errors, and that the host wants a function back.
const ERR: u32 = 3;
const REQ: u32 = 4;

#[test]
fn what_is_taken_back_reads_as_ones_and_is_closed() {
    for refuses in [false, true] {
        let mut guest = guest();
        guest.write(0x10, &[0, 0, 0, 0x20]);
        guest.write(0x04, &[0x06, 0]);
        guest.turn_on_vector(0, 7);
        let Guest { device, slots, function, .. } = guest;
        let mut function = RemovableFunction::from(function);
        let ranges = function.decoded();
        assert!(!ranges.is_empty() && !slots.all().is_empty());
        slots.refuse(refuses);
        assert_eq!(function.remove(), !refuses);
        assert!(function.get().is_none());
        let (mut config, mut register) = ([0; 4], [0; 8]);
        function.read_config(0, &mut config);
        function.read_bar(0, 0, &mut register);
        assert_eq!((config, register), ([0xff; 4], [0xff; 8]));
        function.write_config(0x04, &[0x06, 0]);
        function.forward(&ranges);
        assert!(function.decoded().is_empty() && !function.decodes(&ranges[0]));
        // What is still mapped into the guest is kept; else nobody has its file any more.
        assert_eq!(slots.all().is_empty(), !refuses);
        assert_eq!(Arc::strong_count(&device) == 1, !refuses);
        slots.refuse(false);
    }
}

#[test]
fn a_loss_is_told_where_vfio_tells_it() {
    let mut fake = fake();
    let once = IrqInfo { count: 1, eventfd: true, maskable: false, automasked: false };
    fake.irqs.extend([once, once]);
    let guest = guest_of(&fake, true).unwrap();
    guest.device.take_calls();
    let events = guest.function.watch_loss();
    assert_eq!(
        events.iter().map(|(loss, _)| *loss).collect::<Vec<_>>(),
        [Loss::Requested, Loss::Failed]
    );
    let [requested, failed] = [0, 1].map(|index: usize| events[index].1.as_raw_fd());
    assert_eq!(
        guest.device.take_calls(),
        [Call::SetTrigger(REQ, requested), Call::SetTrigger(ERR, failed)]
    );
    // A function of the conventional bus has no such errors.
    assert!(guest_of(&super::tests::fake(), true).unwrap().function.watch_loss().is_empty());
}
