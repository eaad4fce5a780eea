//! A client of a guest's console.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use crate::CommandError;

/// Connects to a socket, or opens a terminal; copies what it says to standard output until it ends, and
/// standard input to it. The end of the input ends this.
pub(crate) fn run(path: &Path) -> Result<(), CommandError> {
    let console = if fs::metadata(path)?.file_type().is_socket() {
        File::from(OwnedFd::from(UnixStream::connect(path)?))
    } else {
        File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?
    };
    let mut from = console.try_clone()?;
    let said = thread::spawn(move || copy(&mut from, &mut io::stdout()));
    let typed = thread::spawn(move || copy(&mut io::stdin(), &mut &console));
    while !said.is_finished() && !typed.is_finished() {
        thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

/// Sends a message of varlink, with its zero, to the service at a socket, and prints the answer without it.
pub(crate) fn call(path: &Path, message: &str) -> Result<(), CommandError> {
    let mut service = UnixStream::connect(path)?;
    service.write_all(&[message.as_bytes(), &[0]].concat())?;
    let mut answer = Vec::new();
    BufReader::new(service).read_until(0, &mut answer)?;
    match answer.pop() {
        Some(0) => Ok(io::stdout().write_all(&answer)?),
        _ => Err("there was no answer".into()),
    }
}

/// Copies to the end, or until either side is gone.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
}
