mod stopping;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::entropy::Entropy;
use super::super::super::queue::QueueAddresses;
use super::super::super::testing::{DriverQueue, RAM, ram};
use super::*;
use crate::irq::MsiMessage;
use crate::pci::testing::FakeMsiRouter;

const BDF: &str = "00:03.0";
const VERSION_1_HIGH: u32 = 1;

/// Registers of the common configuration.
const STATUS: u64 = 0x14;
const MSIX_TABLE: u64 = 0x4000;
const NOTIFY_OFFSET: u64 = 0x3000;
const ISR_OFFSET: u64 = 0x1000;

/// Addresses with an ioeventfd, and the eventfd's descriptor.
#[derive(Default)]
struct FakeIoEvents(Mutex<BTreeMap<u64, i32>>);

impl IoEvents for FakeIoEvents {
    fn add(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        assert!(self.0.lock().unwrap().insert(gpa, event.as_raw_fd()).is_none());
        Ok(())
    }

    fn remove(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        assert_eq!(self.0.lock().unwrap().remove(&gpa), Some(event.as_raw_fd()));
        Ok(())
    }
}

#[derive(Clone, Default)]
struct FakeLine(Arc<AtomicBool>);

impl IrqLine for FakeLine {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

/// A guest's driver with the function that it drives.
struct Driver {
    function: VirtioFunction,
    router: Option<Arc<FakeMsiRouter>>,
    ioevents: Arc<FakeIoEvents>,
    line: FakeLine,
    memory: GuestMemoryMmap,
}

impl Driver {
    fn new(with_messages: bool) -> Self {
        Self::of(Box::new(Entropy::new("entropy")), with_messages, false)
    }

    fn of(device: Box<dyn Device>, with_messages: bool, access_platform: bool) -> Self {
        let mut function = VirtioFunction::new("entropy", device, access_platform).unwrap();
        let router = with_messages.then(|| Arc::new(FakeMsiRouter::new(8)));
        let (ioevents, line) = (Arc::new(FakeIoEvents::default()), FakeLine::default());
        let memory = ram();
        function
            .attach(VirtioAttachment {
                bdf: BDF.parse().unwrap(),
                memory: memory.clone(),
                router: router.clone().map(|router| router as Arc<dyn MsiRouter>),
                ioevents: ioevents.clone(),
                line: Box::new(line.clone()),
            })
            .unwrap();
        Self { function, router, ioevents, line, memory }
    }

    fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        self.function.read_bar(BAR, offset, &mut data);
        data
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.function.write_bar(BAR, offset, data);
    }

    fn status(&mut self) -> u8 {
        let [status] = self.read(STATUS);
        status
    }

    fn config<const N: usize>(&mut self, offset: u16) -> [u8; N] {
        let mut data = [0xff; N];
        self.function.read_config(offset, &mut data);
        data
    }

    /// The capabilities: offset, ID, and for a vendor's its type.
    fn capabilities(&mut self) -> Vec<(u8, u8, u8)> {
        let [mut at] = self.config(0x34);
        let mut found = Vec::new();
        while at != 0 {
            let [id, next, _, kind] = self.config(at.into());
            found.push((at, id, kind));
            at = next;
        }
        found
    }

    /// Accepts features; the status after `FEATURES_OK`.
    fn negotiate(&mut self, low: u32, high: u32) -> u8 {
        self.write(STATUS, &[1]);
        self.write(STATUS, &[3]);
        for (select, features) in [(0u32, low), (1, high)] {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, &features.to_le_bytes());
        }
        self.write(STATUS, &[0xb]);
        self.status()
    }

    /// Sets up queue 0 and starts the device.
    fn start(&mut self, queue: &DriverQueue) {
        assert_eq!(self.negotiate(0, VERSION_1_HIGH), 0xb);
        self.set_up(queue);
        self.write(STATUS, &[0xf]);
    }

    /// Sets up and enables queue 0.
    fn set_up(&mut self, queue: &DriverQueue) {
        self.write(0x16, &0u16.to_le_bytes());
        self.write(0x18, &queue.size.to_le_bytes());
        let QueueAddresses { descriptors, available, used } = queue.addresses;
        for (at, address) in [(0x20, descriptors), (0x28, available), (0x30, used)] {
            let bytes = address.to_le_bytes();
            self.write(at, &bytes[..4]);
            self.write(at + 4, &bytes[4..]);
        }
        self.write(0x1c, &1u16.to_le_bytes());
    }

    /// Resets the device, as Linux does: until the status is zero.
    fn reset(&mut self) {
        self.write(STATUS, &[0]);
        while self.status() != 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Enables MSI-X with a message for each of two vectors, and gives the queue the second.
    fn enable_msix(&mut self) {
        let (msix, ..) = *self.capabilities().iter().find(|(_, id, _)| *id == 0x11).unwrap();
        for vector in 0..2u8 {
            let entry = MSIX_TABLE + 16 * u64::from(vector);
            self.write(entry, &0x0808_0040u32.to_le_bytes());
            self.write(entry + 8, &u32::from(vector).to_le_bytes());
            self.write(entry + 12, &0u32.to_le_bytes());
        }
        self.function.write_config(u16::from(msix) + 2, &0x8000u16.to_le_bytes());
        self.write(0x16, &0u16.to_le_bytes());
        self.write(0x1a, &1u16.to_le_bytes());
        assert_eq!(self.read(0x1a), 1u16.to_le_bytes());
    }
}

