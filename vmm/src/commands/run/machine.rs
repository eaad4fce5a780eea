//! A machine that is ready to run: its vCPUs and its devices.

use std::sync::Arc;

use arch::gic::Gic;
use arch::{GuestRam, Vcpu, Vm};
use devices::bus::Bus;
use devices::gicv2m;
use devices::irq::MsiRouter;
use devices::pci::HostBridge;
use vm_memory::GuestMemoryMmap;

use super::build::VmParts;
use super::irqfds::{Irqfds, SpiLine};
use super::pci_host;
use super::vcpus::{VcpuContext, VcpuThreads};
use crate::assigned::AssignedDevices;
use crate::error::Error;
use crate::events::{self, Sources};
use crate::exit_reason::ExitReason;
use crate::flash::Flash;
use crate::notify::Notifier;
use crate::stats::Recorder;
use crate::virtio::{VirtioBackends, VirtioDevices};

/// It owns its vCPUs and its devices, so that no vCPU runs after a device is dropped whose regions are
/// mapped into the guest.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    bus: Arc<Bus>,
    memory: GuestMemoryMmap,
    flash: Option<Flash>,
    bridge: Option<Arc<HostBridge>>,
    virtio: VirtioDevices,
    assigned: AssignedDevices,
    gic: Gic,
    vm: Arc<Vm>,
}

impl Machine {
    /// Hands the assigned devices over: stops what they were doing, maps `ram` for their DMA and
    /// their regions into the guest, puts what traps on `bus`, and connects their interrupts.
    ///
    /// # Errors
    ///
    /// A device does not stop, or the host refused a step.
    pub fn new(
        parts: VmParts,
        ram: GuestRam,
        flash: Option<Flash>,
        mut assigned: AssignedDevices,
        virtio: VirtioDevices,
        mut bus: Bus,
    ) -> Result<Self, Error> {
        let takes_messages = parts.messages().is_some();
        let VmParts { vm, vcpus, gic, frame, pci, .. } = parts;
        let irqfds = Arc::new(Irqfds::new(vm.clone(), &gic, frame.clone()));
        assigned.quiesce()?;
        assigned.vfio_user.map_ram(&ram)?;
        if let Some(iommu) = &mut assigned.iommu {
            // SAFETY: guest RAM is never unmapped, and nothing but the guest and its devices is
            // affected by what is written into it.
            unsafe { iommu.map(ram.base(), ram.host_address(), ram.size() as u64)? };
            for file in iommu.files() {
                vm.add_vfio_file(file)?;
            }
        }
        for assigned in &mut assigned.platform {
            let level_spis: Vec<_> = assigned.level_spis().collect();
            let device = &mut assigned.device;
            // SAFETY: vCPUs run in `run` only, which ends after them; the machine drops its devices
            // after that.
            let traps = unsafe { device.map_regions(&*irqfds, &assigned.gpas)? };
            for trap in traps {
                bus.add(device.name(), trap.gpa..trap.gpa + trap.size, trap.device)?;
            }
            gic.set_level_sensitive(level_spis)?;
            device.connect_irqs(&*irqfds, &assigned.spis)?;
        }
        let mut bridge = None;
        if let Some(apertures) = pci {
            // SAFETY: as for platform devices.
            unsafe { assigned.functions.attach(takes_messages, &irqfds)? };
            let functions = &assigned.functions;
            virtio.attach(&VirtioBackends {
                memory: ram.memory(),
                router: takes_messages.then(|| irqfds.clone() as Arc<dyn MsiRouter>),
                ioevents: irqfds.clone(),
                line: &|spi| Box::new(SpiLine { vm: vm.clone(), spi }),
            })?;
            bridge = Some(pci_host::attach(apertures, functions, &virtio, &gic, &mut bus)?);
        }
        let slots = irqfds.clone();
        if let Some(frame) = frame {
            bus.add(
                "GICv2m frame",
                frame.range(),
                Arc::new(gicv2m::Registers::new(frame, irqfds)),
            )?;
        }
        let mut memory = ram.memory().clone();
        vm.add_ram(ram)?;
        if let Some(flash) = &flash {
            flash.attach(&slots, &mut bus)?;
            // Its code is in both.
            memory = flash.with(&memory)?;
        }
        Ok(Self { vcpus, bus: Arc::new(bus), memory, flash, bridge, virtio, assigned, gic, vm })
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Its vCPUs; none once it has [run](Self::run).
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Its interrupt controller.
    pub fn gic(&self) -> &Gic {
        &self.gic
    }

    /// What traps.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// The assigned devices.
    pub fn assigned(&self) -> &AssignedDevices {
        &self.assigned
    }

    /// Enables the assigned devices' interrupts: the last step before it [runs](Self::run).
    ///
    /// # Errors
    ///
    /// VFIO refused.
    pub fn arm(&mut self) -> Result<(), Error> {
        self.assigned.arm()
    }

    /// Runs the vCPUs, once, to the end of the run; they are gone when this returns.
    ///
    /// # Errors
    ///
    /// The host failed.
    pub fn run(
        &mut self,
        sources: Sources<'_>,
        recorder: Option<Arc<Recorder>>,
    ) -> Result<ExitReason, Error> {
        self.virtio.prepare()?;
        self.flash.as_ref().map_or(Ok(()), Flash::start)?;
        let context = Arc::new(VcpuContext::new(
            self.bus.clone(),
            self.memory.clone(),
            self.bridge.take(),
            sources.waker.clone(),
            recorder.clone(),
        ));
        let monitor = sources.monitor.clone();
        sources.notifier.iter().for_each(Notifier::ready);
        let threads = VcpuThreads::start(std::mem::take(&mut self.vcpus), &context)?;
        let result = events::run(sources, recorder.as_deref());
        // A vCPU that waits for a server's answer can't be stopped.
        self.assigned.shorten_deadline();
        drop(threads);
        // The threads have ended, so this is the last reference.
        let by_vcpu = Arc::into_inner(context).and_then(VcpuContext::into_exit_reason);
        let reason = match (result?, by_vcpu) {
            (Some(reason), _) | (None, Some(reason)) => reason,
            (None, None) => ExitReason::Failed(Error::new("the guest stopped for no known reason")),
        };
        let reason = match &monitor {
            Some(monitor) => monitor.conclude(reason),
            None => reason,
        };
        if let Some(Err(error)) = recorder.map(|recorder| recorder.write(Some(&reason))) {
            // Why the guest ended matters more.
            log::error!("{}", error.log_text());
        }
        match reason {
            ExitReason::Failed(error) => Err(error),
            reason => Ok(reason),
        }
    }

    /// Releases the assigned devices.
    pub fn release(self) {
        // It holds what traps of the devices.
        drop(self.bus);
        self.flash.iter().for_each(Flash::finish);
        self.virtio.release();
        self.assigned.release();
    }
}
