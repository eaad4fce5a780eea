//! A second kind of device: a guest's port, or its console, is a PL011 that belongs to it.

use sha2::{Digest, Sha256};
use tests::harness::{
    Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, SHARED_UART, TestResult, UART,
};

const SIGSTOP: i32 = 19;

/// As much as must go each way.
const LENGTH: usize = 100 << 10;

/// Bytes that no two neighbours share, each value among them.
fn noise() -> Vec<u8> {
    let mut state = 0x2c0e_0000_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..LENGTH).map(|_| next()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A guest whose second port is the UART, with this beside it.
fn guest(host: &Host, arguments: &str) -> Result<Guest, Failure> {
    host.bind(UART)?;
    let mut guest = host.guest(&format!("--vfio-platform {UART} {arguments}"))?;
    assert!(guest.log_of("ttyAMA0")?.contains("is a PL011"), "{}", guest.sh("dmesg")?);
    guest.sh("stty -F /dev/ttyAMA0 115200 raw -echo")?;
    Ok(guest)
}

/// How often the UART's interrupt was handled.
fn interrupts(guest: &mut Guest) -> Result<u64, Failure> {
    Ok(guest.interrupts()?.of("uart-pl011").iter().sum())
}

#[test]
fn a_guest_sends_and_receives_by_interrupt() -> TestResult {
    let host = Board::new().uart().boot()?;
    let mut uart = host.uart()?;
    let mut guest = guest(&host, "")?;
    guest.sh("echo here is the guest >/dev/ttyAMA0")?;
    uart.wait_for("here is the guest\n")?;
    let before = interrupts(&mut guest)?;
    guest.begin("exec 3</dev/ttyAMA0; echo ready >/dev/ttyAMA0; head -n 1 <&3")?;
    uart.wait_for("ready\n")?;
    uart.send("a line from outside\n")?;
    assert_eq!(guest.finish()?, (0, "a line from outside\n".into()));
    assert!(interrupts(&mut guest)? > before);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn two_devices_with_one_spi_are_not_assigned_together() -> TestResult {
    let host = Board::new().shared_uart().boot()?;
    let mut uart = host.uart()?;
    let mut guest = guest(&host, "")?;
    guest.begin("exec 3</dev/ttyAMA0; echo ready >/dev/ttyAMA0; head -n 1 <&3")?;
    uart.wait_for("ready\n")?;
    uart.send("a line from outside\n")?;
    assert_eq!(guest.finish()?, (0, "a line from outside\n".into()));
    assert!(interrupts(&mut guest)? > 0);
    host.bind(SHARED_UART)?;
    let other = host.run(&format!("strait run --kernel /k/model --vfio-platform {SHARED_UART}"))?;
    let told = format!("is also that of {UART}, which another guest has");
    assert!(other.status == 1 && other.errors.contains(&told), "{}", other.errors);
    assert_eq!(guest.power_off()?, 0);
    let mut guest = host.guest(&format!("--vfio-platform {SHARED_UART}"))?;
    guest.sh("stty -F /dev/ttyAMA0 115200 raw -echo && seq 1 1000 >/dev/ttyAMA0")?;
    assert_eq!(guest.power_off()?, 0);
    let both = format!("--vfio-platform {UART} --vfio-platform {SHARED_UART}");
    let refused = host.run(&format!("strait run --kernel /k/model {both}"))?;
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains(SHARED_UART), "{}", refused.errors);
    Ok(())
}

#[test]
fn a_hundred_kib_each_way_arrive_during_dma() -> TestResult {
    let host = Board::new().uart().boot()?;
    let mut uart = host.uart()?;
    host.bind(PLATFORM_DMA[0])?;
    let mut guest = guest(&host, &format!("--vfio-platform {}", PLATFORM_DMA[0]))?;
    let noise = noise();

    // Out: what the guest makes by itself is known here.
    let wanted: String = (1..).map(|n| format!("{n}\n")).take(20_000).collect();
    let wanted = wanted.as_bytes().get(..LENGTH).expect("it is longer");
    let test = DmaTest { copies: 100, ..DmaTest::default() };
    guest.begin(&format!(
        "seq 1 20000 | head -c {LENGTH} >/dev/ttyAMA0 & {}; wait",
        test.command()
    ))?;
    assert!(uart.receive(LENGTH)? == wanted, "what the guest sent came changed");
    let (status, text) = guest.finish()?;
    assert_eq!(status, 0, "{text}");
    assert!(test.check(&text).is_ok(), "{text}");

    // In: any bytes, as fast as the UART takes them.
    guest.begin(&format!(
        "exec 3</dev/ttyAMA0; echo ready >/dev/ttyAMA0; head -c {LENGTH} <&3 | sha256sum"
    ))?;
    uart.wait_for("ready\n")?;
    uart.send(&noise)?;
    let (status, text) = guest.finish()?;
    assert!(status == 0 && text.contains(&sha256(&noise)), "what came was changed: {text}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn the_guest_console_can_be_the_assigned_uart() -> TestResult {
    let host = Board::new().uart().boot()?;
    let mut uart = host.uart()?;
    host.bind(UART)?;
    let launch = Launch::model()
        .cmdline("console=ttyAMA0")
        .with(&format!("--console off --vfio-platform {UART},addr=host"));
    let strait = host.strait(&launch.arguments())?;
    uart.wait_for("GUEST READY: shell")?;
    uart.send("echo $((6 * 7)) is the answer\n")?;
    uart.wait_for("42 is the answer")?;
    uart.send("echo ends now >/dev/console; poweroff -f\n")?;
    assert_eq!(strait.exit_status()?, 0);
    uart.wait_for("ends now")?;
    Ok(())
}

#[test]
fn a_uart_is_quiesced_for_the_next_guest() -> TestResult {
    let host = Board::new().uart().boot()?;
    let mut uart = host.uart()?;
    let mut first = guest(&host, "")?;
    // Its interrupts and its FIFO are on, and characters wait there, when it is killed. Without the FIFO they would
    // come one by one for the next guest, whose driver empties it in between: QEMU's interrupt stays high then.
    first.sh("exec 3</dev/ttyAMA0")?;
    first.process().signal(SIGSTOP)?;
    uart.send("never read")?;
    first.process().signal(9)?;
    assert_eq!(first.exit_status()?, 128 + 9);
    let mut second = host.guest(&format!("--vfio-platform {UART} --log-level info"))?;
    second.sh("stty -F /dev/ttyAMA0 115200 raw -echo")?;
    second.begin("exec 3</dev/ttyAMA0; echo ready >/dev/ttyAMA0; head -c 3 <&3")?;
    uart.wait_for("ready\n")?;
    uart.send("new")?;
    assert_eq!(second.finish()?, (0, "new".into()));
    assert!(second.process().output().contains("stopped as a PL011 is"));
    assert_eq!(second.power_off()?, 0);
    Ok(())
}
