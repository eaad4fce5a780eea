//! What a file is that isn't an arm64 kernel, told by its first bytes.

use std::fmt;

use super::le::Le;

/// A kind of file that a person may take for a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum Format {
    X86Kernel,
    RiscvKernel,
    Arm32Kernel,
    /// An ELF file for this `e_machine`.
    Elf(u16),
    /// A PE program for this machine.
    Efi(u16),
    /// A compressor's output; its name, as the command that undoes it wants it.
    Compressed(Compressor),
    UImage,
    DeviceTree,
    AndroidBoot,
    Cpio,
    Tar,
    Zip,
    Qcow2,
    Disk,
    Script,
    Text,
    Zeroes,
    Unknown,
}

/// Compressions that strait doesn't undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are names")]
pub enum Compressor {
    Bzip2,
    Xz,
    Lzma,
    Lz4,
    Lzop,
    Zstd,
    Gzip,
}

/// Magic numbers: offset, bytes, meaning.
const MAGICS: &[(usize, &[u8], Format)] = &[
    (0x202, b"HdrS", Format::X86Kernel),
    (48, b"RISCV\0\0\0", Format::RiscvKernel),
    (36, &0x016f_2818_u32.to_le_bytes(), Format::Arm32Kernel),
    (0, b"BZh", Format::Compressed(Compressor::Bzip2)),
    (0, b"\xfd7zXZ\0", Format::Compressed(Compressor::Xz)),
    (0, b"\x5d\0\0", Format::Compressed(Compressor::Lzma)),
    (0, b"\x02\x21\x4c\x18", Format::Compressed(Compressor::Lz4)),
    (0, b"\x04\x22\x4d\x18", Format::Compressed(Compressor::Lz4)),
    (0, b"\x89LZO\0\r\n\x1a\n", Format::Compressed(Compressor::Lzop)),
    (0, b"\x28\xb5\x2f\xfd", Format::Compressed(Compressor::Zstd)),
    (0, b"\x1f\x8b", Format::Compressed(Compressor::Gzip)),
    (0, b"\x27\x05\x19\x56", Format::UImage),
    (0, b"\xd0\x0d\xfe\xed", Format::DeviceTree),
    (0, b"ANDROID!", Format::AndroidBoot),
    (0, b"070701", Format::Cpio),
    (0, b"070702", Format::Cpio),
    (0, b"070707", Format::Cpio),
    (0, b"\xc7\x71", Format::Cpio),
    (257, b"ustar", Format::Tar),
    (0, b"PK\x03\x04", Format::Zip),
    (0, b"QFI\xfb", Format::Qcow2),
    (510, b"\x55\xaa", Format::Disk),
    (0, b"#!", Format::Script),
];

/// `e_machine` of 64-bit Arm (ELF for the Arm 64-bit Architecture).
const EM_AARCH64: u16 = 183;

impl Format {
    /// What a file that starts with these bytes is.
    pub(super) fn of(start: &[u8]) -> Self {
        let fields = Le(start);
        if fields.has(0, b"\x7fELF") {
            let machine = fields.u16(18).unwrap_or_default();
            let big_endian = fields.has(5, &[2]);
            return Self::Elf(if big_endian { machine.swap_bytes() } else { machine });
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
            _ if start.iter().all(|byte| *byte == 0) => Self::Zeroes,
            _ if is_text(start) => Self::Text,
            _ => Self::Unknown,
        }
    }

    /// What mends it for the file at `path`, where something can.
    pub(super) fn help(self, path: &str) -> Option<String> {
        Some(match self {
            Self::Elf(EM_AARCH64) => {
                "use arch/arm64/boot/Image of the same build instead of vmlinux".to_owned()
            }
            Self::X86Kernel | Self::RiscvKernel | Self::Arm32Kernel | Self::Elf(_) => {
                "build one: make ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- Image".to_owned()
            }
            Self::Compressed(compressor) => {
                format!("{} -dc {path} > Image", compressor.command())
            }
            Self::UImage => format!("dumpimage -p 0 -o Image {path}"),
            Self::DeviceTree => format!("for a FIT: dumpimage -T flat_dt -p 0 -o Image {path}"),
            Self::AndroidBoot => format!("unpack_bootimg --boot_img {path}"),
            Self::Cpio => format!("strait run --kernel Image --initrd {path}"),
            Self::Tar => format!("tar -tf {path} shows what is in it"),
            Self::Zip => format!("unzip -l {path} shows what is in it"),
            Self::Qcow2 | Self::Disk => {
                format!("strait run --kernel Image --block {path}")
            }
            Self::Efi(_) | Self::Script | Self::Text | Self::Zeroes | Self::Unknown => {
                return None;
            }
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86Kernel => "an x86 Linux kernel (bzImage)",
            Self::RiscvKernel => "a RISC-V Linux kernel (Image)",
            Self::Arm32Kernel => "a 32-bit Arm Linux kernel (zImage)",
            Self::Elf(EM_AARCH64) => "an ELF file for AArch64 (vmlinux?)",
            Self::Elf(machine) => return write!(f, "an ELF file for {}", elf_machine(*machine)),
            Self::Efi(machine) => return write!(f, "an EFI program for {}", pe_name(*machine)),
            Self::Compressed(compressor) => {
                return write!(f, "compressed by {}", compressor.command());
            }
            Self::UImage => "a U-Boot uImage",
            Self::DeviceTree => "a device tree blob or a U-Boot FIT",
            Self::AndroidBoot => "an Android boot image",
            Self::Cpio => "a cpio archive (an initrd?)",
            Self::Tar => "a tar archive",
            Self::Zip => "a zip archive",
            Self::Qcow2 => "a qcow2 disk image",
            Self::Disk => "a disk image with a boot sector",
            Self::Script => "a script",
            Self::Text => "text",
            Self::Zeroes => "nothing but zeroes where its header should be",
            Self::Unknown => "no kernel: its header has no magic number \"ARM\\x64\"",
        })
    }
}

impl Compressor {
    /// The command that compresses and, with `-d`, decompresses.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Lzop => "lzop",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
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

/// A person's name for an `e_machine`.
fn elf_machine(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        8 => "MIPS".into(),
        21 => "64-bit PowerPC".into(),
        22 => "s390".into(),
        40 => "32-bit Arm".into(),
        62 => "x86-64".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("machine {other}"),
    }
}

/// A person's name for a PE machine.
fn pe_name(machine: u16) -> String {
    match machine {
        0x014c => "32-bit x86".into(),
        0x01c2 | 0x01c4 => "32-bit Arm".into(),
        0x5064 => "RISC-V".into(),
        0x6264 => "LoongArch".into(),
        0x8664 => "x86-64".into(),
        0xaa64 => "AArch64".into(),
        other => format!("machine {other:#06x}"),
    }
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

    /// `bytes` at `offset` of a file of 1 KiB.
    fn sample(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 1024];
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
