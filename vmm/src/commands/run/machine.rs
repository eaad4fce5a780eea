//! A machine that is ready to run: its vCPUs and its devices.

use std::sync::Arc;

use arch::gic::Gic;
use arch::{GuestRam, Vcpu, Vm, layout};
use devices::bus::Bus;
use devices::gicv2m;
use devices::irq::{IrqLine, MsiRouter};
use devices::pci::HostBridge;
use devices::scmi::Scmi;
use vm_memory::GuestMemoryMmap;

use super::build::VmParts;
use super::irqfds::{Irqfds, SpiLine};
use super::pci_host;
use super::restart::Restart;
use super::vcpus::VcpuContext;
use crate::assigned::AssignedDevices;
use crate::error::Error;
use crate::flash::Flash;
use crate::gdb::Gate;
use crate::stats::Recorder;
use crate::trace::Tracer;
use crate::virtio::{VirtioBackends, VirtioDevices};
use crate::waker::Waker;

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
    tracer: Option<Arc<Tracer>>,
    irqfds: Arc<Irqfds>,
    gic: Gic,
    vm: Arc<Vm>,
}

impl Machine {
    /// Hands the assigned devices over: stops what they were doing, maps `ram` for their DMA and
    /// their regions into the guest, puts what traps on `bus`, recorded by the `tracer` if there is one, and
    /// connects their interrupts.
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
        tracer: Option<Arc<Tracer>>,
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
            // SAFETY: vCPUs run by their threads only, which end before the machine drops its
            // devices.
            let traps = unsafe { device.map_regions(&*irqfds, &assigned.gpas)? };
            for trap in traps {
                let region = match &tracer {
                    Some(tracer) => tracer.trace(device.name(), trap.index, trap.device),
                    None => trap.device,
                };
                bus.add(device.name(), trap.gpa..trap.gpa + trap.size, region)?;
            }
            gic.set_level_sensitive(level_spis)?;
            device.connect_irqs(&*irqfds, &assigned.spis)?;
        }
        let mut bridge = None;
        if let Some(apertures) = pci {
            // SAFETY: as for platform devices.
            unsafe { assigned.functions.attach(takes_messages, &irqfds)? };
            let functions = &assigned.functions;
            let line: &dyn Fn(u32) -> Box<dyn IrqLine> =
                &|spi| Box::new(SpiLine { vm: vm.clone(), spi });
            virtio.attach(&VirtioBackends {
                memory: ram.memory(),
                router: takes_messages.then(|| irqfds.clone() as Arc<dyn MsiRouter>),
                ioevents: irqfds.clone(),
                line,
            })?;
            let tracer = tracer.as_deref();
            let gic = &gic;
            let attached =
                pci_host::attach(apertures, functions, &virtio, gic, &mut bus, tracer, line)?;
            bridge = Some(attached);
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
        Ok(Self {
            vcpus,
            bus,
            scmi,
            memory,
            flash,
            bridge,
            virtio,
            assigned,
            tracer,
            irqfds,
            gic,
            vm,
        })
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Its vCPUs; none once they are [taken](Self::take_vcpus).
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

    /// Enables the assigned devices' interrupts: the last step before it runs.
    ///
    /// # Errors
    ///
    /// VFIO refused.
    pub fn arm(&mut self) -> Result<(), Error> {
        self.assigned.arm()
    }

    /// Starts what works beside the vCPUs, and answers what these run with, who end the run by `waker`; whether
    /// its guest may begin anew, `restarts`; and where a debugger holds them up.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn prepare(
        &self,
        waker: Arc<Waker>,
        recorder: Option<Arc<Recorder>>,
        restarts: bool,
        gate: Option<Arc<Gate>>,
    ) -> Result<Arc<VcpuContext>, Error> {
        self.virtio.prepare()?;
        self.flash.as_ref().map_or(Ok(()), Flash::start)?;
        let (bus, memory, bridge) = (self.bus.clone(), self.memory.clone(), self.bridge.clone());
        let scmi = self.scmi.clone();
        let context = VcpuContext::new(bus, memory, bridge, scmi, waker, recorder, restarts);
        Ok(Arc::new(context.with_gate(gate).with_tracer(self.tracer.clone())))
    }

    /// Its RAM, and its flash.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Its vCPUs, for their threads; once.
    pub fn take_vcpus(&mut self) -> Vec<Vcpu> {
        std::mem::take(&mut self.vcpus)
    }

    /// Makes everything but the vCPUs, which stand still, as it was before the guest ran: devices are stopped
    /// and reset before RAM is loaded. The assigned devices' interrupts are to be [armed](Self::arm) again.
    ///
    /// # Errors
    ///
    /// A device doesn't stop, a file can't be read, or the host refused a step.
    #[cold]
    pub fn reset(&mut self, restart: &mut Restart) -> Result<(), Error> {
        self.tracer.iter().for_each(|tracer| tracer.note_reset());
        self.virtio.restart()?;
        self.assigned.restart(&*self.irqfds)?;
        self.bus.reset();
        self.bridge.iter().for_each(|bridge| bridge.reset());
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
