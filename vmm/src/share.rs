//! Directories of the host that the guest mounts by virtio-fs, each served by a virtiofsd.

use std::env;
use std::ffi::{CString, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use boot::file::shell_word;
use boot::help::Help;
use devices::vhost_user::{
    ConfigSource, Kind, Options, OwnConfig, PlannedDevice, Target, VhostUserDevice,
};
use devices::virtio::Device;

use crate::cli::{ShareCache, ShareOptions, ShareSandbox};
use crate::error::Error;
use crate::programs::{self, Served, Started};

/// Where distributions have it, beside `$PATH`.
const DIRECTORIES: [&str; 2] = ["/usr/libexec", "/usr/lib"];

/// Where the socket of its connection may be, beside `$TMPDIR`.
const DIRECTORIES_OF_SOCKETS: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// What is executed; the last word only if the guest can't write.
const COMMAND: &str = "virtiofsd --log-level warn --fd FD --sandbox SANDBOX --cache CACHE \
                       --shared-dir DIRECTORY --readonly";

/// The size of the tag in the configuration (virtio 1.2, 5.11.4).
const TAG_SIZE: usize = 36;

/// A directory that can be served.
struct Servable {
    directory: PathBuf,
    program: PathBuf,
    sandbox: &'static str,
}

fn failed(ShareOptions { tag, directory, .. }: &ShareOptions, why: &dyn Display) -> Error {
    Error::new(format!("--share {tag}={}: {why}", directory.display()))
}

fn check(options: &ShareOptions) -> Result<Servable, Error> {
    let failed = |why: &dyn Display| failed(options, why);
    let directory = options.directory.canonicalize().map_err(|e| failed(&e))?;
    if !directory.is_dir() {
        return Err(failed(&"it is no directory"));
    }
    File::open(&directory).map_err(|e| {
        failed(&e).help(format!("ls -ld {} tells whose it is", shell_word(&directory)))
    })?;
    let program = programs::find("virtiofsd", &DIRECTORIES).ok_or_else(|| {
        failed(&"there is no virtiofsd, which serves directories").help(
            "apt install virtiofsd (Debian 13 or later; before that: cargo install virtiofsd)",
        )
    })?;
    let sandbox = sandbox(options.sandbox).map_err(|(why, help)| failed(&why).help(help))?;
    Ok(Servable { directory, program, sandbox })
}

/// Starts the directory's server.
///
/// # Errors
///
/// There is no such directory or no virtiofsd, or it can't be started.
#[cold]
pub fn start(options: &ShareOptions) -> Result<Started, Error> {
    let Servable { directory, program, sandbox } = check(options)?;
    let failed = |why: &dyn Display| failed(options, why);
    let (stream, listener) = socket(&directories()).map_err(|e| {
        failed(&format_args!(
            "no socket in $TMPDIR or any of {}: {e}",
            DIRECTORIES_OF_SOCKETS.join(", ")
        ))
        .help("TMPDIR=DIRECTORY, one that you can write to and whose path is short")
    })?;
    // Only the program takes connections, once this is closed.
    let listener = OwnedFd::from(listener);
    let mut command = command(&program, options, &directory, sandbox, listener.as_raw_fd());
    let child = programs::spawn(&mut command, &listener);
    let child = child.map_err(|e| failed(&format_args!("{}: {e}", program.display())))?;
    Ok(Started { stream, file: program, child })
}

/// Opens the directory's device, which is served so; or for a plan, by nothing.
///
/// # Errors
///
/// There is no such directory or no virtiofsd, or it doesn't serve it.
#[cold]
pub fn open(options: &ShareOptions, served: Option<Served>) -> Result<Box<dyn Device>, Error> {
    let device = describe(options);
    let Some(Served { stream, file, program }) = served else {
        check(options)?;
        return Ok(Box::new(PlannedDevice(device)));
    };
    let target = Target::Started(Some(stream), Box::new(program));
    let device = VhostUserDevice::connect(target, device).map_err(|error| {
        let version = format!("{} --version", file.display());
        let help = match options.read_only {
            true => {
                format!("virtiofsd's own message tells more; ro needs 1.13 or later: {version}")
            }
            false => {
                "virtiofsd's own message tells more; sandbox=none is the least it takes".to_owned()
            }
        };
        failed(options, &error).maybe_help(error.help().map(|_| help))
    })?;
    Ok(Box::new(device))
}

/// The device as its kind and strait's part of it.
fn describe(options: &ShareOptions) -> Options {
    let kind = Kind::fs();
    let config = ConfigSource::Own(config(&options.tag, kind.queues));
    Options {
        name: "virtiofsd".to_owned(),
        option: format!("--share {}={}", options.tag, options.directory.display()),
        kind,
        config,
    }
}

/// The configuration of a file system with so many queues, one of them of high priority
/// (virtio 1.2, 5.11.4).
pub fn config(tag: &str, queues: u16) -> OwnConfig {
    let mut bytes = tag.as_bytes().to_owned();
    bytes.resize(TAG_SIZE, 0);
    bytes.extend(u32::from(queues.saturating_sub(1)).to_le_bytes());
    OwnConfig { bytes, features: 0 }
}

fn command(
    program: &Path,
    options: &ShareOptions,
    directory: &Path,
    sandbox: &str,
    listener: i32,
) -> Command {
    let mut command = Command::new(program);
    let words = if options.read_only { 12 } else { 11 };
    for word in COMMAND.split(' ').take(words).skip(1) {
        match word {
            "FD" => command.arg(listener.to_string()),
            "SANDBOX" => command.arg(sandbox),
            "CACHE" => command.arg(match options.cache {
                ShareCache::Auto => "auto",
                ShareCache::Always => "always",
                ShareCache::Never => "never",
            }),
            "DIRECTORY" => command.arg(directory),
            word => command.arg(word),
        };
    }
    command
}

/// A directory of this process' own, gone with this.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// Makes one, which nobody else may search, in `parent`.
    ///
    /// # Errors
    ///
    /// There is no such directory, or it can't be written to.
    fn new(parent: &Path) -> io::Result<Self> {
        let template = parent.join("strait-XXXXXX").into_os_string().into_vec();
        let mut template = CString::new(template)?.into_bytes_with_nul();
        // SAFETY: the template is a C string, of which as many bytes are changed as there are.
        if unsafe { libc::mkdtemp(template.as_mut_ptr().cast()) }.is_null() {
            return Err(io::Error::last_os_error());
        }
        template.pop();
        Ok(Self(OsString::from_vec(template).into()))
    }

    /// Where its socket is.
    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // It may not be there.
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where sockets may be made: in the first of these where it is possible.
fn directories() -> Vec<PathBuf> {
    let own = env::var_os("TMPDIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    own.into_iter().chain(DIRECTORIES_OF_SOCKETS.map(PathBuf::from)).collect()
}

/// A socket that listens for the connection that there is already, and no other, made in one of these
/// directories: it is in a directory that nobody else may search, and that is gone when this returns.
/// (virtiofsd takes a socket that listens, and no connection.)
///
/// # Errors
///
/// None of them has one: they aren't there, can't be written to, or have too long a path (`unix(7)`).
fn socket(directories: &[PathBuf]) -> io::Result<(UnixStream, UnixListener)> {
    let make = |parent: &PathBuf| {
        let directory = PrivateDirectory::new(parent)?;
        let listener = UnixListener::bind(directory.socket())?;
        Ok((UnixStream::connect(directory.socket())?, listener))
    };
    let mut failed = io::ErrorKind::NotFound.into();
    for parent in directories {
        match make(parent) {
            Ok(made) => return Ok(made),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

/// How virtiofsd keeps itself to the directory, as its option has it.
fn sandbox(asked: ShareSandbox) -> Result<&'static str, (String, String)> {
    let has = |namespace: &str| Path::new("/proc/self/ns").join(namespace).exists();
    // SAFETY: takes nothing, and can't fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    match asked {
        ShareSandbox::Namespace => Ok("namespace"),
        ShareSandbox::Chroot => Ok("chroot"),
        ShareSandbox::None => Ok("none"),
        // As root it makes these; else within a namespace of users.
        ShareSandbox::Auto
            if ["pid", "net", "mnt"].into_iter().all(has) && (is_root || has("user")) =>
        {
            Ok("namespace")
        }
        ShareSandbox::Auto if is_root => Ok("chroot"),
        ShareSandbox::Auto => Err((
            "this host has no namespaces for who isn't root, to which virtiofsd keeps itself"
                .to_owned(),
            "sandbox=none, if the guest may reach what you may reach".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> ShareOptions {
        text.parse().unwrap()
    }

    #[test]
    fn the_configuration_is_the_tag_and_the_queues() {
        let Options { kind, config, .. } = describe(&share("src=/home"));
        let ConfigSource::Own(OwnConfig { bytes, features: 0 }) = config else { panic!() };
        assert_eq!((kind.queues, bytes.len()), (2, 40));
        assert_eq!((&bytes[..4], &bytes[36..]), (b"src\0".as_slice(), [1, 0, 0, 0].as_slice()));
    }

    #[test]
    fn the_command_names_the_directory_and_what_is_allowed() {
        let words = |text: &str| {
            let options = share(text);
            let command = command(Path::new("/p"), &options, &options.directory, "none", 7);
            let words: Vec<_> =
                command.get_args().map(|a| a.to_str().unwrap().to_owned()).collect();
            words.join(" ")
        };
        let command = |cache| {
            format!("--log-level warn --fd 7 --sandbox none --cache {cache} --shared-dir /d")
        };
        assert_eq!(words("a=/d"), command("auto"));
        assert_eq!(words("a=/d,ro,cache=always"), command("always") + " --readonly");
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        for (text, why) in [("a=/no/such", "os error 2"), ("a=/etc/passwd", "no directory")] {
            let report = open(&share(text), None).err().unwrap().report();
            assert!(report.contains(text) && report.contains(why), "{report}");
        }
    }

    #[test]
    fn a_socket_has_its_connection_already() {
        let (ours, listener) = socket(&directories()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
        assert!(!path.exists() && !path.parent().unwrap().exists());
        drop(theirs);
        assert_eq!(io::Read::read(&mut &ours, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_socket_is_where_there_is_a_directory_for_it() {
        let deep = PrivateDirectory::new(&env::temp_dir()).unwrap();
        let long = deep.0.join("d".repeat(150));
        fs::create_dir(&long).unwrap();
        let unfit = ["/no/such", "/etc/passwd", "/proc"].map(PathBuf::from);
        let unfit = [unfit.as_slice(), std::slice::from_ref(&long)].concat();
        assert!(socket(&unfit).is_err() && socket(&[]).is_err());
        let (_, listener) =
            socket(&[unfit.as_slice(), std::slice::from_ref(&deep.0)].concat()).unwrap();
        let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
        assert!(path.starts_with(&deep.0));
        // Nothing is left of any attempt.
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
        fs::remove_dir(&long).unwrap();
        assert_eq!(fs::read_dir(&deep.0).unwrap().count(), 0);
    }
}
