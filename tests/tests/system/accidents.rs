//! Ends by accident of a run that uses all that has to be put right afterwards, at any moment of it.

use std::time::Duration;

use tests::harness::{Board, Failure, Host, Launch, PLATFORM_DMA, TestResult};
use tests::suite::SOAK;

const NVME: &str = "0000:00:06.0";

/// Who is sent a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    /// The process with the guest.
    Vmm,
    /// Its parent.
    Supervisor,
}

/// SIGKILL, SIGBUS, SIGSEGV, SIGXFSZ; SIGTERM, SIGHUP.
const SIGNALS: [(To, i32); 6] = [
    (To::Vmm, 9),
    (To::Supervisor, 15),
    (To::Vmm, 7),
    (To::Vmm, 11),
    (To::Supervisor, 1),
    (To::Vmm, 25),
];

/// What of a host a run may change: what is printed has to be the same before and after.
const STATE: &str = "
    cd /; cat /proc/mounts; ls /sys/class/net; find /tmp /run -type s
    find /run/strait -type f ! -name lock 2>/dev/null
    find /tmp -name '*.sock*' -o -name '.tmp*'
    for device in platform/devices/DMA pci/devices/NVME; do readlink /sys/bus/$device/driver; done
    cat /sys/bus/platform/devices/DMA/driver_override /sys/bus/pci/devices/NVME/driver_override
    ls -l /proc/[0-9]*/ns 2>/dev/null | sed -n 's/.* -> //p' | sort -u
    ls /sys/kernel/debug/kvm | grep -e -; grep vfio /proc/interrupts; pidof strait passt; true";

/// What there is of a run that doesn't come so far, for the transcript.
const LOOK: &str = "for process in $(pidof strait passt); do echo $process; cat /proc/$process/cmdline | tr '\\0' ' '; \
    for task in /proc/$process/task/*; do cat $task/comm $task/wchan $task/stack $task/syscall; done; \
    ls -l /proc/$process/fd; done; dmesg | tail -40";

/// A host with all that the run needs: a function, a disk's file, passt, and an address to hand on.
fn boot() -> Result<Host, Failure> {
    let host = Board::new()
        .debian()
        .disk("scratch", 16 << 20)
        .device("nvme,drive=debian,serial=debian,addr=5")
        .device("nvme,drive=scratch,serial=scratch,addr=6")
        .boot()?;
    host.sh("debian=$(grep -l debian /sys/block/nvme*/device/serial | cut -d / -f 4); \
         ln -s /dev/$debian /dev/debian; truncate -s 16M /tmp/image; \
         ln -s /debian/usr/bin/passt /bin && ip link set lo up && ip link add br0 type bridge && \
         ip addr add 10.5.0.1/24 dev br0 && ip link set br0 up && ip route add default via 10.5.0.254")?;
    host.mount_debian("/dev/debian", "ro")?;
    Ok(host)
}

fn state(host: &Host) -> Result<String, Failure> {
    host.sh(&STATE.replace("DMA", PLATFORM_DMA[0]).replace("NVME", NVME))
}

/// Has all of a guest's devices work, for longer than it will live.
const WORK: &str = "ip link set eth0 up; \
    (while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=64 oflag=direct; done) 2>/dev/null & \
    (while :; do dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=64 oflag=direct; done) 2>/dev/null & \
    (while :; do udhcpc -i eth0 -n -q -t 1 -T 1 -s /bin/true; done) >/dev/null 2>&1 & \
    echo at work; while :; do dmatest 50 16384 8; done >/dev/null\n";

/// A run that is ended by a signal so long after its start, or after its guest's beginning to work.
fn end(host: &Host, (to, signal): (To, i32), at_work: bool, delay: Duration) -> TestResult {
    let launch = Launch::model().memory("96M").with(&format!(
        "--bind --vfio-platform {} --vfio-pci {NVME} --block /tmp/image --net passt --stats /tmp/stats \
         --virtio-console unix:/tmp/console.sock",
        PLATFORM_DMA[0]
    ));
    let mut shell = host.on_terminal(&format!(
        "trap '' HUP; echo before=$(stty -g); (trap - HUP; exec strait {}); echo status=$?; \
         echo after=$(stty -g); echo over; read -r _",
        launch.arguments()
    ))?;
    if at_work {
        shell.wait_for("GUEST READY: ")?;
        shell.send(WORK)?;
        shell.wait_for("at work")?;
    } else {
        // Its child is there once its devices are bound and its programs run, which are forked as it is.
        let is_there = host.until("pidof passt >/dev/null && [ $(pidof strait | wc -w) = 2 ]");
        is_there.inspect_err(|_| drop(host.run(LOOK)))?;
    }
    std::thread::sleep(delay);
    let which = if to == To::Vmm { "grep -q" } else { "! grep -q" };
    let sent = host.run(&format!(
        "for pid in $(pidof strait); do parent=$(sed -n 's/^PPid:.//p' /proc/$pid/status); \
         if {which} '^Name:.strait$' /proc/$parent/status; then kill -{signal} $pid && echo sent; fi; done"
    ))?;
    assert!(sent.output.contains("sent"), "{sent:?}");
    shell.wait_for("over")?;
    let output = shell.output();
    let after = |name: &str| {
        let (_, rest) = output.rsplit_once(name).unwrap_or_default();
        rest.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(after("before="), after("after="), "the terminal was not restored");
    assert_eq!(after("status="), (128 + signal).to_string(), "{output}");
    assert!(output.contains(&format!("signal {signal}")), "{output}");
    Ok(())
}

#[test]
fn whatever_ends_a_run_the_host_is_as_before() -> TestResult {
    let host = boot()?;
    let pl330 = format!("agent pl330 0x{} status", PLATFORM_DMA[0].trim_end_matches(".dma"));
    let before = state(&host)?;
    let rounds = if std::env::var_os(SOAK).is_some() { 200 } else { 10 };
    // Any sequence that comes to all parts of a second; another one in each run.
    let mut moment = u64::from(std::process::id());
    for round in 0..rounds {
        moment =
            moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = Duration::from_millis((moment >> 33) % 1000);
        let signal = SIGNALS[round % SIGNALS.len()];
        let at_work = (round + round / SIGNALS.len()).is_multiple_of(2);
        let what = format!("round {round}: {signal:?}, at work: {at_work}, {delay:?}");
        println!("{what}");
        end(&host, signal, at_work, delay)?;
        // The driver finds its disk again in a moment.
        host.until(&format!("ls /sys/bus/pci/devices/{NVME}/nvme/nvme*/nvme*n1 >/dev/null 2>&1"))?;
        assert_eq!(state(&host)?, before, "{what}");
        let status = host.sh(&pl330)?;
        let working = |line: &&str| line.contains("channel") && !line.contains("stopped");
        assert!(!status.lines().any(|line| working(&line)), "{what}: {status}");
        assert!(status.contains("interrupts 0x0"), "{what}: {status}");
    }
    Ok(())
}
