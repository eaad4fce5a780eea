//! Initrd files, made here: what Linux takes is loaded, the rest is refused by name.

use boot::help::Help;
use std::fs;

use boot::file::{FileError, FileFault};
use boot::initrd::{Initrd, InitrdError, InitrdFault};

use crate::support::files::{
    RAM, assert_loaded, cpio, gzip, image, padded_cpio, ram, uimage, with_magic, zboot, zstd,
};
use crate::support::random::Xorshift;
use crate::support::scratch::Scratch;

/// What becomes of a file with this content.
fn open(content: &[u8], is_root: bool) -> Result<Initrd, InitrdError> {
    let scratch = Scratch::new();
    Initrd::open(&scratch.write("initrd", content), is_root)
}

/// What is wrong with a file with this content, if it is refused for that.
fn fault(content: &[u8]) -> Option<InitrdFault> {
    match open(content, false) {
        Ok(_) => None,
        Err(InitrdError::Content { fault, .. }) => Some(fault),
        Err(error) => panic!("{error}"),
    }
}

/// Two of them, one behind the other.
fn both(mut first: Vec<u8>, second: &[u8]) -> Vec<u8> {
    first.extend_from_slice(second);
    first
}

#[test]
fn whatever_linux_unpacks_is_taken_and_loaded_whole() {
    let (plain, padded) = (cpio(3000), padded_cpio(5000));
    let mut zeroes = padded.clone();
    zeroes.resize(20_000, 0);
    for content in [
        plain.clone(),
        padded.clone(),
        gzip(&plain),
        gzip(&padded),
        // Sizes that say nothing: it is unpacked to know that it is whole.
        gzip(&plain[..plain.len() - 1]),
        gzip(&both(padded.clone(), &[0; 1 << 20])),
        zstd(&padded),
        with_magic(0, b"BZh9"),
        with_magic(0, b"\xfd7zXZ\0\0\x01"),
        with_magic(0, b"\x5d\0\0"),
        with_magic(0, b"\x02\x21\x4c\x18"),
        with_magic(0, b"\x89LZO\0\r\n\x1a\n"),
        zeroes,
        both(vec![0; 512], &gzip(&padded)),
        both(plain.clone(), &padded),
        both(padded.clone(), &gzip(&plain)),
        both(padded.clone(), &zstd(&plain)),
        both(gzip(&padded), &gzip(&plain)),
        both(gzip(&plain), &[0; 4000]),
        both(gzip(&plain), &plain),
        // A crash kernel's initrd: large padding between the two.
        both(both(plain.clone(), &[0; 100_000]), &gzip(&padded)),
    ] {
        let initrd = open(&content, false).unwrap();
        assert_eq!(initrd.size(), content.len() as u64);
        let memory = ram();
        initrd.load_into(&memory, RAM + 12345).unwrap();
        assert_loaded(&memory, RAM + 12345, &content);
    }
}

