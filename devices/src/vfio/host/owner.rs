//! Whose the files of a device are by which VFIO lets it be had.

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// A user, and a group of users beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub user: u32,
    /// The group's, which may have the device too.
    pub group: Option<u32>,
}

impl Owner {
    /// As it is remembered: `1000` or `1000:100`.
    pub(super) fn to_text(self) -> String {
        match self.group {
            Some(group) => format!("{}:{group}", self.user),
            None => self.user.to_string(),
        }
    }

    /// Reads what [`Self::to_text`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.trim_end().split_once(':') {
            Some((user, group)) => {
                Some(Self { user: user.parse().ok()?, group: Some(group.parse().ok()?) })
            }
            None => Some(Self { user: text.trim_end().parse().ok()?, group: None }),
        }
    }

    /// Gives it a file.
    pub(super) fn take(self, file: &Path) -> io::Result<()> {
        chown(file, Some(self.user), self.group)?;
        let mode = if self.group.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(file, PermissionsExt::from_mode(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_back() {
        for owner in [Owner { user: 0, group: None }, Owner { user: 1000, group: Some(100) }] {
            assert_eq!(Owner::parse(&owner.to_text()), Some(owner));
        }
        for nonsense in ["", ":", "1:", ":1", "a", "-1"] {
            assert_eq!(Owner::parse(nonsense), None, "{nonsense}");
        }
    }
}
