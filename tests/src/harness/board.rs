//! The modelled machine before it is switched on.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use super::channel::Channel;
use super::deadline::Deadline;
use super::efi::{self, Boots};
use super::failure::Failure;
use super::host::Host;
use super::initramfs::{self, Systems};
use super::protocol::PORT;
use super::qemu::{self, Qemu};
use super::transcript::Transcript;
use super::uart::Uart;
use crate::artifacts::{Artifacts, Debian, Firmware, Kernel};

/// How long the host may take to boot, in seconds. It takes one when nothing else runs.
const BOOT: u64 = 300;

/// What is given to the host's kernel unless a test says otherwise: platform devices without a
/// reset driver may be assigned, and without interrupt remapping (they have no MSIs).
const PARAMETERS: &str = "console=ttyAMA0 quiet panic=-1 vfio_platform.reset_required=0 \
                          iommufd.allow_unsafe_interrupts=1 \
                          vfio_iommu_type1.allow_unsafe_interrupts=1";

/// A kernel of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostKernel {
    /// That of the model, which everything runs on.
    Model,
    /// The same with pages of 64 KiB.
    LargePages,
    /// The same of the newest sources.
    Newest,
    /// That of the Debian system.
    Debian,
    /// The newest that Debian has.
    DebianNewest,
}

/// The modelled machine: QEMU's `virt` with EL2, an SMMUv3, and assignable devices behind it.
#[derive(Clone, Debug)]
pub struct Board {
    artifacts: Option<Artifacts>,
    gic: u8,
    cpus: u8,
    memory: String,
    parameters: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    stock: bool,
    other_kernels: bool,
    debian: bool,
    firmware: bool,
    efi_boots: Boots,
    icount: bool,
    kernel: HostKernel,
    uart: bool,
    cpu: &'static str,
    shared_uart: bool,
    /// Disks by their ids, with their sizes in bytes.
    disks: Vec<(String, u64)>,
    /// Further options of QEMU.
    options: Vec<String>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            artifacts: None,
            gic: 3,
            cpus: 2,
            memory: "4G".into(),
            parameters: Vec::new(),
            files: Vec::new(),
            stock: false,
            other_kernels: false,
            debian: false,
            firmware: false,
            efi_boots: Boots::Shell,
            icount: false,
            kernel: HostKernel::Model,
            uart: false,
            cpu: "max,pauth=off,sve=off",
            shared_uart: false,
            disks: Vec::new(),
            options: Vec::new(),
        }
    }
}

impl Board {
    /// A board with GICv3, 2 CPUs and 4 GiB, made from the artifacts that the environment names.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, made from these artifacts.
    pub fn with(artifacts: &Artifacts) -> Self {
        Self { artifacts: Some(artifacts.clone()), ..Self::default() }
    }

    /// The version of its interrupt controller: 2 or 3.
    #[must_use]
    pub fn gic(mut self, version: u8) -> Self {
        self.gic = version;
        self
    }

    /// How many CPUs it has.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory it has, as QEMU counts it (`4G`).
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// Adds a parameter to the host kernel's command line; the last of a name wins.
    #[must_use]
    pub fn param(mut self, parameter: &str) -> Self {
        self.parameters.push(parameter.to_owned());
        self
    }

