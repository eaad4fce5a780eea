use super::super::super::testing::FakeHost;
use super::*;

const DEVICE: &str = "0000:00:05.0";

fn host() -> FakeHost {
    let fake = FakeHost::with_vfio();
    fake.device("pci", DEVICE, Some("driver"), Some(3));
    fake
}

/// What the host uses the device for, each with what ends it.
fn uses(fake: &FakeHost) -> Vec<(String, Option<String>)> {
    let host = fake.host();
    let device = host.find(DEVICE).unwrap().unwrap();
    let uses = Usage::of(&host).of_device(&device, &[]);
    uses.into_iter().map(|of| (of.what, of.end)).collect()
}

fn whats(fake: &FakeHost) -> Vec<String> {
    uses(fake).into_iter().map(|(what, _)| what).collect()
}

/// A block device below the device, or a virtual one.
fn block(fake: &FakeHost, path: &str, number: &str) {
    let directory = fake.below(path, "block");
    fake.write(directory.join("dev"), format!("{number}\n"));
}

fn disk(fake: &FakeHost) {
    block(fake, "pci/0000:00:05.0/nvme/nvme0/nvme0n1", "259:0");
    for partition in 1..=3 {
        let path = format!("pci/0000:00:05.0/nvme/nvme0/nvme0n1/nvme0n1p{partition}");
        block(fake, &path, &format!("259:{partition}"));
    }
}

fn mounts(fake: &FakeHost, lines: &str) {
    fake.write("proc/self/mountinfo", lines);
}

