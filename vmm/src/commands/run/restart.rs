//! What a guest begins anew with: what lies in RAM, and registers as they were.

use arch::gic::{Gic, ResetState};
use arch::{BootRegisters, Vcpu};
use boot::initrd::Initrd;
use boot::kernel::Kernel;
use boot::layout::BootLayout;
use devices::ratelimit::LogLimit;
use vm_memory::GuestMemoryMmap;

use super::build;
use crate::error::Error;
use crate::plan::MachinePlan;
use crate::tree::Seed;

/// What is needed to have the guest begin anew.
pub struct Restart {
    kernel: Option<Kernel>,
    initrd: Option<Initrd>,
    dtb: Vec<u8>,
    /// Where the device tree has the seeds of the address-space layout and of random numbers.
    seeds: [Option<usize>; 2],
    boot: BootLayout,
    /// The interrupt controller's registers.
    pub gic: ResetState,
    /// How often it did.
    count: u64,
    log: LogLimit,
}

impl Restart {
    /// For a guest that was loaded with these, of which `seed` is in its device tree. The interrupt controller
    /// is complete, and no vCPU has run.
    ///
    /// # Errors
    ///
    /// KVM refused.
    #[cold]
    pub fn new(
        plan: &MachinePlan,
        (kernel, initrd): (Option<Kernel>, Option<Initrd>),
        dtb: Vec<u8>,
        seed: &Seed,
        (gic, vcpus): (&Gic, &[Vcpu]),
    ) -> Result<Self, Error> {
        let seeds = [place(&dtb, &seed.kaslr.to_be_bytes()), place(&dtb, &seed.rng)];
        let (boot, gic) = (plan.boot.clone(), gic.reset_state(vcpus)?);
        Ok(Self { kernel, initrd, dtb, seeds, boot, gic, count: 0, log: LogLimit::new("reset") })
    }

    /// The registers that the boot vCPU begins with.
    pub fn registers(&self) -> BootRegisters {
        BootRegisters { entry: self.boot.kernel.entry, dtb: self.boot.dtb }
    }

    /// Puts kernel, initrd and device tree into RAM, which else stays as it is.
    ///
    /// # Errors
    ///
    /// A file can't be read any more, or has shrunk.
    #[cold]
    pub fn load(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        if let Some(kernel) = &self.kernel {
            kernel.clear(memory)?;
        }
        self.reseed()?;
        build::load(&self.boot, self.kernel.as_ref(), self.initrd.as_ref(), &self.dtb, memory)
    }

    /// Gives the guest other randomness than it had before.
    fn reseed(&mut self) -> Result<(), Error> {
        let seed = build::seed()?;
        let values: [&[u8]; 2] = [&seed.kaslr.to_be_bytes(), &seed.rng];
        for (place, value) in self.seeds.iter().zip(values) {
            let end = place.map(|place| place..place.saturating_add(value.len()));
            if let Some(seed) = end.and_then(|range| self.dtb.get_mut(range)) {
                seed.copy_from_slice(value);
            }
        }
        Ok(())
    }

    /// The guest has begun anew, after this many milliseconds.
    pub fn note(&mut self, milliseconds: u128) {
        self.count = self.count.saturating_add(1);
        let count = self.count;
        self.log.info(format_args!(
            "the guest begins anew, for the {count}. time, after {milliseconds} ms"
        ));
    }
}

/// Where a text that is like no other is, in what has it.
fn place(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_seed_is_found_in_the_tree() {
        assert_eq!(place(b"abcabd", b"abd"), Some(3));
        assert_eq!(place(b"abcabd", b"abe"), None);
        assert_eq!(place(b"ab", b"abe"), None);
    }
}
