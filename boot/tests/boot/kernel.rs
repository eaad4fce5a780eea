//! Kernel files, made here, opened, placed and loaded.

use boot::help::Help;
use std::path::Path;

#[cfg(target_arch = "aarch64")]
use boot::file::FileFault;
use boot::initrd::Initrd;
use boot::kernel::{Kernel, KernelError, KernelFault, Packaging};
use boot::layout::Placement;

use crate::support::files::{
    ET_DYN, ElfSegment, RAM, RAM_SIZE, elf, gzip, image, image_with_stub, uimage, with_magic,
    zboot, zstd,
};
#[cfg(target_arch = "aarch64")]
use crate::support::files::{assert_loaded, ram};
use crate::support::random::Xorshift;
use crate::support::scratch::Scratch;

#[test]
fn every_packaging_is_recognised_placed_and_loaded() {
    let plain = image(300_000, 0x10_0000);
    for (file, packaging) in [
        (plain.clone(), Packaging::Image),
        (gzip(&plain), Packaging::Gzip),
        (zboot("gzip", &gzip(&plain)), Packaging::ZbootGzip),
        (zboot("zstd", &zstd(&plain)), Packaging::ZbootZstd),
        (zboot("zstd22", &zstd(&plain)), Packaging::ZbootZstd),
    ] {
        let scratch = Scratch::new();
        let path = scratch.write("vmlinuz", file);
        let kernel = Kernel::open(&path, None).unwrap();
        assert_eq!(kernel.packaging(), packaging);
        assert_eq!(kernel.page_size(), Some(4096));
        assert_eq!(kernel.name(), path.display().to_string());
        let placement = kernel.placement(RAM, RAM_SIZE).unwrap();
        assert_eq!(
            placement,
            Placement { load: RAM, entry: RAM, end: RAM + 0x10_0000, open_end: false }
        );
        #[cfg(target_arch = "aarch64")]
        {
            let memory = ram();
            kernel.load_into(&memory, placement.load).unwrap();
            assert_loaded(&memory, RAM, &plain);
        }
    }
}

#[test]
#[cfg(target_arch = "aarch64")]
fn what_follows_the_image_is_not_loaded_over_what_follows_the_kernel() {
    let scratch = Scratch::new();
    let signed = image_with_stub(20_000, 0x4000, 0x4000);
    for file in [signed.clone(), gzip(&signed)] {
        let kernel = Kernel::open(&scratch.write("signed", file), None).unwrap();
        let memory = ram();
        kernel.load_into(&memory, RAM).unwrap();
        assert_loaded(&memory, RAM, &signed[..0x4000]);
    }
}

#[test]
fn a_kernel_without_size_is_placed_by_its_files_size() {
    let scratch = Scratch::new();
    let legacy = image(0x1_0000, 0);
    for file in [legacy.clone(), gzip(&legacy)] {
        let kernel = Kernel::open(&scratch.write("legacy", file), None).unwrap();
        let placement = kernel.placement(RAM, RAM_SIZE).unwrap();
        let load = RAM + 0x8_0000;
        assert_eq!(
            placement,
            Placement { load, entry: load, end: load + 0x21_0000, open_end: false }
        );
    }
}

#[test]
fn a_kernel_that_does_not_fit_says_what_would_do() {
    let scratch = Scratch::new();
    let path = scratch.write("Image", image(100, 65 << 20));
    let error = Kernel::open(&path, None).unwrap().placement(RAM, 64 << 20).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "kernel {} doesn't fit: with its BSS it ends 65 MiB behind the base of RAM, which has \
             64 MiB",
            path.display()
        )
    );
    assert_eq!(error.help().as_deref(), Some("--memory 128M"));
}