#[test]
fn a_device_that_nobody_uses_has_no_uses() {
    let fake = host();
    assert_eq!(uses(&fake), []);
    disk(&fake);
    mounts(&fake, "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    fake.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
    fake.write("proc/1/mountinfo", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    assert_eq!(uses(&fake), []);
}

#[test]
fn a_disk_s_mounts_and_swap_are_found_with_what_ends_them() {
    let fake = host();
    disk(&fake);
    mounts(
        &fake,
        "20 1 259:1 / / rw - ext4 /dev/root rw\n\
         21 20 259:2 / /srv rw - ext4 /dev/nvme0n1p2 rw\n\
         22 20 259:2 /x /my\\040srv rw - ext4 /dev/nvme0n1p2 rw\n",
    );
    fake.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p3 partition 1 0 -2\n");
    let end = |text: &str| Some(text.to_owned());
    assert_eq!(
        uses(&fake),
        [
            ("nvme0n1p1 is mounted on /".to_owned(), None),
            (
                "nvme0n1p2 is mounted on /srv and /my srv".to_owned(),
                end("umount '/my srv' && umount /srv")
            ),
            ("nvme0n1p3 is swapped to".to_owned(), end("swapoff /dev/nvme0n1p3")),
        ]
    );
}

#[test]
fn a_mount_of_another_namespace_counts() {
    let fake = host();
    disk(&fake);
    mounts(&fake, "");
    std::os::unix::fs::symlink("mnt:[1]", {
        fake.mkdir("proc/self/ns");
        fake.path("proc/self/ns/mnt")
    })
    .unwrap();
    fake.process(77, "daemon", &[]);
    fake.mkdir("proc/77/ns");
    std::os::unix::fs::symlink("mnt:[2]", fake.path("proc/77/ns/mnt")).unwrap();
    fake.write("proc/77/mountinfo", "21 20 259:2 / /srv rw - ext4 /dev/nvme0n1p2 rw\n");
    let found = uses(&fake);
    assert_eq!(found[0].0, "nvme0n1p2 is mounted on /srv in the mount namespace of process 77");
    assert_eq!(found[0].1.as_deref(), Some("nsenter -t 77 -m umount /srv"));
}

#[test]
fn block_devices_built_on_a_disk_are_followed() {
    let fake = host();
    disk(&fake);
    let part =
        |number: u32| format!("sys/devices/pci/0000:00:05.0/nvme/nvme0/nvme0n1/nvme0n1p{number}");
    // A RAID with a volume on it, mounted; another that is not; a loop.
    block(&fake, "virtual/block/md0", "9:0");
    block(&fake, "virtual/block/dm-0", "253:0");
    fake.write("sys/devices/virtual/block/dm-0/dm/name", "vg-root\n");
    fake.link(format!("{}/holders/md0", part(1)), "sys/devices/virtual/block/md0");
    fake.link("sys/devices/virtual/block/md0/holders/dm-0", "sys/devices/virtual/block/dm-0");
    block(&fake, "virtual/block/md1", "9:1");
    fake.link(format!("{}/holders/md1", part(2)), "sys/devices/virtual/block/md1");
    block(&fake, "virtual/block/loop0", "7:0");
    fake.write("sys/devices/virtual/block/loop0/loop/backing_file", "/dev/nvme0n1p3\n");
    block(&fake, "virtual/block/loop1", "7:1");
    fake.write("sys/devices/virtual/block/loop1/loop/backing_file", "/srv/file\n");
    mounts(&fake, "20 1 253:0 / /srv rw - ext4 /dev/mapper/vg-root rw\n");
    assert_eq!(
        whats(&fake),
        [
            "dm-0 (vg-root) on md0 on nvme0n1p1 is mounted on /srv",
            "nvme0n1p2 is part of md1",
            "nvme0n1p3 is part of loop0",
        ]
    );
}

#[test]
fn a_btrfs_of_several_disks_is_one_mount() {
    let fake = host();
    disk(&fake);
    for name in ["nvme0n1p2", "sda1"] {
        fake.mkdir(format!("sys/fs/btrfs/0-1-2/devices/{name}"));
    }
    // The mount names the other disk, and a number that is no disk's.
    mounts(&fake, "20 1 0:33 /root / rw - btrfs /dev/sda1 rw\n");
    assert_eq!(whats(&fake), ["nvme0n1p2 is mounted on /"]);
}

#[test]
fn a_namespace_with_several_paths_is_found_by_its_hidden_path() {
    let fake = host();
    block(&fake, "pci/0000:00:05.0/nvme/nvme0/nvme0c0n1", "");
    block(&fake, "virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
    mounts(&fake, "20 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n");
    assert_eq!(whats(&fake), ["nvme0n1 is mounted on /srv"]);
}

#[test]
fn an_interface_that_is_up_is_found_with_those_above_and_routes() {
    let fake = host();
    let eth0 = fake.below("pci/0000:00:05.0/net/eth0", "net");
    fake.write(eth0.join("flags"), "0x1002\n");
    assert_eq!(uses(&fake), []);
    fake.write(eth0.join("flags"), "0x1003\n");
    let end = Some("ip link set eth0 down".to_owned());
    assert_eq!(uses(&fake), [("eth0 is up".to_owned(), end)]);
    fake.link(eth0.join("upper_br0"), "sys/class/net");
    let header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
    for (route, expected) in [
        ("br0 0000000A 0 0001 0 0 0 000000FF 0 0 0\n", "eth0 is up, below br0"),
        (
            "br0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n",
            "eth0 is up, below br0, and the default route is by br0",
        ),
    ] {
        fake.write("proc/net/route", format!("{header}{route}"));
        assert_eq!(whats(&fake), [expected]);
    }
    fake.write("proc/net/route", header);
    let zero = "0".repeat(32);
    let route = format!("{zero} 00 {zero} 00 fe80 00000400 00000001 00000000 00000003 eth0\n");
    fake.write("proc/net/ipv6_route", route);
    assert_eq!(whats(&fake), ["eth0 is up, below br0, and the default route is by eth0"]);
    std::fs::remove_dir_all(fake.path(&eth0)).unwrap();
    assert_eq!(whats(&fake), ["its network interface is in another network namespace"]);
}

#[test]
fn shares_and_consoles_over_virtio_are_found() {
    let fake = host();
    let node = fake.below("pci/0000:00:05.0/virtio0", "virtio");
    fake.write(node.join("device"), "0x0009\n");
    fake.write(node.join("mount_tag"), "root\0");
    mounts(&fake, "20 1 0:20 / / rw - 9p root rw\n21 20 0:21 / /x rw - 9p other rw\n");
    assert_eq!(whats(&fake), ["9p share root is mounted on /"]);

    fake.write(node.join("device"), "0x001a\n");
    mounts(&fake, "20 1 0:20 / /a rw - virtiofs one rw\n21 20 0:21 / /b rw - virtiofs two rw\n");
    assert_eq!(whats(&fake).len(), 2);
    fake.write("sys/fs/virtiofs/1/tag", "two\n");
    fake.link("sys/fs/virtiofs/1/device", &node);
    assert_eq!(whats(&fake), ["virtiofs share two is mounted on /b"]);

    fake.write(node.join("device"), "0x0003\n");
    assert_eq!(uses(&fake), []);
    fake.write("proc/consoles", "ttyS0 -W- (EC a) 4:64\nhvc0 -W- (E p) 229:0\n");
    assert_eq!(whats(&fake), ["hvc0 is the host's console, perhaps by it"]);
}

#[test]
fn uses_of_other_classes_are_found() {
    // A node below the device, an attribute of it, what that means, and a value that means nothing.
    let cases = [
        ("tty/ttyS0", "tty", "dev", "4:64", "ttyS0 is the host's console", "4:65"),
        ("dma/dma0chan0", "dma", "in_use", "1", "a driver has DMA channel dma0chan0", "0"),
        ("watchdog/watchdog0", "watchdog", "state", "active", "watchdog0 is running", "inactive"),
        ("graphics/fb0", "graphics", "x", "", "fb0 shows the host's text consoles", ""),
        ("drm/card0", "drm", "dev", "1:3", "/dev/card0 is open in process 7 (Xorg)", "226:0"),
        ("mtd/mtd2", "mtd", "x", "", "mtd2 is attached as ubi0", ""),
    ];
    for (path, class, attribute, value, expected, other) in cases {
        let fake = host();
        fake.write("proc/consoles", "ttyS0 -W- (EC a) 4:64\n");
        fake.process(7, "Xorg", &["/dev/null"]);
        let node = fake.below(&format!("pci/0000:00:05.0/{path}"), class);
        fake.write(node.join(attribute), other);
        assert_eq!(uses(&fake), [], "{path}");
        fake.write(node.join(attribute), value);
        if class == "graphics" {
            fake.write("sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n");
            fake.write("sys/class/vtconsole/vtcon1/bind", "1\n");
        }
        if class == "mtd" {
            fake.write("sys/class/ubi/ubi0/mtd_num", "2\n");
        }
        assert_eq!(whats(&fake), [expected], "{path}");
    }
}

#[test]
fn devices_that_depend_on_a_device_are_found() {
    let fake = host();
    let device = "sys/devices/pci/0000:00:05.0";
    fake.write(format!("{device}/sriov_numvfs"), "0\n");
    let link = "sys/devices/virtual/devlink/a--b";
    fake.device("platform", "1.uart", None, None);
    fake.link(format!("{link}/consumer"), "sys/devices/platform/1.uart");
    fake.link(format!("{device}/consumer:platform:1.uart"), link);
    assert_eq!(uses(&fake), [], "the other has no driver");
    fake.write(format!("{device}/sriov_numvfs"), "2\n");
    fake.mkdir("sys/bus/platform/drivers/serial");
    fake.link("sys/devices/platform/1.uart/driver", "sys/bus/platform/drivers/serial");
    assert_eq!(
        whats(&fake),
        ["2 virtual functions depend on it", "1.uart needs it (driver serial)"]
    );
    let host = fake.host();
    let along = [host.find("1.uart").unwrap().unwrap()];
    let device = host.find(DEVICE).unwrap().unwrap();
    assert_eq!(Usage::of(&host).of_device(&device, &along).len(), 1, "it is taken along");
    fake.write(format!("{link}/sync_state_only"), "1\n");
    assert_eq!(whats(&fake).len(), 1);
}

#[test]
fn a_device_bound_to_vfio_has_no_uses() {
    let fake = FakeHost::with_vfio();
    fake.device("pci", DEVICE, Some("vfio-pci"), Some(3));
    let node = fake.below("pci/0000:00:05.0/vfio-dev/vfio0", "vfio-dev");
    fake.write(node.join("dev"), "1:3\n");
    fake.process(7, "strait", &["/dev/null"]);
    assert_eq!(uses(&fake), []);
}
