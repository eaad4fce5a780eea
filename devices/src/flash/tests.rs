use std::fs;
use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use boot::fdt;
use boot::help::Help;

use super::*;
use crate::bus::{MemorySlots, SharedDevice};
use std::sync::{Arc, Mutex};

const GPA: u64 = 0x0400_0000;
const BLOCK: u64 = 3 * BLOCK_SIZE;
const READY: u32 = 0x0080_0080;

/// Notes what is mapped, and how often that changes.
#[derive(Default)]
struct Slots {
    mapped: Mutex<Option<(u64, u64)>>,
    changes: AtomicUsize,
}

impl MemorySlots for Slots {
    unsafe fn map(&self, _: u64, _: NonNull<u8>, _: u64) -> io::Result<()> {
        panic!("the guest could write to it")
    }

    unsafe fn map_read_only(&self, gpa: u64, _: NonNull<u8>, size: u64) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.mapped.lock().unwrap().replace((gpa, size)), None);
        Ok(())
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        assert_eq!(self.mapped.lock().unwrap().take(), Some((gpa, size)));
        Ok(())
    }
}

fn bank() -> Bank {
    Bank::writable(GPA, None).unwrap()
}

fn read(bank: &Bank, offset: u64) -> u32 {
    let mut data = [0; 4];
    bank.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Writes commands, to both chips, and data.
fn write(bank: &Bank, offset: u64, words: &[u32]) {
    for word in words {
        let _ = bank.write(offset, &word.to_le_bytes());
    }
}

fn erase(bank: &Bank, offset: u64) {
    write(bank, offset, &[0x0020_0020, 0x00d0_00d0]);
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("flash-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        Self(path)
    }

    fn open(&self) -> VariableFile {
        VariableFile::open_or_create(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_block_is_erased_and_programmed_by_words() {
    let bank = bank();
    assert_eq!(read(&bank, BLOCK), 0);
    erase(&bank, BLOCK + 0x1234);
    assert_eq!(read(&bank, BLOCK), READY);
    write(&bank, BLOCK + 8, &[0x0040_0040, 0x1234_5678, 0x00ff_00ff]);
    let words =
        [-4, 0, 4, 8, 12, 0x3_fffc, 0x4_0000].map(|at| read(&bank, BLOCK.wrapping_add_signed(at)));
    assert_eq!(words, [0, u32::MAX, u32::MAX, 0x1234_5678, u32::MAX, u32::MAX, 0]);
    // Programming clears bits and sets none.
    write(&bank, BLOCK + 8, &[0x0010_0010, 0xff00_ff00, 0x00ff_00ff]);
    assert_eq!(read(&bank, BLOCK + 8), 0x1200_5600);
}

#[test]
fn a_buffer_is_programmed_when_it_is_confirmed() {
    let bank = bank();
    erase(&bank, BLOCK);
    let fill = |count: u32, confirm| {
        write(&bank, BLOCK, &[0x00e8_00e8, count << 16 | count]);
        (0..=count).for_each(|at| write(&bank, BLOCK + 4 * u64::from(at), &[0xa000_0000 | at]));
        write(&bank, BLOCK, &[confirm]);
    };
    fill(1023, 0x00d0_00d0);
    assert_eq!(read(&bank, BLOCK), READY);
    write(&bank, BLOCK, &[0xff]);
    assert_eq!(
        [0, 1023, 1024].map(|at| read(&bank, BLOCK + 4 * at)),
        [0xa000_0000, 0xa000_03ff, u32::MAX]
    );
    // Something else than the confirmation, and more than it takes.
    write(&bank, BLOCK, &[0x0050_0050]);
    fill(0, 0x0040_0040);
    assert_eq!(read(&bank, BLOCK) & 0x30, 0x30);
    write(&bank, BLOCK, &[0x0050_0050, 0x00e8_00e8, 0x0400_0400]);
    assert_eq!(read(&bank, BLOCK) & 0x30, 0x30);
    // Data for another buffer.
    write(&bank, BLOCK, &[0x0050_0050, 0x00e8_00e8, 0x0001_0001, 0]);
    write(&bank, BLOCK + 0x1000, &[0]);
    assert_eq!(read(&bank, BLOCK) & 0x30, 0x30);
    write(&bank, BLOCK, &[0x0050_0050]);
    assert_eq!((read(&bank, BLOCK), read(&bank, BLOCK + 0x1000)), (0xa000_0000, u32::MAX));
}

#[test]
fn a_buffer_belongs_where_its_data_go() {
    let bank = bank();
    erase(&bank, BLOCK);
    // As U-Boot does, which sends all commands to the start of a block, here by halves of the bank's width.
    let half = |offset, value: u16| {
        let _ = bank.write(offset, &value.to_le_bytes());
    };
    half(BLOCK, 0xe8);
    half(BLOCK, 1);
    half(BLOCK + 0x1_2000, 0x1234);
    half(BLOCK + 0x1_2002, 0x5678);
    half(BLOCK, 0xd0);
    assert_eq!(read(&bank, BLOCK), READY);
    write(&bank, 0, &[0xff]);
    let words = [0, 0x1_2000, 0x1_2004].map(|at| read(&bank, BLOCK + at));
    assert_eq!(words, [u32::MAX, 0x5678_1234, u32::MAX]);
}

#[test]
fn nothing_is_erased_without_a_confirmation() {
    let bank = bank();
    write(&bank, BLOCK, &[0x0020_0020, 0x0000_0000, 0x00ff_00ff]);
    assert_eq!(read(&bank, BLOCK), 0);
    write(&bank, BLOCK, &[0x0070_0070]);
    assert_eq!(read(&bank, BLOCK) & 0x30, 0x30);
    write(&bank, BLOCK, &[0x0050_0050, 0x0070_0070]);
    assert_eq!(read(&bank, BLOCK), READY);
    write(&bank, BLOCK, &[0x0020_0020, 0x00ff_00ff]);
    assert_eq!(read(&bank, BLOCK), 0);
}

#[test]
fn firmware_s_own_bank_says_that_it_is_locked() {
    let bank = Bank::read_only(0, &[1, 2, 3, 4][..]).unwrap();
    erase(&bank, 0);
    assert_eq!(read(&bank, 0), READY | 0x0022_0022);
    write(&bank, 0, &[0x0050_0050, 0x0040_0040, 0]);
    assert_eq!(read(&bank, 0), READY | 0x0012_0012);
    write(&bank, 0, &[0x0090_0090]);
    assert_eq!([0, 4, 8].map(|at| read(&bank, at)), [0x0089_0089, 0x0018_0018, 0x0001_0001]);
    write(&bank, 0, &[0x00ff_00ff]);
    assert_eq!(read(&bank, 0), 0x0403_0201);
}

#[test]
fn the_query_table_describes_the_bank() {
    let bank = bank();
    // As U-Boot asks, which writes to each width that there may be.
    write(&bank, 0x55 * 4, &[0x0098_0098]);
    let byte = |at: u64| {
        let word = read(&bank, at * 4);
        assert_eq!(word & 0xffff, word >> 16);
        u64::from(word & 0xffff)
    };
    assert_eq!([0x10, 0x11, 0x12].map(byte), [b'Q', b'R', b'Y'].map(u64::from));
    assert_eq!((byte(0x13), byte(0x15), byte(0x28)), (1, 0x31, 1));
    assert_eq!([0x31, 0x32, 0x33].map(byte), [b'P', b'R', b'I'].map(u64::from));
    assert_eq!((2 << byte(0x27), 2 << byte(0x2a)), (BANK_SIZE, BUFFER_SIZE as u64));
    let blocks = (byte(0x2d) | byte(0x2e) << 8) + 1;
    let size = 2 * 256 * (byte(0x2f) | byte(0x30) << 8);
    assert_eq!((byte(0x2c), size, size * blocks), (1, BLOCK_SIZE, BANK_SIZE));
    assert_eq!([0, 0x0f, 0x40, 0xff_ffff].map(byte), [0; 4]);
    // Each byte by itself.
    let mut byte = [0xff];
    let lanes = [0x40, 0x41, 0x42, 0x43].map(|at| {
        bank.read(at, &mut byte);
        byte[0]
    });
    assert_eq!(lanes, [b'Q', 0, b'Q', 0]);
}

#[test]
fn a_bank_is_a_slot_while_it_is_read_like_memory() {
    let slots = Arc::new(Slots::default());
    let mapped = || *slots.mapped.lock().unwrap();
    let bank = bank();
    bank.map_through(slots.clone()).unwrap();
    let all = Some((GPA, BANK_SIZE));
    assert_eq!(mapped(), all);
    // A reset changes nothing.
    write(&bank, 0, &[0x00ff_00ff, 0x00f0_00f0, 0x0050_0050]);
    assert_eq!((mapped(), slots.changes.load(Ordering::Relaxed)), (all, 1));
    erase(&bank, BLOCK);
    assert_eq!(mapped(), None);
    write(&bank, 0, &[0x0070_0070, 0x0098_0098, 0x0090_0090]);
    assert_eq!((mapped(), slots.changes.load(Ordering::Relaxed)), (None, 2));
    write(&bank, 0, &[0x00ff_00ff]);
    assert_eq!(mapped(), all);
    drop(bank);
    assert_eq!(mapped(), None);
}

#[test]
fn eight_bytes_are_two_words() {
    let bank = bank();
    erase(&bank, BLOCK);
    let _ = bank.write(BLOCK, &[0x40, 0, 0x40, 0, 1, 2, 3, 4]);
    write(&bank, 0, &[0xff]);
    let mut data = [0; 8];
    bank.read(BLOCK, &mut data);
    assert_eq!(data, [0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]);
}

#[test]
fn what_is_changed_is_in_the_file_afterwards() {
    for started in [true, false] {
        let scratch = Scratch::new(&format!("kept-{started}"));
        let bank = Bank::writable(GPA, Some(scratch.open())).unwrap();
        if started {
            bank.start().unwrap();
        }
        assert_eq!(fs::metadata(&scratch.0).unwrap().len(), 0);
        erase(&bank, BLOCK);
        write(&bank, BLOCK, &[0x40, 0x1234_5678]);
        bank.finish().unwrap();
        assert_eq!(fs::metadata(&scratch.0).unwrap().len(), BLOCK + BLOCK_SIZE);
        drop(bank);
        let bank = Bank::writable(GPA, Some(scratch.open())).unwrap();
        let words = [0, BLOCK, BLOCK + 4, BLOCK + BLOCK_SIZE].map(|at| read(&bank, at));
        assert_eq!(words, [0, 0x1234_5678, u32::MAX, 0]);
    }
}

#[test]
fn a_file_is_one_guest_s_and_no_larger_than_a_bank() {
    let scratch = Scratch::new("locked");
    assert!(VariableFile::open(&scratch.0).unwrap().is_none());
    let file = scratch.open();
    let error = VariableFile::open(&scratch.0).unwrap_err();
    assert!(matches!(error.fault, VariableFileFault::Locked(_)), "{error}");
    drop(file);
    assert!(VariableFile::open(&scratch.0).unwrap().is_some());
    fs::File::create(&scratch.0).unwrap().set_len(BANK_SIZE + 1).unwrap();
    let error = VariableFile::open(&scratch.0).unwrap_err();
    assert!(error.to_string().ends_with("has 64.0 MiB, and a bank of flash 64 MiB"), "{error}");
    let error = VariableFile::open("/nowhere/vars".as_ref()).unwrap_err();
    assert_eq!(error.help().as_deref(), Some("mkdir -p /nowhere"));
}

#[test]
fn the_node_has_all_banks() {
    let node = node(&[0..BANK_SIZE, GPA..GPA + BANK_SIZE]);
    let source = fdt::subtree_to_dts(&node);
    for line in [
        "flash@0 {",
        "compatible = \"cfi-flash\";",
        "reg = <0x0 0x0 0x0 0x4000000 0x0 0x4000000 0x0 0x4000000>;",
        "bank-width = <0x4>;",
    ] {
        assert!(source.contains(line), "{line} in {source}");
    }
}

#[test]
fn any_accesses_are_taken() {
    let bank = bank();
    let mut random = 0x9e37_79b9_u64;
    for _ in 0..20_000 {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let size = 1 << (random >> 33 & 3);
        let offset = ((random >> 8) % 0x2000) & !(size as u64 - 1);
        let commands = [0x40, 0x20, 0xd0, 0xe8, 0x60, 0x70, 0x90, 0x98, 0xff, 0, 0x3f, 3];
        let command = commands[(random >> 40) as usize % commands.len()];
        let mut data = [command; 8];
        if random >> 60 == 0 {
            bank.read(offset, &mut data[..size]);
        } else {
            let _ = bank.write(offset, &data[..size]);
        }
    }
}
