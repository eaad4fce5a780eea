//! The harness' end of the control channel: what the host and its programs said, and waiting for
//! more.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::deadline::Deadline;
use super::failure::Failure;
use super::protocol::{Frame, Kind};
use super::transcript::Transcript;

/// What is known of one process on the host.
#[derive(Default)]
pub(super) struct ProcessRecord {
    /// How the transcript calls it.
    pub(super) name: String,
    /// Its standard output, and its standard error where that isn't wanted apart.
    pub(super) output: Vec<u8>,
    /// Its standard error alone.
    pub(super) error: Vec<u8>,
    /// Its process id on the host.
    pub(super) pid: Option<u32>,
    /// Its exit status, or 128 and the signal that killed it.
    pub(super) status: Option<i32>,
}

/// What the model host has said so far.
#[derive(Default)]
pub(super) struct State {
    /// The agent is there.
    pub(super) ready: bool,
    /// Why nothing more will come.
    pub(super) broken: Option<String>,
    /// The host's serial console.
    pub(super) console: Vec<u8>,
    /// The processes by the harness' numbers.
    pub(super) processes: BTreeMap<u32, ProcessRecord>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    transcript: Arc<Transcript>,
}

/// The channel, kept up to date by two threads that end with QEMU.
pub(super) struct Channel {
    shared: Arc<Shared>,
    agent: Mutex<UnixStream>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

impl Channel {
    /// Listens to the host's console and to its agent.
    pub(super) fn open(
        console: UnixStream,
        agent: UnixStream,
        transcript: Arc<Transcript>,
    ) -> Result<Self, Failure> {
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), transcript });
        let from_agent =
            agent.try_clone().map_err(|error| Failure::new(format!("the channel: {error}")))?;
        let readers = vec![
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.listen_to_console(console)
            }),
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.listen_to_agent(from_agent)
            }),
        ];
        Ok(Self { shared, agent: Mutex::new(agent), readers: Mutex::new(readers) })
    }

    /// The transcript that everything goes to.
    pub(super) fn transcript(&self) -> &Transcript {
        &self.shared.transcript
    }

    /// What is known now.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// A number for a new process that the transcript calls `name`.
    pub(super) fn register(&self, name: &str) -> u32 {
        let mut state = self.state();
        let number = state.processes.keys().next_back().map_or(1, |last| last + 1);
        state
            .processes
            .insert(number, ProcessRecord { name: name.to_owned(), ..ProcessRecord::default() });
        number
    }

    /// Tells the agent something.
    pub(super) fn send(&self, frame: &Frame) -> Result<(), Failure> {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write_to(&mut *agent).map_err(|error| {
            self.transcript().failure(format!("the model host doesn't listen: {error}"))
        })
    }

    /// Waits until `look` finds something in what is known.
    ///
    /// `what` is waited for: it ends the sentence "waited N s for …".
    pub(super) fn wait<T>(
        &self,
        deadline: Deadline,
        what: &str,
        mut look: impl FnMut(&mut State) -> Option<Result<T, String>>,
    ) -> Result<T, Failure> {
        let mut state = self.state();
        loop {
            if let Some(found) = look(&mut state) {
                return found.map_err(|reason| self.transcript().failure(reason));
            }
            if let Some(reason) = &state.broken {
                let reason = format!("waiting for {what}: {reason}");
                return Err(self.transcript().failure(reason));
            }
            let Some(left) = deadline.left() else {
                let given = deadline.given().as_secs_f64();
                let reason = format!("waited {given:.0} s for {what}, in vain");
                return Err(self.transcript().failure(reason));
            };
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the listeners, which end when QEMU has: call it after that.
    pub(super) fn join(&self) {
        let readers =
            std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for reader in readers {
            // A listener that panicked has said so itself.
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen_to_console(&self, mut console: UnixStream) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = console.read(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            self.transcript.record("host", bytes);
            self.lock().console.extend_from_slice(bytes);
            self.changed.notify_all();
        }
        self.end("its console closed".into());
    }

    fn listen_to_agent(&self, mut agent: UnixStream) {
        loop {
            match Frame::read_from(&mut agent) {
                Ok(frame) => self.take(frame),
                Err(error) => return self.end(error.to_string()),
            }
        }
    }

    fn end(&self, reason: String) {
        self.lock().broken.get_or_insert(format!("the model host is gone ({reason})"));
        self.changed.notify_all();
    }

    fn take(&self, frame: Frame) {
        let mut state = self.lock();
        if frame.kind == Kind::Hello {
            state.ready = true;
        } else if let Some(record) = state.processes.get_mut(&frame.process) {
            match frame.kind {
                Kind::Started => record.pid = frame.number(),
                Kind::Exited => record.status = frame.number().map(u32::cast_signed),
                Kind::Output => {
                    self.transcript.record(&record.name, &frame.payload);
                    record.output.extend_from_slice(&frame.payload);
                }
                Kind::Error => {
                    self.transcript.record(&record.name, &frame.payload);
                    record.error.extend_from_slice(&frame.payload);
                }
                _ => {}
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}
