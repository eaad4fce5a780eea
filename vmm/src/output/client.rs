//! A console's output for clients that come and go.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use devices::sync;
use vmm_sys_util::eventfd::EventFd;

use super::sink::POLL_INTERVAL;
use super::write;

/// How many bytes are kept for a client that isn't there or doesn't read, in bytes: the newest.
pub(super) const MAX_KEPT: usize = 64 << 10;

/// Output for one client at a time.
///
/// Bytes are written at once to a client that takes them. Else the newest of them are kept, up to a
/// bound; older ones are dropped and counted. Nobody ever waits for a client.
#[derive(Debug)]
pub struct ClientBuffer {
    state: Mutex<State>,
    /// Signalled when bytes begin to wait for a client.
    backlog: EventFd,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Arc<File>>,
    kept: VecDeque<u8>,
    dropped: u64,
}

impl ClientBuffer {
    /// Without a client; `backlog` is signalled when bytes begin to wait for one that is there.
    pub fn new(backlog: EventFd) -> Self {
        Self { state: Mutex::default(), backlog }
    }

    /// Takes output.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.state();
        let waited = !state.kept.is_empty();
        let written = if waited { 0 } else { state.write(bytes) };
        state.keep(bytes.get(written..).unwrap_or_default());
        if !waited && state.has_backlog() {
            // Fails only if it is signalled already, 2^64 times.
            let _ = self.backlog.write(1);
        }
    }

    /// Has a client that came, open non-blocking, get what was kept and what comes.
    pub fn attach(&self, client: Arc<File>) {
        let mut state = self.state();
        state.client = Some(client);
        state.flush();
    }

    /// Keeps what comes from now on for the next client.
    pub fn detach(&self) {
        self.state().client = None;
    }

    /// Writes what the client takes now of what is kept.
    pub fn flush(&self) {
        self.state().flush();
    }

    /// Whether there is a client that doesn't take what is kept for it.
    pub fn has_backlog(&self) -> bool {
        self.state().has_backlog()
    }

    /// How many bytes were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Waits until the client, if there is one, has got what is kept, or takes nothing for `timeout`,
    /// or `stop`. What is left then is dropped.
    pub(super) fn finish(&self, timeout: Duration, stop: impl Fn() -> bool) {
        let (mut left, mut since) = (usize::MAX, Instant::now());
        let end = since + 10 * timeout;
        loop {
            let Some((client, now)) = self.unread() else { break };
            if now < left {
                (left, since) = (now, Instant::now());
            }
            if left == 0 || since.elapsed() >= timeout || Instant::now() > end || stop() {
                break;
            }
            // A terminal that has taken all isn't waited for by this: it may still have to be read.
            if !self.has_backlog() || !write::wait(client.as_raw_fd(), POLL_INTERVAL) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let mut state = self.state();
        let left = state.kept.len();
        state.drop_oldest(left);
    }

    /// The client, and how much it hasn't read.
    fn unread(&self) -> Option<(Arc<File>, usize)> {
        let mut state = self.state();
        state.flush();
        let client = state.client.clone()?;
        let unread = state.kept.len().saturating_add(unread_on_terminal(&client));
        Some((client, unread))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        sync::lock(&self.state)
    }
}

impl State {
    fn has_backlog(&self) -> bool {
        self.client.is_some() && !self.kept.is_empty()
    }

    fn flush(&mut self) {
        while self.has_backlog() {
            let kept = std::mem::take(&mut self.kept);
            let written = self.write(kept.as_slices().0);
            self.kept = kept;
            self.kept.drain(..written.min(self.kept.len()));
            if written == 0 {
                break;
            }
        }
    }

    /// Writes as much as the client takes now; returns how much. One that can't be written is gone.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(mut client) = self.client.as_deref() else { return 0 };
        loop {
            match client.write(bytes) {
                Ok(written) => return written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
                Err(_) => {
                    self.client = None;
                    return 0;
                }
            }
        }
    }

    /// Keeps the newest bytes.
    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        self.drop_oldest(self.kept.len().saturating_sub(MAX_KEPT));
    }

    fn drop_oldest(&mut self, count: usize) {
        self.dropped = self.dropped.saturating_add(count as u64);
        self.kept.drain(..count.min(self.kept.len()));
    }
}

