//! The modules of the host's kernel.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the running kernel's modules (`kmod(8)`).
pub struct Modules(PathBuf);

impl Modules {
    /// In `root`, those of the kernel whose `/proc` is `proc`.
    pub fn of(root: &Path, proc: &Path) -> Self {
        let release = fs::read_to_string(proc.join("sys/kernel/osrelease")).unwrap_or_default();
        Self(root.join(release.trim()))
    }

    /// Whether there is one of this name.
    pub fn has(&self, module: &str) -> bool {
        let text = fs::read_to_string(self.0.join("modules.dep")).unwrap_or_default();
        // Files have either separator, whatever the module's name; compressed ones have an ending.
        let wanted = module.replace('-', "_");
        text.lines().any(|line| {
            let file = line.split(':').next().and_then(|path| path.rsplit('/').next());
            let stem = file.and_then(|file| file.split(".ko").next());
            stem.is_some_and(|stem| stem.replace('-', "_") == wanted)
        })
    }

    /// The command or the option that brings one that isn't loaded.
    pub fn remedy(&self, module: &str, option: &str) -> String {
        if self.has(module) {
            format!("modprobe {module}")
        } else {
            format!("build the host's kernel with {option}")
        }
    }

    /// The devices, by `compatible`, for which the kernel has reset functions: modules of which each says
    /// by its aliases, `vfio-reset:COMPATIBLE`, what it is for (`drivers/vfio/platform/reset` in the
    /// kernel).
    pub fn resettable(&self) -> Vec<String> {
        // Of modules, and of what is built in (kbuild.rst).
        let files = ["modules.alias", "modules.builtin.modinfo"];
        let texts = files.map(|file| fs::read(self.0.join(file)).unwrap_or_default());
        texts.iter().flat_map(|text| aliases(text)).collect()
    }
}

/// The devices that such a file has reset functions for.
fn aliases(text: &[u8]) -> Vec<String> {
    let words = text.split(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | b'='));
    let named = words.filter_map(|word| word.strip_prefix(b"vfio-reset:"));
    named.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_whatever_their_files_are_called() {
        let root = std::env::temp_dir().join(format!("strait-modules-{}", std::process::id()));
        fs::create_dir_all(root.join("6.12")).unwrap();
        fs::create_dir_all(root.join("sys/kernel")).unwrap();
        let list = "kernel/vfio/vfio-platform.ko.xz: kernel/vfio/vfio.ko.xz\n";
        fs::write(root.join("6.12/modules.dep"), list).unwrap();
        let of_release = |release| {
            fs::write(root.join("sys/kernel/osrelease"), format!("{release}\n")).unwrap();
            Modules::of(&root, &root)
        };
        let (there, other) = (of_release("6.12"), of_release("6.13"));
        let found = ["vfio-platform", "vfio_platform", "vfio"].map(|name| there.has(name));
        let remedies = [&there, &other].map(|modules| modules.remedy("vfio_platform", "CONFIG_X"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [true, true, false]);
        assert_eq!(remedies, ["modprobe vfio_platform", "build the host's kernel with CONFIG_X"]);
    }

    #[test]
    fn reset_functions_are_found_by_their_aliases() {
        let modules = b"alias vfio-reset:calxeda,hb-xgmac vfio_platform_calxedaxgmac\n\
                        alias of:N*T*Cx x\nalias vfio-reset:a b\n";
        assert_eq!(aliases(modules), ["calxeda,hb-xgmac", "a"]);
        let builtin = b"vfio.license=GPL\0vfio_platform_amdxgbe.alias=vfio-reset:amd,xgbe\0x.y=z\0";
        assert_eq!(aliases(builtin), ["amd,xgbe"]);
        assert!(aliases(b"").is_empty());
    }
}
