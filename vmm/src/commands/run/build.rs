//! A plan → a machine, in stages of one function each.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arch::gic::{self, Gic, Version};
use arch::{
    BootRegisters, CpuFeatures, GuestRam, HugePagesDisabled, RamPages, Vcpu, Vm, layout, smccc,
};
use boot::fdt::{self, Node, overlay};
use boot::initrd::Initrd;
use boot::kernel::Kernel;
use boot::layout::{BootLayout, LayoutError, MAX_DTB_SIZE};
use devices::bus::Bus;
use devices::console::Output;
use devices::gicv2m::Frame;
use devices::pci::{Apertures, MsiController};
use devices::pvpanic::PvPanic;
use devices::serial::{Pl011, Serial, SerialPort};
use devices::virtio::ConsolePort;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::alarm::AlarmClock;
use crate::assigned::AssignedDevices;
use crate::cli::{GicVersion, ItsChoice, RunOptions, SerialKind};
use crate::console::{ConsoleBackend, InputSource};
use crate::error::Error;
use crate::flash::FlashPlan;
use crate::limits::hugepages;
use crate::outfile;
use crate::plan::describe::KvmFacts;
use crate::plan::{MachinePlan, Opened};
use crate::populate;
use crate::power_button::PowerButton;
use crate::scmi;
use crate::tree::{self, Seed};
use crate::waker::Waker;

use super::irqfds::SpiLine;
use super::pci_host;

/// KVM's part of a machine: what has to be made in this order.
pub struct VmParts {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Its interrupt controller.
    pub gic: Gic,
    /// What takes its PCI functions' messages, if that is a GICv2m frame.
    pub frame: Option<Frame>,
    /// What the vCPUs have of the host's.
    pub features: CpuFeatures,
    /// The apertures of its PCI host, if it has one.
    pub pci: Option<Apertures>,
}

impl VmParts {
    /// What takes its PCI functions' messages, if anything does.
    pub fn messages(&self) -> Option<MsiController<'static>> {
        pci_host::messages(&self.gic, self.frame.as_ref())
    }

    /// Why PCI functions have no message-signalled interrupts, if it has a host for them and they
    /// haven't.
    fn without_messages(&self) -> Option<String> {
        let hasnt = self.pci.is_some() && self.messages().is_none();
        hasnt.then(|| pci_host::without_messages(&self.gic))
    }
}

/// The emulated devices.
pub struct EmulatedDevices {
    /// Where the guest reaches them.
    pub bus: Bus,
    /// Becomes true when the guest writes to its console.
    pub spoke: Arc<AtomicBool>,
    /// What the serial console's input comes from.
    pub input: InputSource,
    /// The RTC, which may ask for alarms.
    pub clock: AlarmClock,
    /// The power button, if it has one.
    pub power_button: Option<PowerButton>,
}

/// Makes VM, vCPUs and GIC.
///
/// # Errors
///
/// KVM can't be opened or refused a step.
pub fn vm(plan: &MachinePlan) -> Result<VmParts, Error> {
    // A PCI host's window for 64-bit BARs is as large as the address space allows.
    let end = (!plan.pci).then_some(plan.end);
    let vm = Arc::new(Vm::new(plan.ram, end)?);
    let version = gic_version(&vm, plan)?;
    let features = vm.features().and(plan.features);
    let vcpus = vm.create_vcpus(plan.cpus, features)?;
    let frame = frame(plan, version);
    let spis = frame.as_ref().map_or(plan.spis, |frame| frame.spis().end);
    let mut gic = Gic::new(&vm, version, plan.cpus, spis)?;
    add_its(plan, &vm, &mut gic)?;
    let pci = plan.pci.then(|| pci_host::apertures(plan.end, plan.root_ports, &vm));
    if features.pmu {
        for vcpu in &vcpus {
            vcpu.init_pmu()?;
        }
    }
    let parts = VmParts { vm, vcpus, gic, frame, features, pci };
    if let Some(why) = parts.without_messages() {
        log::warn!("{why}");
    }
    Ok(parts)
}

/// The frame that takes messages of PCI functions to a GICv2.
fn frame(plan: &MachinePlan, version: Version) -> Option<Frame> {
    let spis = plan.message_spis.clone();
    (plan.pci && version == Version::V2).then(|| Frame::new(layout::GICV2M.start, spis)).flatten()
}

