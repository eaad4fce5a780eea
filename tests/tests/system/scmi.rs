//! Clocks, resets and power domains of assigned devices, by SCMI.

use tests::harness::payload::{self, Step};
use tests::harness::{Board, Host, Launch, PLATFORM_DMA, TestResult};

const NAME: &str = PLATFORM_DMA[0];

/// Has the host's tree say that the device has a reset and a power domain, of the board's clock.
const DOMAINS: &str = r"set -e
tree=/sys/firmware/devicetree/base
clock=$tree/apb-pclk
node=$(readlink -f /sys/bus/platform/devices/2c0a0000.dma/of_node)
for directory in $clock $node; do
    mkdir -p /tmp/tree$directory
    cp -r $directory/. /tmp/tree$directory/
done
for kind in reset power-domain; do
    printf '\0\0\0\1' >/tmp/tree$clock/\#$kind-cells
    (cat $clock/phandle; printf '\0\0\0\7') >/tmp/tree$node/${kind}s
done
printf 'dma\0' >/tmp/tree$node/reset-names
for directory in $clock $node; do mount -o bind /tmp/tree$directory $directory; done";

fn host(board: Board) -> Result<Host, tests::harness::Failure> {
    let host = board.boot()?;
    host.bind(NAME)?;
    host.sh(DOMAINS)?;
    Ok(host)
}

#[test]
fn a_driver_has_its_clock_reset_and_power_domain() -> TestResult {
    let host = host(Board::new().stock())?;
    let launch = Launch::stock()
        .with(&format!("--log-level debug --vfio-platform {NAME} --stats /tmp/stats"))
        .with(&format!("--trace {NAME},out=/tmp/trace,registers=CR0,pc=off"));
    let mut guest = host.launch(&launch)?;
    let clocks = guest.sh("cat /sys/kernel/debug/clk/clk_summary")?;
    let clock = clocks.lines().find(|line| line.contains("apb_pclk.0"));
    let words: Vec<&str> = clock.unwrap_or_else(|| panic!("{clocks}")).split_whitespace().collect();
    assert_eq!((words[0], words[4]), ("apb_pclk.0", "24000000"), "{clocks}");
    assert_eq!(words[2], "1", "prepared: {clocks}");
    assert!(clock.is_some_and(|line| line.contains(".dma-controller")), "{clocks}");
    let domains = guest.sh("cat /sys/kernel/debug/pm_genpd/pm_genpd_summary")?;
    assert!(domains.contains("apb-pclk.0") && domains.contains(".dma-controller"), "{domains}");
    let log = guest.sh("dmesg | grep -i scmi")?;
    assert!(log.contains("strait:KVM"), "{log}");
    // The driver resets its device when it leaves it.
    let driver = "/sys/bus/amba/drivers/dma-pl330";
    guest.begin(&format!("cd {driver} && for d in *.dma-controller; do echo $d >unbind; done"))?;
    guest.process().wait_for("SCMI: 2c0a0000.dma was reset")?;
    assert_eq!(guest.finish()?.0, 0);
    assert_eq!(guest.power_off()?, 0);
    let stats = host.sh("cat /tmp/stats")?;
    assert!(!stats.contains("\"call\": 0,"), "{stats}");
    // What the driver asked for is in the trace of its device.
    let trace = host.sh("grep scmi /tmp/trace")?;
    for call in [
        "CLOCK_CONFIG_SET apb_pclk.0 0x1: 0",
        "POWER_STATE_SET apb-pclk.0 ",
        "RESET apb-pclk.0 0x2: 0",
    ] {
        assert!(trace.contains(&format!(" scmi {call}")), "{call}: {trace}");
    }
    Ok(())
}

/// The shared memory, and the function that says that there is a message.
const MEMORY: u32 = 0x0904_0000;
const FUNCTION: u32 = 0x8200_0010;

/// The PL330's registers.
const CONTROLLER: u32 = 0x0c00_0000;

/// Header of a command.
fn header(protocol: u32, command: u32) -> u32 {
    3 << 18 | protocol << 10 | command
}

fn store(at: u32, value: u32) -> Step {
    Step::Store { at, value }
}

fn expect(at: u32, value: u32) -> Step {
    Step::Expect { at, value }
}

/// Sends a message whose header and length are these, and expects a status and the words behind it.
fn send(header: u32, length: u32, words: &[u32], status: i32, answer: &[u32]) -> Vec<Step> {
    let mut steps = vec![
        expect(MEMORY + 4, 1),
        store(MEMORY + 4, 0),
        store(MEMORY + 0x14, length),
        store(MEMORY + 0x18, header),
    ];
    let payload = (MEMORY + 0x1c..).step_by(4);
    steps.extend(payload.clone().zip(words).map(|(at, word)| store(at, *word)));
    steps.push(Step::Call { function: FUNCTION, answer: 0 });
    steps.extend([expect(MEMORY + 4, 1), expect(MEMORY + 0x18, header)]);
    let words = [status.cast_unsigned()].into_iter().chain(answer.iter().copied());
    steps.extend(payload.zip(words).map(|(at, word)| expect(at, word)));
    let length = 8 + 4 * u32::try_from(answer.len()).unwrap_or_default();
    steps.push(expect(MEMORY + 0x14, length));
    steps
}

