//! Which files can be disks.

use boot::help::Help;

use super::*;

fn fault(path: &Path, access: Access) -> (String, String) {
    match Image::open(path, access) {
        Ok(image) => panic!("{image:?}"),
        Err(e) => (e.to_string(), e.help().unwrap_or_default()),
    }
}

#[test]
fn what_is_no_raw_image_is_refused_by_name() {
    let with = |at: usize, magic: &[u8]| {
        let mut bytes = vec![0; 8192];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        TempFile::new(&bytes)
    };
    for (file, name, command) in [
        (with(0, b"QFI\xfb"), "qcow2", "qemu-img convert -O raw "),
        (with(0, b"KDMV"), "VMDK", "qemu-img convert -O raw "),
        (with(0, b"# Disk DescriptorFile"), "VMDK", "qemu-img convert -O raw "),
        (with(0x40, b"\x7f\x10\xda\xbe"), "VDI", "qemu-img convert -O raw "),
        (with(0, b"vhdxfile"), "VHDX", "qemu-img convert -O raw "),
        (with(0, b"conectix"), "VHD ", "qemu-img convert -f vpc -O raw "),
        (with(8192 - 512, b"conectix"), "VHD ", "qemu-img convert -f vpc -O raw "),
        (with(0, b"\xfd7zXZ\0"), "compressed by xz", "xz -dc "),
        (with(0, b"\x1f\x8b\x08"), "compressed by gzip", "gzip -dc "),
        (with(0, b"\x28\xb5\x2f\xfd"), "compressed by zstd", "zstd -dc "),
    ] {
        let (error, help) = fault(&file.0, RO);
        assert!(error.contains(name), "{error}");
        assert!(help.starts_with(command), "{help}");
    }
    for (at, magic) in [(510, &b"\x55\xaa"[..]), (0x438, b"\x53\xef"), (0, b"\x1f\x8b\x07")] {
        Image::open(&with(at, magic).0, RW).unwrap();
    }
}

#[test]
fn sizes_are_whole_sectors() {
    let file = TempFile::new(&[0; 1000]);
    let (error, help) = fault(&file.0, RW);
    assert!(error.contains("no multiple of its 512-byte sectors"), "{error}");
    assert!(help.starts_with("truncate -s %512 "), "{help}");
    let (error, _) = fault(&TempFile::new(b"").0, RW);
    assert!(error.contains("is empty"), "{error}");
}

#[test]
fn what_is_neither_file_nor_block_device_is_refused() {
    let (error, _) = fault(Path::new("/nonexistent/disk"), RW);
    assert!(error.contains("doesn't exist"), "{error}");
    for access in [RW, RO] {
        let (error, _) = fault(Path::new("/tmp"), access);
        assert!(error.contains("is a directory"), "{error}");
        let (error, _) = fault(Path::new("/dev/null"), access);
        assert!(error.contains("neither a file nor a block device"), "{error}");
        let file = TempFile::new(b"");
        fs::remove_file(&file.0).unwrap();
        let path = std::ffi::CString::new(file.0.to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let (error, _) = fault(&file.0, access);
        assert!(error.contains("neither a file nor a block device"), "{error}");
    }
}

#[test]
fn one_writer_or_several_readers_have_an_image() {
    let file = TempFile::disk();
    let open = |access| Image::open(&file.0, access).unwrap();
    let (reader, other, snapshot, writer) = (open(RO), open(RO), open(SNAPSHOT), open(RW));
    reader.lock().unwrap();
    other.lock().unwrap();
    snapshot.lock().unwrap();
    let error = writer.lock().unwrap_err();
    assert!(error.to_string().contains("has locked it"), "{error}");
    assert!(error.help().unwrap().contains("fuser -v"));
    drop((reader, other, snapshot));
    writer.lock().unwrap();
    assert!(open(RO).lock().is_err());
    assert!(writer.conflicts_with(&open(RO)) && !open(SNAPSHOT).conflicts_with(&open(RO)));
    let another = TempFile::disk();
    assert!(!writer.conflicts_with(&Image::open(&another.0, RW).unwrap()));
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let file = TempFile::disk();
    let image = Arc::new(Image::open(&file.0, RW).unwrap());
    let mut block = Block::new("block0".into(), image, &BlockOptions::new(&file.0), 3).unwrap();
    let mut config = [0xff; 64];
    block.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 510u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[34..36], 3u16.to_le_bytes());
    assert_eq!(config[60..], [0; 4]);
    assert_eq!(block.queue_sizes(), [512; 3]);
    let mut part = [0xff; 2];
    block.read_config(u64::MAX, &mut part);
    assert_eq!(part, [0; 2]);
}
