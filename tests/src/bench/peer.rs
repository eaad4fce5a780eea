//! Another VMM to measure beside strait.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A VMM's name and the command that starts a guest with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    name: String,
    program: PathBuf,
    arguments: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .filter(|(name, _)| is_name(name))
            .ok_or("a peer is NAME='COMMAND', its name of letters, digits and -")?;
        let (program, arguments) = command.trim().split_once(' ').unwrap_or((command.trim(), ""));
        if program.is_empty() {
            return Err("a peer's command starts with the path of its binary".into());
        }
        for placeholder in ["{kernel}", "{initrd}"] {
            if !arguments.contains(placeholder) {
                return Err(format!("a peer's command says where {placeholder} goes"));
            }
        }
        Ok(Self { name: name.into(), program: program.into(), arguments: arguments.into() })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

impl Peer {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its binary on this machine: arm64, statically linked.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where its binary is in the model, without the leading `/`.
    pub(super) fn place(&self) -> String {
        format!("bin/peer-{}", self.name)
    }

    /// Its command in the model.
    pub(super) fn command(&self, kernel: &str, initrd: &str) -> String {
        let arguments = self.arguments.replace("{kernel}", kernel).replace("{initrd}", initrd);
        format!("/{} {arguments}", self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_and_initrd_are_filled_in() {
        let peer: Peer = "kvmtool=/opt/lkvm run -k {kernel} -i {initrd} -p 'a b'".parse().unwrap();
        assert_eq!(peer.program(), Path::new("/opt/lkvm"));
        assert_eq!(peer.command("/k/a", "/k/b"), "/bin/peer-kvmtool run -k /k/a -i /k/b -p 'a b'");
    }

    #[test]
    fn what_could_not_be_run_is_refused() {
        for text in [
            "",
            "x",
            "=/lkvm {kernel} {initrd}",
            "a b=/l {kernel} {initrd}",
            "x=/lkvm run",
            "x=/lkvm {kernel}",
            "x=",
        ] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }
}
