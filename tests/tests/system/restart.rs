//! `--on-reset restart`: guests that begin anew in the same run.

use serde_json::Value;
use tests::harness::payload::{self, EventLine};
use tests::harness::{Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult};
use tests::suite::SOAK;

use crate::memory::resident;
use crate::vfio_user::{self, drive, serve};
use crate::vhost_user::{lease, set_up_network, with_programs};

const SIGTERM: i32 = 15;

/// Where the disk and the edu are on the host.
const DISK: &str = "0000:00:05.0";
const EDU: &str = "0000:00:06.0";

/// A board with a disk, an edu, and a disk that stays the host's.
fn board() -> Board {
    Board::new()
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5")
        .device("edu,addr=6,dma_mask=0xffffffffffff")
}

/// A host on which the devices are bound, with an image for a disk.
fn host(board: Board) -> Result<Host, Failure> {
    let host = board.boot()?;
    for name in [DISK, EDU, PLATFORM_DMA[0]] {
        host.bind(name)?;
    }
    host.sh("mkdir /images && mount -t tmpfs none /images && truncate -s 16M /images/a")?;
    Ok(host)
}

/// The devices' options, and those of virtio devices.
fn devices() -> String {
    let dma = PLATFORM_DMA[0];
    format!(
        "--on-reset restart --vfio-platform {dma} --vfio-pci {DISK} --vfio-pci {EDU} --block /images/a \
         --vsock cid=7 --stats /tmp/stats"
    )
}

/// How many descriptors a process has, and how much memory, in KiB.
fn holds(host: &Host, pid: u32) -> Result<(u32, u32), Failure> {
    let said = host.sh(&format!(
        "ls /proc/{pid}/fd | wc -l; sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{pid}/status"
    ))?;
    let numbers: Vec<u32> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(numbers.len(), 2, "{said}");
    Ok((numbers[0], numbers[1]))
}

fn statistics(host: &Host) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&host.sh("cat /tmp/stats")?).unwrap_or_default())
}

#[test]
fn a_guest_begins_anew_a_hundred_times() -> TestResult {
    const LINE: EventLine = EventLine { controller: 0x0c00_0000, event: 3, intid: 96 + 3 };
    const EACH: u64 = 4;
    let payload = payload::take_interrupts_and_reset(LINE, 3);
    let host = host(board().file("k/anew", payload))?;
    let kernel = "--kernel /k/anew --cpus 2 --memory 256M --log-level info";
    let mut strait = host.strait(&format!("run {kernel} {}", devices()))?.timeout(600);
    // Until it handles signals, they end it.
    strait.wait_for("begins anew")?;
    let pid = strait.pid()?;
    let vmm = host.vmm(pid)?;
    let await_life = |life: u32| {
        let count = "grep -A1 restarts /tmp/stats | tr -dc 0-9";
        host.until(&format!("kill -USR1 {pid}; [ \"$({count})\" -ge {life} ]"))
    };
    await_life(10)?;
    let (descriptors, memory) = holds(&host, vmm)?;
    await_life(100)?;
    let (descriptors_then, memory_then) = holds(&host, vmm)?;
    assert_eq!(descriptors_then, descriptors);
    assert!(memory_then < memory + 1024, "{memory} KiB, then {memory_then}");
    strait.signal(SIGTERM)?;
    assert_eq!(strait.exit_status()?, 128 + SIGTERM);

    let stats = statistics(&host)?;
    let lives = stats["restarts"]["count"].as_u64().unwrap_or_default();
    let wall = stats["restarts"]["wall_ns"].as_u64().unwrap_or_default();
    println!("a restart takes {} us", wall / lives / 1000);
    assert!(lives >= 100, "{stats}");
    let fired = stats["interrupts"][3]["fired"].as_u64().unwrap_or_default();
    assert!((EACH * lives..=EACH * (lives + 1)).contains(&fired), "{fired} in {lives} lives");
    // A guest that does nothing else fills no log.
    let said = strait.output().matches("begins anew").count();
    assert!((1..20).contains(&said), "{said}");
    Ok(())
}