/// Gives the interrupt controller an ITS: where it is asked for, or there are functions whose
/// messages it takes and it can be had.
fn add_its(plan: &MachinePlan, vm: &Vm, gic: &mut Gic) -> Result<(), Error> {
    match plan.gic.its {
        ItsChoice::Off => return Ok(()),
        ItsChoice::Auto if !plan.pci => return Ok(()),
        ItsChoice::Auto | ItsChoice::On => gic.add_its(vm)?,
    }
    if plan.gic.its == ItsChoice::On && !gic.has_its() {
        let why = match gic.version() {
            Version::V2 => "the guest's interrupt controller is a GICv2, which has none",
            Version::V3 => "this host's KVM has none",
        };
        let help = match gic.version() {
            Version::V2 if Version::V3.is_offered(vm)? => "--gic 3,its=on",
            _ => "its=off, or its=auto",
        };
        return Err(Error::new(format!("--gic its=on: {why}")).help(help));
    }
    Ok(())
}

fn gic_version(vm: &Vm, plan: &MachinePlan) -> Result<Version, Error> {
    let version = match plan.gic.version {
        GicVersion::Auto => Version::newest(vm)?,
        GicVersion::V2 => Version::V2,
        GicVersion::V3 => Version::V3,
    };
    if plan.gic.version != GicVersion::Auto && !version.is_offered(vm)? {
        return Err(arch::Error::NoGic(version.name()).into());
    }
    let limit = version.max_cpus();
    if plan.cpus > limit {
        return Err(Error::usage(format!(
            "--cpus {}: the guest's interrupt controller is a {version}, for at most {limit}",
            plan.cpus
        ))
        .help(format!("--cpus {limit}")));
    }
    Ok(version)
}

/// Makes the emulated devices of this plan, with its serial port on `console`, which wake the event loop
/// by `waker` when they need it.
///
/// # Errors
///
/// The host is out of descriptors.
pub fn emulated_devices(
    plan: &MachinePlan,
    console: Option<ConsoleBackend>,
    parts: &VmParts,
    waker: &Arc<Waker>,
) -> Result<EmulatedDevices, Error> {
    let vm = &parts.vm;
    let mut bus = Bus::default();
    let mut input = InputSource::None;
    let spoke = Arc::new(AtomicBool::new(false));
    if let Some(console) = console {
        let (output, drained) = (console.output(&spoke), eventfd()?);
        let port = serial_port(plan.serial, parts, output, drained.try_clone()?)?;
        bus.add("serial", layout::SERIAL, port.clone())?;
        input = console.into_input(port, drained);
    }
    parts.gic.set_level_sensitive([layout::spi::RTC])?;
    let line = SpiLine { vm: vm.clone(), spi: layout::spi::RTC };
    let clock = AlarmClock::new(Box::new(line), waker);
    bus.add("rtc", layout::RTC, clock.rtc())?;
    bus.add("pvpanic", layout::PVPANIC, Arc::new(Mutex::new(PvPanic::default())))?;
    let power_button = plan.grace.map(|grace| power_button(grace, parts, &mut bus)).transpose()?;
    Ok(EmulatedDevices { bus, spoke, input, clock, power_button })
}

/// Makes the power button, after which the guest has so long to end.
#[cold]
fn power_button(grace: Duration, parts: &VmParts, bus: &mut Bus) -> Result<PowerButton, Error> {
    parts.gic.set_level_sensitive([layout::spi::GPIO])?;
    let line = SpiLine { vm: parts.vm.clone(), spi: layout::spi::GPIO };
    let button = PowerButton::new(Box::new(line), grace)?;
    bus.add("gpio", layout::GPIO, button.gpio())?;
    Ok(button)
}

/// Makes the serial port.
fn serial_port(
    kind: SerialKind,
    parts: &VmParts,
    output: Box<dyn Output>,
    drained: EventFd,
) -> Result<Arc<dyn SerialPort>, Error> {
    let (vm, spi) = (&parts.vm, layout::spi::SERIAL);
    Ok(match kind {
        SerialKind::Ns16550a => {
            let interrupt = eventfd()?;
            vm.register_irqfd(spi, &interrupt).map_err(|e| {
                Error::new(format!("KVM can't connect the serial port's interrupt: {e}"))
            })?;
            Arc::new(Mutex::new(Serial::new(interrupt, output, drained)))
        }
        SerialKind::Pl011 => {
            parts.gic.set_level_sensitive([spi])?;
            let line = Box::new(SpiLine { vm: vm.clone(), spi });
            Arc::new(Mutex::new(Pl011::new(line, output, drained)))
        }
    })
}

