//! Disks of strait's own: virtio-blk.

use tests::harness::{Board, Failure, Guest, Host, Launch, Process, TestResult, payload};
use tests::suite::SOAK;

const SIGKILL: i32 = 9;

/// How many bytes are written at random places and compared later.
const VERIFIED: u32 = 6 << 20;

/// Has a kernel forget what it has cached of disks.
const DROP_CACHES: &str = "sync && echo 3 >/proc/sys/vm/drop_caches";

/// A host with a disk of its own, mounted at /mnt, on which what isn't cached is waited for.
fn boot() -> Result<Host, Failure> {
    let host = Board::new()
        .disk("disk", 128 << 20)
        .disk("spare", 16 << 20)
        .device("nvme,serial=disk,drive=disk,addr=5")
        .device("nvme,serial=spare,drive=spare,addr=6")
        .boot()?;
    // Which of the two is found first differs.
    host.sh("for disk in /sys/block/nvme*; do \
         ln -s /dev/${disk##*/} /dev/$(tr -d ' ' <$disk/device/serial); done")?;
    host.sh("mke2fs -b 4096 /dev/disk >/dev/null && mkdir /mnt && mount -t ext4 /dev/disk /mnt")?;
    Ok(host)
}

/// An image of random bytes, and its checksum.
fn random(host: &Host, path: &str, mib: u32) -> Result<String, Failure> {
    host.sh(&format!("dd if=/dev/urandom of={path} bs=1M count={mib} 2>/dev/null; sync"))?;
    sum(host, path)
}

fn sum(host: &Host, path: &str) -> Result<String, Failure> {
    Ok(host.sh(&format!("sha256sum <{path}"))?.trim().to_owned())
}

fn sum_in(guest: &mut Guest, path: &str) -> Result<String, Failure> {
    Ok(guest.sh(&format!("sha256sum <{path}"))?.trim().to_owned())
}

