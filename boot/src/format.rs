//! The format of a file by its first bytes, so that the error about a wrong one names it.

use std::fmt;

/// Bytes of a file that are looked at to know what it is: enough for the header of a kernel with an
/// EFI stub, and for the magic numbers of everything that is known by name.
pub const START_SIZE: usize = 2048;

/// Formats of files that a person may take for a kernel or an initrd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum Format {
    Arm64Kernel,
    /// An EFI zboot kernel.
    Zboot,
    X86Kernel,
    RiscvKernel,
    Arm32Kernel,
    /// An ELF file for this `e_machine`.
    Elf(u16),
    /// A PE program for this machine.
    Efi(u16),
    /// Compressed data.
    Compressed(Compressor),
    /// A file with U-Boot's legacy header, by the type in it.
    UImage(UImageType),
    /// U-Boot's flattened image tree.
    Fit,
    DeviceTree,
    AndroidBoot,
    /// An archive as Linux unpacks it: `newc`, with or without checksums.
    Cpio,
    /// An archive in a format that Linux doesn't unpack.
    OldCpio,
    FileSystem(FileSystem),
    Tar,
    Zip,
    DiskImage(DiskImage),
    Disk,
    Script,
    Text,
    Zeroes,
    Empty,
    Unknown,
}

/// File systems that Linux finds in a RAM disk (`identify_ramdisk_image` of init/do_mounts_rd.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are names")]
pub enum FileSystem {
    Ext,
    Squashfs,
    Cramfs,
    Romfs,
    Minix,
}

/// Formats of disk images that have their blocks elsewhere than a disk has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are names")]
pub enum DiskImage {
    Qcow2,
    Qed,
    Vmdk,
    Vdi,
    Vhd,
    Vhdx,
    Parallels,
}

/// The type in a U-Boot legacy image header (`IH_TYPE_…` of U-Boot's include/image.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UImageType(pub u8);

impl UImageType {
    /// A RAM disk.
    pub(crate) const RAMDISK: Self = Self(3);
}

/// Compressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are names")]
pub enum Compressor {
    Bzip2,
    Xz,
    Lzma,
    /// lz4 in its legacy frame, the one that Linux knows.
    Lz4Legacy,
    Lz4,
    Lzop,
    Zstd,
    Gzip,
}

/// Magic numbers: offset, bytes, format; the first that matches counts. The compressors before the
/// kernels leave some bytes as they are, so that a kernel's magic number can still be at its offset;
/// those behind have magic numbers so short that a kernel can begin with them.
const MAGICS: &[(usize, &[u8], Format)] = &[
    (0, b"\xfd7zXZ\0", Format::Compressed(Compressor::Xz)),
    (0, b"\x02\x21\x4c\x18", Format::Compressed(Compressor::Lz4Legacy)),
    (0, b"\x04\x22\x4d\x18", Format::Compressed(Compressor::Lz4)),
    (0, b"\x89LZO\0\r\n\x1a\n", Format::Compressed(Compressor::Lzop)),
    (0, b"\x28\xb5\x2f\xfd", Format::Compressed(Compressor::Zstd)),
    (56, b"ARM\x64", Format::Arm64Kernel),
    (4, b"zimg", Format::Zboot),
    (0x202, b"HdrS", Format::X86Kernel),
    (48, b"RISCV\0\0\0", Format::RiscvKernel),
    (36, &0x016f_2818_u32.to_le_bytes(), Format::Arm32Kernel),
    (0, b"BZh", Format::Compressed(Compressor::Bzip2)),
    (0, b"\x5d\0\0", Format::Compressed(Compressor::Lzma)),
    (0, b"\x1f\x8b", Format::Compressed(Compressor::Gzip)),
    (0, b"ANDROID!", Format::AndroidBoot),
    (0, b"070701", Format::Cpio),
    (0, b"070702", Format::Cpio),
    (0, b"070707", Format::OldCpio),
    (0, b"\xc7\x71", Format::OldCpio),
    (0, b"hsqs", Format::FileSystem(FileSystem::Squashfs)),
    (0, b"\x45\x3d\xcd\x28", Format::FileSystem(FileSystem::Cramfs)),
    (0, b"-rom1fs-", Format::FileSystem(FileSystem::Romfs)),
    (0x438, b"\x53\xef", Format::FileSystem(FileSystem::Ext)),
    (0x410, b"\x7f\x13", Format::FileSystem(FileSystem::Minix)),
    (0x410, b"\x8f\x13", Format::FileSystem(FileSystem::Minix)),
    (257, b"ustar", Format::Tar),
    (0, b"PK\x03\x04", Format::Zip),
    (0, b"QFI\xfb", Format::DiskImage(DiskImage::Qcow2)),
    (0, b"QED\0", Format::DiskImage(DiskImage::Qed)),
    (0, b"KDMV", Format::DiskImage(DiskImage::Vmdk)),
    (0, b"# Disk DescriptorFile", Format::DiskImage(DiskImage::Vmdk)),
    (0x40, b"\x7f\x10\xda\xbe", Format::DiskImage(DiskImage::Vdi)),
    (0, b"conectix", Format::DiskImage(DiskImage::Vhd)),
    (0, b"vhdxfile", Format::DiskImage(DiskImage::Vhdx)),
    (0, b"WithoutFreeSpace", Format::DiskImage(DiskImage::Parallels)),
    (0, b"WithouFreSpacExt", Format::DiskImage(DiskImage::Parallels)),
    (510, b"\x55\xaa", Format::Disk),
    (0, b"#!", Format::Script),
];

