//! `--log`: what a guest's consoles print, with times.

use std::sync::Arc;
use std::time::Instant;

use crate::output::FileBuffer;

/// Output of consoles on its way to a file: each line with the seconds since strait's start, as dmesg has
/// those since the kernel's.
pub(super) struct ConsoleLog {
    file: Arc<FileBuffer>,
    started: Instant,
    /// The console whose line hasn't ended.
    within: Option<&'static str>,
    /// Whether a line says whose it is.
    named: bool,
}

impl ConsoleLog {
    /// A log to this file, with the consoles' names if they are `named`.
    pub(super) fn new(file: Arc<FileBuffer>, started: Instant, named: bool) -> Self {
        Self { file, started, within: None, named }
    }

    /// Takes output of the console with this name; whether it is to wait before it makes more.
    pub(super) fn put(&mut self, name: &'static str, bytes: &[u8]) -> bool {
        let mut text = Vec::with_capacity(bytes.len().saturating_add(32));
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begin(name, &mut text);
            match piece.strip_suffix(b"\n") {
                Some(line) => {
                    text.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
                    text.push(b'\n');
                    self.within = None;
                }
                // The end of a line may come in two parts.
                None => text.extend_from_slice(piece.strip_suffix(b"\r").unwrap_or(piece)),
            }
        }
        self.file.put(&text)
    }

    /// Begins a line of this console, unless it is in one.
    fn begin(&mut self, name: &'static str, text: &mut Vec<u8>) {
        if self.within == Some(name) {
            return;
        }
        if self.within.is_some() {
            text.push(b'\n');
        }
        self.within = Some(name);
        let time = self.started.elapsed();
        let stamp = format!("[{:5}.{:06}] ", time.as_secs(), time.subsec_micros());
        text.extend_from_slice(stamp.as_bytes());
        if self.named {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b": ");
        }
    }

    /// Ends the line that hasn't ended.
    pub(super) fn finish(&mut self) {
        if self.within.take().is_some() {
            self.file.put(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::output;

    /// What the log has of these pieces of output, without the times' digits.
    fn logged(named: bool, pieces: &[(&'static str, &[u8])]) -> String {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let file = output::to_file(fs::File::from(OwnedFd::from(writer)), "test");
        output::start_threads(|| ()).unwrap();
        let mut log = ConsoleLog::new(file.clone(), Instant::now(), named);
        for (name, bytes) in pieces {
            assert!(!log.put(name, bytes));
        }
        log.finish();
        log.finish();
        output::finish_console(false);
        let mut bytes = vec![0; 4096];
        let count = std::io::Read::read(&mut reader, &mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        text.chars().filter(|c| !c.is_ascii_digit()).collect()
    }

    #[test]
    fn each_line_has_one_time() {
        let pieces: [(_, &[u8]); 4] =
            [("serial", b"one\r\ntw"), ("serial", b"o\r"), ("serial", b"\n\n"), ("serial", b"> ")];
        assert_eq!(logged(false, &pieces), "[    .] one\n[    .] two\n[    .] \n[    .] > \n");
    }

    #[test]
    fn lines_of_two_consoles_are_told_apart() {
        let pieces: [(_, &[u8]); 3] = [("serial", b"a"), ("virtio", b"b\n"), ("serial", b"c\n")];
        let expected = "[    .] serial: a\n[    .] virtio: b\n[    .] serial: c\n";
        assert_eq!(logged(true, &pieces), expected);
    }
}
