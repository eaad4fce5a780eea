//! Registration with systemd-machined, by which `machinectl` lists the guest (`io.systemd.Machine` by varlink,
//! as systemd 257 has it).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use devices::peer;
use serde_json::Value;

/// Where it listens.
const SOCKET: &str = "/run/systemd/machine/io.systemd.Machine";

/// How long it may take for its answer, which the guest's start waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer has no more bytes.
const MAX_ANSWER: usize = 64 << 10;

/// A guest that is registered, until this is dropped, or this process ends.
pub struct Registration {
    socket: UnixStream,
    name: String,
}

impl Registration {
    /// Registers a guest of this process by this name, with the address of its sockets. Where nobody registers
    /// machines, or this one isn't taken, a warning is all: the guest runs as well.
    #[cold]
    pub fn new(name: &str, cid: Option<u64>) -> Option<Self> {
        let registered = Self::at(Path::new(SOCKET), name, cid);
        registered.inspect_err(|e| warn(name, e)).ok()
    }

    fn at(path: &Path, name: &str, cid: Option<u64>) -> io::Result<Self> {
        let socket = UnixStream::from(peer::connect(path)?);
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let registration = Self { socket, name: name.to_owned() };
        let cid = cid.map(|cid| format!(r#","vSockCid":{cid}"#)).unwrap_or_default();
        registration.send("Register", &format!(r#","class":"vm","service":"strait"{cid}"#))?;
        registration.check_answer()?;
        Ok(registration)
    }

    /// Calls a method with the guest's name, which has nothing that JSON would have escaped, and `more`.
    fn send(&self, method: &str, more: &str) -> io::Result<()> {
        let name = &self.name;
        let message = format!(
            "{{\"method\":\"io.systemd.Machine.{method}\",\"parameters\":{{\"name\":\"{name}\"{more}}}}}\0"
        );
        (&self.socket).write_all(message.as_bytes())
    }

    fn check_answer(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (mut answer, mut part) = (Vec::new(), [0; 1024]);
        while answer.len() < MAX_ANSWER {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut part)? {
                0 => break,
                count => answer.extend_from_slice(part.get(..count).unwrap_or_default()),
            }
            if answer.pop_if(|last| *last == 0).is_some() {
                return error_of(&answer);
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cold]
fn warn(name: &str, e: &io::Error) {
    let why = match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "it doesn't run here (apt install systemd-container)".to_owned()
        }
        io::ErrorKind::WouldBlock => format!("it doesn't answer within {PATIENCE:?}"),
        _ => e.to_string(),
    };
    log::warn!("{name} isn't registered with systemd-machined: {why}");
}

/// The error that an answer has.
fn error_of(answer: &[u8]) -> io::Result<()> {
    let answer: Value = serde_json::from_slice(answer)?;
    match answer.get("error").and_then(Value::as_str) {
        None => Ok(()),
        Some(error) => Err(io::Error::other(error)),
    }
}

impl Drop for Registration {
    #[cold]
    fn drop(&mut self) {
        // Who is gone has no list any more.
        let _ = self.send("Unregister", "");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// What the machine manager hears of a guest, and the error that this has, if it says this.
    fn heard(answer: &'static str) -> (String, Option<String>) {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("manager");
        let listener = UnixListener::bind(&path).unwrap();
        let manager = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut bytes = [0; 1024];
            let length = socket.read(&mut bytes).unwrap();
            socket.write_all(answer.as_bytes()).unwrap();
            let mut heard = bytes[..length].to_vec();
            if answer.ends_with('\0') {
                socket.read_to_end(&mut heard).unwrap();
            }
            String::from_utf8(heard).unwrap()
        });
        let error = Registration::at(&path, "one", Some(7)).err().map(|e| e.to_string());
        (manager.join().unwrap(), error)
    }

    #[test]
    fn a_guest_is_registered_while_it_runs() {
        let (said, error) = heard("{\"parameters\":{}}\0");
        let messages: Vec<Value> = said
            .split_terminator('\0')
            .map(|message| serde_json::from_str(message).unwrap())
            .collect();
        assert_eq!((error, messages.len()), (None, 2), "{said}");
        assert_eq!(messages[0]["method"], "io.systemd.Machine.Register");
        assert_eq!(messages[0]["parameters"]["vSockCid"], 7);
        assert_eq!(messages[1]["method"], "io.systemd.Machine.Unregister");
        assert_eq!(messages[1]["parameters"]["name"], "one");
    }

    #[test]
    fn an_answer_that_takes_long_is_given_up() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("manager");
        let listener = UnixListener::bind(&path).unwrap();
        let deadline = Instant::now() + 2 * PATIENCE;
        let manager = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            // Never silent for long, until the guest doesn't wait any more.
            while socket.write_all(b" ").is_ok() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(100));
            }
            let _ = socket.write_all(b"{}\0");
        });
        let error = Registration::at(&path, "one", None).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        manager.join().unwrap();
    }

    #[test]
    fn a_refusal_is_told() {
        let refusal = "{\"error\":\"io.systemd.Machine.MachineExists\",\"parameters\":{}}\0";
        assert_eq!(heard(refusal).1.unwrap(), "io.systemd.Machine.MachineExists");
        for nonsense in ["", "{}", "\0", "[\0"] {
            assert!(heard(nonsense).1.is_some(), "{nonsense:?}");
        }
        assert!(Registration::at(Path::new("/no/such"), "one", None).is_err());
    }
}