/// `e_machine` of 64-bit Arm (ELF for the Arm 64-bit Architecture).
pub(crate) const EM_AARCH64: u16 = 183;

/// The machine of a PE file for 64-bit Arm (Microsoft's PE Format, "Machine Types").
pub(crate) const PE_AARCH64: u16 = 0xaa64;

/// Bytes of a U-Boot legacy image header (U-Boot's include/image.h).
pub(crate) const UIMAGE_HEADER_SIZE: u64 = 64;

impl Format {
    /// What a file that starts with these bytes is.
    pub fn of(start: &[u8]) -> Self {
        let fields = Le(start);
        if fields.has(0, b"\x7fELF") {
            let machine = fields.u16(18).unwrap_or_default();
            let big_endian = fields.has(5, &[2]);
            return Self::Elf(if big_endian { machine.swap_bytes() } else { machine });
        }
        if fields.has(0, b"\x27\x05\x19\x56") {
            return Self::UImage(UImageType(start.get(30).copied().unwrap_or_default()));
        }
        if fields.has(0, b"\xd0\x0d\xfe\xed") {
            // A FIT is a device tree whose root has a node of this name, before all data.
            let fit = start.windows(8).any(|bytes| bytes == b"images\0\0");
            return if fit { Self::Fit } else { Self::DeviceTree };
        }
        if let Some((_, _, format)) =
            MAGICS.iter().find(|(offset, magic, _)| fields.has(*offset, magic))
        {
            return *format;
        }
        if let Some(machine) = pe_machine(fields) {
            return Self::Efi(machine);
        }
        match start {
            [] => Self::Empty,
            _ if start.iter().all(|byte| *byte == 0) => Self::Zeroes,
            _ if is_text(start) => Self::Text,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arm64Kernel => "an arm64 Linux kernel (Image)",
            Self::Zboot => "an EFI zboot kernel (vmlinuz.efi)",
            Self::X86Kernel => "an x86 Linux kernel (bzImage)",
            Self::RiscvKernel => "a RISC-V Linux kernel (Image)",
            Self::Arm32Kernel => "a 32-bit Arm Linux kernel (zImage)",
            Self::Elf(EM_AARCH64) => "an ELF file for AArch64 (vmlinux?)",
            Self::Elf(machine) => {
                return match machine_name(|elf, _| elf == *machine && elf != 0) {
                    Some(name) => write!(f, "an ELF file for {name}"),
                    None => write!(f, "an ELF file for machine {machine}"),
                };
            }
            Self::Efi(machine) => {
                return match machine_name(|_, pe| pe == *machine && pe != 0) {
                    Some(name) => write!(f, "an EFI program for {name}"),
                    None => write!(f, "an EFI program for machine {machine:#06x}"),
                };
            }
            Self::Compressed(compressor) => {
                return write!(f, "compressed by {}", compressor.command());
            }
            Self::UImage(kind) => return write!(f, "a U-Boot uImage ({kind})"),
            Self::Fit => "a U-Boot FIT",
            Self::DeviceTree => "a device tree blob",
            Self::AndroidBoot => "an Android boot image",
            Self::Cpio => "a cpio archive (an initrd?)",
            Self::OldCpio => "a cpio archive in another format than Linux' (newc)",
            Self::FileSystem(kind) => return write!(f, "{kind}"),
            Self::Tar => "a tar archive",
            Self::Zip => "a zip archive",
            Self::DiskImage(kind) => return write!(f, "{kind}"),
            Self::Disk => "a disk image with a boot sector",
            Self::Script => "a script",
            Self::Text => "text",
            Self::Zeroes => "nothing but zeroes where its header should be",
            Self::Empty => "empty",
            Self::Unknown => "of an unknown format",
        })
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "an ext2, ext3 or ext4 file system",
            Self::Squashfs => "a squashfs file system",
            Self::Cramfs => "a cramfs file system",
            Self::Romfs => "a romfs file system",
            Self::Minix => "a minix file system",
        })
    }
}