#[test]
fn a_modern_function_tells_where_its_registers_are() {
    let mut driver = Driver::new(true);
    assert_eq!(driver.config(0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(driver.config(0x08), [1, 0, 0xff, 0]);
    assert_eq!(driver.config(0x3d), [1]);
    let ids: Vec<_> = driver.capabilities().iter().map(|(_, id, kind)| (*id, *kind)).collect();
    let vendor: Vec<_> = ids.iter().filter(|(id, _)| *id == 9).map(|(_, kind)| *kind).collect();
    assert_eq!(vendor, [1, 3, 4, 2, 5]);
    assert!(ids.iter().any(|(id, _)| *id == 0x13));
    assert_eq!(ids.last().map(|(id, _)| *id), Some(0x11));
    assert!(!Driver::new(false).capabilities().iter().any(|(_, id, _)| *id == 0x11));
}

#[test]
fn features_that_are_not_offered_are_refused() {
    for (low, high, ok) in
        [(0, 1, true), (1 << 29, 1, true), (0, 0, false), (1, 1, false), (0, 3, false)]
    {
        let mut driver = Driver::new(true);
        let status = driver.negotiate(low, high);
        assert_eq!(status & FEATURES_OK != 0, ok, "{low:#x} {high:#x}");
    }
}

#[test]
fn a_request_is_served_with_a_message() {
    let mut driver = Driver::new(true);
    let mut queue = DriverQueue::new(&driver.memory, RAM, 8);
    driver.enable_msix();
    driver.start(&queue);
    for _ in 0..3 {
        queue.add(&[(RAM + 0x1000, 64, true)]);
        driver.write(NOTIFY_OFFSET, &0u16.to_le_bytes());
        assert_eq!(queue.wait_used().1, 64);
    }
    let router = driver.router.clone().unwrap();
    let requester = u32::from(BDF.parse::<Bdf>().unwrap().requester_id());
    let message = MsiMessage { address: 0x0808_0040, data: 1, requester };
    assert_eq!(router.messages(), [message]);
    assert!(wait_for(|| router.poll() == [message]));
    driver.reset();
    assert!(router.messages().is_empty());
}

#[test]
fn without_messages_the_pin_is_asserted_until_the_isr_status_is_read() {
    let mut driver = Driver::new(false);
    let mut queue = DriverQueue::new(&driver.memory, RAM, 8);
    driver.start(&queue);
    queue.add(&[(RAM + 0x1000, 64, true)]);
    driver.write(NOTIFY_OFFSET, &0u16.to_le_bytes());
    queue.wait_used();
    let line = driver.line.clone();
    assert!(wait_for(|| line.0.load(Ordering::SeqCst)));
    assert_eq!(driver.config(0x06), [0x18, 0]);
    assert_eq!(driver.read(ISR_OFFSET), [1]);
    assert!(!line.0.load(Ordering::SeqCst));
    assert_eq!(driver.read(ISR_OFFSET), [0]);
}

#[test]
fn a_device_works_again_after_resets() {
    let mut driver = Driver::new(true);
    for round in 0..4 {
        let mut queue = DriverQueue::new(&driver.memory, RAM, 8);
        driver.memory.write_slice(&[0; 0x1000], GuestAddress(RAM)).unwrap();
        driver.start(&queue);
        queue.add(&[(RAM + 0x1000, 64, true)]);
        driver.write(NOTIFY_OFFSET, &0u16.to_le_bytes());
        assert_eq!(queue.wait_used().1, 64, "round {round}");
        if round % 2 == 0 {
            driver.reset();
        } else {
            // Of the function, by the control register of its Advanced Features.
            let (af, ..) = *driver.capabilities().iter().find(|(_, id, _)| *id == 0x13).unwrap();
            driver.function.write_config(u16::from(af) + 4, &[1]);
            while driver.status() != 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(driver.read(0x1c), [0, 0]);
    }
}

#[test]
fn a_machine_that_is_reset_finds_the_device_as_at_first() {
    let mut driver = Driver::new(true);
    let registers = |driver: &mut Driver| -> Vec<[u8; 4]> {
        let config = (0..64).map(|at| driver.config(at * 4)).collect::<Vec<_>>();
        config.into_iter().chain((0..15).map(|at| driver.read(at * 4))).collect()
    };
    let first = registers(&mut driver);
    for _ in 0..3 {
        let mut queue = DriverQueue::new(&driver.memory, RAM, 8);
        driver.memory.write_slice(&[0; 0x1000], GuestAddress(RAM)).unwrap();
        driver.start(&queue);
        queue.add(&[(RAM + 0x1000, 64, true)]);
        driver.write(NOTIFY_OFFSET, &0u16.to_le_bytes());
        assert_eq!(queue.wait_used().1, 64);
        driver.function.restart().unwrap();
        assert!(driver.function.decoded().is_empty());
        assert!(driver.router.clone().unwrap().messages().is_empty());
        assert_eq!(registers(&mut driver), first);
    }
}

#[test]
fn a_queue_works_again_after_its_reset() {
    let mut driver = Driver::new(true);
    let queue = DriverQueue::new(&driver.memory, RAM, 8);
    assert_eq!(driver.negotiate(0, VERSION_1_HIGH | 1 << 8), 0xb);
    driver.set_up(&queue);
    driver.write(STATUS, &[0xf]);
    for page in [RAM, RAM + 0x2000, RAM + 0x3000] {
        driver.write(0x3a, &1u16.to_le_bytes());
        while driver.read(0x3a) != [0, 0] {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(driver.read(0x1c), [0, 0]);
        let mut queue = DriverQueue::new(&driver.memory, page, 4);
        driver.memory.write_slice(&[0; 0x1000], GuestAddress(page)).unwrap();
        driver.set_up(&queue);
        queue.add(&[(RAM + 0x1000, 64, true)]);
        driver.write(NOTIFY_OFFSET, &0u16.to_le_bytes());
        assert_eq!(queue.wait_used().1, 64);
    }
    assert_eq!(driver.status(), 0xf);
}

#[test]
fn a_broken_queue_fails_the_device_until_it_is_reset() {
    let mut driver = Driver::new(true);
    let queue = DriverQueue::new(&driver.memory, RAM, 8);
    driver.enable_msix();
    driver.start(&queue);
    queue.set_available_index(100);
    driver.write(NOTIFY_OFFSET, &0u16.to_le_bytes());
    assert!(wait_for(|| driver.status() & 0x40 != 0));
    driver.reset();
    // Nor do rings outside RAM make it work.
    let mut nowhere = DriverQueue::new(&driver.memory, RAM, 8);
    nowhere.addresses.used = 0x1000;
    driver.start(&nowhere);
    assert_eq!(driver.status(), 0x4f);
    driver.reset();
    assert_eq!(driver.status(), 0);
}

#[test]
fn notifications_follow_the_bar() {
    let mut driver = Driver::new(true);
    let addresses =
        |driver: &Driver| driver.ioevents.0.lock().unwrap().keys().copied().collect::<Vec<_>>();
    for base in [0x2000_0000u32, 0x2100_0000] {
        driver.function.write_config(0x10, &base.to_le_bytes());
        driver.function.write_config(0x04, &2u16.to_le_bytes());
        let decoded = driver.function.decoded();
        driver.function.forward(&decoded);
        assert_eq!(addresses(&driver), [u64::from(base) + 0x3000]);
    }
    driver.function.write_config(0x04, &0u16.to_le_bytes());
    let decoded = driver.function.decoded();
    driver.function.forward(&decoded);
    assert!(addresses(&driver).is_empty());
}

#[test]
fn registers_can_be_reached_through_configuration_space() {
    let mut driver = Driver::new(true);
    let (access, ..) =
        *driver.capabilities().iter().find(|(_, id, kind)| (*id, *kind) == (9, 5)).unwrap();
    let access = u16::from(access);
    driver.function.write_config(access + 8, &u32::try_from(STATUS).unwrap().to_le_bytes());
    driver.function.write_config(access + 12, &1u32.to_le_bytes());
    driver.function.write_config(access + 16, &[1]);
    assert_eq!(driver.status(), 1);
    assert_eq!(driver.config(access + 16), [1]);
    // An access of another length than was set is none.
    assert_eq!(driver.config(access + 16), [0u8; 4]);
}

/// Whether a condition becomes true within a minute.
fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A device that keeps the features that it was activated with.
struct Kept(Arc<Mutex<Option<u64>>>);

impl Device for Kept {
    fn device_type(&self) -> crate::virtio::DeviceType {
        Entropy::new("entropy").device_type()
    }

    fn features(&self) -> u64 {
        1
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn read_config(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        *self.0.lock().unwrap() = Some(activation.features);
        Ok(())
    }
}

#[test]
fn access_platform_is_the_driver_s_affair() {
    for asked in [false, true] {
        let kept = Arc::new(Mutex::new(None));
        let mut driver = Driver::of(Box::new(Kept(kept.clone())), true, asked);
        driver.write(0, &1_u32.to_le_bytes());
        let [offered, ..] = driver.read::<4>(4);
        assert_eq!(offered & 2 != 0, asked);
        [1, 3].into_iter().for_each(|status| driver.write(STATUS, &[status]));
        for (select, features) in [(0, 1), (1, u32::from(offered))] {
            driver.write(0x08, &u32::to_le_bytes(select));
            driver.write(0x0c, &features.to_le_bytes());
        }
        [0xb, 0xf].into_iter().for_each(|status| driver.write(STATUS, &[status]));
        assert_eq!(driver.status(), 0xf);
        assert_eq!(*kept.lock().unwrap(), Some(1 << 32 | 1));
    }
}
