//! Whether the host's kernel has a module, and how.

use std::fs;
use std::path::Path;

/// How a kernel has a part of it that can be a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// In the kernel or loaded.
    There,
    /// A module that isn't loaded.
    Loadable,
    /// Not at all.
    Absent,
}

impl Presence {
    /// Whether it is there, where `there` says; else what the modules' directory of the running
    /// kernel `release` says (`kmod`'s modules.dep).
    pub fn of(there: bool, modules: &Path, release: &str, module: &str) -> Self {
        if there {
            return Self::There;
        }
        let list = modules.join(release).join("modules.dep");
        let text = fs::read_to_string(list).unwrap_or_default();
        // Files have either separator, whatever the module's name; compressed ones have an ending.
        let wanted = module.replace('-', "_");
        let named = |line: &str| {
            let file = line.split(':').next().and_then(|path| path.rsplit('/').next());
            let stem = file.and_then(|file| file.split(".ko").next());
            stem.is_some_and(|stem| stem.replace('-', "_") == wanted)
        };
        if text.lines().any(named) { Self::Loadable } else { Self::Absent }
    }
}

/// The command or option that brings a module.
pub fn help(presence: Presence, module: &str, option: &str) -> String {
    match presence {
        Presence::Absent => format!("build the host's kernel with {option}"),
        _ => format!("modprobe {module}"),
    }
}

/// The release of the running kernel, as in `uname -r`.
pub fn release(proc: &Path) -> String {
    let text = fs::read_to_string(proc.join("sys/kernel/osrelease")).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_whatever_their_files_are_called() {
        let root = std::env::temp_dir().join(format!("strait-modules-{}", std::process::id()));
        let list = root.join("6.12/modules.dep");
        fs::create_dir_all(root.join("6.12")).unwrap();
        fs::write(&list, "kernel/vfio/vfio-platform.ko.xz: kernel/vfio/vfio.ko.xz\n").unwrap();
        let of = |there, release, module| Presence::of(there, &root, release, module);
        let cases = [
            (of(false, "6.12", "vfio-platform"), Presence::Loadable),
            (of(false, "6.12", "vfio_platform"), Presence::Loadable),
            (of(false, "6.12", "vfio"), Presence::Absent),
            (of(false, "6.13", "vfio-platform"), Presence::Absent),
            (of(true, "6.13", "vfio-platform"), Presence::There),
        ];
        fs::remove_dir_all(&root).unwrap();
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
        assert_eq!(help(Presence::Loadable, "vfio", "CONFIG_VFIO"), "modprobe vfio");
        assert!(help(Presence::Absent, "vfio", "CONFIG_VFIO").ends_with("with CONFIG_VFIO"));
    }
}