impl fmt::Display for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qcow2 => "a qcow2 disk image",
            Self::Qed => "a QED disk image",
            Self::Vmdk => "a VMDK disk image",
            Self::Vdi => "a VDI disk image",
            Self::Vhd => "a VHD disk image",
            Self::Vhdx => "a VHDX disk image",
            Self::Parallels => "a Parallels disk image",
        })
    }
}

impl fmt::Display for UImageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "a standalone program",
            2 => "a kernel",
            3 => "a RAM disk",
            4 => "several files",
            5 => "firmware",
            6 => "a script",
            7 => "a file system",
            8 => "a device tree",
            other => return write!(f, "type {other}"),
        })
    }
}

impl Compressor {
    /// The command that compresses and, with `-d`, decompresses.
    pub fn command(self) -> &'static str {
        match self {
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4Legacy | Self::Lz4 => "lz4",
            Self::Lzop => "lzop",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// Little-endian fields at the start of a file, which may be cut short: every access is checked.
#[derive(Clone, Copy)]
pub(crate) struct Le<'a>(pub(crate) &'a [u8]);

impl Le<'_> {
    /// The bytes of one field at `offset`.
    fn field<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    /// 16 bits at `offset`.
    pub(crate) fn u16(self, offset: usize) -> Option<u16> {
        self.field(offset).map(u16::from_le_bytes)
    }

    /// 32 bits at `offset`.
    pub(crate) fn u32(self, offset: usize) -> Option<u32> {
        self.field(offset).map(u32::from_le_bytes)
    }

    /// 64 bits at `offset`.
    pub(crate) fn u64(self, offset: usize) -> Option<u64> {
        self.field(offset).map(u64::from_le_bytes)
    }

    /// Whether `magic` is at `offset`.
    pub(crate) fn has(self, offset: usize, magic: &[u8]) -> bool {
        self.0.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    }
}

/// The machine of a PE file (Microsoft's PE Format, "COFF File Header").
fn pe_machine(fields: Le<'_>) -> Option<u16> {
    if !fields.has(0, b"MZ") {
        return None;
    }
    let pe = usize::try_from(fields.u32(0x3c)?).ok()?;
    if !fields.has(pe, b"PE\0\0") {
        return None;
    }
    fields.u16(pe.checked_add(4)?)
}