#[test]
fn what_is_no_arm64_kernel_is_refused_by_the_name_of_what_it_is() {
    let virt = 0xffff_8000_8000_0000;
    let vmlinux = elf(ET_DYN, virt, &[ElfSegment { virt, phys: virt, bytes: &[0; 64], size: 64 }]);
    let x86 = {
        let mut file = with_magic(0, b"\x7fELF\x02\x01\x01");
        file[18..20].copy_from_slice(&[62, 0]);
        file
    };
    let foreign = "strait boots arm64 kernels";
    for (content, text, help) in [
        (
            with_magic(0x202, b"HdrS"),
            format!("is an x86 Linux kernel (bzImage); {foreign}"),
            "build one: make ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- Image",
        ),
        (
            vmlinux,
            format!("is an ELF file for AArch64 (vmlinux?); {foreign}"),
            "use arch/arm64/boot/Image of the same build instead of vmlinux",
        ),
        (x86, format!("is an ELF file for x86-64; {foreign}"), "build one"),
        (with_magic(0, b"BZh9"), format!("is compressed by bzip2; {foreign}"), "bzip2 -dc"),
        (with_magic(0, b"\xfd7zXZ\0"), format!("is compressed by xz; {foreign}"), "xz -dc"),
        (with_magic(0, b"\x02\x21\x4c\x18"), format!("is compressed by lz4; {foreign}"), "lz4 -dc"),
        (
            // Its magic number is where it was, for the most of it is as it was.
            [&b"\x02\x21\x4c\x18"[..], &image(100, 100)[4..]].concat(),
            format!("is compressed by lz4; {foreign}"),
            "lz4 -dc",
        ),
        (zstd(&image(100, 100)), format!("is compressed by zstd; {foreign}"), "zstd -dc"),
        (
            uimage(2, &image(100, 100)),
            format!("is a U-Boot uImage (a kernel); {foreign}"),
            "dumpimage -T kernel",
        ),
        (
            with_magic(0, b"\xd0\x0d\xfe\xed"),
            format!("is a device tree blob; {foreign}"),
            "use arch/arm64/boot/Image; strait makes the guest's device tree itself",
        ),
        (
            with_magic(0, b"070701"),
            format!("is a cpio archive (an initrd?); {foreign}"),
            "strait run --kernel Image --initrd ",
        ),
        (b"#!/bin/sh\n".to_vec(), format!("is a script; {foreign}"), ""),
        (b"console=ttyS0\n".to_vec(), format!("is text; {foreign}"), ""),
        (with_magic(0, b"MZ"), format!("is of an unknown format; {foreign}"), ""),
        (
            gzip(b"070701 an initrd"),
            format!("is gzip'ed, but what it holds is a cpio archive (an initrd?); {foreign}"),
            "use arch/arm64/boot/Image",
        ),
        (
            zboot("gzip", &gzip(&[1; 5000])),
            format!(
                "is an EFI zboot image compressed by gzip, but what it holds is of an \
                 unknown format; {foreign}"
            ),
            "use arch/arm64/boot/Image",
        ),
        (
            zboot("lzma", b"]"),
            "is an EFI zboot image compressed by lzma; strait unpacks gzip and zstd".to_owned(),
            "use arch/arm64/boot/Image",
        ),
        (
            vec![0; 63],
            "is too short to be one: 63 bytes of at least 64".to_owned(),
            "copy or download it again",
        ),
        (
            image(5000, 5000)[..59].to_vec(),
            "is too short to be one: 59 bytes of at least 64".to_owned(),
            "copy or download it again",
        ),
        (
            image_with_stub(20_000, 0x10_0000, 20_001),
            "is truncated: 20000 bytes of at least 20001 that its header describes".to_owned(),
            "copy or download it again",
        ),
        (
            gzip(&image_with_stub(20_000, 0x10_0000, 20_001)),
            "is truncated: 20000 bytes of at least 20001 that its header describes".to_owned(),
            "copy or download it again",
        ),
        (
            zboot("gzip", &gzip(&image(5000, 5000)))[..4100].to_vec(),
            "is truncated: 4100 bytes of at least".to_owned(),
            "copy or download it again",
        ),
    ] {
        let scratch = Scratch::new();
        let path = scratch.write("file", content);
        let error = Kernel::open(&path, None).unwrap_err();
        let wanted = format!("kernel {} {text}", path.display());
        assert!(error.to_string().starts_with(&wanted), "{error}\n instead of\n{wanted}");
        assert!(error.help().unwrap_or_default().starts_with(help), "{error}: {:?}", error.help());
        assert_eq!(error.help().is_none(), help.is_empty(), "{error}: {:?}", error.help());
    }
}

#[test]
fn big_endian_kernels_are_refused_however_they_are_packed() {
    let mut big = image(5000, 5000);
    big[24] |= 1;
    for file in [big.clone(), gzip(&big), zboot("zstd", &zstd(&big))] {
        let scratch = Scratch::new();
        let error = Kernel::open(&scratch.write("Image", file), None).unwrap_err();
        assert!(
            matches!(error, KernelError::Content { fault: KernelFault::BigEndian, .. }),
            "{error}"
        );
    }
}