fn message(protocol: u32, command: u32, words: &[u32], status: i32, answer: &[u32]) -> Vec<Step> {
    let length = 4 + 4 * u32::try_from(words.len()).unwrap_or_default();
    send(header(protocol, command), length, words, status, answer)
}

/// What a guest tries that means no good: numbers of others, messages that are none.
fn hostile() -> Vec<Step> {
    const BASE: u32 = 0x10;
    const POWER: u32 = 0x11;
    const CLOCK: u32 = 0x14;
    const RESET: u32 = 0x16;
    let mut steps = message(BASE, 6, &[0], 0, &[3, 0x16_1411]);
    for number in [1, 2, 0xffff, 0x8000_0000, u32::MAX] {
        for command in [3, 4, 6, 7] {
            steps.extend(message(CLOCK, command, &[number, 1], -4, &[]));
        }
        steps.extend(message(CLOCK, 5, &[0, number, 1, 0], -4, &[]));
        steps.extend(message(RESET, 4, &[number, 1, 0], -4, &[]));
        steps.extend(message(POWER, 4, &[0, number, 0], -4, &[]));
    }
    steps.extend(message(CLOCK, 6, &[0], 0, &[24_000_000, 0]));
    steps.extend(message(CLOCK, 5, &[0, 0, 1, 0], -3, &[]));
    for length in [0, 3, 5, 0xec, 0x100, u32::MAX] {
        steps.extend(send(header(CLOCK, 6), length, &[0], -10, &[]));
    }
    for (protocol, command, status) in [(0x13, 0, -1), (0x15, 1, -1), (CLOCK, 0x20, -1)] {
        steps.extend(message(protocol, command, &[0; 4], status, &[]));
    }
    // Notifications aren't commands, a free channel has no message, and there is no other function.
    steps.extend(send(header(CLOCK, 6) | 3 << 8, 8, &[0], -10, &[]));
    for function in [FUNCTION, FUNCTION + 1, FUNCTION | 1 << 30] {
        steps.push(Step::Call { function, answer: u32::MAX });
    }
    steps
}

/// A channel of the controller waits for an event, until the guest asks for a reset.
fn reset_of_a_busy_channel() -> Vec<Step> {
    const PROGRAM: u32 = 0x4100_0000;
    const WAIT_FOR_EVENT: u32 = 0x2836; // DMAWFE 5 (ARM DDI 0424, 4.3)
    const GO: u32 = 0xa2 << 16; // DMAGO of channel 0, non-secure, by the manager
    const STATUS: u32 = CONTROLLER + 0x100;
    let waits = |value| Step::ExpectLow { at: STATUS, value };
    let mut steps = vec![
        store(PROGRAM, WAIT_FOR_EVENT),
        store(CONTROLLER + 0xd08, GO),
        store(CONTROLLER + 0xd0c, PROGRAM),
        store(CONTROLLER + 0xd04, 0),
        waits(4),
    ];
    // That of another device isn't.
    steps.extend(message(0x16, 4, &[1, 1, 0], -4, &[]));
    steps.push(waits(4));
    steps.extend(message(0x16, 4, &[0, 1, 0], 0, &[]));
    steps.push(waits(0));
    steps
}

#[test]
fn a_guest_names_nothing_but_what_is_its_own_and_resets_that() -> TestResult {
    let wrong = [expect(MEMORY + 4, 0)];
    let board = Board::new()
        .file("k/hostile", payload::script(&hostile()))
        .file("k/reset", payload::script(&reset_of_a_busy_channel()))
        .file("k/wrong", payload::script(&wrong));
    let host = host(board)?;
    let run = |kernel: &str, scmi: &str| {
        let device = format!("--vfio-platform {NAME},scmi={scmi}");
        let strait = host.strait(&format!("run --serial pl011 --kernel /k/{kernel} {device}"))?;
        let status = strait.exit_status()?;
        // The payload says the number of a step that failed.
        let said = strait.output();
        let step = said.lines().find(|line| line.len() == 4).map(str::to_owned);
        Ok::<_, tests::harness::Failure>((status, step, said))
    };
    for kernel in ["hostile", "reset"] {
        let (status, step, said) = run(kernel, "on")?;
        assert_eq!((status, step), (0, None), "{kernel}: {said}");
    }
    // A payload without a driver gets none of it by itself; and it tells what fails.
    for (kernel, scmi) in [("hostile", "auto"), ("wrong", "on")] {
        let (status, step, said) = run(kernel, scmi)?;
        assert_eq!((status, step.as_deref()), (3, Some("0000")), "{kernel}: {said}");
    }
    Ok(())
}
