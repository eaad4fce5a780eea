//! Why a set-up fails, and what mends it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a set-up failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the cache, the clone or the system.
    #[error("can't {action} {}", path.display())]
    File {
        /// What was tried, such as "create".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The cache has no place.
    #[error(
        "there is no place for the cache: neither STRAIT_CACHE nor XDG_CACHE_HOME nor HOME is set\n  \
         help: STRAIT_CACHE=/some/directory cargo model setup"
    )]
    NoCache,
    /// A program isn't there, or can't be run.
    #[error("can't run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A command of a step failed.
    #[error("{step}: `{command}` failed ({status}); its last lines were\n{tail}  log: {}", log.display())]
    Failed {
        /// The step's name.
        step: String,
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines, indented.
        tail: String,
        /// The file with everything it said.
        log: PathBuf,
    },
    /// A short command that only asks something failed.
    #[error("`{command}` failed ({status}): {said}")]
    Query {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// Ctrl-C.
    #[error("interrupted; finished parts are kept in the cache")]
    Interrupted,
    /// A thread of the set-up panicked.
    #[error("the step that makes {0} panicked (this is a bug in `cargo model`)")]
    Broken(&'static str),
    /// No packages can be installed on this distribution.
    #[error(
        "this isn't Debian or its kin, so `cargo model` can't fetch what it needs by itself\n{needs}"
    )]
    NotDebian {
        /// What is needed and the options that name it.
        needs: String,
    },
    /// Packages must be installed by root, and there is no way to become root.
    #[error(
        "packages must be installed by root, which sudo doesn't let this user be\n  help: as root:{commands}"
    )]
    NoRoot {
        /// The commands, each on a line of its own.
        commands: String,
    },
    /// The system's package sources name no Debian mirror.
    #[error(
        "the system's package sources (/etc/apt) name no mirror of Debian's main archive\n  \
         help: cargo model setup --debian-mirror URL"
    )]
    NoMirror,
    /// The keys that Debian signs its archive with are missing.
    #[error("{} is missing, so Debian's signatures can't be checked\n  help: apt-get install debian-archive-keyring", .0.display())]
    NoKeyring(PathBuf),
    /// The archive has no such package, or another version than the model is made for.
    #[error("Debian {suite}'s package {package} {wrong}")]
    Package {
        /// The suite.
        suite: &'static str,
        /// The package.
        package: String,
        /// What is wrong with it.
        wrong: String,
    },
    /// A download or an unpacked package lacks something.
    #[error("there is no {what} in {}", place.display())]
    Missing {
        /// What was looked for.
        what: String,
        /// Where.
        place: PathBuf,
    },
    /// A kernel module depends on one that isn't there, or on itself.
    #[error("the kernel module {module} depends on {depends_on}, which {wrong}")]
    ModuleOrder {
        /// The module.
        module: String,
        /// What it needs.
        depends_on: String,
        /// What is wrong with that.
        wrong: &'static str,
    },
    /// Kconfig dropped options: their dependencies aren't met, or their names are wrong.
    #[error("the kernel's configuration lacks what {} asks for: {}", config.display(), options.join(", "))]
    ConfigDropped {
        /// The file that asks for them.
        config: PathBuf,
        /// The lines that had no effect.
        options: Vec<String>,
    },
    /// The Rust compiler for aarch64 is too old.
    #[error(
        "{rustc} is Rust {found}, and the workspace needs {needed} or newer\n  \
         help: install Rust by rustup (then run `rustup update stable`), or update Debian's rustc-web"
    )]
    RustTooOld {
        /// The compiler.
        rustc: String,
        /// Its version.
        found: String,
        /// The oldest one that will do.
        needed: String,
    },
    /// There is no Rust for aarch64, and none can be had.
    #[error(
        "there is no Rust standard library for aarch64-unknown-linux-gnu\n  \
         help: rustup target add aarch64-unknown-linux-gnu"
    )]
    NoRustTarget,
    /// A path given by option or environment isn't what it should be.
    #[error("{option} {}: {wrong}", path.display())]
    BadOption {
        /// The option.
        option: &'static str,
        /// The path that was given.
        path: PathBuf,
        /// What is wrong with it.
        wrong: &'static str,
    },
    /// There is no such fuzz target.
    #[error("there is no fuzz target `{wanted}`; there are {targets}")]
    NoFuzzTarget {
        /// What was asked for.
        wanted: String,
        /// Those that there are.
        targets: String,
    },
    /// An input made a fuzz target fail.
    #[error(
        "the fuzz target {name} fails with {}; log: {}\n  \
         help: with this line in {} a test fails, too, until it is mended (cargo test -p fuzz):\n{hex}",
        input.display(), log.display(), regressions.display()
    )]
    FuzzFailure {
        /// The target.
        name: String,
        /// The file with the input.
        input: PathBuf,
        /// The input.
        hex: String,
        /// The file of inputs that once failed.
        regressions: PathBuf,
        /// The file with all that libFuzzer said.
        log: PathBuf,
    },
    /// Something that was built isn't as it must be.
    #[error("{}: {wrong}", path.display())]
    Built {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
}

/// Turns the errors of the standard library into ours.
pub(super) trait FileError<T> {
    /// Says what was tried on which file.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> FileError<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::File { action, path: path.as_ref().to_owned(), source })
    }
}
