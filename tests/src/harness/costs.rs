//! What a command in a guest costs the VMM, watched from the host.

use super::counters::{ExitCounts, ThreadWakeups};
use super::failure::Failure;
use super::guest::Guest;
use super::host::Host;
use super::interrupts::Interrupts;

/// How much time there is around a command, in which the host looks at its counters.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// For how many seconds the guest says and does nothing before the command.
    quiet: u32,
    /// Looks at the host's interrupts in a row without a change, 0.2 s apart, that mean the command
    /// is over.
    settled: u32,
}

impl Timing {
    /// On a quiet machine the first is enough.
    const ATTEMPTS: [Self; 3] = [
        Self { quiet: 4, settled: 5 },
        Self { quiet: 10, settled: 25 },
        Self { quiet: 20, settled: 50 },
    ];
}

/// What the host counted while a guest ran a command and was silent otherwise.
#[derive(Clone, Debug)]
pub struct Costs {
    /// How often the host handled the interrupts of assigned devices.
    pub host_interrupts: u64,
    /// The guest's interrupts before and after.
    pub guest_interrupts: [Interrupts; 2],
    /// KVM's counters before and after.
    pub exits: [ExitCounts; 2],
    /// The VMM's threads but for its vCPUs and its entropy device's, before and after.
    pub wakeups: [ThreadWakeups; 2],
}

impl Costs {
    /// Those of a command in `guest`, the only one on `host` with assigned devices; with what the
    /// command said, which must succeed. Its interrupts are those that the host calls `interrupts`;
    /// it is taken to be over when no more of them come.
    ///
    /// # Errors
    ///
    /// The command fails, or the host was too slow to look at its counters in time, again and again.
    pub fn of(
        host: &Host,
        guest: &mut Guest,
        command: &str,
        interrupts: &str,
    ) -> Result<(Self, String), Failure> {
        for timing in Timing::ATTEMPTS {
            if let Some(costs) = Self::try_of(host, guest, command, interrupts, timing)? {
                return Ok(costs);
            }
        }
        Err(guest.failure("the host is too slow to look at its counters before and after"))
    }

    /// The same; nothing if the host didn't look at its counters before the command, or not after it.
    fn try_of(
        host: &Host,
        guest: &mut Guest,
        command: &str,
        interrupts: &str,
        Timing { quiet, settled }: Timing,
    ) -> Result<Option<(Self, String)>, Failure> {
        let pid = host.vmm(guest.pid()?)?;
        let before = guest.interrupts()?;
        // The result waits for a line of input, so that nothing is said before the second look.
        guest.begin(&format!(
            "sleep {quiet}; {command} >/tmp/said 2>&1; status=$?; read -r _ </dev/console; \
             cat /tmp/said; (exit $status)"
        ))?;
        let look = || -> Result<u64, Failure> {
            Ok(Interrupts::parse(&host.sh("cat /proc/interrupts")?).sum(interrupts))
        };
        let handled = look()?;
        // The command's own characters have been read by now: the guest sleeps.
        host.sh("sleep 1")?;
        let first = (host.exit_counts(pid)?, host.thread_wakeups(pid)?.of_devices());
        let early = look()? == handled;
        host.sh(&until_settled(interrupts, handled, settled))?;
        let host_interrupts = look()?.saturating_sub(handled);
        let second = (host.exit_counts(pid)?, host.thread_wakeups(pid)?.of_devices());
        guest.process().send("\n")?;
        let (status, text) = guest.finish()?;
        if status != 0 {
            return Err(guest.failure(format!("`{command}` ended with {status}:\n{text}")));
        }
        let guest_interrupts = [before, guest.interrupts()?];
        let late = look()?.saturating_sub(handled) == host_interrupts;
        let (exits, wakeups) = ([first.0, second.0], [first.1, second.1]);
        let costs = Self { host_interrupts, guest_interrupts, exits, wakeups };
        Ok((early && late).then_some((costs, text)))
    }

    /// Exits to the VMM meanwhile.
    pub fn exits_to_user_space(&self) -> u64 {
        let [before, after] = &self.exits;
        after.to_user_space() - before.to_user_space()
    }

    /// Wake-ups of the VMM's threads, but for its vCPUs, meanwhile.
    pub fn wakeups_of_the_vmm(&self) -> u64 {
        let sum = |threads: &ThreadWakeups| threads.iter().map(|(_, count)| count).sum::<u64>();
        let [before, after] = &self.wakeups;
        sum(after) - sum(before)
    }
}

/// A shell command that waits until the host's interrupts of this name have risen above `handled`
/// and then stay as they are for so many looks.
fn until_settled(name: &str, handled: u64, looks: u32) -> String {
    format!(
        "count() {{ awk '/{name}/ {{ for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i }} \
         END {{ print n + 0 }}' /proc/interrupts; }}; \
         same=0; last={handled}; while [ $same -lt {looks} ]; do sleep 0.2; now=$(count); \
         if [ $now -gt {handled} ] && [ $now = $last ]; then same=$((same + 1)); else same=0; fi; \
         last=$now; done"
    )
}
