//! More than one: four guests with a DMA controller each, all at work; and a line that is stuck.

use std::env;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::harness::{
    AMBA_DMA, BACKENDS, Board, DmaTest, Failure, Guest, Host, Interrupts, Launch, PLATFORM_DMA,
    TestResult,
};
use tests::suite::SOAK;

const SIGUSR1: i32 = 10;

/// How many rounds of work the guests do at least, and for how long.
fn work() -> (u32, Duration) {
    if env::var_os(SOAK).is_some() { (2, Duration::from_secs(600)) } else { (2, Duration::ZERO) }
}

/// How long a line awaits something until it is stuck.
const STUCK: Duration = Duration::from_secs(1);

/// How often each channel copies in a round of work.
const COPIES: u32 = 25;

/// How long a round may take, in seconds: more than dmatest waits if each copy of a channel is lost,
/// 20 s each, so that it is dmatest that tells.
const ROUND_TIMEOUT: u64 = 600;

/// The statistics of a run, asked for now.
fn statistics(host: &Host, guest: &mut Guest, file: &str) -> Result<Value, Failure> {
    host.sh(&format!("rm -f {file}"))?;
    guest.process().signal(SIGUSR1)?;
    host.until(&format!("[ -e {file} ]"))?;
    let text = host.sh(&format!("cat {file}"))?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// The interrupts in statistics.
fn lines(statistics: &Value) -> &[Value] {
    statistics["interrupts"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A guest at work, and what it has done.
struct Worker {
    guest: Guest,
    backend: &'static str,
    file: String,
    before: Interrupts,
    copies: u64,
}

impl Worker {
    /// Starts a guest with a device, by this way to the IOMMU and with these further arguments.
    fn start(
        host: &Host,
        device: &str,
        backend: &'static str,
        further: &str,
    ) -> Result<Self, Failure> {
        let file = format!("/tmp/{device}");
        let arguments =
            format!("--bind --vfio-platform {device} --iommu {backend} --stats {file}{further}");
        let launch = Launch::model().memory("192M").with(&arguments);
        let mut guest = host.launch(&launch)?.timeout(ROUND_TIMEOUT);
        let before = guest.interrupts()?;
        Ok(Self { guest, backend, file, before, copies: 0 })
    }

    /// Ends a round of work and checks that every copy was right.
    fn finish(&mut self, test: &DmaTest) -> Result<(), Failure> {
        let (status, text) = self.guest.finish()?;
        assert_eq!(status, 0, "{text}");
        let summaries = test.check(&text).unwrap_or_else(|why| panic!("{why}"));
        self.copies += summaries.iter().map(|summary| u64::from(summary.copies)).sum::<u64>();
        Ok(())
    }

    /// Checks, at rest, that every signal of every line found its way back, and that the guest has
    /// counted as many; returns how many there were of each line.
    fn check_at_rest(&mut self, host: &Host) -> Result<Vec<u64>, Failure> {
        let report = statistics(host, &mut self.guest, &self.file)?;
        assert_eq!(report["iommu"], self.backend);
        let lines = lines(&report);
        assert_eq!(lines.len(), 9, "{report:#}");
        let mut fired = Vec::new();
        for line in lines {
            assert_eq!(
                (&line["awaiting"], &line["stuck"]),
                (&"idle".into(), &false.into()),
                "{line}"
            );
            assert!(line["fired"].is_u64(), "{line}");
            for stage in ["injected", "resampled"] {
                assert_eq!(line[stage], line["fired"], "{line}");
            }
            fired.extend(line["fired"].as_u64());
        }
        assert_eq!(self.guest.interrupts()?.since(&self.before, ".dma"), fired);
        Ok(fired)
    }
}

#[test]
fn four_guests_run_dma_concurrently() -> TestResult {
    let host = Board::new().boot()?;
    let devices = [PLATFORM_DMA, AMBA_DMA].concat();
    let backends = BACKENDS.iter().cycle();
    let workers = devices.iter().zip(backends);
    let workers = workers.map(|(device, backend)| Worker::start(&host, device, backend, ""));
    let mut workers = workers.collect::<Result<Vec<_>, _>>()?;
    let test = DmaTest { copies: COPIES, ..DmaTest::default() };
    let (rounds, duration) = work();
    let end = Instant::now() + duration;
    let mut round = 0;
    while round < rounds || Instant::now() < end {
        round += 1;
        for worker in &mut workers {
            worker.guest.begin(&test.command())?;
        }
        for worker in &mut workers {
            worker.finish(&test)?;
        }
    }
    for worker in &mut workers {
        // One for every copy, but for those that came together, and for the few that the host saw
        // once more when they were over (it disables lines lazily).
        let handled: u64 = worker.check_at_rest(&host)?.iter().sum();
        let copies = worker.copies;
        assert!(handled <= copies + copies / 10 && handled * 2 > copies, "{handled} of {copies}");
        println!("{}: {copies} copies, none failed; {handled} interrupts, none lost", worker.file);
    }
    for worker in workers {
        assert_eq!(worker.guest.power_off()?, 0);
    }
    for device in devices {
        assert!(!host.driver(device)?.is_some_and(|driver| driver.starts_with("vfio")), "{device}");
    }
    Ok(())
}

#[test]
fn no_interrupt_is_lost_on_four_cpus() -> TestResult {
    let host = Board::new().cpus(4).boot()?;
    for backend in BACKENDS {
        let mut worker = Worker::start(&host, PLATFORM_DMA[0], backend, " --cpus 4")?;
        let (rounds, copies) = if env::var_os(SOAK).is_some() { (10, 100) } else { (2, 20) };
        let test = DmaTest { copies, ..DmaTest::default() };
        for round in 1..=rounds {
            worker.guest.begin(&test.command())?;
            worker.finish(&test)?;
            let handled = worker.check_at_rest(&host)?;
            // Linux' driver serves all events whichever line calls it: on several CPUs it takes some
            // before their own lines do.
            let most = round * u64::from(test.copies + test.copies / 10 + 3);
            assert!(handled.iter().take(8).all(|count| (1..=most).contains(count)), "{handled:?}");
            println!("{backend}, {} copies a line: {handled:?}", round * u64::from(test.copies));
        }
        assert_eq!(worker.guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn an_unhandled_interrupt_is_reported_as_stuck() -> TestResult {
    let host = Board::new().boot()?;
    // A guest without a driver: nobody enables the interrupt, nobody ends it.
    let arguments = format!("--bind --vfio-platform {} --stats /tmp/stats", PLATFORM_DMA[0]);
    let launch = Launch::model().cmdline("initcall_blacklist=pl330_driver_init").with(&arguments);
    let mut guest = host.launch(&launch)?;
    let raised = Instant::now();
    guest.sh("agent pl330 0xc000000 raise 3")?;
    let first = statistics(&host, &mut guest, "/tmp/stats")?;
    let line = &lines(&first)[3];
    assert_eq!((&line["fired"], &line["injected"]), (&1.into(), &1.into()), "{line}");
    assert_eq!((&line["resampled"], &line["awaiting"]), (&0.into(), &"guest".into()), "{line}");
    assert!(line["stuck"] == false || raised.elapsed() >= STUCK, "not yet: {line}");

    host.sh("sleep 1.1")?;
    let second = statistics(&host, &mut guest, "/tmp/stats")?;
    for line in lines(&second) {
        assert_eq!(line["stuck"] == true, line["index"] == 3, "{line}");
    }
    assert!(guest.process().output().contains("interrupt 3 is stuck"));
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_line_that_stays_masked_is_reported_as_lost() -> TestResult {
    let host = Board::new().boot()?;
    for backend in BACKENDS {
        lose_a_line(&host, backend)?;
    }
    Ok(())
}

fn lose_a_line(host: &Host, backend: &str) -> Result<(), Failure> {
    let device = PLATFORM_DMA[0];
    let arguments = format!("--bind --vfio-platform {device} --iommu {backend} --stats /tmp/stats");
    let mut guest = host.launch(&Launch::model().with(&arguments))?;
    let test = DmaTest::default();
    test.pass(&mut guest)?;
    // As if the guest's end of the last interrupt had got lost: VFIO never heard of it.
    let process = host.vmm(guest.pid()?)?;
    let masked = Instant::now();
    host.sh(&format!("agent vfio mask {process} 3"))?;
    let first = statistics(host, &mut guest, "/tmp/stats")?;
    assert_eq!(lines(&first).len(), 9);
    for line in lines(&first) {
        let expected = if line["index"] == 3 { "lost" } else { "idle" };
        assert_eq!(line["awaiting"], expected, "{line}");
        let may_be_stuck = line["index"] == 3 && masked.elapsed() >= STUCK;
        assert!(line["stuck"] == false || may_be_stuck, "{line}");
    }
    host.sh("sleep 1.1")?;
    let second = statistics(host, &mut guest, "/tmp/stats")?;
    for line in lines(&second) {
        assert_eq!(line["stuck"] == true, line["index"] == 3, "{line}");
    }
    assert!(
        guest
            .process()
            .output()
            .contains("interrupt 3 is stuck: its line is masked and nothing will unmask it")
    );
    // It was nothing else: unmasked, the line works, and is idle again.
    host.sh(&format!("agent vfio unmask {process} 3"))?;
    test.pass(&mut guest)?;
    let third = statistics(host, &mut guest, "/tmp/stats")?;
    assert!(lines(&third).iter().all(|line| line["awaiting"] == "idle"), "{third:#}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
