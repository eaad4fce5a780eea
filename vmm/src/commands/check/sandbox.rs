//! What this host gives the sandbox of a run.

use std::fs;

use super::System;
use super::finding::Finding;
use crate::sandbox::landlock;

/// From this version on Landlock forbids signals and abstract sockets, too (Linux 6.12).
const LANDLOCK_WITH_SCOPES: u32 = 6;

/// Checks what a run gives itself away by: Landlock, and namespaces for who isn't root.
pub fn findings(system: &System) -> Vec<Finding> {
    let is_root = crate::sandbox::is_root();
    vec![
        landlock(landlock::version()),
        namespaces(is_root, &|file| fs::read_to_string(system.proc.join(file)).ok()),
    ]
}

fn landlock(version: Option<u32>) -> Finding {
    const SUBJECT: &str = "sandbox: Landlock";
    match version {
        Some(10..) => Finding::fine(SUBJECT, "files, Unix sockets, TCP and UDP ports, signals"),
        Some(9) => Finding::fine(SUBJECT, "files, Unix sockets, TCP ports, signals"),
        Some(LANDLOCK_WITH_SCOPES..) => Finding::fine(SUBJECT, "files, TCP ports, signals"),
        Some(version) => Finding::degraded(
            SUBJECT,
            format!(
                "version {version}: a guest that broke strait could send signals to its user's processes"
            ),
            "a kernel from 6.12 on",
        ),
        None => Finding::degraded(
            SUBJECT,
            "this kernel has none, or it is off: namespaces and credentials alone keep files from strait",
            "boot with lsm=landlock,… before what /sys/kernel/security/lsm has; CONFIG_SECURITY_LANDLOCK",
        ),
    }
}

/// `read` gives files below /proc.
fn namespaces(is_root: bool, read: &dyn Fn(&str) -> Option<String>) -> Finding {
    const SUBJECT: &str = "sandbox: namespaces";
    if is_root {
        return Finding::fine(SUBJECT, "root needs no namespace of users for the others");
    }
    let is_zero = |file: &str| read(file).is_some_and(|text| text.trim() == "0");
    let is_one = |file: &str| read(file).is_some_and(|text| text.trim() == "1");
    if read("self/uid_map").is_none() {
        return Finding::degraded(SUBJECT, "this kernel has none of users", "CONFIG_USER_NS");
    }
    for (refused, sysctl) in [
        (is_zero("sys/user/max_user_namespaces"), "user.max_user_namespaces=15000"),
        (is_zero("sys/kernel/unprivileged_userns_clone"), "kernel.unprivileged_userns_clone=1"),
        (
            is_one("sys/kernel/apparmor_restrict_unprivileged_userns"),
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ] {
        if refused {
            return Finding::degraded(
                SUBJECT,
                "this host has none of users for who isn't root: Landlock remains",
                format!("sudo sysctl {sysctl}, or as it is"),
            );
        }
    }
    Finding::fine(SUBJECT, "users, mounts, IPC, host name")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn an_old_or_missing_landlock_is_said() {
        let levels = [Some(6), Some(7), Some(1), None].map(|version| landlock(version).level);
        let (fine, degraded) = (Level::Fine, Level::Degraded);
        assert_eq!(levels, [fine, fine, degraded, degraded]);
    }

    #[test]
    fn namespaces_that_are_refused_are_said_with_the_setting() {
        let files = |files: &'static [(&'static str, &'static str)]| {
            namespaces(false, &move |file| {
                let found = files.iter().find(|(name, _)| *name == file);
                found.map(|(_, text)| (*text).to_owned())
            })
        };
        assert_eq!(files(&[]).help.as_deref(), Some("CONFIG_USER_NS"));
        let map = ("self/uid_map", "0 0 1\n");
        assert_eq!(files(&[("self/uid_map", "")]).level, Level::Fine);
        assert_eq!(map.0, "self/uid_map");
        for (files, help) in [
            (files(&[("self/uid_map", ""), ("sys/user/max_user_namespaces", "0\n")]), "max_user"),
            (
                files(&[
                    ("self/uid_map", ""),
                    ("sys/kernel/apparmor_restrict_unprivileged_userns", "1\n"),
                ]),
                "apparmor",
            ),
        ] {
            assert!(files.help.as_deref().is_some_and(|text| text.contains(help)), "{files:?}");
        }
    }
}