/// How many bytes that a pseudo-terminal's master has written are unread on its other side, which
/// loses them when the master is closed; none of what is no such master.
fn unread_on_terminal(master: &File) -> usize {
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor (ioctl_tty(2)).
    let peer = unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY)
    };
    if peer < 0 {
        return 0;
    }
    // SAFETY: it was just opened, and nobody else has it.
    let peer = unsafe { OwnedFd::from_raw_fd(peer) };
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int.
    let result = unsafe { libc::ioctl(peer.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 { 0 } else { usize::try_from(count).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn buffer() -> (ClientBuffer, EventFd) {
        let backlog = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (ClientBuffer::new(backlog.try_clone().unwrap()), backlog)
    }

    fn client() -> (UnixStream, Arc<File>) {
        let (reader, end) = UnixStream::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        reader.set_nonblocking(true).unwrap();
        (reader, Arc::new(File::from(OwnedFd::from(end))))
    }

    fn read(reader: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Ends with an error where there is no more now.
        let _ = reader.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_printed_without_a_client_is_kept_for_the_next() {
        let (buffer, backlog) = buffer();
        buffer.put(b"early ");
        let (mut reader, end) = client();
        buffer.attach(end);
        buffer.put(b"present ");
        assert_eq!(read(&mut reader), b"early present ");
        buffer.detach();
        buffer.put(b"late");
        drop(reader);
        let (mut reader, end) = client();
        buffer.attach(end);
        assert_eq!(read(&mut reader), b"late");
        assert!(backlog.read().is_err() && buffer.dropped() == 0);
    }

    #[test]
    fn the_newest_is_kept_and_the_rest_is_counted() {
        let (buffer, _) = buffer();
        let all: Vec<u8> = (0..3 * MAX_KEPT).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for part in all.chunks(97) {
            buffer.put(part);
        }
        assert_eq!(buffer.dropped(), 2 * MAX_KEPT as u64);
        let (mut reader, end) = client();
        buffer.attach(end);
        let mut got = read(&mut reader);
        while buffer.has_backlog() {
            buffer.flush();
            got.extend(read(&mut reader));
        }
        assert!(got == all[2 * MAX_KEPT..]);
    }

    #[test]
    fn a_client_that_does_not_read_is_told_of_once_and_never_waited_for() {
        let (buffer, backlog) = buffer();
        let (mut reader, end) = client();
        buffer.attach(end);
        let part = [b'x'; 1000];
        for _ in 0..4000 {
            buffer.put(&part);
        }
        assert_eq!(backlog.read().unwrap(), 1);
        let began = Instant::now();
        buffer.finish(Duration::from_millis(100), || false);
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(read(&mut reader).len() as u64 + buffer.dropped() == 4_000_000);
    }

    #[test]
    fn a_client_that_is_gone_loses_nothing_that_comes() {
        let (buffer, _) = buffer();
        let (reader, end) = client();
        buffer.attach(end);
        drop(reader);
        buffer.put(b"unread");
        let (mut reader, end) = client();
        buffer.attach(end);
        assert_eq!(read(&mut reader), b"unread");
    }

    #[test]
    fn the_last_bytes_reach_a_client_that_is_slow() {
        let (buffer, _) = buffer();
        let (mut reader, end) = client();
        reader.set_nonblocking(false).unwrap();
        buffer.attach(end);
        let part = [b'x'; 1000];
        while !buffer.has_backlog() {
            buffer.put(&part);
        }
        for _ in 0..30 {
            buffer.put(&part);
        }
        let got = std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map(|_| bytes.len())
            });
            buffer.finish(Duration::from_secs(60), || false);
            buffer.detach();
            reading.join().unwrap().unwrap()
        });
        assert!(got > 30_000 && buffer.dropped() == 0, "{got}");
    }
}
