//! Sockets of this machine that are sockets of the model host.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{env, fs, process};

use super::channel::Channel;
use super::failure::Failure;
use super::host::Host;
use super::process::Process;
use super::protocol::Kind;

/// How long neither end may say anything, in seconds.
const TIMEOUT: u64 = 300;

/// A socket on this machine, by which one program reaches a socket on the model host.
pub struct Forward {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Makes a socket on this machine: who connects to it first is connected to the one at `path` on the host.
    ///
    /// # Errors
    ///
    /// This machine has no room for it.
    pub fn forward(&self, path: &str) -> Result<Forward, Failure> {
        let name = self.next_name("forward");
        let socket = env::temp_dir().join(format!("strait-{}-{name}", process::id()));
        let listener = UnixListener::bind(&socket)
            .map_err(|error| Failure::new(format!("{}: {error}", socket.display())))?;
        let (channel, command) = (Arc::clone(self.channel()), format!("exec agent client {path}"));
        let thread = thread::spawn(move || {
            if let Ok((client, _)) = listener.accept() {
                // Whoever is connected sees its end.
                let _ = relay(&channel, &name, &command, &client);
                let _ = client.shutdown(Shutdown::Both);
            }
        });
        Ok(Forward { path: socket, thread: Some(thread) })
    }
}

impl Forward {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Nobody may have come.
        drop(UnixStream::connect(&self.path));
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take() {
            // A panic has been told.
            let _ = thread.join();
        }
    }
}

/// Copies both ways until either end is gone.
fn relay(
    channel: &Arc<Channel>,
    name: &str,
    command: &str,
    mut client: &UnixStream,
) -> Result<(), Failure> {
    let mut process = Process::start(channel, name, command, Kind::Start)?.timeout(TIMEOUT);
    let sender = process.sender();
    let mut from = client.try_clone().map_err(|error| Failure::new(error.to_string()))?;
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if sender.send(buffer.get(..count).unwrap_or_default()).is_err() {
                break;
            }
        }
        sender.end_of_input()
    });
    while let Some(bytes) = process.next_output()? {
        if client.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    reader.join().unwrap_or(Ok(()))
}
