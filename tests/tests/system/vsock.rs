//! Sockets between guest and host: virtio-vsock by vhost-vsock.

use tests::harness::{Board, TestResult, payload};

#[test]
fn sockets_reach_the_host_and_the_guest() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let mut guest = host.guest("--vsock cid=3")?;
    for round in 0..2 {
        let receiver = host.start("agent receive vsock:any:5000")?;
        let sent = guest.sh("agent send vsock:2:5000 1000000")?;
        assert_eq!(receiver.exit_status()?, 0);
        let sender = host.start("agent send vsock:3:5001 1000000")?;
        let received = guest.sh("agent receive vsock:any:5001")?;
        assert_eq!(sender.exit_status()?, 0);
        for said in [sent, received] {
            assert!(said.starts_with("1000000 bytes, sum "), "{said}");
        }
        if round == 0 {
            // The driver goes and comes, which resets the device.
            let device = "vmw_vsock_virtio_transport";
            guest.sh(&format!(
                "cd /sys/bus/virtio/drivers/{device} && echo virtio0 >unbind && echo virtio0 >bind"
            ))?;
        }
    }
    // The address is this guest's as long as it runs.
    let second = host.run("strait run --kernel /k/off --vsock cid=3")?;
    assert_eq!(second.status, 1, "{}", second.errors);
    assert_eq!(
        second.errors,
        "error: --vsock cid=3: another guest of this host has this address\n  help: --vsock cid=4\n"
    );
    host.sh("strait run --kernel /k/off --vsock cid=4")?;
    assert_eq!(guest.power_off()?, 0);
    host.sh("strait run --kernel /k/off --vsock cid=3")?;
    // What can't be opened is told with what mends it.
    host.sh(
        "mv /dev/vhost-vsock /dev/away && ! strait run --kernel /k/off --vsock cid=3 2>/tmp/said",
    )?;
    let said = host.sh("cat /tmp/said")?;
    assert!(said.contains("/dev/vhost-vsock can't be opened"), "{said}");
    assert!(said.contains("help: sudo modprobe vhost_vsock"), "{said}");
    Ok(())
}
