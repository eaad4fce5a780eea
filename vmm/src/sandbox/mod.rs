//! The sandbox: what the process gives up before the guest's first instruction, so that a guest or a
//! server that breaks strait has nothing but what that guest was given.

pub mod landlock;
mod limits;
mod namespaces;
mod privileges;
pub mod seccomp;

use std::io;
use std::ptr::NonNull;

use devices::vfio::driver_binding::Owner;

use self::privileges::Identity;
use crate::cli::SandboxMode;
use crate::error::Error;
use crate::{kernel_files, output};

/// The sandbox of a run.
pub struct Sandbox {
    /// What is given up.
    pub mode: SandboxMode,
    /// Who the process becomes if it is root; nobody that others are, unless given.
    pub user: Option<Owner>,
    /// Guest RAM: its address in this process and its size in bytes.
    pub ram: (NonNull<u8>, usize),
    /// How many descriptors it may open from here on.
    pub descriptors: u64,
    /// The guest has more than the platform's own devices, may begin anew, or is controlled from outside.
    pub devices: bool,
}

impl Sandbox {
    /// Gives up, for good, what the run doesn't need from here on. Called by the main thread when
    /// everything is opened, pinned and armed, before the threads of the guest are started, which inherit
    /// it; what is opened afterwards is opened by descriptors that are there, or not at all.
    ///
    /// The process has no other threads: credentials, namespaces and Landlock are a thread's own, and
    /// namespaces of users aren't entered by one of several.
    ///
    /// # Errors
    ///
    /// The host refuses what every host grants.
    pub fn enter(&self) -> Result<(), Error> {
        if self.mode == SandboxMode::Off {
            return Ok(());
        }
        output::open();
        kernel_files::read_only_kept();
        limits::bound_descriptors(self.descriptors)
            .map_err(|e| refused("descriptors can't be bounded", &e))?;
        let was_root = privileges::is_root();
        if let Err(e) = namespaces::enter(was_root) {
            unless_granted("namespaces can't be entered", &e)?;
            log::info!("the sandbox has no namespaces of its own: {e}");
        }
        privileges::keeping_parent(|| self.give_up(was_root))?;
        limits::forbid_dumps(self.ram).map_err(|e| refused("dumps can't be forbidden", &e))?;
        privileges::gain_no_new().map_err(|e| refused("privileges can't be given up", &e))?;
        match landlock::forbid() {
            Ok(Some(version)) => log::debug!("the sandbox has Landlock, version {version}"),
            Ok(None) => log::info!("the sandbox has no Landlock: this host's kernel has none"),
            Err(e) => return Err(refused("Landlock can't be used", &e)),
        }
        if let Err(error) = seccomp::enable(self.mode, self.devices) {
            log::warn!("the sandbox: this host's kernel has no filters of system calls: {error}");
        }
        Ok(())
    }

    /// Becomes somebody without any privilege.
    fn give_up(&self, was_root: bool) -> Result<(), Error> {
        if was_root {
            let kept = privileges::Kept::begin();
            self.change_user()?;
            // In a new namespace of users it has all capabilities, and the whole bounding set, anew.
            if let Err(e) = namespaces::leave_users() {
                unless_granted("no namespace of users can be entered", &e)?;
                log::info!("the sandbox has no namespace of users: {e}");
                kept.use_again();
            }
        }
        privileges::empty_bounding_set();
        privileges::drop_capabilities().map_err(|e| refused("capabilities can't be given up", &e))
    }

    fn change_user(&self) -> Result<(), Error> {
        if let Some(Owner { user, group }) = self.user {
            let given = Identity { user, group: group.unwrap_or(user) };
            return given.assume().map_err(|e| {
                Error::new(format!("--user {user}: this process can't become that user: {e}"))
                    .help("strait as root, with CAP_SETUID and CAP_SETGID")
            });
        }
        // A container may have none but the first IDs.
        let changed = Identity::dynamic().assume().or_else(|_| Identity::NOBODY.assume());
        if let Err(e) = changed {
            log::warn!("the sandbox: this process stays root, without capabilities: {e}");
        }
        Ok(())
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    privileges::is_root()
}

/// Checks that this process can become this user.
///
/// # Errors
///
/// It isn't root.
pub fn check_user(user: Option<Owner>) -> Result<(), Error> {
    match user {
        Some(Owner { user, .. }) if !privileges::is_root() => {
            Err(Error::usage(format!("--user {user}: only root can become another user"))
                .help("sudo, or strait without --user"))
        }
        _ => Ok(()),
    }
}

/// What this host may not grant to anybody is done without. Where it only has no memory for it at this moment,
/// a guest doesn't get more than it would have at another one.
#[cold]
fn unless_granted(what: &str, e: &io::Error) -> Result<(), Error> {
    if e.raw_os_error() == Some(libc::ENOMEM) { Err(refused(what, e)) } else { Ok(()) }
}

#[cold]
fn refused(what: &str, e: &io::Error) -> Error {
    let help = "--sandbox off runs without it".to_owned();
    let is_short_of_memory = e.raw_os_error() == Some(libc::ENOMEM);
    Error::new(format!("the sandbox: {what}: {e}"))
        .maybe_help((!is_short_of_memory).then_some(help))
}
