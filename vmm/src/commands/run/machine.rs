//! A machine that is ready to run: its vCPUs and its devices.

use std::sync::Arc;

use arch::gic::Gic;
use arch::{GuestRam, Vcpu, Vm, layout};
use devices::bus::Bus;
use devices::gicv2m;
use devices::irq::MsiRouter;
use devices::pci::HostBridge;
use devices::scmi::Scmi;
use vm_memory::GuestMemoryMmap;

use super::build::VmParts;
use super::irqfds::{Irqfds, SpiLine};
use super::pci_host;
use super::restart::Restart;
use super::steered::Steered;
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
    scmi: Option<Arc<Scmi>>,
    memory: GuestMemoryMmap,
    flash: Option<Flash>,
    bridge: Option<Arc<HostBridge>>,
    virtio: VirtioDevices,
    assigned: AssignedDevices,
    irqfds: Arc<Irqfds>,
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
            iommu.with_files(|file| vm.add_vfio_file(file))?;
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
        let scmi = assigned.scmi.clone();
        if let Some(scmi) = &scmi {
            bus.add("SCMI", layout::SCMI, scmi.clone())?;
        }
        if let Some(frame) = frame {
            bus.add(
                "GICv2m frame",
                frame.range(),
                Arc::new(gicv2m::Registers::new(frame, irqfds.clone())),
            )?;
        }
        let mut memory = ram.memory().clone();
        vm.add_ram(ram)?;
        if let Some(flash) = &flash {
            flash.attach(&irqfds, &mut bus)?;
            // Its code is in both.
            memory = flash.with(&memory)?;
        }
        let bus = Arc::new(bus);
        Ok(Self { vcpus, bus, scmi, memory, flash, bridge, virtio, assigned, irqfds, gic, vm })
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<Vm> {
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

    /// Whether the guest has more than the platform's own devices.
    pub fn has_devices(&self) -> bool {
        self.bridge.is_some() || self.flash.is_some() || !self.assigned.platform.is_empty()
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

    /// Runs the vCPUs, once, to the end of the run; they are gone when this returns. With a `restart` the guest
    /// begins anew when it asks for a reset.
    ///
    /// # Errors
    ///
    /// The host failed.
    pub fn run(
        &mut self,
        sources: Sources<'_>,
        recorder: Option<Arc<Recorder>>,
        restart: Option<Restart>,
    ) -> Result<ExitReason, Error> {
        self.virtio.prepare()?;
        self.flash.as_ref().map_or(Ok(()), Flash::start)?;
        let context = Arc::new(VcpuContext::new(
            self.bus.clone(),
            self.memory.clone(),
            self.bridge.clone(),
            self.scmi.clone(),
            sources.waker.clone(),
            recorder.clone(),
            restart.is_some(),
        ));
        let monitor = sources.monitor.clone();
        sources.notifier.iter().for_each(Notifier::ready);
        let threads = VcpuThreads::start(std::mem::take(&mut self.vcpus), &context)?;
        let mut steered = Steered::new(self, threads, context, restart, recorder.clone());
        let result = events::run(sources, recorder.as_deref(), &mut steered);
        steered.end();
        let reason = match &monitor {
            Some(monitor) => monitor.conclude(result?),
            None => result?,
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

    /// Makes everything but the vCPUs, which stand still, as it was before the guest ran: devices are stopped
    /// and reset before RAM is loaded. The assigned devices' interrupts are to be [armed](Self::arm) again.
    ///
    /// # Errors
    ///
    /// A device doesn't stop, a file can't be read, or the host refused a step.
    #[cold]
    pub fn reset(&mut self, restart: &mut Restart) -> Result<(), Error> {
        self.virtio.restart()?;
        self.assigned.restart(&*self.irqfds)?;
        self.bus.reset();
        self.bridge.iter().for_each(|bridge| bridge.update());
        // All lines are low.
        self.gic.reset(&restart.gic)?;
        restart.load(&self.memory)
    }

    /// Releases the assigned devices.
    pub fn release(self) {
        // They hold what traps of the devices.
        drop((self.bus, self.bridge, self.scmi));
        self.flash.iter().for_each(Flash::finish);
        self.virtio.release();
        self.assigned.release();
    }
}