/// Machines of ELF (`e_machine`) and PE files, as people call them; 0 where there is no number.
const MACHINES: &[(u16, u16, &str)] = &[
    (3, 0x014c, "32-bit x86"),
    (8, 0, "MIPS"),
    (21, 0, "64-bit PowerPC"),
    (22, 0, "s390"),
    (40, 0x01c4, "32-bit Arm"),
    (40, 0x01c2, "32-bit Arm"),
    (62, 0x8664, "x86-64"),
    (EM_AARCH64, PE_AARCH64, "AArch64"),
    (243, 0x5064, "RISC-V"),
    (258, 0x6264, "LoongArch"),
];

/// The name of the machine of which this is so.
fn machine_name(is_it: impl Fn(u16, u16) -> bool) -> Option<&'static str> {
    MACHINES.iter().find(|(elf, pe, _)| is_it(*elf, *pe)).map(|(.., name)| *name)
}

/// Whether all of it is UTF-8 without control characters; the last character may be cut off.
fn is_text(start: &[u8]) -> bool {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => {
            let whole = start.get(..e.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(whole).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bytes` at `offset` of the start of a file.
    fn sample(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; START_SIZE];
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    }

    #[test]
    fn every_magic_number_is_found_where_it_belongs_and_nowhere_else() {
        for (offset, magic, format) in MAGICS {
            assert_eq!(Format::of(&sample(*offset, magic)), *format);
            assert_ne!(Format::of(&sample(offset + 1, magic)), *format);
            assert_ne!(Format::of(&sample(*offset, magic)[..offset + magic.len() - 1]), *format);
        }
    }

    #[test]
    fn what_u_boot_takes_is_told_by_what_it_holds() {
        let mut file = sample(0, b"\x27\x05\x19\x56");
        file[30] = 2;
        assert_eq!(Format::of(&file).to_string(), "a U-Boot uImage (a kernel)");
        assert_eq!(Format::of(&file[..8]).to_string(), "a U-Boot uImage (type 0)");
        let mut file = sample(0, b"\xd0\x0d\xfe\xed");
        assert_eq!(Format::of(&file), Format::DeviceTree);
        file[100..106].copy_from_slice(b"images");
        assert_eq!(Format::of(&file), Format::Fit);
    }

    #[test]
    fn elf_files_name_their_machine_in_either_endianness() {
        let elf = |class: u8, data: u8, machine: [u8; 2]| {
            let mut file = sample(0, &[0x7f, b'E', b'L', b'F', class, data, 1]);
            file[18..20].copy_from_slice(&machine);
            Format::of(&file).to_string()
        };
        assert_eq!(elf(2, 1, [183, 0]), "an ELF file for AArch64 (vmlinux?)");
        assert_eq!(elf(2, 2, [0, 183]), "an ELF file for AArch64 (vmlinux?)");
        assert_eq!(elf(2, 1, [62, 0]), "an ELF file for x86-64");
        assert_eq!(elf(1, 1, [0xff, 0xff]), "an ELF file for machine 65535");
        assert_eq!(Format::of(b"\x7fELF"), Format::Elf(0));
    }

    #[test]
    fn efi_programs_name_their_machine() {
        let mut file = sample(0, b"MZ");
        file[0x3c] = 0x80;
        file[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
        assert_eq!(Format::of(&file).to_string(), "an EFI program for x86-64");
        file[0x3c..0x40].fill(0xff);
        assert_eq!(Format::of(&file), Format::Unknown);
    }

    #[test]
    fn text_scripts_and_zeroes_are_told_apart() {
        assert_eq!(Format::of(b"#!/bin/sh\nexit\n"), Format::Script);
        assert_eq!(Format::of("Gr\u{fc}\u{df}e\n".as_bytes()), Format::Text);
        // The last character is cut off by the end of what was read.
        assert_eq!(Format::of(&"Gr\u{fc}".as_bytes()[..3]), Format::Text);
        assert_eq!(Format::of(b"ab\x07"), Format::Unknown);
        assert_eq!(Format::of(&[0; 100]), Format::Zeroes);
        assert_eq!(Format::of(&[0xff; 100]), Format::Unknown);
    }
}
