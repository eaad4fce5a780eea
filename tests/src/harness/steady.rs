//! A guest's DMA in steady state, watched from the host: what does it cost the VMM?

use super::counters::{ExitCounts, ThreadWakeups};
use super::dmatest::{DmaTest, Summary};
use super::failure::Failure;
use super::guest::Guest;
use super::host::Host;
use super::interrupts::Interrupts;

/// How much time there is around a test, in which the host looks at its counters.
#[derive(Clone, Copy, Debug)]
struct Haste {
    /// For how many seconds the guest says and does nothing before the test.
    quiet: u32,
    /// Looks at the host's interrupts in a row without a change, 0.2 s apart, that mean the test is
    /// over.
    settled: u32,
}

impl Haste {
    /// On a quiet machine the first is enough.
    const LESS_AND_LESS: [Self; 3] = [
        Self { quiet: 4, settled: 5 },
        Self { quiet: 10, settled: 25 },
        Self { quiet: 20, settled: 50 },
    ];
}

/// What the host counted while a guest tested its DMA controllers and was silent otherwise.
#[derive(Clone, Debug)]
pub struct SteadyState {
    /// What each channel did.
    pub summaries: Vec<Summary>,
    /// Bytes copied.
    pub bytes: u64,
    /// How often the guest handled each of the controllers' lines.
    pub lines: Vec<u64>,
    /// How often the host handled the lines that VFIO has.
    pub host_interrupts: u64,
    /// KVM's counters before and after.
    pub exits: [ExitCounts; 2],
    /// The VMM's threads but for its vCPUs, before and after.
    pub wakeups: [ThreadWakeups; 2],
}

impl SteadyState {
    /// Runs `test` in `guest`, the only one on `host` with assigned devices.
    ///
    /// # Errors
    ///
    /// The test doesn't pass, or the host was too slow to look at its counters in time, again and
    /// again.
    pub fn measure(host: &Host, guest: &mut Guest, test: DmaTest) -> Result<Self, Failure> {
        for haste in Haste::LESS_AND_LESS {
            if let Some(steady) = Self::try_to_measure(host, guest, test, haste)? {
                return Ok(steady);
            }
        }
        Err(guest.failure("the host is too slow to look at its counters before and after the test"))
    }

    /// The same; nothing if the host didn't look at its counters before the test, or not after it.
    fn try_to_measure(
        host: &Host,
        guest: &mut Guest,
        test: DmaTest,
        Haste { quiet, settled }: Haste,
    ) -> Result<Option<Self>, Failure> {
        let pid = guest.pid()?;
        let before = guest.interrupts()?;
        // The result waits for a line of input, so that nothing is said before the second look.
        guest.begin(&format!(
            "sleep {quiet}; {} >/tmp/dmatest 2>&1; read -r _ </dev/console; cat /tmp/dmatest",
            test.command()
        ))?;
        let handled = vfio_interrupts(host)?;
        // The command's own characters have been read by now: the guest sleeps.
        host.sh("sleep 1")?;
        let first = (host.exit_counts(pid)?, host.thread_wakeups(pid)?.without_vcpus());
        let early = vfio_interrupts(host)? == handled;
        host.sh(&until_settled(handled, settled))?;
        let host_interrupts = vfio_interrupts(host)? - handled;
        let second = (host.exit_counts(pid)?, host.thread_wakeups(pid)?.without_vcpus());
        guest.process().send("\n")?;
        let (status, text) = guest.finish()?;
        if status != 0 {
            return Err(guest.failure(format!("dmatest ended with status {status}:\n{text}")));
        }
        let summaries = test.check(&text).map_err(|why| guest.failure(why))?;
        let after = guest.interrupts()?;
        test.check_lines(&before, &after).map_err(|why| guest.failure(why))?;
        let late = vfio_interrupts(host)? - handled == host_interrupts;
        if !early || !late {
            return Ok(None);
        }
        Ok(Some(Self {
            bytes: copied(&text).ok_or_else(|| guest.failure("dmatest counts no bytes"))?,
            summaries,
            lines: after.since(&before, ".dma"),
            host_interrupts,
            exits: [first.0, second.0],
            wakeups: [first.1, second.1],
        }))
    }

    /// Exits to the VMM during the test.
    pub fn exits_to_user_space(&self) -> u64 {
        let [before, after] = &self.exits;
        after.to_user_space() - before.to_user_space()
    }

    /// Wake-ups of the VMM's threads, but for its vCPUs, during the test.
    pub fn wakeups_of_the_vmm(&self) -> u64 {
        let sum = |threads: &ThreadWakeups| threads.iter().map(|(_, count)| count).sum::<u64>();
        let [before, after] = &self.wakeups;
        sum(after) - sum(before)
    }
}

/// Interrupts of assigned devices as the host has handled them: VFIO's lines are `vfio-irq[N](…)`.
fn vfio_interrupts(host: &Host) -> Result<u64, Failure> {
    Ok(Interrupts::parse(&host.sh("cat /proc/interrupts")?).sum("vfio-irq["))
}

/// A shell command that waits until the host's VFIO interrupts have risen above `handled` and then
/// stay as they are for so many looks.
fn until_settled(handled: u64, looks: u32) -> String {
    format!(
        "count() {{ awk '/vfio-irq/ {{ for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i }} \
         END {{ print n + 0 }}' /proc/interrupts; }}; \
         same=0; last={handled}; while [ $same -lt {looks} ]; do sleep 0.2; now=$(count); \
         if [ $now -gt {handled} ] && [ $now = $last ]; then same=$((same + 1)); else same=0; fi; \
         last=$now; done"
    )
}

/// The bytes that the guest's `dmatest` command counted.
fn copied(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("bytes copied: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::copied;

    #[test]
    fn bytes_are_found_in_what_dmatest_printed() {
        assert_eq!(copied("dmatest: x\nbytes copied: 4096\n"), Some(4096));
        assert_eq!(copied("bytes copied: many\n"), None);
        assert_eq!(copied(""), None);
    }
}