/// Has a guest work with all of its devices.
fn work(guest: &mut Guest, life: u32) -> TestResult {
    let dma = "agent pl330 0xc000000";
    let (program, from, to) = ("0x5c000000", "0x5c001000", "0x5c002000");
    let driver = "/sys/bus/amba/drivers/dma-pl330";
    guest.sh(&format!(
        "dd if=/dev/urandom of=/tmp/noise bs=64k count=8 2>/dev/null &&
         for disk in /dev/nvme0n1 /dev/vda; do
             dd if=/tmp/noise of=$disk bs=64k conv=fsync 2>/dev/null &&
                 dd if=$disk bs=64k count=8 iflag=direct 2>/dev/null | cmp - /tmp/noise || exit 1
         done
         agent edu 0000:00:02.0 msi 4 && basename {driver}/*.dma* >{driver}/unbind &&
         agent memory fill {from} 4096 {life} && {dma} copy 1 {program} {from} {to} 4096 &&
         agent memory check {to} 4096 {life}"
    ))?;
    let interrupts = guest.sh("grep -E 'nvme0q1|virtio' /proc/interrupts | tr -s ' '")?;
    assert!(interrupts.contains("MSI"), "{interrupts}");
    Ok(())
}

#[test]
fn the_interrupt_controller_of_each_life_is_as_new() -> TestResult {
    for (version, payload) in
        [(2, payload::change_a_gicv2_and_reset()), (3, payload::change_a_gicv3_and_reset(2))]
    {
        let host = Board::new().gic(version).file("k/change", payload).boot()?;
        let options = format!("--cpus 2 --gic {version} --on-reset restart --log-level info");
        let mut strait = host.strait(&format!("run --kernel /k/change {options}"))?;
        // It powers off where it finds a register changed.
        strait.wait_for("for the 3. time")?;
        strait.signal(SIGTERM)?;
        assert_eq!(strait.exit_status()?, 128 + SIGTERM);
    }
    Ok(())
}

#[test]
fn devices_work_in_each_life_of_a_system() -> TestResult {
    let host = host(board())?;
    let lives = if std::env::var_os(SOAK).is_some() { 100 } else { 3 };
    // The last 64 MiB of memory are the DMA controller's.
    host.sh("agent tap tap0 0 tap && ip link set tap0 up")?;
    let options =
        format!("--cpus 2 {} --virtio-console file:/tmp/hvc0 --net tap=tap0,vhost=on", devices());
    let launch = Launch::model().memory("512M").cmdline("mem=448M").with(&options);
    let mut guest = host.launch(&launch)?;
    let vmm = host.vmm(guest.pid()?)?;
    let mut first = None;
    let mut seeds = Vec::new();
    for life in 1..=lives {
        work(&mut guest, life)?;
        let seed =
            guest.sh("dmesg | grep -c 'crng init done'; cat /proc/sys/kernel/random/boot_id")?;
        assert!(!seeds.contains(&seed), "{seed}");
        seeds.push(seed);
        if life == 2 {
            first = Some(holds(&host, vmm)?);
        }
        // With transfers under way.
        guest.sh("ip link set eth0 up; \
             dd if=/dev/nvme0n1 of=/dev/null bs=64k & dd if=/dev/vda of=/dev/null bs=64k & true")?;
        if life == 2 {
            // Nor does the kernel reset its virtio devices then.
            guest.begin("echo b >/proc/sysrq-trigger")?;
            guest.await_shell()?;
        } else {
            guest.begin_anew()?;
        }
    }
    work(&mut guest, lives + 1)?;
    let (first, last) = (first.unwrap_or_default(), holds(&host, vmm)?);
    assert_eq!(last.0, first.0, "descriptors");
    assert_eq!(guest.power_off()?, 0);
    let stats = statistics(&host)?;
    assert_eq!(stats["restarts"]["count"], lives, "{stats}");
    // Asked to end, it ends, whatever the guest does then.
    let options = "--on-reset restart --grace 300";
    let mut guest = host.guest(options)?;
    guest.sh("[ -e /dev/input/event0 ]")?;
    guest.process().signal(SIGTERM)?;
    guest.begin("reboot -f")?;
    assert_eq!(guest.exit_status()?, 3);
    Ok(())
}

/// Has a guest of which nothing is left of its life before use what other processes have for it, and give
/// memory back.
fn use_backends(host: &Host, guest: &mut Guest, life: u32) -> TestResult {
    guest.sh(&format!(
        "[ ! -e /data ] && mkdir /data && mount -t virtiofs data /data && echo {life} >/data/{life} && sync"
    ))?;
    host.sh(&format!("grep {life} /tmp/data/{life}"))?;
    lease(guest)?;
    let receiver = host.start("agent receive tcp:127.0.0.1:5000")?;
    guest.sh("agent send tcp:10.5.0.254:5000 65536")?;
    assert_eq!(receiver.exit_status()?, 0);
    let vmm = host.vmm(guest.pid()?)?;
    guest.sh("dd if=/dev/urandom of=/tmp/fill bs=1M count=64 2>/dev/null")?;
    let less = resident(host, vmm)? - (32 << 10);
    guest.sh("rm /tmp/fill")?;
    host.until(&format!("awk '/^VmRSS/ {{ exit $2 >= {less} }}' /proc/{vmm}/status"))
}

#[test]
fn devices_of_other_processes_work_in_each_life_of_a_system_with_a_gicv2() -> TestResult {
    let host = with_programs(Board::new().gic(2))?;
    set_up_network(&host)?;
    host.sh("mkdir /tmp/data && echo 128 >/proc/sys/vm/nr_hugepages")?;
    let _server = serve(&host)?;
    host.bind(PLATFORM_DMA[0])?;
    let options = format!(
        "--on-reset restart --vfio-user {} --vfio-platform {}",
        vfio_user::SOCKET,
        PLATFORM_DMA[0]
    );
    let assigned = Launch::model().memory("256M,hugepages=2M").with(&options);
    let mut assigned = host.launch(&assigned)?;
    let mut served = host.guest(
        "--on-reset restart --share data=/tmp/data --net passt --balloon free-page-reporting",
    )?;
    let test = DmaTest { copies: 10, ..DmaTest::default() };
    let mut first = None;
    for life in 1..=3 {
        drive(&mut assigned, vfio_user::DEVICE)?;
        test.pass(&mut assigned)?;
        use_backends(&host, &mut served, life)?;
        let guests = [&assigned, &served];
        let holds = guests.map(|guest| holds(&host, host.vmm(guest.pid()?)?));
        let holds =
            holds.into_iter().map(|held| Ok(held?.0)).collect::<Result<Vec<_>, Failure>>()?;
        if life > 1 {
            assert_eq!(first.get_or_insert(holds.clone()), &holds, "descriptors");
        }
        if life < 3 {
            // Both at the same time.
            served.begin("reboot -f")?;
            assigned.begin_anew()?;
            served.await_shell()?;
        }
    }
    for guest in [assigned, served] {
        assert_eq!(guest.power_off()?, 0);
    }
    host.sh("! pidof virtiofsd passt")?;
    Ok(())
}
