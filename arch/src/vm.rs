//! The virtual machine: KVM's VM with its memory slots and irqfds.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use boot::layout::Ram;
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_CAP_ARM_NISV_TO_USER, KVM_DEV_VFIO_FILE,
    KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, KVM_MEM_READONLY, KvmIrqRouting,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, DeviceFd, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::debug::DebuggedVcpu;
use crate::error::io_error;
use crate::{CpuFeatures, Error, GuestRam, Vcpu};

/// The bits of guest physical address that KVM gives a VM of type 0
/// (Documentation/virt/kvm/api.rst, 4.2 KVM_CREATE_VM).
const DEFAULT_IPA_BITS: u32 = 40;

/// The bits of a VM that needs no more: KVM looks at every entry of the first table of stage 2 when the
/// VM ends, of which there are 1024 for 40 bits and 64 for these (pages of 4 KiB).
const FEW_IPA_BITS: u32 = 36;

// KVM_CREATE_DEVICE, for its test mode, which kvm-ioctls does not offer.
ioctl_iowr_nr!(KVM_CREATE_DEVICE, 0xae, 0xe0, kvm_create_device);

/// KVM's memory slots in use.
#[derive(Debug, Default)]
struct MemorySlots {
    /// By their GPA: size in bytes and number.
    mapped: BTreeMap<u64, (u64, u32)>,
    /// Numbers that were used and are free again.
    free: Vec<u32>,
    /// The number from which on none was used.
    next: u32,
}

/// A KVM virtual machine.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    slots: Mutex<MemorySlots>,
    /// The RAM that slot 0 shows; kept for as long as the VM is.
    ram: OnceLock<GuestRam>,
    vfio: Mutex<Option<DeviceFd>>,
    max_vcpus: u64,
    max_ipa_bits: u32,
    ipa_bits: u32,
}

