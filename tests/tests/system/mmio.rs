//! Registers that aren't mapped into the guest: every access traps, and goes to the device.

use tests::harness::payload::{self, Access};
use tests::harness::{Board, DmaTest, Failure, Guest, PLATFORM_DMA, TestResult};

/// Where the first assigned device is in the guest.
const BASE: u64 = 0x0c00_0000;
/// The size of its registers in bytes.
const SIZE: u64 = 0x1000;

/// What a guest reads, by one access of so many bits.
fn read(guest: &mut Guest, offset: u64, bits: u32) -> Result<u64, Failure> {
    let text = guest.sh(&format!("devmem {:#x} {bits}", BASE + offset))?;
    // strait's own words may come before.
    let digits = text.lines().last().unwrap_or_default().trim_start_matches("0x");
    Ok(u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("devmem said {text:?}")))
}

#[test]
fn a_device_works_with_mmap_off() -> TestResult {
    let host = Board::new().boot()?;
    let name = PLATFORM_DMA[0];
    host.bind(name)?;
    let mut guest = host.guest(&format!("--vfio-platform {name},mmap=off --stats /tmp/stats"))?;
    assert!(guest.log_of("PL330")?.contains("Loaded driver for PL330"));
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    let stats: serde_json::Value =
        serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("statistics are JSON");
    let accesses = &stats["devices"][name];
    assert!(accesses["reads"].as_u64() > Some(400), "{stats}");
    assert!(accesses["writes"].as_u64() > Some(400), "{stats}");
    Ok(())
}

#[test]
fn mapped_and_trapped_accesses_have_the_same_results() -> TestResult {
    let host = Board::new().boot()?;
    let name = PLATFORM_DMA[0];
    host.bind(name)?;
    // Mapped and trapped, the device answers the same.
    let mut answers = Vec::new();
    for mmap in ["on", "off"] {
        let mut guest = host.guest(&format!("--vfio-platform {name},mmap={mmap}"))?;
        let mut found = Vec::new();
        // The identification's first register is 0x30, its second 0x13; the last word is 0xb1.
        for (offset, bits) in [(0xfe0, 8), (0xfe0, 16), (0xfe0, 32), (0xfe4, 32), (0xffc, 32)] {
            found.push(read(&mut guest, offset, bits)?);
        }
        for (offset, bits) in [(SIZE - 1, 8), (SIZE - 2, 16), (SIZE - 8, 64), (0xfe0, 64)] {
            found.push(read(&mut guest, offset, bits)?);
        }
        // Behind the end there is nothing, whatever the size.
        for bits in [8, 16, 32, 64] {
            assert_eq!(read(&mut guest, SIZE, bits)?, 0, "{bits}");
            guest.sh(&format!("devmem {:#x} {bits} 0xff", BASE + SIZE))?;
        }
        // What lies across the end, or isn't aligned, is the guest's own mistake: its CPU faults
        // (Arm ARM, B2.15: accesses to Device memory are aligned), and the program dies of it.
        for (offset, bits) in [(SIZE - 4, 64), (SIZE - 2, 32), (0xfe1, 32)] {
            assert_ne!(guest.run(&format!("devmem {:#x} {bits}", BASE + offset))?.0, 0);
        }
        let said = guest.process().output();
        assert_eq!(said.matches("guest read from 0xc001000, where there is nothing").count(), 1);
        assert_eq!(guest.power_off()?, 0, "and everything else goes on");
        answers.push(found);
    }
    let [mapped, trapped] = answers.as_slice() else { panic!("{answers:x?}") };
    assert_eq!(mapped, trapped);
    assert_eq!(mapped.get(..5), Some(&[0x30, 0x30, 0x30, 0x13, 0xb1][..]));
    assert_eq!(mapped.last(), Some(&0x13_0000_0030));
    Ok(())
}

#[test]
fn invalid_accesses_are_ignored() -> TestResult {
    let base = u32::try_from(BASE).expect("below 4 GiB");
    let read =
        |offset: u32, bytes, expected| Access::Read { address: base + offset, bytes, expected };
    let write = |offset: u32, bytes| Access::Write { address: base + offset, bytes };
    // INTEN is at 0x20; at 0xfe0 begins the identification, 0x30, 0x13, 0x24, a word each.
    let accesses = [
        read(0xfe0, 4, 0x30),
        // Misaligned.
        read(0xfe1, 2, 0),
        read(0xfe1, 4, 0),
        read(0xfe2, 4, 0),
        read(0xfe4, 8, 0),
        read(0xfe3, 8, 0),
        write(0x1f, 2),
        write(0x1d, 4),
        write(0x1e, 4),
        write(0x1c, 8),
        read(0x20, 4, 0),
        // Across the end.
        read(0xfff, 2, 0),
        read(0xffd, 4, 0),
        read(0xffc, 8, 0),
        write(0xffe, 4),
        write(0xff9, 8),
        read(0xffc, 4, 0xb1),
        // Across the beginning.
        Access::Read { address: base - 2, bytes: 4, expected: 0 },
        Access::Write { address: base - 4, bytes: 8 },
        // And what a register does take.
        write(0x20, 4),
        read(0x20, 4, u32::MAX),
        write(0xfe0, 1),
        read(0xfe0, 1, 0x30),
    ];
    let wrong = [read(0xfe0, 4, 0x31)];
    let host = Board::new()
        .file("k/accesses", payload::access_as_memory(&accesses))
        .file("k/wrong", payload::access_as_memory(&wrong))
        .boot()?;
    let name = PLATFORM_DMA[0];
    host.bind(name)?;
    let run = |kernel: &str| {
        host.strait(&format!(
            "run --kernel /k/{kernel} --vfio-platform {name},mmap=off --stats /tmp/stats"
        ))
    };
    let process = run("accesses")?;
    assert_eq!(process.exit_status()?, 0, "{}", process.output());
    let said = process.output();
    // The first of them are told, the others counted.
    assert_eq!(said.matches("a guest's access is ignored").count(), 5, "{said}");
    assert!(said.contains(&format!("{name}, region 0: 4 more lines were left out")), "{said}");
    assert!(said.contains("registers can't be accessed by 2 bytes at 0xfe1"), "{said}");
    // Every one of them came here.
    let stats: serde_json::Value =
        serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("statistics are JSON");
    let count = |device: &str| {
        let count = |what: &str| stats["devices"][device][what].as_u64().unwrap_or_default();
        count("reads") + count("writes")
    };
    assert_eq!(count(name) + count("unassigned"), accesses.len() as u64, "{stats:#}");
    // That the payload tells when it finds something else.
    assert_eq!(run("wrong")?.exit_status()?, 3);
    Ok(())
}