#[test]
fn a_guest_uses_its_disks() -> TestResult {
    let host = boot()?;
    host.sh("truncate -s 32M /mnt/a.img && truncate -s 8M /mnt/d.img")?;
    let kept = [random(&host, "/mnt/b.img", 8)?, random(&host, "/mnt/c.img", 8)?];
    // What is read isn't cached.
    host.sh("umount /mnt && mount -t ext4 /dev/disk /mnt")?;
    let disks = "--block /mnt/a.img,serial=A-1 --block /mnt/b.img,ro --block /mnt/c.img,snapshot \
                 --block /dev/spare,direct,queues=1 --block /mnt/d.img";
    let mut guest = host.launch(&Launch::model().with(&format!("--cpus 4 {disks}")))?;
    // All of them are there, as they were asked for.
    let seen = guest
        .sh("cat /sys/block/vda/serial && echo && cat /sys/block/vd?/size /sys/block/vd?/ro && \
         ls -d /sys/block/vd?/mq/*")?;
    let expected = "A-1\n65536\n16384\n16384\n32768\n16384\n0\n1\n0\n0\n0\n";
    assert!(seen.replace('\r', "").starts_with(expected), "{seen}");
    assert_eq!(seen.matches("/mq/").count(), 4 + 4 + 4 + 1 + 4, "{seen}");
    assert_eq!([sum_in(&mut guest, "/dev/vdb")?, sum_in(&mut guest, "/dev/vdc")?], kept);

    // Several at a time and one after the other, cached and not.
    let work = [("vda", 32, 4), ("vda", 1, 1), ("vdc", 32, 4), ("vdd", 32, 2)];
    for (disk, depth, mib) in work {
        guest.sh(&format!("agent disk verify /dev/{disk} {} {depth} 1", mib << 20))?;
    }
    guest.sh("agent disk verify /dev/vdd 131072 1 1")?;
    assert_ne!(guest.run("dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync")?.0, 0);

    // By all queues at once; and it is there when nothing of it is cached any more.
    let work = format!("/dev/vde {VERIFIED} 32 2 4");
    let queues = "/sys/block/vde/device/../msi_irqs";
    guest
        .sh(&format!("agent disk verify {work} && {DROP_CACHES} && agent disk verified {work}"))?;
    guest.sh(&format!(
        "for irq in $(ls {queues} | tail -4); do grep \"^ *$irq:\" /proc/interrupts; done | \
         awk '{{ if ($2 + $3 + $4 + $5 > 0) n++ }} END {{ exit n < 4 }}'"
    ))?;

    // A file system: made, filled, checked, and its room given back.
    guest.sh(
        "mke2fs -b 4096 /dev/vda >/dev/null && mkdir /d && mount -t ext4 -o discard /dev/vda /d",
    )?;
    guest.sh("dd if=/dev/urandom of=/d/x bs=1M count=16 2>/dev/null; sync")?;
    let written = sum_in(&mut guest, "/d/x")?;
    guest.sh("umount /d && mount -t ext4 /dev/vda /d")?;
    assert_eq!(sum_in(&mut guest, "/d/x")?, written);
    let used = |host: &Host| -> Result<u32, Failure> {
        Ok(host.sh("du -k /mnt/a.img | cut -f1")?.trim().parse().unwrap_or(0))
    };
    let full = used(&host)?;
    guest.sh("rm /d/x && sync && fstrim /d && umount /d && sync")?;
    let empty = used(&host)?;
    assert!(full > 16_000 && empty < full - 14_000, "{full} KiB, then {empty}");
    guest.sh("blkdiscard /dev/vda && cmp -n 8388608 /dev/vda /dev/zero")?;
    assert_eq!(guest.power_off()?, 0);
    // What had to stay as it was did.
    assert_eq!([sum(&host, "/mnt/b.img")?, sum(&host, "/mnt/c.img")?], kept);
    // And after a restart, of the host's caches too.
    host.sh("umount /mnt && mount -t ext4 /dev/disk /mnt")?;
    let mut guest = host.launch(&Launch::model().with("--cpus 4 --block /mnt/d.img"))?;
    for depth in [1, 32] {
        guest.sh(&format!("agent disk verified /dev/vda {VERIFIED} {depth} 2 4"))?;
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn failures_of_the_file_are_the_guest_s() -> TestResult {
    let host = boot()?;
    host.sh("mkdir /small && mount -t tmpfs -o size=4M none /small")?;
    host.sh("truncate -s 16M /small/full.img /mnt/short.img")?;
    let disks = "--block /small/full.img --block /mnt/short.img --block /dev/spare";
    let mut guest = host.launch(&Launch::model().with(disks))?;
    let write = "dd if=/dev/zero of=/dev/vda bs=1M oflag=direct 2>&1";
    let (status, said) = guest.run(write)?;
    assert!(status != 0 && said.contains("I/O error"), "{said}");
    host.sh("truncate -s 1M /mnt/short.img")?;
    let (status, said) = guest.run("dd if=/dev/vdb bs=1M of=/dev/null iflag=direct 2>&1")?;
    assert!(status != 0 && said.contains("I/O error"), "{said}");
    // Nothing else has suffered.
    guest.sh("agent disk verify /dev/vdc 1048576 8 1")?;
    let said = guest.process().output();
    assert!(said.contains("block0: writing /small/full.img at byte"), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains("block1: reading /mnt/short.img at byte"), "{said}");
    assert!(said.contains("the file has become shorter"), "{said}");
    assert!(said.lines().filter(|line| line.contains(" block0: ")).count() <= 6, "{said}");
    assert_eq!(guest.power_off()?, 0);

    // What can't be a disk is told before a guest starts.
    host.sh("printf 'QFI\\373' >/tmp/q && truncate -s 1M /tmp/q && truncate -s 1000 /tmp/odd")?;
    for (disks, status, what, help) in [
        ("--block /tmp/q", 1, "is a qcow2 disk image", "qemu-img convert -O raw /tmp/q"),
        ("--block /tmp/odd", 1, "no multiple of its 512-byte", "truncate -s %512 /tmp/odd"),
        ("--block /dev/disk", 1, "is in use by the host", "lsblk /dev/disk"),
        ("--block /tmp", 1, "is a directory", "--block FILE"),
        ("--block /dev/spare --block /dev/spare,ro", 2, "the same file", "ro or snapshot"),
        (
            "--block /dev/spare,serial=a --block /tmp/a,serial=a",
            2,
            "two disks have serial=a",
            "serial=",
        ),
    ] {
        host.sh("truncate -s 1M /tmp/a")?;
        let answer = host.run(&format!("strait run --kernel /k/model {disks} 2>&1"))?;
        assert_eq!(answer.status, status, "{disks}: {}", answer.output);
        assert!(answer.output.contains(what) && answer.output.contains(help), "{}", answer.output);
    }
    Ok(())
}

/// Runs a guest that has this disk and waits for ever, once the disk is locked.
fn hold(host: &Host, disk: &str) -> Result<Process, Failure> {
    let locks = host.sh("grep -c OFDLCK /proc/locks; true")?;
    let process = host.strait(&format!("run --kernel /k/wait --block {disk}"))?;
    host.until(&format!("[ $(grep -c OFDLCK /proc/locks) -gt {} ]", locks.trim()))?;
    Ok(process)
}

#[test]
fn an_image_that_is_written_is_one_guest_s_alone() -> TestResult {
    let board = Board::new().file("k/off", payload::power_off()).file("k/wait", payload::wait());
    let host = board.boot()?;
    host.sh("truncate -s 1M /tmp/image && ln -s image /tmp/link")?;
    let run = |disk: &str| host.run(&format!("strait run --kernel /k/off --block {disk}"));
    let refused = |disk: &str, by: &Process, help: &str| -> TestResult {
        let answer = run(disk)?;
        let errors = &answer.errors;
        let holder = format!("locked it: process {} (strait)", by.pid()?);
        assert!(answer.status == 1 && errors.contains(&holder), "{disk}: {errors}");
        assert!(errors.contains(help), "{disk}: {errors}");
        Ok(())
    };
    let writer = hold(&host, "/tmp/image")?;
    refused("/tmp/link", &writer, "several guests share it with ro or snapshot")?;
    refused("/tmp/link,ro", &writer, "end what writes to it")?;
    refused("/tmp/link,snapshot", &writer, "end what writes to it")?;
    // Whoever ends, however, leaves no lock behind.
    writer.signal(SIGKILL)?;
    writer.exit_status()?;
    let reader = hold(&host, "/tmp/image,ro")?;
    for disk in ["/tmp/link,ro", "/tmp/link,snapshot"] {
        let answer = run(disk)?;
        assert_eq!(answer.status, 0, "{disk}: {}", answer.errors);
    }
    refused("/tmp/image", &reader, "several guests share it with ro or snapshot")?;
    reader.signal(SIGKILL)?;
    reader.exit_status()?;
    assert_eq!(run("/tmp/image")?.status, 0);
    Ok(())
}

#[test]
fn what_was_durable_survives_a_kill() -> TestResult {
    let host = boot()?;
    host.sh("truncate -s 8M /mnt/image")?;
    let rounds = if std::env::var_os(SOAK).is_some() { 200 } else { 6 };
    let mut last = 0;
    for round in 0..rounds {
        let launch = Launch::model().memory("128M").with("--block /mnt/image");
        let mut guest = host.launch(&launch)?;
        if last > 0 {
            guest.sh(&format!("agent disk recorded /dev/vda {last}"))?;
        }
        guest.begin(&format!("agent disk record /dev/vda {}", last + 1))?;
        // At another moment of a write in each round.
        let enough = last + 5 + round * 7 % 40;
        guest.process().wait_for(&format!("durable {enough}"))?;
        guest.process().wait_for("\n")?;
        host.sh(&format!("usleep {}; kill -9 {}", round * 313 % 5000, guest.pid()?))?;
        assert_eq!(guest.exit_status()?, 128 + SIGKILL);
        let output = guest.process().output();
        // It may be killed in the middle of a line.
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let durable = whole.lines().filter_map(|line| line.trim().strip_prefix("durable "));
        last = durable.filter_map(|number| number.parse().ok()).next_back().unwrap_or(0);
        assert!(last >= enough, "{output}");
        host.sh(&format!("agent disk recorded /mnt/image {last}"))?;
    }
    println!("{rounds} times, {last} blocks");
    Ok(())
}