/// Connects the guest's virtio console, if there is one, to its end on the host; `spoke` becomes true
/// when the guest writes to it. Answers what its input comes from.
///
/// # Errors
///
/// The host is out of descriptors.
pub fn connect_console(
    console: Option<ConsoleBackend>,
    port: Option<Arc<ConsolePort>>,
    spoke: &Arc<AtomicBool>,
) -> Result<InputSource, Error> {
    let Some((console, port)) = console.zip(port) else { return Ok(InputSource::None) };
    let drained = eventfd()?;
    port.connect(console.output(spoke), drained.try_clone()?);
    Ok(console.into_input(port, drained))
}

/// Gives the assigned devices what they can have by SCMI.
///
/// # Errors
///
/// As from [`scmi::offer`].
pub fn firmware(options: &RunOptions, opened: &mut Opened, vm: &Vm) -> Result<(), Error> {
    if options.vfio_platform.is_empty() {
        return Ok(());
    }
    let Opened { assigned, kernel, .. } = opened;
    let forward = || Ok(vm.forward_call(smccc::SCMI)?);
    scmi::offer(assigned, &options.vfio_platform, kernel.as_ref(), forward)
}

/// Describes the machine, and has the overlays applied.
///
/// # Errors
///
/// An overlay doesn't fit the tree.
pub fn tree(
    plan: &MachinePlan,
    opened: &Opened,
    parts: &VmParts,
    seed: &Seed,
) -> Result<Node, Error> {
    let Opened { assigned, virtio, .. } = opened;
    let mask = parts.gic.ppi_cpu_mask();
    let mut cpus = vec![
        arch::memory_node(plan.ram),
        arch::cpus_node(parts.vcpus.iter().map(Vcpu::affinity)),
        arch::psci_node(),
        arch::timer_node(mask),
    ];
    cpus.extend(parts.features.pmu.then(|| arch::pmu_node(mask)));
    let slots = pci_host::slots(&assigned.functions, virtio);
    let mut root = tree::root(tree::Parts {
        cpus,
        gic: parts.gic.node().with_children(parts.frame.as_ref().map(Frame::node)),
        gic_label: gic::LABEL,
        cmdline: plan.cmdline.as_str(),
        boot: &plan.boot,
        serial: plan.console.is_on().then_some(plan.serial),
        flash: opened.flash.as_ref().map(|_| FlashPlan::node()),
        power_button: plan.grace.is_some(),
        assigned: assigned.nodes(),
        clocks: assigned.clocks(),
        firmware: assigned.firmware_nodes().collect(),
        aliases: &assigned.aliases,
        pci: parts.pci.as_ref().map(|pci| pci_host::node(pci, &slots, parts.messages())),
        seed,
    });
    for without_effect in overlay::apply(&mut root, &plan.overlays)? {
        log::warn!("{without_effect}");
    }
    Ok(root)
}

/// What KVM made of the plan.
#[cold]
pub fn facts(parts: &VmParts) -> KvmFacts {
    let lengths = parts.vcpus.first().map(Vcpu::vector_lengths).transpose();
    let lengths = lengths.inspect_err(|error| log::warn!("{error}")).ok().flatten();
    let frame = parts.frame.as_ref().map(|frame| ("GICv2m frame", frame.range()));
    KvmFacts {
        gic: parts.gic.version().to_string(),
        gic_frames: parts.gic.frames().into_iter().chain(frame).collect(),
        its: parts.gic.has_its(),
        cpu_features: parts.features.names().collect(),
        sve_lengths: lengths.unwrap_or_default(),
        apertures: parts.pci.clone(),
        message_spis: parts.frame.as_ref().map(Frame::spis),
        without_messages: parts.without_messages(),
    }
}

