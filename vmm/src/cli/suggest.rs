//! What a person may have meant who typed an option or a command that there isn't.

use super::{HELP, check, device, run};

/// Options of QEMU, crosvm, Cloud Hypervisor, Firecracker and kvmtool without their dashes, and what
/// strait has for them. A long option behind a single dash is taken for its first letter.
const OF_OTHER_VMMS: &[(&[&str], &str)] = &[
    (&["m", "mem"], "--memory SIZE"),
    (&["s", "smp", "c", "vcpus"], "--cpus N"),
    (&["a", "append", "p", "params"], "--cmdline TEXT"),
    (&["cpu"], "--cpu-features -sve,-pauth,-pmu leaves out what the host's CPUs have"),
    (&["M", "machine"], "--gic 2|3 chooses the interrupt controller"),
    (&["dtb"], "--dtb-overlay FILE changes the device tree that strait makes"),
    (&["i", "ramdisk", "initramfs"], "--initrd FILE"),
    (&["serial", "nographic"], "--console stdio|pty|unix:PATH|file:PATH|off"),
    (&["device", "vfio"], "--vfio-platform NAME, --vfio-pci BDF"),
    (
        &["d", "disk", "drive", "blockdev", "rwdisk", "hda"],
        "--block FILE, a raw image or a block device; --vfio-pci BDF gives the guest the host's NVMe \
         or SATA controller",
    ),
    (
        &["n", "netdev", "nic", "tap"],
        "--net tap=NAME, for which a tap is made by: sudo ip tuntap add dev tap0 mode tap user $USER",
    ),
    (&["balloon-page-reporting"], "--balloon free-page-reporting"),
    (&["vhost-vsock", "cid"], "--vsock cid=N"),
    (&["fs", "shared-dir", "virtfs", "9p", "fsdev"], "--share TAG=DIRECTORY"),
    (&["user-device", "vhost-user-fs", "vhost-user-gpio"], "--vhost-user TYPE,socket=PATH"),
];

/// What there is instead of a word that was typed behind `strait` and this command, if anything.
pub(super) fn suggestion(typed: &str, command: &str) -> Option<String> {
    let bare = typed.trim_start_matches('-');
    let is_option = bare.len() < typed.len();
    if let Some((_, ours)) = OF_OTHER_VMMS
        .iter()
        .find(|(theirs, _)| is_option && command == "run" && theirs.contains(&bare))
    {
        return Some((*ours).to_owned());
    }
    let help = match command {
        "run" => run::HELP,
        "device" => device::HELP,
        "check" => check::HELP,
        _ => HELP,
    };
    let words = help.lines().filter_map(|line| line.trim_start().split([' ', ',', '[']).next());
    let near = words
        .filter(|word| word.starts_with("--") == is_option && !word.is_empty())
        .map(|word| (strsim::damerau_levenshtein(typed, word), word))
        .filter(|(distance, _)| distance * 3 <= typed.len())
        .min();
    near.map(|(_, word)| format!("did you mean {word}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_words_and_those_of_others_are_answered_with_ours() {
        let cases = [
            ("--memroy", "run", Some("did you mean --memory?")),
            ("--vfio_platform", "run", Some("did you mean --vfio-platform?")),
            ("--jsno", "device", Some("did you mean --json?")),
            ("rnu", "", Some("did you mean run?")),
            ("lst", "device", Some("did you mean list?")),
            ("--mem", "run", Some("--memory SIZE")),
            ("-m", "run", Some("--memory SIZE")),
            (
                "--netdev",
                "run",
                Some(
                    "--net tap=NAME, for which a tap is made by: sudo ip tuntap add dev tap0 mode tap user $USER",
                ),
            ),
            ("--gpu", "run", None),
            ("frobnicate", "", None),
        ];
        for (typed, command, expected) in cases {
            assert_eq!(suggestion(typed, command).as_deref(), expected, "{typed} {command}");
        }
        assert!(suggestion("--disk", "run").unwrap().contains("--block FILE"));
    }
}
