//! What a service manager does with its socket: shows what comes.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::CommandError;

/// The largest message, in bytes.
const MAX_SIZE: usize = 4096;

/// Listens at `path`, and prints each message as a line, its own lines with a comma between them.
pub fn print(path: &Path) -> Result<(), CommandError> {
    let socket = UnixDatagram::bind(path)?;
    let mut bytes = [0; MAX_SIZE];
    loop {
        let length = socket.recv(&mut bytes)?;
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        let mut output = std::io::stdout();
        writeln!(output, "{}", text.replace('\n', ", "))?;
        output.flush()?;
    }
}