/// The device tree as the guest gets it.
///
/// # Errors
///
/// It can't be written, or is larger than the place that was planned for it.
pub fn dtb(tree: &Node) -> Result<Vec<u8>, Error> {
    let dtb = fdt::to_blob(tree)?;
    let size = dtb.len() as u64;
    if size > MAX_DTB_SIZE {
        return Err(LayoutError::DtbTooLarge { size }.into());
    }
    Ok(dtb)
}

/// Writes the device tree, readable by its owner only: it holds the
/// guest's random seeds.
///
/// # Errors
///
/// The file can't be written.
pub fn dump_dtb(path: &Path, dtb: &[u8]) -> Result<(), Error> {
    outfile::write(path, 0o600, dtb).map_err(|e| {
        Error::new(format!("the device tree can't be written to {}: {e}", path.display()))
            .help("--dump-dtb FILE in a directory you can write to")
    })
}

/// Reserves RAM and puts kernel, initrd and device tree into it: without assigned devices in small
/// pages, where they suffice. With one all of RAM is pinned, and best in as few pieces as can be: it is
/// populated first, which several CPUs do faster than pinning does.
///
/// # Errors
///
/// The host has no room for it, or a file can't be read.
pub fn ram(
    plan: &MachinePlan,
    kernel: Option<&Kernel>,
    initrd: Option<&Initrd>,
    dtb: &[u8],
    assigned: &AssignedDevices,
) -> Result<GuestRam, Error> {
    let ram = if plan.shared_ram {
        GuestRam::shared(plan.ram, plan.pages)
    } else {
        GuestRam::new(plan.ram, plan.pages)
    }?;
    if assigned.iommu.is_some() || may_lack_pages(plan.pages) {
        populate::populate(&ram, plan.pages)?;
    }
    let boot = &plan.boot;
    let end = boot.initrd.as_ref().map_or(boot.dtb, |initrd| initrd.end).max(boot.kernel.end);
    let used = end.saturating_sub(plan.ram.base);
    let small = assigned.is_empty() && plan.pages == RamPages::Any;
    let _small = small.then(|| HugePagesDisabled::for_small(used)).flatten();
    load(boot, kernel, initrd, dtb, ram.memory())?;
    Ok(ram)
}

/// Puts kernel, initrd and device tree into RAM.
///
/// # Errors
///
/// A file can't be read.
pub fn load(
    boot: &BootLayout,
    kernel: Option<&Kernel>,
    initrd: Option<&Initrd>,
    dtb: &[u8],
    memory: &GuestMemoryMmap,
) -> Result<(), Error> {
    if let Some(kernel) = kernel {
        kernel.load_into(memory, boot.kernel.load)?;
    }
    if let (Some(initrd), Some(range)) = (initrd, &boot.initrd) {
        initrd.load_into(memory, range.start)?;
    }
    memory
        .write_slice(dtb, GuestAddress(boot.dtb))
        .map_err(|e| Error::new(format!("the device tree can't be put into guest RAM: {e}")))
}

/// Whether the host may lack a page of RAM when it is first used, which would end this process: huge
/// pages are promised, but a control group may have no more of them.
fn may_lack_pages(pages: RamPages) -> bool {
    matches!(pages, RamPages::Reserved(page) if hugepages::is_limited(page))
}

/// Points the boot vCPU at kernel and device tree.
///
/// # Errors
///
/// KVM refused.
pub fn set_boot(plan: &MachinePlan, parts: &VmParts) -> Result<(), Error> {
    let boot = BootRegisters { entry: plan.boot.kernel.entry, dtb: plan.boot.dtb };
    Ok(parts.vcpus.first().map_or(Ok(()), |vcpu| vcpu.set_boot_registers(boot))?)
}

/// Randomness of the host's for the guest.
///
/// # Errors
///
/// The host has none to give.
pub fn seed() -> Result<Seed, Error> {
    let mut bytes = [0u8; 40];
    // SAFETY: getrandom fills at most as many bytes as the buffer has.
    let filled = unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
    if usize::try_from(filled) != Ok(bytes.len()) {
        let e = io::Error::last_os_error();
        return Err(Error::new(format!("the host gives no randomness for the guest: {e}")));
    }
    let (kaslr, rng) = bytes.split_at(8);
    Ok(Seed {
        kaslr: u64::from_ne_bytes(kaslr.try_into().unwrap_or_default()),
        rng: rng.try_into().unwrap_or_default(),
    })
}

fn eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}
