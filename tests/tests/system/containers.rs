//! strait in a container of Podman's, which gives it the host's devices by the names that `strait device list
//! --cdi` has for them.

use std::fs;

use tests::harness::{AMBA_DMA, BACKENDS, Board, Failure, Host, TestResult};

use crate::tools::tools;
use crate::vhost_user::with_programs;

/// What Podman is told that packages of a distribution tell it. Nothing manages cgroups here, and what would set
/// up a network is never called, but must be there.
const SETTINGS: &str = "\
[containers]
cgroups = \"disabled\"
log_driver = \"none\"
[engine]
cgroup_manager = \"cgroupfs\"
conmon_path = [\"/bin/conmon\"]
events_logger = \"none\"
helper_binaries_dir = [\"/bin\"]
runtime = \"crun\"
[engine.runtimes]
crun = [\"/bin/crun\"]
";

/// What a host with Podman has, whose libraries are where those of a Debian system are; and a root like that of
/// the image that `resources/cluster/Containerfile` makes, with a guest's files.
const INSTALL: &str = "\
mkdir -p /run /var/tmp /etc/cdi /etc/containers /dev/shm /libraries /c/tmp /c/guest
ln -s /bin/busybox /bin/netavark && mv /tmp/*.so.* /libraries
libraries=/debian/usr/lib/aarch64-linux-gnu
mount -t overlay -o lowerdir=/libraries:$libraries none $libraries
mount -t cgroup2 none /sys/fs/cgroup
cp /bin/strait /c/ && cp /k/model /c/guest/Image && cp /k/guest.cpio /c/guest/rootfs.cpio.gz";

/// Runs a container with this root. The model's kernel has no message queues (CONFIG_POSIX_MQUEUE), whose
/// file system a container gets else.
const PODMAN: &str = "\
CONTAINERS_CONF=/tmp/containers.conf podman --storage-driver vfs --root /tmp/storage \
run --rm --network none --tmpfs /dev/mqueue --security-opt unmask=/sys/firmware";

/// A guest in it.
const GUEST: &str = "\
--rootfs /c /strait run --kernel /guest/Image --initrd /guest/rootfs.cpio.gz --cmdline loglevel=7 \
--until READY";

/// A host with Podman; none without what labs have.
fn boot() -> Result<Option<Host>, Failure> {
    let Some(tools) = tools() else { return Ok(None) };
    let mut board = Board::new().file("tmp/containers.conf", SETTINGS);
    for entry in fs::read_dir(tools.join("podman")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let directory = if name.contains(".so.") { "tmp" } else { "bin" };
        board = board.file(&format!("{directory}/{name}"), fs::read(&path).unwrap());
    }
    let host = with_programs(board)?;
    host.sh(&format!("set -e\n{INSTALL}"))?;
    Ok(Some(host))
}

#[test]
fn podman_gives_a_container_devices_by_their_names() -> TestResult {
    let Some(host) = boot()? else { return Ok(()) };
    let [device, other] = AMBA_DMA;
    host.bind(device)?;
    host.sh("strait device list --cdi >/etc/cdi/strait.json")?;
    let run = |names: &[&str], options: &str| -> Result<(i32, String), Failure> {
        let names = names.iter().map(|name| format!(" --device strait.dev/device={name}"));
        let names: String = names.collect();
        let command = format!("{PODMAN}{names} --ulimit memlock=-1 {GUEST} {options}");
        let podman = host.start(&format!("exec env {command} 2>&1"))?.timeout(300);
        Ok((podman.exit_status()?, podman.output()))
    };
    for backend in BACKENDS {
        let assigned = format!("--vfio-platform {device} --iommu {backend}");
        let (status, said) = run(&["kvm", device], &assigned)?;
        assert!(status == 0 && said.contains("Loaded driver for PL330"), "{status}: {said}");
    }
    // It has what was named and nothing else.
    let (status, said) = run(&["kvm"], &format!("--vfio-platform {device}"))?;
    assert!(status == 1 && said.contains("give it access to /dev/vfio"), "{status}: {said}");
    let (status, said) = run(&["kvm", other], "")?;
    let unknown = format!("unresolvable CDI devices strait.dev/device={other}");
    assert!(status == 126 && said.contains(&unknown), "{status}: {said}");
    Ok(())
}
