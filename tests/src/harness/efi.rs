//! A disk with an EFI system partition, from which firmware boots a Debian system.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::debian;
use super::failure::Failure;
use crate::artifacts::Debian;

/// Where the partition begins and how large it is, in sectors of 512 bytes.
const START: u32 = 2048;
const SECTORS: u32 = 192 << 11;

/// What tells the disk from others (UEFI 2.10, 5.2.1).
const SIGNATURE: [u8; 4] = *b"disk";

/// What is booted of the Debian system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boots {
    /// A shell, since the rest takes long.
    Shell,
    /// All of it, to a login.
    Login,
}

impl Boots {
    /// What GRUB does: it boots the kernel that is beside it.
    fn grub_config(self) -> String {
        let rest = match self {
            Self::Shell => "TERM=dumb init=/usr/bin/dash".to_owned(),
            Self::Login => debian::parameters("ttyAMA0"),
        };
        format!(
            "linux /vmlinuz root=LABEL=debian rw quiet console=ttyAMA0 {rest}\n\
             initrd /initrd\n\
             boot\n"
        )
    }
}

/// Makes the disk, in a file without a name: GRUB as what is booted unless something else is asked for, and
/// where an installed Debian has it, the kernel of this system, of which it boots this, and this initrd.
///
/// # Errors
///
/// mtools aren't there, or fail.
pub(super) fn disk(
    grub: &Path,
    debian: &Debian,
    boots: Boots,
    initrd: &[u8],
) -> Result<File, Failure> {
    let directory = std::env::temp_dir();
    let id = unique();
    let scratch = |name| directory.join(format!("efi-{id}-{name}"));
    let (path, archive, config) = (scratch("disk"), scratch("initrd"), scratch("grub"));
    let made = make(&path, grub, debian, (&archive, initrd), (&config, &boots.grub_config()));
    for path in [&path, &archive, &config] {
        let _ = fs::remove_file(path);
    }
    made
}

fn make(
    path: &Path,
    grub: &Path,
    debian: &Debian,
    (archive, initrd): (&Path, &[u8]),
    (config, does): (&Path, &str),
) -> Result<File, Failure> {
    let failed = |error| Failure::new(format!("can't make an EFI disk: {error}"));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(path).map_err(failed)?;
    file.set_len(u64::from(START + SECTORS) * 512).map_err(failed)?;
    file.write_all_at(&SIGNATURE, 440).map_err(failed)?;
    file.write_all_at(&partition_table(), 446).map_err(failed)?;
    fs::write(archive, initrd).map_err(failed)?;
    fs::write(config, does).map_err(failed)?;
    let image = format!("{}@@1M", path.display());
    let sectors = SECTORS.to_string();
    mtools(&image, "mformat", &["-F", "-T", &sectors, "::"])?;
    mtools(&image, "mmd", &["::/EFI", "::/EFI/BOOT", "::/EFI/debian"])?;
    for (from, to) in [
        (grub, "::/EFI/BOOT/BOOTAA64.EFI"),
        (grub, "::/EFI/debian/grubaa64.efi"),
        (config, "::/EFI/debian/grub.cfg"),
        (&debian.kernel.image, "::/vmlinuz"),
        (archive, "::/initrd"),
    ] {
        mtools(&image, "mcopy", &[&from.display().to_string(), to])?;
    }
    Ok(file)
}

/// One partition of the type that EFI has, active, and the signature (UEFI 2.10, 5.2).
fn partition_table() -> [u8; 66] {
    let mut table = [0; 66];
    table[0] = 0x80;
    table[4] = 0xef;
    table[8..12].copy_from_slice(&START.to_le_bytes());
    table[12..16].copy_from_slice(&SECTORS.to_le_bytes());
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    table
}

fn mtools(image: &str, program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new(program);
    command.args(["-i", image]).args(arguments).stdin(Stdio::null());
    let output =
        command.output().map_err(|_| Failure::new("this test needs mtools: apt install mtools"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::new(format!("{program} {arguments:?}: {said}")))
}

/// What no other disk of this machine's tests is called.
fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
