//! The machine on which the model is set up.

use std::fs;

use super::process::is_installed;

/// What of this machine matters to a set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// It is a 64-bit Arm itself: nothing is cross-built.
    pub(super) is_arm: bool,
    /// Debian or its kin, with apt and dpkg.
    pub(super) is_debian: bool,
    /// The distribution and its version, such as `debian 12`.
    pub(super) release: String,
    /// The code name of the release, such as `bookworm`, if it has one.
    pub(super) codename: Option<String>,
    /// Packages can be installed without sudo.
    pub(super) is_root: bool,
    /// How many processors there are to build with.
    pub(super) cpus: usize,
}

impl Machine {
    /// This machine.
    pub(super) fn detect() -> Self {
        // os-release(5): the second place is for systems without the first.
        let release = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
            .unwrap_or_default();
        let field = |name| field(&release, name);
        let family = format!("{} {}", field("ID").unwrap_or(""), field("ID_LIKE").unwrap_or(""));
        let has_tools = ["apt-get", "apt-cache", "dpkg", "dpkg-deb"].into_iter().all(is_installed);
        Self {
            is_arm: cfg!(target_arch = "aarch64"),
            is_debian: has_tools && family.split_whitespace().any(|id| id == "debian"),
            release: [field("ID"), field("VERSION_ID")].map(|f| f.unwrap_or("unknown")).join(" "),
            codename: field("VERSION_CODENAME").map(str::to_owned),
            // SAFETY: geteuid(2) takes nothing and can't fail.
            is_root: unsafe { libc::geteuid() } == 0,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The value of a field of os-release(5).
fn field<'a>(release: &'a str, name: &str) -> Option<&'a str> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_fields_are_found_by_their_whole_name() {
        let release = "PRETTY_NAME=\"Some Linux 3\"\nID=some\nID_LIKE=\"ubuntu debian\"\nEMPTY=\n";
        let table = [
            ("ID", Some("some")),
            ("ID_LIKE", Some("ubuntu debian")),
            ("PRETTY_NAME", Some("Some Linux 3")),
            ("NAME", None),
            ("EMPTY", None),
        ];
        for (name, value) in table {
            assert_eq!(field(release, name), value, "{name}");
        }
    }
}
