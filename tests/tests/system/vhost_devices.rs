//! Devices of the host that rust-vmm's daemons serve over vhost-user, and the drivers of an unmodified
//! guest's kernel.

use std::fs;

use tests::harness::{Board, Failure, Guest, Host, Process, TestResult};
use tests::suite::DAEMONS;

/// A board with one of the daemons; none where they weren't built.
fn with_daemon(name: &str) -> Option<Board> {
    let Some(directory) = std::env::var_os(DAEMONS) else {
        println!("{name} isn't tried: cargo model test builds it, and {DAEMONS} names where it is");
        return None;
    };
    let path = std::path::Path::new(&directory).join(name);
    Some(Board::new().file(&format!("bin/{name}"), fs::read(path).unwrap()))
}

/// Starts a daemon, which adds a number to the name of its socket.
fn start(host: &Host, command: &str) -> Result<Process, Failure> {
    host.sh("rm -f /tmp/device0")?;
    host.start(&format!("exec {command} --socket-path /tmp/device 2>&1"))
}

/// The same, and waits for its socket, which it removes once it has a connection.
fn serve(host: &Host, command: &str) -> Result<Process, Failure> {
    let daemon = start(host, command)?;
    host.until("[ -S /tmp/device0 ]")?;
    Ok(daemon)
}

/// The guest's name of the bus that its driver has made.
const BUS: &str = "bus=$(ls /sys/bus/virtio/drivers/i2c_virtio/virtio*/ | grep -m 1 i2c-) && \
                   bus=${bus#i2c-}";

/// Writes a byte in the guest, and a word; what the host then has, and the other way round.
fn use_i2c(host: &Host, guest: &mut Guest, byte: u8) -> TestResult {
    guest.sh(&format!(
        "{BUS} && i2cset -y $bus 0x50 0x10 {byte} && i2cset -y $bus 0x50 0x20 0x{byte:02x}34 w"
    ))?;
    let said = host.sh("i2cget -y 0 0x50 0x10 && i2cget -y 0 0x50 0x20 w")?;
    assert_eq!(said, format!("0x{byte:02x}\n0x{byte:02x}34\n"));
    host.sh(&format!("i2cset -y 0 0x50 0x30 0x{byte:02x}78 w"))?;
    let said = guest.sh(&format!("{BUS} && i2cget -y $bus 0x50 0x30 w"))?;
    assert_eq!(said.trim(), format!("0x{byte:02x}78"));
    // No device is there.
    assert_ne!(guest.run(&format!("{BUS} && i2cget -y $bus 0x51 0x10"))?.0, 0);
    Ok(())
}

