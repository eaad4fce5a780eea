//! Guests as services of systemd, by the unit in `resources/examples`, on a host that is a Debian system with
//! Debian's kernel.

use std::fs;

use tests::harness::{Board, Failure, Host, TestResult, payload};
use tests::setup::workspace;

/// The disk with the system, and one for the guest.
const DISKS: [&str; 2] =
    ["nvme,drive=debian,serial=system,addr=5", "nvme,drive=empty,serial=empty,addr=6"];
const DEVICE: &str = "0000:00:06.0";

/// How long systemd may take for anything, in seconds: one command of it at a time.
const TIMEOUT: u64 = 300;

/// What an installation would have: the program, the unit, its user, and guests that do different things,
/// one of them with Linux; VFIO's driver, what udev does for /dev/kvm, and a message bus.
const INSTALL: &str = "\
cp /bin/strait /debian/usr/bin/ && cp /tmp/unit /debian/etc/systemd/system/strait@.service
mkdir -p /debian/etc/strait /debian/srv/guest /debian/etc/systemd/system/strait@.service.d
cp /k/model /k/guest.cpio /k/idle /k/reset /debian/srv/guest
echo strait:x:990:990::/nonexistent:/usr/sbin/nologin >>/debian/etc/passwd
echo strait:x:990: >>/debian/etc/group
printf '[Service]\\nWatchdogSec=20\\n' >/debian/etc/systemd/system/strait@.service.d/watchdog.conf
ln -s model /debian/srv/guest/panic
for does in idle reset panic; do
    printf '%s\\n' DEVICES=0000:00:06.0 \"OPTIONS=--kernel /srv/guest/$does --initrd /srv/guest/guest.cpio \
        --vfio-pci 0000:00:06.0 --grace 1 --cmdline strait.do=panic\" >/debian/etc/strait/$does
done
rm /debian/etc/systemd/system/dbus.*
for unit in $MASKED; do ln -sf /dev/null /debian/etc/systemd/system/$unit; done
for directory in dev sys; do mount -o rbind /$directory /debian/$directory; done
mount -t cgroup2 none /debian/sys/fs/cgroup && mount -t tmpfs -o mode=755 none /debian/run
chroot /debian env PATH=/usr/bin:/usr/sbin sh -c 'modprobe -a vfio-pci vfio_iommu_type1 && chgrp kvm /dev/kvm && chmod 660 /dev/kvm'
";

/// What no guest needs, and what takes most of the time until the others are up.
const MASKED: &str = "console-getty.service systemd-tmpfiles-setup.service systemd-udev-trigger.service \
                      systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service \
                      systemd-user-sessions.service";