    /// Puts a file into the host, executable; `name` is its path without the leading slash, in a
    /// directory that exists (`k`, `bin`, `tmp`).
    #[must_use]
    pub fn file(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), bytes.into()));
        self
    }

    /// Has Debian's own kernel at `/k/stock` and an initrd with its modules at `/k/stock.cpio`.
    #[must_use]
    pub fn stock(mut self) -> Self {
        self.stock = true;
        self
    }

    /// Has Debian's kernels of other releases at `/k/other0`, the oldest, `/k/other1` and so on, each with
    /// an initrd with its modules, `/k/other0.cpio`.
    #[must_use]
    pub fn other_kernels(mut self) -> Self {
        self.other_kernels = true;
        self
    }

    /// Has the disk of a Debian system, for a device's `drive=debian`, and its kernel at `/k/debian`
    /// with the initrd `/k/debian.cpio`. What is written to the disk goes with the board.
    #[must_use]
    pub fn debian(mut self) -> Self {
        self.debian = true;
        self
    }

    /// Has firmware at `/k/u-boot` and `/k/edk2`; with [`debian`](Self::debian) also a disk with an EFI
    /// system partition that boots a shell of it, for a device's `drive=efi`.
    #[must_use]
    pub fn firmware(mut self) -> Self {
        self.firmware = true;
        self
    }

    /// The same, but the disk boots all of the system, to a login.
    #[must_use]
    pub fn firmware_to_login(mut self) -> Self {
        self.efi_boots = Boots::Login;
        self.firmware()
    }

    /// Counts instructions: one CPU whose clock advances by 1 ns per instruction executed, and
    /// jumps over idle time.
    #[must_use]
    pub fn icount(mut self) -> Self {
        self.icount = true;
        self.cpus = 1;
        self
    }

    /// Its CPUs have what costs a model time: pointer authentication and vectors of up to 512 bits.
    #[must_use]
    pub fn cpu_features(self) -> Self {
        self.cpu("max,pauth-impdef=on,sve=on,sve-max-vq=4")
    }

    /// Its CPUs, as QEMU's `-cpu` takes them.
    #[must_use]
    pub fn cpu(mut self, cpu: &'static str) -> Self {
        self.cpu = cpu;
        self
    }

    /// Has a host kernel with pages of 64 KiB, which is at `/k/large` too, with a guest's initrd at
    /// `/k/large.cpio`. It has no network, no file systems on disks, no cgroups.
    #[must_use]
    pub fn large_pages(mut self) -> Self {
        self.kernel = HostKernel::LargePages;
        self
    }

    /// Has a host kernel that is Debian's, of the Debian system ([`debian`](Self::debian)), as distributions
    /// configure theirs: PCI functions can be assigned, by VFIO's containers. Only what mounts the system's
    /// disk is loaded.
    #[must_use]
    pub fn debian_kernel(mut self) -> Self {
        self.kernel = HostKernel::Debian;
        self.debian()
    }

    /// Has a host kernel that is the newest that Debian has, unmodified, with modules of it: VFIO for PCI functions,
    /// by its containers, tap interfaces, vhost, NVMe. It has no iommufd, no vfio-platform and no vfio-amba.
    #[must_use]
    pub fn debian_newest(mut self) -> Self {
        self.kernel = HostKernel::DebianNewest;
        self
    }

    /// Has a host kernel of the newest sources, which has all that the model's has, and SR-IOV. It is made for
    /// `--soak` alone ([`Artifacts::host_newest`]).
    #[must_use]
    pub fn newest(mut self) -> Self {
        self.kernel = HostKernel::Newest;
        self
    }

    /// Has the assignable UART, [`super::UART`], with its wire at [`Host::uart`].
    #[must_use]
    pub fn uart(mut self) -> Self {
        self.uart = true;
        self
    }

    /// Has that UART, and another one, [`super::SHARED_UART`], that raises the same SPI. Its wire
    /// leads nowhere.
    #[must_use]
    pub fn shared_uart(mut self) -> Self {
        self.shared_uart = true;
        self.uart()
    }

    /// Has the assignable network card, [`super::ETHERNET`], on a network with a card of virtio's, which
    /// the host's Linux calls 0000:00:09.0.
    #[must_use]
    pub fn ethernet(self) -> Self {
        self.option("-netdev", "hubport,id=gem,hubid=0")
            .option("-netdev", "hubport,id=peer,hubid=0")
            .device("virtio-net-pci,netdev=peer,addr=9,romfile=")
    }

    /// Has the assignable SD host controller, [`super::SD_HOST`], with a zeroed card of `size` bytes, a
    /// power of two, which goes with the board.
    #[must_use]
    pub fn sd_card(self, size: u64) -> Self {
        self.disk("sd", size)
    }

    /// Has a device on the PCI bus, behind the SMMU, as QEMU's `-device` takes it. With `addr=5` the
    /// host's Linux calls it 0000:00:05.0.
    #[must_use]
    pub fn device(self, device: &str) -> Self {
        self.option("-device", device)
    }

    /// Has an option of QEMU.
    #[must_use]
    pub fn option(mut self, option: &str, value: &str) -> Self {
        self.options.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// Has a zeroed disk of `size` bytes that goes with the board, for a device's `drive=id`.
    #[must_use]
    pub fn disk(mut self, id: &str, size: u64) -> Self {
        self.disks.push((id.to_owned(), size));
        self
    }

    /// Switches the board on and waits for its Linux.
    ///
    /// # Errors
    ///
    /// An artifact is missing, or the host doesn't come up.
    pub fn boot(self) -> Result<Host, Failure> {
        let artifacts = self.artifacts()?;
        let transcript = Arc::new(Transcript::start());
        let (console, console_end) = qemu::socket_pair()?;
        let (agent, agent_end) = qemu::socket_pair()?;
        let debian = self.debian_system(&artifacts)?;
        let firmware = self.firmware_files(&artifacts)?;
        let initramfs = self.initramfs(&artifacts)?;
        let initramfs = qemu::memory_file(&initramfs)
            .map_err(|error| Failure::new(format!("can't hold an initramfs: {error}")))?;

        let mut command = self.command(&artifacts, "model.do=agent")?;
        command.args(qemu::chardev("console", &console_end));
        command.args(["-serial", "chardev:console", "-serial", "null"]);
        let uart = self.uart.then(qemu::socket_pair).transpose()?;
        if let Some((_, end)) = &uart {
            command.args(qemu::chardev("uart", end)).args(["-serial", "chardev:uart"]);
            if self.shared_uart {
                command.args(["-serial", "null"]);
            }
        }
        command.args(qemu::chardev(PORT, &agent_end));
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", &format!("virtserialport,chardev={PORT},name={PORT}")]);
        command.args(["-initrd", &format!("/proc/self/fd/{}", initramfs.as_raw_fd())]);
        let mut files = vec![console_end.as_raw_fd(), agent_end.as_raw_fd(), initramfs.as_raw_fd()];
        files.extend(uart.iter().map(|(_, end)| end.as_raw_fd()));
        let disks = self.disks.iter().map(|(id, size)| Ok((id, disk(*size)?)));
        let mut disks = disks.collect::<Result<Vec<_>, Failure>>()?;
        let efi_name = "efi".to_owned();
        if let Some((firmware, debian)) = firmware.zip(debian) {
            let initrd = initramfs::debian_initrd(&artifacts, debian)?;
            disks.push((&efi_name, efi::disk(&firmware.grub, debian, self.efi_boots, &initrd)?));
        }
        for (id, disk) in &disks {
            let file = format!("/proc/self/fd/{}", disk.as_raw_fd());
            command.args(["-drive", &format!("if=none,id={id},format=raw,file={file}")]);
            files.push(disk.as_raw_fd());
        }
        let qemu = Qemu::start(&mut command, &files, &transcript)?;

        // The ends that QEMU holds must be its alone, or its death would not be noticed.
        drop((console_end, agent_end));
        let uart = uart.map(|(wire, _)| Uart::new(wire, Arc::clone(&transcript))).transpose()?;
        let console_in = console
            .try_clone()
            .map_err(|error| Failure::new(format!("the host's console: {error}")))?;
        let channel = Arc::new(Channel::open(console, agent, transcript)?);
        let host = Host::new(qemu, channel, console_in, uart);
        host.wait_until_up(Deadline::after(BOOT))?;
        Ok(host)
    }

    /// Switches the board on with a shell on the terminal (or whatever standard input and output
    /// are) as the host's serial console, and waits until it is off. Ctrl-A x switches it off.
    ///
    /// # Errors
    ///
    /// An artifact is missing, or QEMU can't be run.
    pub fn attach(self) -> Result<ExitStatus, Failure> {
        let artifacts = self.artifacts()?;
        let initramfs = self.initramfs(&artifacts)?;
        let initramfs = qemu::memory_file(&initramfs)
            .map_err(|error| Failure::new(format!("can't hold an initramfs: {error}")))?;
        let path = format!("/proc/self/fd/{}", initramfs.as_raw_fd());
        let mut command = self.command_on_stdio("mon:stdio", Path::new(&path))?;
        qemu::run(&mut command, &[initramfs.as_raw_fd()])
    }

    /// Its host's kernel and initramfs, for others that boot machines: with `model.do=shell` on the command
    /// line there is a shell on the console.
    ///
    /// # Errors
    ///
    /// An artifact is missing.
    pub fn linux(&self) -> Result<(PathBuf, Vec<u8>), Failure> {
        let artifacts = self.artifacts()?;
        Ok((artifacts.host_kernel.clone(), self.initramfs(&artifacts)?))
    }

    /// The command that switches it on with a shell, that of [`linux`](Self::linux)'s initramfs in this file, on
    /// a serial console that is what QEMU's `-serial` takes.
    ///
    /// # Errors
    ///
    /// An artifact is missing.
    pub fn command_on_stdio(&self, serial: &str, initramfs: &Path) -> Result<Command, Failure> {
        let mut command = self.command(&self.artifacts()?, "model.do=shell")?;
        command.args(["-serial", serial, "-serial", "null", "-serial", "null", "-initrd"]);
        command.arg(initramfs);
        Ok(command)
    }

    fn initramfs(&self, artifacts: &Artifacts) -> Result<Vec<u8>, Failure> {
        let systems = Systems {
            stock: self.stock,
            other_kernels: self.other_kernels,
            debian: self.debian_system(artifacts)?,
            firmware: self.firmware_files(artifacts)?,
            kernel: self.kernel(artifacts)?,
            large: self.kernel == HostKernel::LargePages,
        };
        initramfs::host(artifacts, &systems, &self.files)
    }

    /// The QEMU command of this board but for its initramfs and its serial ports; `action` tells
    /// the host's init what to do.
    fn command(&self, artifacts: &Artifacts, action: &str) -> Result<Command, Failure> {
        let mut command = Command::new(&artifacts.qemu);
        let machine =
            format!("virt,virtualization=on,gic-version={},iommu=smmuv3,acpi=off", self.gic);
        let accelerator = if self.icount { "tcg,thread=single" } else { "tcg,thread=multi" };
        let parameters = format!("{PARAMETERS} {action} {}", self.parameters.join(" "));
        command
            .args(["-M", &machine, "-cpu", self.cpu])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory, "-accel", accelerator])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .arg("-kernel")
            .arg(self.kernel(artifacts)?.map_or(&artifacts.host_kernel, |kernel| &kernel.image))
            .args(["-append", &parameters]);
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        if let Some(debian) = self.debian_system(artifacts)? {
            let file = debian.disk.display().to_string().replace(',', ",,");
            let drive = format!("if=none,id=debian,format=raw,snapshot=on,file={file}");
            command.args(["-drive", &drive]);
        }
        command.args(&self.options);
        Ok(command)
    }

    /// The kernel that the host is to have instead of the usual one.
    fn kernel<'a>(&self, artifacts: &'a Artifacts) -> Result<Option<&'a Kernel>, Failure> {
        let (kernel, made_by) = match self.kernel {
            HostKernel::Model => return Ok(None),
            HostKernel::LargePages => (artifacts.host_64k.as_ref(), "cargo model setup"),
            HostKernel::Newest => (artifacts.host_newest.as_ref(), "cargo model test --soak"),
            HostKernel::Debian => {
                (self.debian_system(artifacts)?.map(|debian| &debian.kernel), "cargo model setup")
            }
            HostKernel::DebianNewest => (artifacts.debian_newest.as_ref(), "cargo model setup"),
        };
        let missing = || {
            Failure::new(format!("there is no kernel {:?} for the host: {made_by}", self.kernel))
        };
        kernel.map(Some).ok_or_else(missing)
    }

    /// The Debian system, if the board is to have it.
    fn debian_system<'a>(&self, artifacts: &'a Artifacts) -> Result<Option<&'a Debian>, Failure> {
        if !self.debian {
            return Ok(None);
        }
        let missing = || Failure::new("there is no Debian system: cargo model setup");
        artifacts.debian.as_ref().map(Some).ok_or_else(missing)
    }

    /// The firmware, if the board is to have it.
    fn firmware_files<'a>(
        &self,
        artifacts: &'a Artifacts,
    ) -> Result<Option<&'a Firmware>, Failure> {
        if !self.firmware {
            return Ok(None);
        }
        let missing = || Failure::new("there is no firmware: cargo model setup");
        artifacts.firmware.as_ref().map(Some).ok_or_else(missing)
    }

    fn artifacts(&self) -> Result<Artifacts, Failure> {
        match &self.artifacts {
            Some(artifacts) => Ok(artifacts.clone()),
            None => Artifacts::from_env().map_err(|error| Failure::new(error.to_string())),
        }
    }
}