impl Vm {
    /// Creates a VM that can have this RAM, and nothing that is mapped at or above `end` (GPA) if that is
    /// given, else whatever KVM's default has room for.
    ///
    /// # Errors
    ///
    /// KVM can't be opened, refused, lacks something, or can't address that much RAM.
    pub fn new(ram: Ram, end: Option<u64>) -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|e| Error::OpenKvm(io_error(e)))?;
        let limit = u32::try_from(kvm.check_extension_int(Cap::ArmVmIPASize)).unwrap_or(0);
        // A KVM without the capability knows type 0 alone.
        let (end, max_ipa_bits) = if limit == 0 { (None, DEFAULT_IPA_BITS) } else { (end, limit) };
        let ipa_bits = ipa_bits(ram, end, max_ipa_bits)?;
        // A VM of type 0 has the default.
        let vm_type = if ipa_bits == DEFAULT_IPA_BITS { 0 } else { ipa_bits.into() };
        let fd = kvm.create_vm_with_type(vm_type).map_err(|e| Error::kvm("create a VM", e))?;
        // Else an access that KVM can't decode ends the VM; where it is missing, it does.
        let cap = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        if let Err(e) = fd.enable_cap(&cap) {
            log::info!("this host's KVM can't report undecodable accesses: {e}");
        }
        let max_vcpus = kvm.get_max_vcpus() as u64;
        let (slots, ram, vfio) = Default::default();
        Ok(Self { fd, slots, ram, vfio, max_vcpus, max_ipa_bits, ipa_bits })
    }

    /// Makes `ram` appear in the guest at its address, and owns it from here on.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn add_ram(&self, ram: GuestRam) -> Result<(), Error> {
        let size = ram.size() as u64;
        // SAFETY: the VM owns the RAM from here on, and RAM is never unmapped.
        unsafe { self.map_memory(ram.base(), ram.host_address(), size) }
            .map_err(|source| Error::Kvm { action: "map guest RAM".into(), source })?;
        // There is one RAM; a second would have overlapped it above.
        let _ = self.ram.set(ram);
        Ok(())
    }

    /// A vCPU of this VM as a debugger has it.
    ///
    /// # Errors
    ///
    /// The process has no more descriptors or memory.
    #[cold]
    pub fn debugged(&self, vcpu: &Vcpu) -> io::Result<DebuggedVcpu> {
        DebuggedVcpu::new(&self.fd, vcpu)
    }

    /// Creates vCPUs 0 to `count` - 1; the first is the boot CPU. Before the GIC.
    ///
    /// # Errors
    ///
    /// The host can't have as many, or KVM refused.
    pub fn create_vcpus(&self, count: u64, features: CpuFeatures) -> Result<Vec<Vcpu>, Error> {
        if count > self.max_vcpus {
            let limit = self.max_vcpus;
            return Err(Error::TooManyCpus { asked: count, limit, who: "this host's KVM" });
        }
        (0..count).map(|index| Vcpu::new(&self.fd, index, features)).collect()
    }

    /// The bits of guest physical address that this host's KVM can give a VM
    /// (`KVM_CAP_ARM_VM_IPA_SIZE`).
    pub fn max_ipa_bits(&self) -> u32 {
        self.max_ipa_bits
    }

    /// The bits of guest physical address that this VM has.
    pub fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// The features of its CPUs that the host offers guests.
    pub fn features(&self) -> CpuFeatures {
        let has = |cap| self.fd.check_extension(cap);
        CpuFeatures {
            sve: has(Cap::ArmSve),
            // KVM has both or neither (`kvm_arm_vcpu_init`).
            pauth: has(Cap::ArmPtrAuthAddress) && has(Cap::ArmPtrAuthGeneric),
            pmu: has(Cap::ArmPmuV3),
        }
    }

    /// Makes `size` bytes at the host address `host` appear at guest physical address `gpa`.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped in this process for as long as the guest can run, or until it is
    /// [unmapped](Self::unmap_memory).
    ///
    /// # Errors
    ///
    /// KVM refused: misaligned, overlapping, or out of slots.
    pub unsafe fn map_memory(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees what is asked for.
        unsafe { self.map(gpa, host, size, 0) }
    }

    /// As [`map_memory`](Self::map_memory), for reading and executing: the guest's writes exit as those to
    /// a device do (`KVM_MEM_READONLY`; api.rst, 4.35 KVM_SET_USER_MEMORY_REGION).
    ///
    /// # Safety
    ///
    /// As for [`map_memory`](Self::map_memory).
    ///
    /// # Errors
    ///
    /// As for [`map_memory`](Self::map_memory).
    #[cold]
    pub unsafe fn map_read_only(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees what is asked for.
        unsafe { self.map(gpa, host, size, KVM_MEM_READONLY) }
    }

    /// Makes memory appear by a slot with these flags.
    ///
    /// # Safety
    ///
    /// As for [`map_memory`](Self::map_memory).
    unsafe fn map(&self, gpa: u64, host: NonNull<u8>, size: u64, flags: u32) -> io::Result<()> {
        let mut slots = self.slots.lock().map_err(|_| io::ErrorKind::Other)?;
        let number = slots.free.last().copied().unwrap_or(slots.next);
        let region = kvm_userspace_memory_region {
            slot: number,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host.addr().get() as u64,
        };
        // SAFETY: the caller guarantees that the memory outlives the guest or its unmapping; the
        // number is that of no slot in use, so none is replaced.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(io_error)?;
        if slots.free.pop().is_none() {
            slots.next = slots.next.saturating_add(1);
        }
        slots.mapped.insert(gpa, (size, number));
        Ok(())
    }

    /// Undoes a [`map_memory`](Self::map_memory) of exactly these addresses: the guest's accesses
    /// exit from here on.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none, or what KVM refused.
    pub fn unmap_memory(&self, gpa: u64, size: u64) -> io::Result<()> {
        let mut slots = self.slots.lock().map_err(|_| io::ErrorKind::Other)?;
        let mapped = slots.mapped.get(&gpa).filter(|(mapped, _)| *mapped == size);
        let Some((_, number)) = mapped.copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // A size of 0 deletes the slot (Documentation/virt/kvm/api.rst, 4.35).
        let region = kvm_userspace_memory_region { slot: number, ..Default::default() };
        // SAFETY: nothing is mapped.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(io_error)?;
        slots.mapped.remove(&gpa);
        slots.free.push(number);
        Ok(())
    }

    /// Makes every signal of `trigger` an edge on what `gsi` is routed to: on that SPI, or a message
    /// of [`GsiRoutes`](crate::GsiRoutes) (api.rst, 4.75 KVM_IRQFD); after the GIC is initialised.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn register_irqfd(&self, gsi: u32, trigger: &EventFd) -> io::Result<()> {
        self.fd.register_irqfd(trigger, gsi).map_err(io_error)
    }

    /// Makes each write of the guest to `gpa`, of any size, a signal of `event`, without an exit to user
    /// space (api.rst, 4.59 KVM_IOEVENTFD).
    ///
    /// # Errors
    ///
    /// KVM refused: the address has one already, or there are too many.
    pub fn register_ioeventfd(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        self.fd.register_ioevent(event, &IoEventAddress::Mmio(gpa), NoDatamatch).map_err(io_error)
    }

    /// Undoes [`register_ioeventfd`](Self::register_ioeventfd).
    ///
    /// # Errors
    ///
    /// KVM refused: there is none.
    pub fn unregister_ioeventfd(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        self.fd.unregister_ioevent(event, &IoEventAddress::Mmio(gpa), NoDatamatch).map_err(io_error)
    }

    /// Makes the line of a level-triggered SPI high or low; after the GIC is initialised.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn set_irq_line(&self, spi: u32, high: bool) -> io::Result<()> {
        // The type in bits 24 to 31, the INTID in 0 to 15 (Documentation/virt/kvm/api.rst, 4.25
        // KVM_IRQ_LINE).
        let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (spi + 32);
        self.fd.set_irq_line(line, high).map_err(io_error)
    }

    /// Undoes [`register_irqfd`](Self::register_irqfd) or
    /// [`register_resample_irqfd`](Self::register_resample_irqfd): signals are counted by the eventfd from
    /// here on, none is on its way, and the SPI of the latter is deasserted (`irqfd_shutdown`,
    /// `irqfd_resampler_shutdown` of virt/kvm/eventfd.c).
    ///
    /// # Errors
    ///
    /// KVM refused: there is none.
    pub fn unregister_irqfd(&self, gsi: u32, trigger: &EventFd) -> io::Result<()> {
        self.fd.unregister_irqfd(trigger, gsi).map_err(io_error)
    }

    /// How many GSI routes KVM takes, which is the first number that is no GSI too
    /// (`KVM_CAP_IRQ_ROUTING`).
    pub(crate) fn max_gsi_routes(&self) -> u32 {
        u32::try_from(self.fd.check_extension_int(Cap::IrqRouting)).unwrap_or(0)
    }

    /// Replaces the GSI routing table.
    pub(crate) fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        let table = KvmIrqRouting::from_entries(entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.fd.set_gsi_routing(&table).map_err(io_error)
    }

    /// Makes a signal of `trigger` assert `spi` until the guest ends the interrupt, which
    /// deasserts it and signals `resample`; after the GIC is initialised.
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn register_resample_irqfd(
        &self,
        spi: u32,
        trigger: &EventFd,
        resample: &EventFd,
    ) -> io::Result<()> {
        self.fd.register_irqfd_with_resample(trigger, resample, spi).map_err(io_error)
    }

    /// Tells KVM of a VFIO group or device in the VM's use
    /// (Documentation/virt/kvm/devices/vfio.rst).
    ///
    /// # Errors
    ///
    /// KVM refused.
    pub fn add_vfio_file(&self, file: BorrowedFd<'_>) -> Result<(), Error> {
        let mut vfio = self.vfio.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match &mut *vfio {
            Some(device) => device,
            none => {
                let mut device = kvm_create_device {
                    type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
                    ..Default::default()
                };
                let created = self.fd.create_device(&mut device).map_err(|e| {
                    Error::kvm("create its VFIO device (is CONFIG_KVM_VFIO on?)", e)
                })?;
                none.insert(created)
            }
        };
        let set = set_vfio_file(device, KVM_DEV_VFIO_FILE_ADD, file);
        set.map_err(|e| Error::kvm("take a file of VFIO", e))
    }

    /// Tells KVM that a VFIO group or device isn't in the VM's use any more; KVM has it open until then.
    ///
    /// # Errors
    ///
    /// KVM doesn't have it.
    pub fn remove_vfio_file(&self, file: BorrowedFd<'_>) -> Result<(), Error> {
        let vfio = self.vfio.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = &*vfio else { return Ok(()) };
        let set = set_vfio_file(device, KVM_DEV_VFIO_FILE_DEL, file);
        set.map_err(|e| Error::kvm("give a file of VFIO back", e))
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Whether KVM could create the device described, without creating it (api.rst, 4.79: ENODEV if it has
    /// none of that type).
    pub(crate) fn test_device(&self, device: &mut kvm_create_device) -> Result<bool, Error> {
        // SAFETY: the fd is a VM's and `device` is the structure that this ioctl reads and writes.
        let ret = unsafe { ioctl_with_mut_ref(&self.fd, KVM_CREATE_DEVICE(), device) };
        match kvm_ioctls::Error::last() {
            _ if ret == 0 => Ok(true),
            e if e.errno() == libc::ENODEV => Ok(false),
            e => Err(Error::kvm("tell which interrupt controllers it has", e)),
        }
    }
}

/// Adds a file to KVM's VFIO device, or removes it.
fn set_vfio_file(
    device: &DeviceFd,
    attribute: u32,
    file: BorrowedFd<'_>,
) -> Result<(), kvm_ioctls::Error> {
    let fd: i32 = file.as_raw_fd();
    device.set_device_attr(&kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(attribute),
        addr: (&raw const fd).addr() as u64,
        flags: 0,
    })
}

impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the VM owns its descriptor, which stays open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }
    }
}

/// The bits of guest physical address that reach the end of RAM, of the `limit` that there are, and
/// what is up to `end`, as far as they can; at least KVM's default where that isn't known.
fn ipa_bits(ram: Ram, end: Option<u64>, limit: u32) -> Result<u32, Error> {
    let needed = |end: u64| u64::BITS - end.saturating_sub(1).leading_zeros();
    let least = end.map_or(DEFAULT_IPA_BITS, |end| needed(end).max(FEW_IPA_BITS));
    let end = ram.end();
    let bits = needed(end).max(least.min(limit));
    if bits > limit {
        let max = (1u64 << limit.min(63)).saturating_sub(ram.base);
        return Err(Error::IpaSize { end, bits: limit, max });
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// What RAM of this size at the usual address takes.
    fn ipa_bits(size: u64, limit: u32) -> Result<u32, Error> {
        super::ipa_bits(Ram { base: GIB, size }, None, limit)
    }

    #[test]
    fn a_machine_whose_end_is_known_gets_few_bits() {
        let bits =
            |end, limit| super::ipa_bits(Ram { base: GIB, size: GIB }, Some(end), limit).unwrap();
        assert_eq!(bits(2 * GIB, 48), FEW_IPA_BITS);
        assert_eq!((bits(64 * GIB, 40), bits(64 * GIB + 1, 40)), (36, 37));
        assert_eq!((bits(0, 40), bits(2 * GIB, 34)), (36, 34));
        // What can't be reached fails where it is mapped.
        assert_eq!((bits(65 * GIB, 36), bits(1025 * GIB, 48)), (36, 41));
        let beyond = super::ipa_bits(Ram { base: GIB, size: 64 * GIB }, Some(2 * GIB), 36);
        assert!(matches!(beyond, Err(Error::IpaSize { .. })), "{beyond:?}");
    }

    #[test]
    fn ram_elsewhere_counts_to_its_end() {
        let bits = |base, size| super::ipa_bits(Ram { base, size }, None, 41).unwrap();
        assert_eq!((bits(1020 * GIB, 4 * GIB), bits(1020 * GIB, 5 * GIB)), (40, 41));
        let beyond = super::ipa_bits(Ram { base: 2048 * GIB, size: GIB }, None, 41);
        assert!(matches!(beyond, Err(Error::IpaSize { max: 0, .. })), "{beyond:?}");
    }

    #[test]
    fn ram_that_fits_40_bits_gets_the_default() {
        assert_eq!(ipa_bits(GIB, 40).unwrap(), DEFAULT_IPA_BITS);
        assert_eq!(ipa_bits(1023 * GIB, 48).unwrap(), DEFAULT_IPA_BITS);
    }

    #[test]
    fn more_ram_gets_more_bits_where_the_host_has_them() {
        assert_eq!(ipa_bits(1024 * GIB, 48).unwrap(), 41);
        assert!(matches!(
            ipa_bits(1024 * GIB, 40),
            Err(Error::IpaSize { bits: 40, max, .. }) if max == 1023 * GIB
        ));
    }

    #[test]
    fn a_host_with_fewer_than_40_bits_gives_all_it_has() {
        assert_eq!(ipa_bits(GIB, 36).unwrap(), 36);
        assert!(ipa_bits(64 * GIB, 36).is_err());
    }

    #[test]
    fn ram_without_end_is_refused() {
        assert!(ipa_bits(u64::MAX, 52).is_err());
    }
}