/// A command to the manager, by its name, from its namespace of processes: it refuses others.
const COMMAND: &str = "\
#!/bin/sh
status=$(grep -ls \"$(printf 'NSpid:\\t[0-9]*\\t1$')\" /proc/[0-9]*/status)
pid=${status#/proc/}
exec nsenter -t ${pid%/status} -p chroot /debian env PATH=/usr/bin ${0##*/} \"$@\"
";

/// A host on which systemd runs, in a namespace of processes where it is the first.
fn boot() -> Result<Host, Failure> {
    let unit = fs::read(workspace::root().join("resources/examples/strait@.service")).unwrap();
    let board = Board::new().debian_kernel().disk("empty", 16 << 20).file("tmp/unit", unit);
    let board = board.file("k/idle", payload::wait()).file("k/reset", payload::reset());
    let commands = ["systemctl", "systemd-run", "machinectl"].into_iter();
    let board = commands.fold(board, |board, name| board.file(&format!("bin/{name}"), COMMAND));
    let host = DISKS.into_iter().fold(board, Board::device).boot()?;
    let found = "cd /sys/block && grep -l 'system *$' nvme*/device/serial";
    host.until(&format!("[ -n \"$({found})\" ]"))?;
    let disk = host.sh(found)?;
    host.mount_debian(&format!("/dev/{}", disk.split('/').next().unwrap_or_default()), "rw")?;
    host.sh(&format!("set -e\nMASKED='{MASKED}'\n{INSTALL}"))?;
    host.sh(
        "setsid unshare -p -f chroot /debian sh -c 'mount -t proc proc /proc && \
         exec env -i container=test PATH=/usr/bin:/usr/sbin /sbin/init --show-status=false' </dev/null >/dev/null 2>&1 &",
    )?;
    systemctl_until(&host, "is-active --quiet multi-user.target")?;
    Ok(host)
}

fn systemctl_until(host: &Host, what: &str) -> TestResult {
    let wait = host.start(&format!("until systemctl {what}; do sleep 0.5; done"))?;
    let wait = wait.timeout(TIMEOUT);
    assert_eq!(wait.exit_status()?, 0);
    Ok(())
}

/// What the manager says of a guest's unit, sorted by name, in one line.
fn properties(host: &Host, guest: &str, names: &str) -> Result<String, Failure> {
    let shown = host.sh(&format!("systemctl show --property={names} strait@{guest}"))?;
    let mut lines: Vec<&str> = shown.lines().collect();
    lines.sort_unstable();
    Ok(lines.join(" "))
}

#[test]
fn systemd_runs_guests_as_services() -> TestResult {
    let host = boot()?;
    // It is started when strait says so, not before; and the event loop is heard of again and again.
    host.sh("systemctl start strait@idle")?;
    let state = properties(&host, "idle", "Type,ActiveState,NotifyAccess,WatchdogUSec")?;
    assert_eq!(state, "ActiveState=active NotifyAccess=all Type=notify WatchdogUSec=20s");
    let watchdog = "WatchdogTimestampMonotonic";
    let before = properties(&host, "idle", watchdog)?;
    list(&host)?;
    let later = format!("show --property={watchdog} strait@idle | grep -vF '{}'", before.trim());
    systemctl_until(&host, &later)?;
    // It tells what it is told.
    host.sh("systemctl log-level debug && systemctl stop strait@idle && systemctl log-level info")?;
    host.sh(&format!("strait device list | grep '{DEVICE} *pci *nvme'"))?;
    // A guest that asks for a reset gets another run; one that crashes has failed.
    host.sh("systemctl start strait@reset")?;
    systemctl_until(&host, "show --property=NRestarts strait@reset | grep -v =0")?;
    host.sh("systemctl stop strait@reset; systemctl start strait@panic")?;
    systemctl_until(&host, "show --property=ActiveState strait@panic | grep failed")?;
    assert_eq!(
        properties(&host, "panic", "Result,ExecMainStatus,ActiveState")?,
        "ActiveState=failed ExecMainStatus=4 Result=exit-code"
    );
    // The first ignored its power button, so that SIGTERM ended it, which is no failure.
    host.sh("chroot /debian journalctl -o cat | grep -F strait@idle >/tmp/idle")?;
    for said in ["STOPPING=1", "code=exited, status=143", "Deactivated successfully"] {
        host.sh(&format!("grep -F '{said}' /tmp/idle"))?;
    }
    Ok(())
}

/// Has the manager of machines list a guest while it runs.
fn list(host: &Host) -> TestResult {
    host.sh("systemctl start systemd-machined")?;
    let run = "strait run --kernel /srv/guest/idle --register first.guest";
    host.sh(&format!("systemd-run -q --unit first -p Type=notify -p NotifyAccess=all {run}"))?;
    let listed = host.sh("machinectl --no-legend list")?;
    let listed: Vec<&str> = listed.split_whitespace().collect();
    assert_eq!(listed.get(..3), Some(&["first.guest", "vm", "strait"][..]), "{listed:?}");
    // The name is one machine's; another runs without.
    host.sh(&format!("systemd-run -q --unit second -p Type=notify -p NotifyAccess=all {run}"))?;
    host.sh("systemctl stop first second")?;
    assert_eq!(host.sh("machinectl --no-legend list")?.trim(), "");
    host.sh("chroot /debian journalctl -o cat -u second | \
             grep \"first.guest isn't registered with systemd-machined: io.systemd.Machine.MachineExists\"")?;
    Ok(())
}
