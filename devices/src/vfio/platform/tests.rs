use boot::help::Help;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use boot::fdt::Value;
use vmm_sys_util::eventfd::EventFd;

use super::super::node::{Clock, NodeOptions};
use super::super::testing::{Call, FakeDevice, FakeHost, node_builder};
use super::super::uapi::{IrqInfo, RegionInfo};
use super::*;

const PAGE: u64 = 0x1_0000;
const LEVEL: IrqInfo = IrqInfo { count: 1, eventfd: true, maskable: true, automasked: true };
const EDGE: IrqInfo = IrqInfo { maskable: false, automasked: false, ..LEVEL };

/// Notes the slots; refuses one at `refuse`.
#[derive(Default)]
struct Slots {
    made: Mutex<Vec<(u64, u64)>>,
    refuse: Option<u64>,
}

impl MemorySlots for Slots {
    unsafe fn map(&self, gpa: u64, _: NonNull<u8>, size: u64) -> io::Result<()> {
        if self.refuse == Some(gpa) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        self.made.lock().unwrap().push((gpa, size));
        Ok(())
    }

    unsafe fn map_read_only(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees the same.
        unsafe { self.map(gpa, host, size) }
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        self.made.lock().unwrap().retain(|made| *made != (gpa, size));
        Ok(())
    }
}

/// Notes the SPIs.
#[derive(Default)]
struct Gic(Mutex<Vec<(Spi, bool)>>);

impl InterruptController for Gic {
    fn connect_edge(&self, spi: Spi, _: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().push((spi, false));
        Ok(())
    }

    fn connect_level(&self, spi: Spi, _: &EventFd, _: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().push((spi, true));
        Ok(())
    }

    fn disconnect(&self, spi: Spi, _: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().retain(|(connected, _)| *connected != spi);
        Ok(())
    }
}

fn region(size: u64, offset: u64, mappable: bool) -> RegionInfo {
    RegionInfo { size, offset, readable: true, writable: true, mappable, ..Default::default() }
}

/// A device with a mapped and a trapped region, a level and an edge interrupt.
fn fake() -> FakeDevice {
    FakeDevice::new(vec![region(PAGE, 0, true), region(0x1000, PAGE, false)], vec![LEVEL, EDGE])
}

fn builder(compatible: &str) -> NodeBuilder {
    node_builder(&[compatible])
}

fn open(calls: &Arc<FakeDevice>, compatible: &str) -> PlatformDevice {
    let options = PlatformDeviceOptions::default();
    PlatformDevice::new("1.dev", calls.clone(), builder(compatible), options, PAGE).unwrap()
}

fn map(
    device: &mut PlatformDevice,
    slots: &Slots,
    gpas: &[u64],
) -> Result<Vec<Trap>, PlatformError> {
    // SAFETY: there is no guest.
    unsafe { device.map_regions(slots, gpas) }
}

#[test]
fn a_device_is_opened_mapped_connected_armed_and_released() {
    let calls = Arc::new(fake());
    let mut device = open(&calls, "vendor,device");
    assert_eq!(device.quiesce().unwrap(), Quiesced::Unsupported);

    let slots = Slots::default();
    let traps = map(&mut device, &slots, &[0xc00_0000, 0xc01_0000]).unwrap();
    assert_eq!(*slots.made.lock().unwrap(), [(0xc00_0000, PAGE)]);
    let [trap] = traps.as_slice() else { panic!("{} traps", traps.len()) };
    assert_eq!((trap.gpa, trap.size), (0xc01_0000, 0x1000));
    let _ = trap.device.write(4, &[1, 2, 3, 4]);
    let mut stored = [0; 4];
    calls.file().read_exact_at(&mut stored, PAGE + 4).unwrap();
    assert_eq!(stored, [1, 2, 3, 4]);

    let gic = Gic::default();
    device.connect_irqs(&gic, &[Spi(40), Spi(41)]).unwrap();
    assert_eq!(*gic.0.lock().unwrap(), [(Spi(40), true), (Spi(41), false)]);
    assert_eq!(calls.take_calls(), [], "the host's lines are still off");
    device.arm().unwrap();
    assert!(matches!(calls.take_calls().last(), Some(Call::SetTrigger(1, _))));
    let off = [Call::ClearTrigger(0), Call::ClearUnmask(0), Call::ClearTrigger(1)];
    device.restart(&gic, &[Spi(40), Spi(41)]).unwrap();
    assert_eq!(calls.take_calls(), off);
    assert_eq!(*gic.0.lock().unwrap(), [(Spi(40), true), (Spi(41), false)]);
    device.arm().unwrap();
    calls.take_calls();
    device.release().unwrap();
    assert_eq!(calls.take_calls(), off);
    drop(device);
    assert_eq!(calls.take_calls(), [], "once is enough");
}

