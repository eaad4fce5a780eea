//! The limits of this process and of its control groups.

use devices::vfio::remedy;

use super::finding::Finding;
use super::kind::Kind;
use crate::cli::{MemoryOptions, Size};
use crate::error::Error;
use crate::limits::{self, GroupMemory, Resource};

/// What a device with many vectors takes of open files: two eventfds for each, 2048 of which MSI-X
/// has at most, is more than most need.
const FILES: u64 = 1024;

/// Checks the limits for a guest with this much RAM.
#[cold]
pub fn findings(memory: MemoryOptions) -> Vec<Finding> {
    let MemoryOptions { size: memory, pages, .. } = memory;
    // Huge pages that are reserved count as used already, and not in a group's memory.
    let of_group = if pages.are_reserved() { 0 } else { memory.bytes() };
    vec![
        group_memory(limits::group_memory(of_group), memory),
        address_space(memory),
        threads(limits::check_threads(1)),
        cpus(limits::cpus(), limits::online_cpus()),
        files(Resource::Files.hard_limit()),
    ]
}

/// Of control groups.
fn group_memory(found: GroupMemory, memory: Size) -> Finding {
    const SUBJECT: &str = "memory cgroup";
    match found {
        GroupMemory { error: Some(error), .. } => Finding::error(SUBJECT, &Kind::OF_HOST, error),
        GroupMemory { slow: Some(slow), .. } => {
            let text = slow.message().to_owned();
            Finding::degraded(SUBJECT, text, slow.take_help().unwrap_or_default())
        }
        GroupMemory { left: Some(left), .. } => {
            let left = limits::mebibytes(left);
            Finding::fine(SUBJECT, format!("{left} left, enough for --memory {memory}"))
        }
        GroupMemory { left: None, .. } => Finding::fine(SUBJECT, "no limit"),
    }
}

/// RAM is private memory, but a file where other processes have it.
fn address_space(memory: Size) -> Finding {
    const SUBJECT: &str = "address space";
    let checked = |shared| limits::check_reservation(memory.bytes(), shared);
    match (checked(false), checked(true)) {
        (Ok(()), Ok(())) => Finding::fine(SUBJECT, format!("enough for --memory {memory}")),
        (Err(error), Err(_)) => Finding::error(SUBJECT, &Kind::ALL, error),
        (Err(error), Ok(())) => Finding::error(SUBJECT, &Kind::OF_HOST, error),
        (Ok(()), Err(error)) => Finding::error(SUBJECT, &[Kind::VfioUser], error),
    }
}

fn threads(checked: Result<(), Error>) -> Finding {
    const SUBJECT: &str = "threads";
    match checked {
        Ok(()) => Finding::fine(SUBJECT, "more can be started"),
        Err(error) => Finding::error(SUBJECT, &Kind::ALL, error),
    }
}

fn cpus(own: Option<u64>, online: Option<u64>) -> Finding {
    const SUBJECT: &str = "CPUs";
    let (Some(own), Some(online)) = (own, online) else {
        return Finding::fine(SUBJECT, "unknown");
    };
    let text = format!("{own} of the host's {online}");
    if own >= online {
        return Finding::fine(SUBJECT, text);
    }
    let help = "a cpuset with more (cpuset.cpus of the control group, AllowedCPUs= of a systemd \
                unit, docker --cpuset-cpus), or taskset";
    Finding::degraded(SUBJECT, format!("{text}: more vCPUs than that share them"), help)
}

fn files(limit: Option<u64>) -> Finding {
    const SUBJECT: &str = "open files";
    match limit {
        Some(limit) if limit < FILES => Finding::degraded(
            SUBJECT,
            format!("at most {limit}: devices with many interrupts can't have all of them"),
            remedy::open_files(4 * FILES),
        ),
        Some(limit) => Finding::fine(SUBJECT, format!("at most {limit}")),
        None => Finding::fine(SUBJECT, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn too_little_blocks_and_slow_degrades() {
        let error = |text: &str| Some(Error::new(text).help("more"));
        let memory = Size::from(256 << 20);
        let (left, none) = (Some(1 << 30), GroupMemory { left: None, error: None, slow: None });
        let cases = [
            (none, Level::Fine, "no limit"),
            (GroupMemory { left, error: None, slow: None }, Level::Fine, "1G left, enough"),
            (GroupMemory { left, error: None, slow: error("slow") }, Level::Degraded, "slow"),
            (GroupMemory { left, error: error("few"), slow: error("slow") }, Level::Blocks, "few"),
        ];
        for (found, level, text) in cases {
            let finding = group_memory(found, memory);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.text.starts_with(text), "{finding:?}");
        }
        assert_eq!(threads(Err(Error::new("none").help("more"))).level, Level::Blocks);
    }

    #[test]
    fn few_cpus_and_files_degrade() {
        assert_eq!(cpus(Some(2), Some(2)).level, Level::Fine);
        assert_eq!(cpus(Some(1), Some(2)).level, Level::Degraded);
        assert_eq!(cpus(None, Some(2)).level, Level::Fine);
        assert_eq!(files(Some(32)).level, Level::Degraded);
        assert_eq!(files(Some(1 << 20)).level, Level::Fine);
        assert_eq!(files(None).level, Level::Fine);
    }
}