/// A disk of zeroes, in memory.
fn disk(size: u64) -> Result<File, Failure> {
    let made = qemu::memory_file(&[]).and_then(|file| file.set_len(size).map(|()| file));
    made.map_err(|error| Failure::new(format!("can't hold a disk: {error}")))
}

#[cfg(test)]
mod tests {
    use super::Board;
    use crate::artifacts::{Artifacts, Kernel};

    fn arguments(board: &Board) -> String {
        let artifacts = Artifacts {
            qemu: "/q".into(),
            host_kernel: "/Image".into(),
            host_modules: Vec::new(),
            host_64k: Some(Kernel { image: "/Image-64k".into(), modules: Vec::new() }),
            stock_kernel: "/vmlinuz".into(),
            stock_modules: "/m".into(),
            other_kernels: Vec::new(),
            host_newest: None,
            debian_newest: Some(Kernel { image: "/newest".into(), modules: Vec::new() }),
            busybox: "/b".into(),
            debian: None,
            firmware: None,
            strait: "/s".into(),
            agent: "/p".into(),
        };
        let command = board.command(&artifacts, "model.do=agent").unwrap();
        command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_reach_qemu() {
        for (board, wanted) in [
            (Board::new(), "-smp 2 -m 4G -accel tcg,thread=multi"),
            (Board::new().gic(2), "gic-version=2"),
            (Board::new().cpus(4).memory("8G"), "-smp 4 -m 8G"),
            (Board::new(), "-cpu max,pauth=off,sve=off"),
            (Board::new().cpu_features(), "-cpu max,pauth-impdef=on,sve=on"),
            (Board::new().icount(), "-smp 1"),
            (Board::new().large_pages(), "-kernel /Image-64k"),
            (Board::new().debian_newest(), "-kernel /newest"),
            (Board::new().icount(), "-icount shift=0,sleep=off"),
            (Board::new().device("edu,addr=5").device("x"), "-device edu,addr=5 -device x"),
        ] {
            let arguments = arguments(&board);
            assert!(arguments.contains(wanted), "{wanted} in {arguments}");
        }
    }

    #[test]
    fn a_test_s_kernel_parameter_overrides_the_default() {
        let arguments = arguments(&Board::new().param("vfio_platform.reset_required=1"));
        let default = arguments.find("reset_required=0");
        let wanted = arguments.find("reset_required=1");
        assert!(default.is_some() && default < wanted, "{arguments}");
    }
}