#[test]
fn regions_trap_with_mmap_off_or_where_they_are_less_than_a_page() {
    let gpas = [0xc00_0000, 0xc01_0000];
    // mmap=, the size of the host's pages, and which regions are mapped.
    for (mmap, page, mapped) in [
        (true, PAGE, vec![(gpas[0], PAGE)]),
        (true, 0x1000, vec![(gpas[0], PAGE)]),
        (false, PAGE, vec![]),
        // A region of 64 KiB is less than a page, and its page may hold other devices.
        (true, 0x20_0000, vec![]),
    ] {
        let options = PlatformDeviceOptions { mmap, ..Default::default() };
        let calls = Arc::new(fake());
        let mut device =
            PlatformDevice::new("1.dev", calls.clone(), builder("x"), options, page).unwrap();
        let slots = Slots::default();
        let traps = map(&mut device, &slots, &gpas).unwrap();
        assert_eq!(*slots.made.lock().unwrap(), mapped, "{mmap} {page:#x}");
        assert_eq!(traps.len() + mapped.len(), 2);
        for trap in traps {
            for size in [1, 2, 4, 8] {
                let trapped = &trap.device;
                let bytes: Vec<u8> = (0x10..).take(size).collect();
                let _ = trapped.write(trap.size - 8, &bytes);
                let mut read = vec![0; size];
                trapped.read(trap.size - 8, &mut read);
                assert_eq!(read, bytes);
            }
        }
    }
}

#[test]
fn a_node_that_cannot_be_made_is_an_error_with_the_option_that_mends_it() {
    let mut builder = builder("x");
    builder.clocks.push(Clock::new(Some("core"), None));
    let options = PlatformDeviceOptions::default();
    let error =
        PlatformDevice::new("1.dev", Arc::new(fake()), builder.clone(), options, PAGE).unwrap_err();
    let chain = chain(&error);
    let expected = "1.dev can't be assigned: the host's device tree and debugfs don't tell the \
                    rate of its clock core";
    assert_eq!(chain, expected);
    assert!(error.help().unwrap().contains("1.dev,clock-rate=core:HZ"), "{error:?}");
    let node = NodeOptions { clock_rates: vec![("core".into(), 7)], ..Default::default() };
    let options = PlatformDeviceOptions { node, ..Default::default() };
    let device = PlatformDevice::new("1.dev", Arc::new(fake()), builder, options, PAGE).unwrap();
    let nodes =
        device.node(&[0xc00_0000, 0xc01_0000], &[Spi(40), Spi(41)], ScmiIds::default()).unwrap();
    assert_eq!(nodes.clocks.len(), 1);
}

#[test]
fn another_compatible_for_the_guest_leaves_the_binding() {
    let node = NodeOptions { compatible: vec!["vendor,mine".into()], ..Default::default() };
    let options = PlatformDeviceOptions { node, ..Default::default() };
    let calls = Arc::new(fake());
    let device =
        PlatformDevice::new("1.dev", calls.clone(), builder("arm,pl330"), options, PAGE).unwrap();
    assert_eq!(device.binding().map(|binding| binding.name), Some("PL330"));
    let nodes =
        device.node(&[0xc00_0000, 0xc01_0000], &[Spi(40), Spi(41)], ScmiIds::default()).unwrap();
    assert_eq!(nodes.device.get("compatible"), Some(&Value::Strings(vec!["vendor,mine".into()])));
}

#[test]
fn the_node_has_what_vfio_has() {
    let device = open(&Arc::new(fake()), "vendor,device");
    let nodes =
        device.node(&[0xc00_0000, 0xc01_0000], &[Spi(40), Spi(41)], ScmiIds::default()).unwrap();
    assert_eq!(nodes.device.name(), "device@c000000");
    let interrupts: Vec<_> = [0, 40, 4, 0, 41, 1].map(boot::fdt::Cell::U32).into();
    assert_eq!(nodes.device.get("interrupts"), Some(&Value::Cells(interrupts)));
}

