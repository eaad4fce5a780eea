//! What KVM and the scheduler counted: measurements that don't ask the VMM.

use std::collections::BTreeMap;

use super::failure::Failure;
use super::guest::Guest;
use super::host::Host;

/// KVM's exit counters of one virtual machine, from `/sys/kernel/debug/kvm/PID-FD/`, summed over
/// its vCPUs (the vCPU statistics of arm64: `mmio_exit_user`, `exits`, …).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitCounts(BTreeMap<String, u64>);

impl ExitCounts {
    /// The counter called `name`; 0 where KVM has none of that name.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Exits that went on to the VMM.
    pub fn to_user_space(&self) -> u64 {
        self.get("mmio_exit_user") + self.get("signal_exits")
    }

    /// All counters by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &count)| (name.as_str(), count))
    }

    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (path, count) = line.rsplit_once(':')?;
                    Some((path.rsplit('/').next()?.to_owned(), count.trim().parse().ok()?))
                })
                .collect(),
        )
    }
}

/// How often each thread of a process has blocked and been woken: `voluntary_ctxt_switches` of
/// `/proc/PID/task/TID/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadWakeups(Vec<(String, u64)>);

impl ThreadWakeups {
    /// The same without the threads that run vCPUs, which block whenever the guest idles, and that of
    /// the entropy device, of which the guest's kernel asks randomness when it likes.
    #[must_use]
    pub fn of_devices(self) -> Self {
        let of_device = |name: &str| !name.contains("vcpu") && name != "entropy";
        Self(self.0.into_iter().filter(|(name, _)| of_device(name)).collect())
    }

    /// The threads by name, each with how often it was woken.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }

    fn parse(text: &str) -> Self {
        let mut threads: Vec<(String, u64)> = Vec::new();
        for line in text.lines() {
            match line.split_once(':') {
                Some(("Name", name)) => threads.push((name.trim().to_owned(), 0)),
                Some(("voluntary_ctxt_switches", count)) => {
                    if let Some(thread) = threads.last_mut() {
                        thread.1 = count.trim().parse().unwrap_or_default();
                    }
                }
                _ => {}
            }
        }
        Self(threads)
    }
}

impl Host {
    /// The process that has the guest of the strait that runs as `pid`: its child, where it has one.
    ///
    /// # Errors
    ///
    /// The host can't be asked.
    pub fn vmm(&self, pid: u32) -> Result<u32, Failure> {
        let found = self.sh(&format!(
            "vmm={pid}; for file in $(grep -ls '^PPid:.{pid}$' /proc/[0-9]*/status); do \
             grep -qs '^Name:.strait$' $file && vmm=${{file#/proc/}}; done; echo ${{vmm%/status}}"
        ))?;
        Ok(found.trim().parse().unwrap_or(pid))
    }

    /// KVM's counters of the machine that process `pid` runs.
    ///
    /// # Errors
    ///
    /// It runs none.
    pub fn exit_counts(&self, pid: u32) -> Result<ExitCounts, Failure> {
        let directory = format!("/sys/kernel/debug/kvm/{pid}-*/");
        self.sh(&format!("cd {directory} && grep -H . *exit*")).map(|text| ExitCounts::parse(&text))
    }

    /// The exits to user space that a command of a guest causes, with those of its output.
    ///
    /// # Errors
    ///
    /// The command fails.
    pub fn exits_during(&self, guest: &mut Guest, command: &str) -> Result<u64, Failure> {
        let pid = self.vmm(guest.pid()?)?;
        let before = self.exit_counts(pid)?.to_user_space();
        guest.sh(command)?;
        Ok(self.exit_counts(pid)?.to_user_space().saturating_sub(before))
    }

    /// How often the threads of process `pid` were woken.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn thread_wakeups(&self, pid: u32) -> Result<ThreadWakeups, Failure> {
        self.sh(&format!("cat /proc/{pid}/task/*/status")).map(|text| ThreadWakeups::parse(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::{ExitCounts, ThreadWakeups};

    #[test]
    fn kvm_s_counters_are_known_by_name() {
        let counts = ExitCounts::parse("exits:312\nmmio_exit_user:7\nsignal_exits:1\nodd\n");
        assert_eq!(counts.get("exits"), 312);
        assert_eq!(counts.get("no_such"), 0);
        assert_eq!(counts.to_user_space(), 8);
    }

    #[test]
    fn threads_that_run_vcpus_are_left_out() {
        let text = "Name:\tstrait\nPid:\t5\nvoluntary_ctxt_switches:\t12\n\
                    nonvoluntary_ctxt_switches:\t3\nName:\tvcpu0\nvoluntary_ctxt_switches:\t90\n";
        let wakeups = ThreadWakeups::parse(text);
        assert_eq!(wakeups.iter().collect::<Vec<_>>(), [("strait", 12), ("vcpu0", 90)]);
        assert_eq!(wakeups.of_devices().iter().collect::<Vec<_>>(), [("strait", 12)]);
    }
}
