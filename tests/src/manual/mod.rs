//! The man page and the shells' completions, made from what `strait --help` prints: the one table of
//! options.

mod completions;
mod help;
mod page;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use self::help::Help;
use crate::setup::workspace;

/// What runs an arm64 program on another machine.
const EMULATOR: &str = "qemu-aarch64";

/// The commands of strait that have a help text of their own.
const COMMANDS: [&str; 3] = ["run", "device", "check"];

/// A file that is made, and what is in it.
#[derive(Debug)]
pub struct Made {
    /// Its path below the workspace.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

/// Makes all files from what this strait prints.
///
/// # Errors
///
/// The program can't be run.
pub fn make(strait: &Path) -> io::Result<Vec<Made>> {
    let main = Help::parse(&help_of(strait, None)?);
    let mut commands = Vec::new();
    for name in COMMANDS {
        commands.push((name, Help::parse(&help_of(strait, Some(name))?)));
    }
    let made = |path: &str, text| Made { path: Path::new("resources").join(path), text };
    Ok(vec![
        made("strait.1", page::page(&main, &commands)),
        made("completions/strait.bash", completions::bash(&main, &commands)),
        made("completions/_strait", completions::zsh(&main, &commands)),
        made("completions/strait.fish", completions::fish(&main, &commands)),
    ])
}

/// Makes all files, and writes them.
///
/// # Errors
///
/// The program can't be run, or a file can't be written.
pub fn write(strait: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for Made { path, text } in make(strait)? {
        let path = workspace::root().join(path);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, text)?;
        paths.push(path);
    }
    Ok(paths)
}

/// All that strait and its commands print with `--help`.
///
/// # Errors
///
/// The program can't be run.
pub fn texts(strait: &Path) -> io::Result<String> {
    let mut all = help_of(strait, None)?;
    for name in COMMANDS {
        all.push_str(&help_of(strait, Some(name))?);
    }
    Ok(all)
}

/// What strait, or one of its commands, prints with `--help`.
fn help_of(strait: &Path, command: Option<&str>) -> io::Result<String> {
    let mut emulated = Command::new(EMULATOR);
    let run = if cfg!(target_arch = "aarch64") {
        &mut Command::new(strait)
    } else {
        emulated.arg(strait)
    };
    let output = run.args(command).arg("--help").output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{} --help failed: {said}", strait.display())));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}
