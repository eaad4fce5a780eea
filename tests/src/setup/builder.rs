//! The making of the whole model: what is missing, all at once.

use std::fs;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use super::archive::{Archive, Versions};
use super::binaries::{self, Binaries};
use super::cache::{Cache, CacheEntry, LockedEntry};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::modules;
use super::options::{Options, Provided, ProvidedKernel, Purpose};
use super::packages::{self, Need};
use super::part::{Part, Parts};
use super::progress::Progress;
use super::toolchain::Toolchain;
use super::{
    Model, board_dtbs, clean, debian, firmware, kernels, linux, qemu, signals, stock, workspace,
};
use crate::artifacts::{Artifacts, Kernel};

/// What all steps of a set-up share.
pub(super) struct ModelBuilder<'a> {
    options: &'a Options,
    machine: Machine,
    cache: Cache,
    progress: Progress,
    /// The first thing that went wrong; whatever follows is its consequence.
    failure: Mutex<Option<Error>>,
    /// Whether the system's packages are installed.
    packages: Latch,
}

impl<'a> ModelBuilder<'a> {
    /// Of nothing yet, on this machine.
    pub(super) fn new(options: &'a Options) -> Result<Self, Error> {
        let cache = Cache::open()?;
        let progress = Progress::start();
        clean::sweep(&cache, &progress.step("cache", cache.log("cache")))?;
        Ok(Self {
            options,
            machine: Machine::detect(),
            cache,
            progress,
            failure: Mutex::default(),
            packages: Latch::default(),
        })
    }

    /// The model as it is needed for this purpose.
    pub(super) fn model(&self, purpose: Purpose) -> Result<Model, Error> {
        let given = self.options.check(purpose)?;
        if given.is_complete() {
            let (toolchain, binaries) = self.clone_binaries()?;
            return finish(toolchain, binaries, &given, Vec::new());
        }
        if !self.machine.is_debian {
            return Err(Error::NotDebian { needs: given.needs() });
        }
        let archive = Archive::new(&self.cache, &self.machine, self.options.debian_mirror());
        let versions = archive.versions(&self.progress, self.cache.log("archive"), |versions| {
            self.needs(&given, versions).is_ok_and(|needs| needs.is_empty())
        })?;
        self.make(&given, &archive, &versions)
    }

    /// strait and the test agent, and what built them.
    pub(super) fn clone_binaries(&self) -> Result<(Toolchain, Binaries), Error> {
        let toolchain = self.toolchain(&[])?;
        let binaries = self.build_clone(&toolchain)?;
        Ok((toolchain, binaries))
    }

    /// Rust for 64-bit Arm. The packages in `needs` are installed together with those it needs, so
    /// that apt runs once.
    fn toolchain(&self, needs: &[Need]) -> Result<Toolchain, Error> {
        let step = self.progress.step("Rust for arm64", self.cache.log("rust"));
        let (toolchain, mut all) =
            Toolchain::choose(&self.machine, &step, self.options.cross_linker())?;
        drop(step);
        all.extend(needs);
        if self.machine.is_debian {
            let step = self.progress.step("packages", self.cache.log("packages"));
            packages::install(&self.machine, &self.cache, &step, &all)?;
        }
        self.packages.open(true);
        Ok(toolchain)
    }

    fn build_clone(&self, toolchain: &Toolchain) -> Result<Binaries, Error> {
        let step = self.progress.step("strait", self.cache.log("strait"));
        let built = binaries::build(toolchain, &step);
        if matches!(built, Err(Error::Failed { .. })) {
            step.say("doesn't build; the errors follow at the end");
        }
        built
    }

    /// Makes the parts that aren't given: downloads run while packages are installed, and builds
    /// share the processors.
    fn make(
        &self,
        given: &Provided,
        archive: &Archive,
        versions: &Versions,
    ) -> Result<Model, Error> {
        let needs = self.needs(given, versions)?;
        let parts = Parts::new(&self.machine, &self.cache, versions);
        let wanted = self.wanted(given, &parts)?;
        let (built, held) = thread::scope(|scope| {
            // What is made of the archive is of use however the clone looks, so a clone that
            // doesn't build ends nothing.
            let clone = scope.spawn(|| {
                let toolchain = self.cancel_on_failure(self.toolchain(&needs))?;
                let binaries = self.note_failure(self.build_clone(&toolchain))?;
                Some((toolchain, binaries))
            });
            let threads: Vec<_> = wanted
                .into_iter()
                .map(|part| {
                    scope.spawn(move || self.cancel_on_failure(self.make_part(part, archive)))
                })
                .collect();
            let held: Option<Vec<_>> =
                threads.into_iter().map(|thread| thread.join().ok().flatten()).collect();
            (clone.join().ok().flatten(), held)
        });
        if let Some(failure) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
        match (built, held) {
            (Some((toolchain, binaries)), Some(held)) => finish(toolchain, binaries, given, held),
            (None, _) => Err(Error::Broken("strait")),
            (_, None) => Err(Error::Broken("the model's parts")),
        }
    }

    fn make_part(
        &self,
        part: &dyn Part,
        archive: &Archive,
    ) -> Result<(&'static str, LockedEntry), Error> {
        let step = self.progress.step(&part.title(), self.cache.log(part.name()));
        let entry: CacheEntry = part.entry(&self.cache)?;
        let held = entry.get(&step, |dirs| {
            part.fetch(archive, &step, dirs)?;
            self.packages.wait()?;
            part.build(&step, dirs)?;
            step.done("ready");
            Ok(())
        })?;
        Ok((part.name(), held))
    }