#[test]
fn addresses_and_interrupts_that_do_not_fit_are_refused() {
    let mut device = open(&Arc::new(fake()), "vendor,device");
    let slots = Slots { refuse: Some(0xd00_0000), ..Default::default() };
    let count = map(&mut device, &slots, &[0xc00_0000]).err().unwrap();
    assert_eq!(count.to_string(), "1.dev has 2 regions, and was given 1");
    let misplaced = map(&mut device, &slots, &[0xc00_1000, 0]).err().unwrap();
    assert!(matches!(misplaced, PlatformError::Misaligned { index: 0, gpa: 0xc00_1000, .. }));
    let refused = map(&mut device, &slots, &[0xd00_0000, 0]).err().unwrap();
    assert!(matches!(refused, PlatformError::MapRegion { index: 0, .. }), "{refused}");
    let gic = Gic::default();
    assert!(device.connect_irqs(&gic, &[Spi(1)]).is_err());
    assert!(gic.0.lock().unwrap().is_empty());
    assert!(device.node(&[0, 0], &[], ScmiIds::default()).is_err());
}

#[test]
fn if_one_interrupt_cannot_be_armed_none_is() {
    let calls = Arc::new(fake());
    let mut device = open(&calls, "vendor,device");
    // Four calls for the level interrupt, then the edge interrupt's only one.
    calls.fail_at(4);
    let error = device.arm().unwrap_err();
    assert!(chain(&error).contains("interrupt 1 can't be armed"), "{}", chain(&error));
    assert!(error.help().unwrap().contains("/proc/interrupts"));
    let calls = calls.take_calls();
    assert_eq!(calls[5..], [Call::ClearTrigger(0), Call::ClearUnmask(0)]);
}

#[test]
fn a_device_that_vfio_can_reset_is_reset() {
    let mut calls = fake();
    calls.can_reset = true;
    let calls = Arc::new(calls);
    let mut device = open(&calls, "vendor,device");
    assert_eq!(device.quiesce().unwrap(), Quiesced::ByReset);
    assert_eq!(calls.take_calls(), [Call::Reset]);
    calls.fail_at(0);
    let error = device.quiesce().unwrap_err();
    assert!(matches!(error, PlatformError::Reset(..)), "{error}");
    assert!(error.help().unwrap().contains("1.dev,quiesce=off"));

    // After the guest, but only if there was one.
    calls.take_calls();
    device.release().unwrap();
    assert_eq!(calls.take_calls(), []);
    map(&mut device, &Slots::default(), &[0, PAGE]).unwrap();
    drop(device);
    assert_eq!(calls.take_calls(), [Call::Reset]);
}

#[test]
fn quiesce_off_leaves_the_device_alone() {
    let mut calls = fake();
    calls.can_reset = true;
    let calls = Arc::new(calls);
    let options = PlatformDeviceOptions { quiesce: false, ..Default::default() };
    let device =
        PlatformDevice::new("1.dev", calls.clone(), builder("arm,pl330"), options, PAGE).unwrap();
    assert_eq!(device.quiesce().unwrap(), Quiesced::Disabled);
    assert_eq!(calls.take_calls(), []);
}

/// Makes the first region a PL330's: its identification, and one channel in this state.
fn become_dmac(calls: &FakeDevice, state: u32) {
    let write =
        |offset, value: u32| calls.file().write_all_at(&value.to_le_bytes(), offset).unwrap();
    for (offset, byte) in [(0xfe0, 0x30), (0xfe4, 0x13), (0xfe8, 0x04), (0xfec, 0)] {
        write(offset, byte);
    }
    write(0x100, state);
}

#[test]
fn a_device_with_a_binding_is_quiesced_by_it() {
    let calls = Arc::new(fake());
    let device = open(&calls, "arm,pl330");
    become_dmac(&calls, 0);
    assert_eq!(device.quiesce().unwrap(), Quiesced::ByBinding("PL330"));
    become_dmac(&calls, 7);
    let error = device.quiesce().unwrap_err();
    let chain = chain(&error);
    assert_eq!(chain, "1.dev doesn't stop what it is doing: channel 0 is still in state 0x7");
    assert!(error.help().unwrap().contains("quiesce=off"));
}

