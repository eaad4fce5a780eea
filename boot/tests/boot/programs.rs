//! Programs that are no Linux kernel: ELF files and raw binaries.

#[cfg(target_arch = "aarch64")]
use boot::file::FileFault;
use boot::help::Help;
use boot::kernel::{Kernel, Packaging};
use boot::layout::{self, MAX_DTB_SIZE, Placement, Ram};

use crate::support::files::{ET_DYN, ET_EXEC, ElfSegment, RAM, RAM_SIZE, elf};
#[cfg(target_arch = "aarch64")]
use crate::support::files::{assert_loaded, ram};
use crate::support::random::Xorshift;
use crate::support::scratch::Scratch;

/// Where the program's first segment is in memory, and its second.
const FIRST: u64 = RAM + 0x30_0000;
const SECOND: u64 = RAM + 0x40_0000;

/// A program that is linked to `offset` above where it is loaded, and whose second segment begins with
/// zeroes.
fn program(kind: u16, offset: u64) -> Vec<u8> {
    let part = |phys, bytes, size| ElfSegment { virt: phys + offset, phys, bytes, size };
    let parts = [part(FIRST, &[1; 300], 300), part(SECOND, &[2; 5], 0x2_0000)];
    elf(kind, FIRST + offset + 8, &parts)
}

#[test]
fn an_elf_program_lies_where_it_is_linked_to_and_is_entered_there() {
    let scratch = Scratch::new();
    for offset in [0, 0x10_0000_0000] {
        let path = scratch.write("app.elf", program(ET_EXEC, offset));
        let kernel = Kernel::open(&path, None).unwrap();
        assert_eq!((kernel.packaging(), kernel.is_linux()), (Packaging::Elf, false));
        assert_eq!((kernel.page_size(), kernel.shortage()), (None, None));
        let placement = kernel.placement(RAM, RAM_SIZE).unwrap();
        let expected =
            Placement { load: FIRST, entry: FIRST + 8, end: SECOND + 0x2_0000, open_end: false };
        assert_eq!(placement, expected);
        #[cfg(target_arch = "aarch64")]
        {
            let memory = ram();
            kernel.load_into(&memory, placement.load).unwrap();
            assert_loaded(&memory, FIRST, &[1; 300]);
            assert_loaded(&memory, SECOND, &[2; 5]);
        }
    }
}

#[test]
fn the_device_tree_is_at_the_base_of_ram_where_a_program_leaves_room() {
    let ram = Ram { base: RAM, size: RAM_SIZE };
    let of = |load, end| {
        let kernel = Placement { load, entry: load, end, open_end: false };
        let layout = layout::layout(ram, kernel, MAX_DTB_SIZE, Some(0x1000)).unwrap();
        (layout.dtb, layout.initrd.unwrap().start)
    };
    assert_eq!(of(FIRST, SECOND), (RAM, SECOND));
    assert_eq!(of(RAM, SECOND), (SECOND, SECOND + MAX_DTB_SIZE));
    assert_eq!(of(RAM + MAX_DTB_SIZE, SECOND), (RAM, SECOND));
    assert_eq!(of(RAM + MAX_DTB_SIZE - 4, SECOND).0, SECOND);
}

#[test]
fn a_raw_binary_lies_where_it_is_asked_for() {
    let scratch = Scratch::new();
    let path = scratch.write("app.bin", [7; 5000]);
    let kernel = Kernel::open(&path, Some(FIRST)).unwrap();
    assert_eq!((kernel.packaging(), kernel.is_linux()), (Packaging::Raw, false));
    let placement = kernel.placement(RAM, RAM_SIZE).unwrap();
    assert_eq!(
        placement,
        Placement { load: FIRST, entry: FIRST, end: FIRST + 5000, open_end: true }
    );
    #[cfg(target_arch = "aarch64")]
    {
        let memory = ram();
        kernel.load_into(&memory, placement.load).unwrap();
        assert_loaded(&memory, FIRST, &[7; 5000]);
        let kernel = Kernel::open(&path, Some(FIRST)).unwrap();
        scratch.write("app.bin", [7; 10]);
        let fault = kernel.load_into(&ram(), FIRST).unwrap_err().fault;
        assert!(matches!(fault, FileFault::Shrunk { .. }), "{fault:?}");
    }
    for at in [0, RAM - 4, RAM + RAM_SIZE - 4, u64::MAX] {
        let error = Kernel::open(&path, Some(at)).unwrap().placement(RAM, RAM_SIZE).unwrap_err();
        assert!(error.to_string().contains("where the guest has no RAM"), "{error}");
        assert!(error.help().is_some());
    }
}

#[test]
fn what_is_no_program_for_this_machine_says_why() {
    let part = |phys, size| ElfSegment { virt: phys, phys, bytes: &[0; 16], size };
    let cut = program(ET_EXEC, 0);
    let mut big = program(ET_EXEC, 0);
    big[5] = 2;
    big[18..20].copy_from_slice(&[0, 183]);
    let mut many = program(ET_EXEC, 0);
    many[56..58].fill(0xff);
    for (file, text, help) in [
        (program(ET_DYN, 0), "no program that is linked to fixed addresses", "link it to"),
        (elf(ET_EXEC, RAM, &[]), "is an ELF file with nothing to load", "readelf -lW "),
        (elf(ET_EXEC, RAM, &[part(RAM, 0)]), "with nothing to load", "readelf -lW "),
        (cut[..64].to_vec(), "is an ELF file that is damaged", "readelf -lW "),
        (many, "is an ELF file that is damaged", "readelf -lW "),
        (cut[..cut.len() - 1].to_vec(), "is truncated", "copy or download it again"),
        (big, "is big-endian", "build it with"),
    ] {
        let scratch = Scratch::new();
        let error = Kernel::open(&scratch.write("app.elf", file), None).unwrap_err();
        assert!(error.to_string().contains(text), "{error}\n instead of\n{text}");
        assert!(error.help().unwrap_or_default().starts_with(help), "{error}: {:?}", error.help());
    }
    let scratch = Scratch::new();
    for (phys, size, help) in [
        (0, 16, "link it to"),
        (RAM + RAM_SIZE, 100 << 20, "--memory 192M"),
        (RAM, RAM_SIZE + 1, "--memory 64M"),
    ] {
        let path = scratch.write("app.elf", elf(ET_EXEC, phys, &[part(phys, size)]));
        let error = Kernel::open(&path, None).unwrap().placement(RAM, RAM_SIZE).unwrap_err();
        assert!(error.to_string().contains("has no RAM: that is at 0x40000000-"), "{error}");
        assert!(error.help().unwrap_or_default().starts_with(help), "{:?}", error.help());
    }
}

#[test]
fn no_program_however_mangled_makes_reading_it_panic() {
    let whole = program(ET_EXEC, 0);
    let mut random = Xorshift(0x2545_f491_4f6c_dd1d);
    let scratch = Scratch::new();
    let mut accepted = 0;
    for _ in 0..1000 {
        // Its headers are where it counts.
        let mut mangled = random.mangled(&whole[..256]);
        mangled.extend_from_slice(whole.get(mangled.len()..).unwrap_or_default());
        match Kernel::open(&scratch.write("mangled", &mangled), None) {
            Ok(kernel) => {
                let placed = kernel.placement(RAM, RAM_SIZE);
                accepted += u32::from(placed.is_ok());
                #[cfg(target_arch = "aarch64")]
                let _ = kernel.load_into(&ram(), RAM);
            }
            Err(error) => drop((error.to_string(), error.help())),
        }
    }
    assert!(accepted > 50, "the files are too mangled to show anything: {accepted}");
}
