//! Users and groups as a person names them.
//!
//! Names are those of /etc/passwd and /etc/group. The C library would ask other services as well, by
//! libraries that it loads, which a static binary can't count on; a number is always taken.

use std::fs::File;
use std::io::{self, Read};

use devices::vfio::driver_binding::Owner;

/// A file of users or groups is read up to this size, in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// `USER[:GROUP]`, by name or number, as `chown` takes it.
#[cold]
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = id("user", user, "/etc/passwd")?;
    let group = group.map(|group| id("group", group, "/etc/group")).transpose()?;
    Ok(Owner { user, group })
}

/// The number of the user or group that is called so, or has this number.
fn id(kind: &str, name: &str, file: &str) -> Result<u32, String> {
    if let Some(number) = number(name.as_bytes()) {
        return Ok(number);
    }
    let table =
        read(file).map_err(|e| format!("{kind} `{name}` can't be looked up in {file}: {e}"))?;
    find(&table, name).ok_or_else(|| {
        format!("{file} has no {kind} `{name}`; where another service has, its number is taken")
    })
}

fn read(file: &str) -> io::Result<Vec<u8>> {
    let mut table = Vec::new();
    File::open(file)?.take(MAX_SIZE.saturating_add(1)).read_to_end(&mut table)?;
    if table.len() as u64 > MAX_SIZE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(table) }
}

/// The number in the line of this name: the third of its fields, in either file (passwd(5),
/// group(5)).
fn find(table: &[u8], name: &str) -> Option<u32> {
    let mut lines = table.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.next().filter(|field| !field.is_empty() && *field == name.as_bytes());
        found.and_then(|_| number(fields.nth(1)?))
    })
}

/// A number of a user or group; all ones means nobody (chown(2)).
fn number(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
    text?.parse().ok().filter(|number| *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_and_so_is_a_group() {
        assert_eq!(owner("1000"), Ok(Owner { user: 1000, group: None }));
        assert_eq!(owner("1000:100"), Ok(Owner { user: 1000, group: Some(100) }));
        assert_eq!(owner("root:0"), Ok(Owner { user: 0, group: Some(0) }));
        for text in
            ["", ":", "1000:", ":100", "-1", "+1", "4294967295", "no-such-user", "0:no-such"]
        {
            assert!(owner(text).is_err(), "{text}");
        }
        assert!(owner("no-such-user").unwrap_err().contains("/etc/passwd has no user"));
        assert!(owner("0:no-such").unwrap_err().contains("/etc/group has no group"));
    }

    #[test]
    fn names_are_found_in_the_files_whatever_else_is_in_them() {
        let table =
            b"root:x:0:0:root:/root:/bin/sh\n\n+::::::\nx\nbad:x:-1:0\nlast:x:4294967295:\n\
                      \xff:x:5:\nab:x:7:0::/:\nab:x:8:0::/:\nend:x:9";
        let cases = [("root", Some(0)), ("ab", Some(7)), ("end", Some(9))];
        let none =
            ["", "x", "+", "bad", "last", "a", "abc", "x:0", "root:x"].map(|name| (name, None));
        for (name, expected) in cases.into_iter().chain(none) {
            assert_eq!(find(table, name), expected, "{name}");
        }
    }

    #[test]
    fn a_file_that_can_t_be_read_is_named() {
        for file in ["/no/such/file", "/dev/zero", "/proc"] {
            let error = id("user", "me", file).unwrap_err();
            assert!(error.contains(file) && error.contains("`me` can't be looked up"), "{error}");
        }
        assert_eq!(id("user", "7", "/no/such/file"), Ok(7));
    }
}