    /// The parts that aren't given; of what needn't be made, what is there.
    fn wanted<'p>(&self, given: &Provided, parts: &'p Parts) -> Result<Vec<&'p dyn Part>, Error> {
        let mut wanted = Vec::new();
        for part in parts.all().into_iter().filter(|part| !given.has(part.name())) {
            if !given.is_optional(part.name()) || part.entry(&self.cache)?.is_made() {
                wanted.push(part);
            }
        }
        Ok(wanted)
    }

    /// The packages for the wanted parts that aren't in the cache; nothing if all are.
    fn needs(&self, given: &Provided, versions: &Versions) -> Result<Vec<Need>, Error> {
        let mut needs = Vec::new();
        for part in self.wanted(given, &Parts::new(&self.machine, &self.cache, versions))? {
            if !part.entry(&self.cache)?.is_made() {
                needs.extend(part.needs());
            }
        }
        Ok(needs)
    }

    /// Keeps the first failure for the end.
    fn note_failure<T>(&self, result: Result<T, Error>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        None
    }

    /// Keeps the first failure, and ends the other threads: nobody should wait for a kernel when
    /// QEMU can't be built.
    fn cancel_on_failure<T>(&self, result: Result<T, Error>) -> Option<T> {
        let value = self.note_failure(result);
        if value.is_none() {
            signals::cancel();
            self.packages.open(false);
        }
        value
    }
}

/// Describes the finished model.
fn finish(
    toolchain: Toolchain,
    binaries: Binaries,
    given: &Provided,
    held: Vec<(&'static str, LockedEntry)>,
) -> Result<Model, Error> {
    let found = |part: &'static str| {
        held.iter().find(|(name, _)| *name == part).map(|(_, held)| held.dir.clone())
    };
    let made = |part: &'static str| found(part).ok_or(Error::Broken(part));
    let kernel = |given: &Option<ProvidedKernel>, part, file| match given {
        Some(given) => Ok((given.kernel.clone(), given.modules.clone())),
        None => made(part).map(|dir| (dir.join(file), dir.join("modules"))),
    };
    let (host_kernel, host_modules) = kernel(&given.host, linux::NAME, "Image")?;
    let (stock_kernel, stock_modules) = kernel(&given.stock, stock::KERNEL, "vmlinuz")?;
    let boards = found(linux::NAME_64K).map(|dir| dir.join(board_dtbs::DIRECTORY));
    let further = |given_kernel, part| match kernel(given_kernel, part, "Image") {
        Ok((kernel, modules)) => {
            Ok(Some(Kernel { image: kernel, modules: modules::listed(&modules)? }))
        }
        Err(_) if given.is_optional(part) => Ok(None),
        Err(error) => Err(error),
    };
    let host_64k = further(&given.host_64k, linux::NAME_64K)?;
    let host_newest = further(&given.host_newest, linux::NAME_NEWEST)?;
    let debian = match (&given.debian_system, found(debian::NAME)) {
        (Some(given), _) => Some(given.clone()),
        (None, Some(directory)) => Some(debian::found(&directory)?),
        (None, None) if given.is_optional(debian::NAME) => None,
        (None, None) => return Err(Error::Broken(debian::NAME)),
    };
    let firmware = match (&given.firmware, found(firmware::NAME)) {
        (Some(given), _) => Some(given.clone()),
        (None, Some(directory)) => Some(firmware::found(&directory)),
        (None, None) if given.is_optional(firmware::NAME) => None,
        (None, None) => return Err(Error::Broken(firmware::NAME)),
    };
    let other_kernels = match (&given.other_kernels, found(kernels::NAME)) {
        (Some(given), _) => given.clone(),
        (None, Some(directory)) => kernels::found(&directory)?,
        (None, None) if given.is_optional(kernels::NAME) => kernels::Found::default(),
        (None, None) => return Err(Error::Broken(kernels::NAME)),
    };
    let artifacts = Artifacts {
        qemu: match &given.qemu {
            Some(path) => path.clone(),
            None => made(qemu::NAME)?.join(qemu::PROGRAM),
        },
        host_kernel,
        host_modules: modules::listed(&host_modules)?,
        host_64k,
        host_newest,
        stock_kernel,
        stock_modules,
        other_kernels: other_kernels.guests,
        debian_newest: other_kernels.host,
        busybox: match &given.busybox {
            Some(path) => path.clone(),
            None => made(stock::BUSYBOX)?.join("busybox"),
        },
        debian,
        firmware,
        strait: binaries.strait,
        agent: binaries.agent,
    };
    let description = workspace::target_dir().join("model.json");
    let json = artifacts.to_json().map_err(std::io::Error::from);
    // Another run may be reading it.
    let new = description.with_extension(format!("json.{}", std::process::id()));
    json.and_then(|json| fs::write(&new, json)).at("write", &new)?;
    fs::rename(&new, &description).at("write", &description)?;
    let held = held.into_iter().map(|(_, held)| held).collect();
    Ok(Model { artifacts, description, boards, toolchain, _held: held })
}

/// Something that threads wait for.
#[derive(Default)]
struct Latch {
    /// Whether it opened for good, or will never open.
    state: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Latch {
    /// Opens it, or says that it stays shut; the first word counts.
    fn open(&self, is_open: bool) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(is_open);
        self.changed.notify_all();
    }

    fn wait(&self) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *state {
                Some(true) => return Ok(()),
                Some(false) => return Err(Error::Interrupted),
                None => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latch_lets_all_pass_or_none() {
        for (is_open, passes) in [(true, true), (false, false)] {
            let latch = Latch::default();
            thread::scope(|scope| {
                let waiting: Vec<_> =
                    (0..3).map(|_| scope.spawn(|| latch.wait().is_ok())).collect();
                latch.open(is_open);
                latch.open(!is_open);
                assert!(waiting.into_iter().all(|thread| thread.join().unwrap() == passes));
            });
        }
    }
}
