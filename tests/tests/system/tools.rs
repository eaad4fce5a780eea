//! The programs and schemas that labs and clusters have for the files in `resources`, run on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::suite;

/// How long a lab's program may take, in seconds.
const TIMEOUT: &str = "900";

/// A directory of a test's own, gone with it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("strait-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The tools of labs; without them the test isn't run, and says so.
pub fn tools() -> Option<PathBuf> {
    let tools = std::env::var_os(suite::LABS).map(PathBuf::from);
    if tools.is_none() {
        println!("not tried, since {} names no tools of labs: cargo model test", suite::LABS);
    }
    tools
}

/// A command of theirs, in a directory, ended by force after [`TIMEOUT`].
pub fn command(tools: &Path, scratch: &Scratch, program: &str) -> Command {
    let mut command = Command::new("timeout");
    let path = std::env::var("PATH").unwrap_or_default();
    let own = [scratch.0.join("bin"), tools.join("bin")];
    let [first, second] = own.map(|path| path.display().to_string());
    command.env("PATH", format!("{first}:{second}:{path}"));
    command.env("PYTHONPATH", tools.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.args(["--kill-after=10", TIMEOUT, program]).current_dir(&scratch.0);
    command
}

/// What it prints, with what it says on standard error; it must succeed.
pub fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let [said, errors] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{command:?}:\n{said}\n{errors}");
    said + &errors
}