#[test]
fn u_boots_header_is_left_out() {
    for inside in [padded_cpio(3000), gzip(&cpio(3000))] {
        let content = both(uimage(3, &inside), b"behind");
        let memory = ram();
        open(&content, false).unwrap().load_into(&memory, RAM).unwrap();
        assert_loaded(&memory, RAM, &inside);
    }
    for (content, text) in [
        (uimage(3, &image(5000, 5000)), "is an arm64 Linux kernel"),
        (uimage(3, &uimage(3, &cpio(1))), "is a U-Boot uImage (a RAM disk)"),
        (uimage(3, &cpio(3000))[..1000].to_vec(), "is cut off: it ends within the data behind"),
        (uimage(3, &[]), "is damaged: the data behind U-Boot's header"),
    ] {
        let error = open(&content, false).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn file_systems_are_taken_where_they_are_the_root() {
    for (content, name) in [
        (with_magic(0x438, b"\x53\xef"), "an ext2, ext3 or ext4 file system"),
        (with_magic(0, b"hsqs"), "a squashfs file system"),
        (with_magic(0, b"\x45\x3d\xcd\x28"), "a cramfs file system"),
        (with_magic(0, b"-rom1fs-"), "a romfs file system"),
        (with_magic(0x410, b"\x8f\x13"), "a minix file system"),
    ] {
        for content in [content.clone(), gzip(&content), uimage(3, &content)] {
            open(&content, true).unwrap();
            let error = open(&content, false).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(error.help().unwrap().starts_with("--cmdline root=/dev/ram0"), "{error}");
        }
    }
    // ext2 begins with 1 KiB of zeroes.
    let mut ext = with_magic(0x438, b"\x53\xef");
    ext[..1024].fill(0);
    open(&ext, true).unwrap();
}

#[test]
fn what_is_no_initrd_is_refused_by_the_name_of_what_it_is() {
    let kernel = image(5000, 5000);
    let takes = "; Linux takes cpio archives";
    for (content, text, help) in [
        (kernel.clone(), "is an arm64 Linux kernel (Image)", "strait run --kernel "),
        (zboot("gzip", &gzip(&kernel)), "is an EFI zboot kernel", "strait run --kernel "),
        (gzip(&kernel), "is gzip'ed, but what it holds is an arm64", "strait run --kernel "),
        (with_magic(0, b"\xd0\x0d\xfe\xed"), "is a device tree blob", "strait makes"),
        (uimage(2, &kernel), "is a U-Boot uImage (a kernel)", "dumpimage -l"),
        (uimage(4, &kernel), "is a U-Boot uImage (several files)", "dumpimage -l"),
        (with_magic(0, b"070707"), "is a cpio archive in another", "mkdir root && cpio"),
        (gzip(b"\xc7\x71"), "is gzip'ed, but what it holds is a cpio", "mkdir root && gzip"),
        (with_magic(257, b"ustar"), "is a tar archive", "mkdir root && tar -xf"),
        (gzip(&with_magic(257, b"ustar")), "what it holds is a tar", "mkdir root && tar -xzf"),
        (with_magic(0, b"QFI\xfb"), "is a qcow2 disk image", "make one of"),
        (vec![0; 100_000], "is nothing but zeroes", "make one of"),
        (vec![0xaa; 100_000], "is of an unknown format", "make one of"),
        (b"07070".to_vec(), "is text", "make one of"),
        (gzip(b""), "is gzip'ed, but what it holds is empty", "make one of"),
    ] {
        let error = open(&content, false).unwrap_err();
        assert!(error.to_string().contains(text), "{error}: no {text}");
        assert!(error.to_string().ends_with(takes) || text.ends_with("zeroes"), "{error}");
        assert!(error.help().unwrap_or_default().starts_with(help), "{error}: {:?}", error.help());
    }
}

#[test]
fn what_linux_does_not_decompress_is_refused() {
    let xz = |check: u8| fault(&with_magic(0, &[0xfd, b'7', b'z', b'X', b'Z', 0, 0, check]));
    assert!(xz(0).is_none() && xz(1).is_none());
    for check in [4, 10] {
        assert!(matches!(xz(check), Some(InitrdFault::XzCheck)), "{check}");
    }
    let lz4 = fault(&with_magic(0, b"\x04\x22\x4d\x18"));
    assert!(matches!(lz4, Some(InitrdFault::Lz4Frame)), "{lz4:?}");
}

#[test]
fn what_is_cut_off_is_refused() {
    let mut random = Xorshift(1 << 40);
    let noise: Vec<u8> = (0..50_000).map(|_| random.next().to_le_bytes()[4]).collect();
    let mut archive = cpio(50_000);
    archive[116..50_116].copy_from_slice(&noise);
    let packed = gzip(&archive);
    let (mut wrong, mut missed) = (0, 0);
    for length in (20..packed.len()).step_by(97) {
        match fault(&packed[..length]) {
            Some(InitrdFault::CutOff { .. }) => (),
            None => missed += 1,
            Some(_) => wrong += 1,
        }
    }
    assert_eq!(wrong, 0);
    assert!(missed <= 5, "{missed} of {} were taken for whole", packed.len() / 97);
    for length in (200..archive.len() - 8).step_by(997) {
        let fault = fault(&archive[..length]);
        assert!(matches!(fault, Some(InitrdFault::CutOff { .. })), "{length}: {fault:?}");
    }
    let mut broken = both(archive.clone(), b"more");
    broken[50_116..50_120].fill(b'x');
    let fault = fault(&broken);
    assert!(matches!(fault, Some(InitrdFault::Damaged { .. })), "{fault:?}");
    let mut broken = packed.clone();
    broken[4000..4100].fill(0xff);
    // Its trailer is there: that it can't be unpacked is the guest's to find.
    open(&broken, false).unwrap();
}

#[test]
fn a_file_that_shrinks_is_an_error_not_a_short_load() {
    let scratch = Scratch::new();
    let initrd = Initrd::open(&scratch.write("initrd", padded_cpio(10_000)), false).unwrap();
    scratch.write("initrd", padded_cpio(6000));
    let expected = fs::metadata(scratch.path().join("initrd")).unwrap().len();
    match initrd.load_into(&ram(), RAM) {
        Err(FileError { fault: FileFault::Shrunk { found, .. }, .. }) => {
            assert_eq!(found, expected);
        }
        other => panic!("{other:?}"),
    }
}
