//! `--console` and `--serial`.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use devices::irq::Trigger;

/// The longest path of a socket, in bytes (unix(7): `sun_path` has 108 with the zero behind it).
const MAX_SOCKET_PATH: usize = 107;

/// Where a console is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// Standard input and output.
    Stdio,
    /// A pseudo-terminal that strait allocates.
    Pty,
    /// A listening socket at this path.
    Unix(PathBuf),
    /// A file that its output is appended to.
    File(PathBuf),
    /// Nowhere.
    Off,
}

impl ConsoleKind {
    /// Whether there is a console.
    pub fn is_on(&self) -> bool {
        *self != Self::Off
    }
}

/// As it is given.
impl Display for ConsoleKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Pty => f.write_str("pty"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Off => f.write_str("off"),
        }
    }
}

/// Which serial port a guest has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SerialKind {
    /// An ns16550a.
    #[default]
    Ns16550a,
    /// A PL011.
    Pl011,
}

impl SerialKind {
    /// As its `compatible` begins.
    pub fn compatible(self) -> &'static str {
        match self {
            Self::Ns16550a => "ns16550a",
            Self::Pl011 => "arm,pl011",
        }
    }

    /// The kernel parameter that makes it Linux's console.
    pub fn console_parameter(self) -> &'static str {
        match self {
            Self::Ns16550a => "console=ttyS0",
            Self::Pl011 => "console=ttyAMA0",
        }
    }

    /// How it tells of interrupts.
    pub fn trigger(self) -> Trigger {
        match self {
            Self::Ns16550a => Trigger::Edge,
            Self::Pl011 => Trigger::Level,
        }
    }
}

/// Reads the value of `--serial`.
pub(super) fn serial(text: &str) -> Result<SerialKind, String> {
    match text {
        "8250" | "ns16550a" => Ok(SerialKind::Ns16550a),
        "pl011" => Ok(SerialKind::Pl011),
        _ => Err("8250 or pl011 is needed".into()),
    }
}

/// Reads the option's value.
pub(super) fn console(text: &str) -> Result<ConsoleKind, String> {
    let path = |path: &str| match path {
        "" => Err("a path comes behind the colon".to_owned()),
        path => Ok(PathBuf::from(path)),
    };
    match text.split_once(':') {
        Some(("unix", socket)) if socket.len() > MAX_SOCKET_PATH => Err(format!(
            "a socket's path has at most {MAX_SOCKET_PATH} bytes, and this one {}",
            socket.len()
        )),
        Some(("unix", socket)) => path(socket).map(ConsoleKind::Unix),
        Some(("file", file)) => path(file).map(ConsoleKind::File),
        None if text == "stdio" => Ok(ConsoleKind::Stdio),
        None if text == "pty" => Ok(ConsoleKind::Pty),
        None if text == "off" => Ok(ConsoleKind::Off),
        _ => Err("stdio, pty, unix:PATH, file:PATH or off is needed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_written_as_it_is_read() {
        for text in ["stdio", "pty", "unix:/run/guest.sock", "file:console.log", "file:a:b", "off"]
        {
            assert_eq!(console(text).unwrap().to_string(), text);
        }
        let long = format!("unix:{}", "x".repeat(MAX_SOCKET_PATH + 1));
        for text in ["", "tv", "unix", "unix:", "file:", "pty:", "stdio:x", &long] {
            assert!(console(text).is_err(), "{text}");
        }
    }
}