#[test]
fn a_guest_has_a_bus_of_the_host_s_i2c() -> TestResult {
    let Some(board) = with_daemon("vhost-device-i2c") else { return Ok(()) };
    let host = board.boot()?;
    host.sh("insmod /m/i2c_stub.ko chip_addr=0x50")?;
    let command = "vhost-device-i2c --device-list 'SMBus stub driver:80'";
    let daemon = serve(&host, command)?;
    let mut guest = host.guest("--vhost-user i2c,socket=/tmp/device0")?;
    use_i2c(&host, &mut guest, 0x5a)?;
    // Another goes on where it ended.
    daemon.signal(9)?;
    guest.process().wait_for("strait waits for another\n")?;
    let _again = start(&host, command)?;
    guest.process().wait_for("there is a backend again\n")?;
    use_i2c(&host, &mut guest, 0xa5)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// The guest's virtio device of its GPIO driver, and its chip.
const CHIP: &str = "device=$(basename $(ls -d /sys/bus/virtio/drivers/gpio_virtio/virtio*)) && \
                    chip=/dev/$(ls /sys/bus/virtio/devices/$device | grep -m 1 gpiochip)";

/// The PL061 of the model host, and its first lines that nothing else uses.
const PL061: u64 = 0x0903_0000;
const LINES: [u64; 2] = [1, 6];

/// The guest drives lines; the host's registers have their values.
fn use_gpio(host: &Host, guest: &mut Guest) -> TestResult {
    for (line, value) in LINES.into_iter().flat_map(|line| [1, 0, 1].map(|value| (line, value))) {
        guest.sh(&format!("{CHIP} && agent gpio $chip drive {line} {value}"))?;
        // The address says which lines are read (PL061 TRM, 3.3.1).
        let register = PL061 + (1 << line << 2);
        let said = host.sh(&format!("devmem {register:#x} 8"))?;
        assert_eq!(said.trim(), format!("0x{:02X}", value << line), "line {line}");
    }
    let read = |line| format!("{CHIP} && agent gpio $chip read {line}");
    assert_eq!(guest.sh(&read(LINES[0]))?.trim(), "0");
    // It has no more.
    assert_ne!(guest.run(&read(8))?.0, 0);
    Ok(())
}

#[test]
fn a_guest_has_gpio_lines_of_the_host_s() -> TestResult {
    let Some(board) = with_daemon("vhost-device-gpio") else { return Ok(()) };
    let host = board.boot()?;
    let command = "vhost-device-gpio --device-list 0";
    let daemon = serve(&host, command)?;
    let mut guest = host.guest("--vhost-user gpio,socket=/tmp/device0")?;
    use_gpio(&host, &mut guest)?;
    // What was set up is lost with it: the driver begins anew.
    daemon.signal(9)?;
    guest.process().wait_for("the guest has to reset the device\n")?;
    let _again = serve(&host, command)?;
    guest.sh(&format!(
        "{CHIP} && cd /sys/bus/virtio/drivers/gpio_virtio && echo $device >unbind && echo $device >bind"
    ))?;
    use_gpio(&host, &mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// The line of the power button, once the host's driver has given it up.
const BUTTON: u64 = 3;

#[test]
fn a_line_of_the_host_s_interrupts_a_guest() -> TestResult {
    let Some(board) = with_daemon("vhost-device-gpio") else { return Ok(()) };
    let host = board.boot()?;
    host.sh("cd /sys/bus/platform/drivers/gpio-keys && echo gpio-keys >unbind")?;
    let _daemon = serve(&host, "vhost-device-gpio --device-list 0")?;
    let mut guest = host.guest("--vhost-user gpio,socket=/tmp/device0")?;
    // It is high before it was pressed for the first time (PL061 of QEMU's virt machine: pulled up).
    host.press_power_button()?;
    host.until(&format!("devmem {:#x} 8 | grep -q 00", PL061 + (1 << BUTTON << 2)))?;
    guest.begin(&format!("{CHIP} && agent gpio $chip rises {BUTTON} 3"))?;
    guest.process().wait_for("waiting for edges")?;
    // For each edge the driver makes a buffer available in the event queue.
    for number in 1..=3 {
        host.press_power_button()?;
        guest.process().wait_for(&format!("edge {number}"))?;
        host.until(&format!("devmem {:#x} 8 | grep -q 00", PL061 + (1 << BUTTON << 2)))?;
    }
    assert_eq!(guest.finish()?.0, 0);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// An event as evdev has it (`struct input_event` of Linux' include/uapi/linux/input.h), all of whose time
/// is 0, for printf.
fn event(kind: u8, code: u8, value: u8) -> String {
    let bytes = [[0; 16].as_slice(), &[kind, 0, code, 0, value, 0, 0, 0]].concat();
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

const EV_KEY: u8 = 1;
const KEY_POWER: u8 = 116;

#[test]
fn a_guest_has_an_input_device_of_the_host_s() -> TestResult {
    let Some(board) = with_daemon("vhost-device-input") else { return Ok(()) };
    let host = board.boot()?;
    let keys = host.sh("grep -l gpio-keys /sys/class/input/event*/device/name")?;
    let keys = keys.trim().trim_end_matches("/device/name").trim_start_matches("/sys/class/");
    let _daemon = serve(&host, &format!("vhost-device-input --event-list /dev/{keys}"))?;
    let mut guest = host.guest("--vhost-user input,socket=/tmp/device0")?;
    // It is what it is on the host: its name, its bus and vendor, the keys that it has.
    let of_host = host.sh(&format!(
        "cd /sys/class/{keys}/device && cat name id/bustype id/vendor id/product capabilities/key"
    ))?;
    let of_guest = guest.sh(
        "cd /sys/bus/virtio/drivers/virtio_input/virtio*/input/input* && \
         cat name id/bustype id/vendor id/product capabilities/key && ln -s /dev/input/$(ls -d event*) /e",
    )?;
    let lines = |text: &str| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(of_guest.trim()), lines(of_host.trim()));
    // A key is pressed and let go.
    guest.sh("dd if=/e of=/events bs=24 count=4 2>/dev/null & \
         until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q /dev/input/event; do :; done")?;
    let events = [(EV_KEY, KEY_POWER, 1), (0, 0, 0), (EV_KEY, KEY_POWER, 0), (0, 0, 0)];
    let events: String = events.map(|(kind, code, value)| event(kind, code, value)).concat();
    host.sh(&format!("printf '{events}' >/dev/{keys}"))?;
    let (status, said) = guest.run("wait; hexdump -v -e '24/1 \"%02x\" \"\\n\"' /events")?;
    let seen: Vec<_> = said.lines().filter_map(|line| line.trim().get(32..48)).collect();
    let wanted = ["0100740001000000", "0000000000000000", "0100740000000000", "0000000000000000"];
    assert_eq!((status, seen), (0, wanted.to_vec()), "{said}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