#[test]
fn compressed_kernels_that_end_early_or_are_damaged_say_so() {
    let plain = image(300_000, 0x10_0000);
    let packed = gzip(&plain);
    let mut damaged = packed.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 32].fill(0xff);
    let frame = zstd(&plain);
    // A frame with a checksum that can't be that of its content.
    let mut checked = frame.clone();
    checked[4] |= 1 << 2;
    checked.extend_from_slice(&[1, 2, 3, 4]);
    // The second block has the reserved type 3 (RFC 8878, 3.1.1.2.2).
    let mut reserved = frame.clone();
    reserved[6 + 3 + 100_000] |= 6;
    for (file, text) in [
        (packed[..packed.len() - 1].to_vec(), "its data ends early"),
        (packed[..packed.len() / 2].to_vec(), "its data ends early"),
        (zboot("gzip", &packed[..packed.len() / 2]), "its data ends early"),
        (zboot("zstd", &frame[..frame.len() - 1]), "its data ends early"),
        (zboot("zstd", &frame[..3]), "its data ends early"),
        (damaged, "its data is damaged"),
        (zboot("zstd", &reserved), "its data is damaged"),
        (zboot("zstd", &checked), "its data is damaged: the checksum is wrong"),
        (zboot("zstd", &packed), "its data is damaged"),
    ] {
        let scratch = Scratch::new();
        let error = Kernel::open(&scratch.write("vmlinuz", file), None).unwrap_err();
        assert!(
            matches!(error, KernelError::Content { fault: KernelFault::Unpack { .. }, .. }),
            "{error}"
        );
        assert!(error.to_string().ends_with(&format!("can't be unpacked: {text}")), "{error}");
    }
}

#[test]
fn what_is_no_file_is_refused_for_kernel_and_initrd_alike() {
    let scratch = Scratch::new();
    let empty = scratch.write("empty", "");
    let missing = scratch.path().join("missing");
    for (path, text) in [
        (missing.as_path(), "doesn't exist"),
        (scratch.path(), "is a directory, not a file"),
        (&empty, "is empty"),
        (Path::new("/dev/null"), "isn't a regular file"),
    ] {
        let kernel = Kernel::open(path, None).unwrap_err();
        assert_eq!(kernel.to_string(), format!("kernel {} {text}", path.display()));
        let initrd = Initrd::open(path, false).unwrap_err();
        assert_eq!(initrd.to_string(), format!("initrd {} {text}", path.display()));
        assert!(kernel.help().is_some() && initrd.help().is_some());
    }
}

#[test]
#[cfg(target_arch = "aarch64")]
fn files_that_shrink_and_memory_that_ends_are_errors_not_short_loads() {
    let scratch = Scratch::new();
    let kernel = Kernel::open(&scratch.write("Image", image(10_000, 10_000)), None).unwrap();
    scratch.write("Image", image(6000, 6000));
    let result = kernel.load_into(&ram(), RAM);
    let fault = result.unwrap_err().fault;
    let FileFault::Shrunk { expected: 10_000, found: 6000 } = fault else {
        panic!("{fault:?}");
    };
    for packed in [image(10_000, 10_000), gzip(&image(10_000, 10_000))] {
        let kernel = Kernel::open(&scratch.write("Image", packed), None).unwrap();
        let error = kernel.load_into(&ram(), RAM + RAM_SIZE - 9999).unwrap_err();
        assert!(matches!(error.fault, FileFault::Memory { .. }), "{error:?}");
    }
}

#[test]
fn no_file_however_mangled_makes_reading_it_panic() {
    let plain = image_with_stub(8192, 0x4000, 8192);
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let scratch = Scratch::new();
    let mut accepted = 0;
    for file in
        [plain.clone(), gzip(&plain), zboot("gzip", &gzip(&plain)), zboot("zstd", &zstd(&plain))]
    {
        for _ in 0..300 {
            let mangled = random.mangled(&file);
            match Kernel::open(&scratch.write("mangled", &mangled), None) {
                Ok(kernel) => {
                    accepted += 1;
                    let _ = kernel.placement(RAM, RAM_SIZE);
                    #[cfg(target_arch = "aarch64")]
                    let _ = kernel.load_into(&ram(), RAM);
                }
                Err(error) => drop((error.to_string(), error.help())),
            }
        }
    }
    assert!(accepted > 100, "the files are too mangled to show anything: {accepted}");
}