#[test]
fn what_nothing_can_stop_is_refused_where_its_group_is_not_translated() {
    let fake_host = FakeHost::with_vfio();
    for (kind, compatible, reset, quiesce, refused) in [
        ("identity", "vendor,device", false, true, true),
        ("identity", "vendor,device", false, false, false),
        ("identity", "vendor,device", true, true, false),
        ("identity", "arm,pl330", false, true, false),
        ("DMA", "vendor,device", false, true, false),
        ("DMA-FQ", "vendor,device", false, true, false),
    ] {
        fake_host.write("sys/kernel/iommu_groups/3/type", format!("{kind}\n"));
        let mut calls = fake();
        calls.can_reset = reset;
        let options = PlatformDeviceOptions { quiesce, ..Default::default() };
        let device =
            PlatformDevice::new("1.dev", Arc::new(calls), builder(compatible), options, PAGE);
        let checked = device.unwrap().check_confinement(&fake_host.host().group(3));
        assert_eq!(checked.is_err(), refused, "{kind} {compatible} {reset} {quiesce}");
        if let Err(error) = checked {
            let help = error.help().unwrap();
            let ways = ["iommu.passthrough=0", "/iommu_groups/3/type", "1.dev,quiesce=off"];
            assert!(ways.iter().all(|way| help.contains(way)), "{help}");
        }
    }
}

#[test]
fn a_device_is_stopped_without_what_a_guest_has_of_it() {
    let stop = |calls: &Arc<FakeDevice>, compatible: &str| {
        let (calls, compatible) = (calls.clone(), [compatible.to_owned()]);
        reset::stop_opened("1.dev", calls, &compatible, &NodeOptions::default())
    };
    let calls = Arc::new(fake());
    become_dmac(&calls, 0);
    assert_eq!(stop(&calls, "arm,pl330").unwrap(), Quiesced::ByBinding("PL330"));
    assert_eq!(stop(&calls, "vendor,device").unwrap(), Quiesced::Unsupported);
    become_dmac(&calls, 7);
    assert!(stop(&calls, "arm,pl330").unwrap_err().still_runs());
    let mut calls = fake();
    calls.can_reset = true;
    let calls = Arc::new(calls);
    assert_eq!(stop(&calls, "vendor,device").unwrap(), Quiesced::ByReset);
    assert_eq!(calls.take_calls(), [Call::Reset]);
}

#[test]
fn what_is_no_platform_device_is_refused() {
    #[derive(Debug)]
    struct Other;
    impl DeviceCalls for Other {
        fn info(&self) -> Result<DeviceInfo, IoctlError> {
            Ok(DeviceInfo { regions: 9, irqs: 5, ..Default::default() })
        }
        fn region_info(&self, _: u32) -> Result<RegionInfo, IoctlError> {
            unreachable!()
        }
        fn irq_info(&self, _: u32) -> Result<IrqInfo, IoctlError> {
            unreachable!()
        }
        fn set_irq(&self, _: u32, _: IrqAction<'_>) -> Result<(), IoctlError> {
            unreachable!()
        }
        fn reset(&self) -> Result<(), IoctlError> {
            unreachable!()
        }
        fn set_vectors(&self, _: u32, _: u32, _: &[Option<&EventFd>]) -> Result<(), IoctlError> {
            unreachable!()
        }
        fn read(&self, _: &RegionInfo, _: u64, _: &mut [u8]) -> io::Result<()> {
            unreachable!()
        }
        fn write(&self, _: &RegionInfo, _: u64, _: &[u8]) -> io::Result<()> {
            unreachable!()
        }
        fn map(&self, _: &RegionInfo, _: std::ops::Range<u64>) -> io::Result<Mapping> {
            unreachable!()
        }
    }
    use super::super::uapi::{DeviceInfo, IoctlError, IrqAction, Mapping};
    let (builder, options) = (builder("x"), PlatformDeviceOptions::default());
    let error = PlatformDevice::new("1.dev", Arc::new(Other), builder, options, PAGE).unwrap_err();
    assert!(matches!(error, PlatformError::NotPlatform(..)), "{error}");
}
