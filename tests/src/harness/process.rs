//! A program on the model host.

use std::sync::Arc;

use super::channel::Channel;
use super::deadline::Deadline;
use super::failure::Failure;
use super::protocol::{Frame, Kind};

/// How long a program has to say or do something, in seconds.
const TIMEOUT: u64 = 300;

/// A program that runs on the model host beside others.
pub struct Process {
    channel: Arc<Channel>,
    number: u32,
    name: String,
    /// Output before this index has been waited for already.
    seen: usize,
    timeout: u64,
}

impl Process {
    /// Starts `command` with the host's shell; the transcript calls it `name`.
    pub(super) fn start(
        channel: &Arc<Channel>,
        name: &str,
        command: &str,
        kind: Kind,
    ) -> Result<Self, Failure> {
        channel.transcript().note(&format!("{name}: {command}"));
        let number = channel.register(name);
        channel.send(&Frame::new(kind, number, command))?;
        Ok(Self {
            channel: Arc::clone(channel),
            number,
            name: name.to_owned(),
            seen: 0,
            timeout: TIMEOUT,
        })
    }

    /// Gives everything that is waited for from now on this many seconds.
    #[must_use]
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }

    /// Its process id on the host.
    ///
    /// # Errors
    ///
    /// The agent doesn't say.
    pub fn pid(&self) -> Result<u32, Failure> {
        let number = self.number;
        self.channel.wait(self.deadline(), &format!("{} to start", self.name), |state| {
            state.processes.get(&number)?.pid.map(Ok)
        })
    }

    /// Waits until its output, after what was waited for last time, contains `text`; returns that
    /// output up to and with `text`.
    ///
    /// # Errors
    ///
    /// It ended, or the time did, before it said so.
    pub fn wait_for(&mut self, text: &str) -> Result<String, Failure> {
        let (number, from) = (self.number, self.seen);
        let what = format!("{} to say {text:?}", self.name);
        let found = self.channel.wait(self.deadline(), &what, |state| {
            let record = state.processes.get(&number)?;
            let fresh = record.output.get(from..).unwrap_or_default();
            match find(fresh, text.as_bytes()) {
                Some(at) => {
                    let end = at + text.len();
                    Some(Ok((end, lossy(fresh.get(..end).unwrap_or_default()))))
                }
                None => record.status.map(|status| {
                    let last = lossy(record.output.get(from..).unwrap_or_default());
                    let errors = lossy(&record.error);
                    Err(format!(
                        "waiting for {what}: it ended with status {status} after saying\n\
                         {last}{errors}"
                    ))
                }),
            }
        });
        let (length, output) = found?;
        self.seen = from + length;
        Ok(output)
    }

    /// What it writes to its standard output (or terminal) next, as it is; `None` once it has ended.
    pub(super) fn next_output(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let (number, from) = (self.number, self.seen);
        let what = format!("{} to say something", self.name);
        let fresh = self.channel.wait(self.deadline(), &what, |state| {
            let record = state.processes.get(&number)?;
            let fresh = record.output.get(from..).unwrap_or_default();
            (!fresh.is_empty() || record.status.is_some()).then(|| Ok(fresh.to_vec()))
        })?;
        self.seen = from + fresh.len();
        Ok((!fresh.is_empty()).then_some(fresh))
    }

    /// The same program, for who only types to it.
    pub(super) fn sender(&self) -> Self {
        Self { channel: Arc::clone(&self.channel), name: self.name.clone(), ..*self }
    }

    /// Everything it has written to its standard output (or terminal) so far.
    pub fn output(&self) -> String {
        let state = self.channel.state();
        state.processes.get(&self.number).map(|record| lossy(&record.output)).unwrap_or_default()
    }

    /// Everything it has written to its standard error so far, where that isn't its terminal.
    pub fn errors(&self) -> String {
        let state = self.channel.state();
        state.processes.get(&self.number).map(|record| lossy(&record.error)).unwrap_or_default()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&self) -> Option<i32> {
        self.channel.state().processes.get(&self.number)?.status
    }

    /// Types `text` to it, as it is.
    ///
    /// # Errors
    ///
    /// The channel is broken.
    pub fn send(&self, text: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.channel.send(&Frame::new(Kind::Input, self.number, text.as_ref()))
    }

    /// Ends its input; where it has a terminal, hangs that up.
    ///
    /// # Errors
    ///
    /// The channel is broken.
    pub fn end_of_input(&self) -> Result<(), Failure> {
        self.channel.send(&Frame::new(Kind::EndOfInput, self.number, []))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// The channel is broken.
    pub fn signal(&self, signal: i32) -> Result<(), Failure> {
        let number = u8::try_from(signal)
            .map_err(|_| Failure::new(format!("there is no signal {signal}")))?;
        self.channel.transcript().note(&format!("{}: signal {signal}", self.name));
        self.channel.send(&Frame::new(Kind::Signal, self.number, [number]))
    }

    /// Waits for its end and returns its exit status, or 128 and the signal that killed it.
    ///
    /// # Errors
    ///
    /// It doesn't end in time.
    pub fn exit_status(&self) -> Result<i32, Failure> {
        let number = self.number;
        let what = format!("{} to end", self.name);
        let status = self
            .channel
            .wait(self.deadline(), &what, |state| state.processes.get(&number)?.status.map(Ok))?;
        self.channel.transcript().note(&format!("{}: exit status {status}", self.name));
        Ok(status)
    }

    /// How the transcript calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }
}

/// Where `needle` begins in `haystack`.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_first_occurrence_is_found() {
        for (haystack, needle, at) in [
            (&b"abcabc"[..], &b"bc"[..], Some(1)),
            (b"abc", b"", Some(0)),
            (b"ab", b"abc", None),
            (b"", b"a", None),
        ] {
            assert_eq!(find(haystack, needle), at, "{needle:?} in {haystack:?}");
        }
    }
}
