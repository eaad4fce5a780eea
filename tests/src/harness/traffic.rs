//! Bytes by TCP between a host and its guest.

use super::failure::TestResult;
use super::guest::Guest;
use super::host::Host;

/// Sends so many bytes from the guest to the host's address, then as many to the guest's; either receiver
/// checks that all arrive as they are.
///
/// # Errors
///
/// The guest or the host is gone, or a side fails.
///
/// # Panics
///
/// If a side has fewer bytes, or others.
pub fn exchange(
    host: &Host,
    guest: &mut Guest,
    [host_address, guest_address]: [&str; 2],
    bytes: u64,
) -> TestResult {
    let receiver = host.start(&format!("agent receive tcp:{host_address}:5000"))?;
    let sent = guest.sh(&format!("agent send tcp:{host_address}:5000 {bytes}"))?;
    assert_eq!(receiver.exit_status()?, 0);
    let sender = host.start(&format!("agent send tcp:{guest_address}:5001 {bytes}"))?;
    let received = guest.sh(&format!("agent receive tcp:{guest_address}:5001"))?;
    assert_eq!(sender.exit_status()?, 0);
    for said in [sent, received] {
        println!("{said}");
        assert!(said.contains(&format!("{bytes} bytes, sum ")), "{said}");
    }
    Ok(())
}
