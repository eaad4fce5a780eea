//! PCI devices of other processes: a server in the model host, and its device in a guest.

use tests::harness::{Board, Failure, Guest, Host, Process, Story};

/// Where the server listens.
const SOCKET: &str = "/tmp/device.sock";
/// The device's name in the guest.
const DEVICE: &str = "0000:00:01.0";
/// What strait says of a failed device.
const FAILED: &str = "the device has failed";

/// Starts the server.
fn serve(host: &Host) -> Result<Process, Failure> {
    let mut server = host.start(&format!("exec probe vfio-user serve {SOCKET} 2>&1"))?;
    server.wait_for("serving")?;
    Ok(server)
}

/// A guest with the served device.
fn guest(host: &Host) -> Result<Guest, Failure> {
    host.guest(&format!("--vfio-user {SOCKET}"))
}

#[test]
fn a_guest_drives_a_device_of_another_process() -> Story {
    let host = Board::new().boot()?;
    let _server = serve(&host)?;
    let mut guest = guest(&host)?;
    assert!(guest.sh("cat /sys/bus/pci/devices/*/uevent")?.contains("PCI_ID=1B36:7573"));
    let said = guest.sh(&format!("probe vfio-user drive {DEVICE}"))?;
    assert!(said.contains("copies: 64 on 4 vectors") && said.contains("passed"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
