//! Users and groups as a person names them.

use std::ffi::CString;

use devices::vfio::driver_binding::Owner;

/// `USER[:GROUP]`, by name or number, as `chown` takes it.
#[cold]
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = number(user)
        .or_else(|| user_number(user))
        .ok_or_else(|| format!("this host has no user `{user}`"))?;
    let group = group.map(|group| {
        number(group)
            .or_else(|| group_number(group))
            .ok_or_else(|| format!("this host has no group `{group}`"))
    });
    Ok(Owner { user, group: group.transpose()? })
}

/// A number that a person wrote; all ones means nobody (chown(2)).
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

fn user_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a C string; the answer is used before anybody asks again, as this is the only thread.
    unsafe { libc::getpwnam(name.as_ptr()).as_ref().map(|user| user.pw_uid) }
}

fn group_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: as for a user.
    unsafe { libc::getgrnam(name.as_ptr()).as_ref().map(|group| group.gr_gid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_and_so_is_a_group() {
        assert_eq!(owner("1000"), Ok(Owner { user: 1000, group: None }));
        assert_eq!(owner("1000:100"), Ok(Owner { user: 1000, group: Some(100) }));
        for text in
            ["", ":", "1000:", ":100", "-1", "+1", "4294967295", "no-such-user", "0:no-such"]
        {
            assert!(owner(text).is_err(), "{text}");
        }
    }
}
