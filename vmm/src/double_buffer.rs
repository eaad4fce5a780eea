//! A text that a process leaves for its parent, the newest only: the parent has it even when the process
//! is gone.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::shared_memory;

/// The longest text, in bytes. The counters of a guest with 512 vCPUs take a quarter of it.
const CAPACITY: usize = 4 << 20;

/// A text's words.
const WORDS: usize = CAPACITY / size_of::<u64>();

/// Two places for texts, so that one is whole while the other is written.
#[derive(Debug)]
pub struct DoubleBuffer {
    /// How many texts were left; the newest is in the first place if that is even.
    count: &'static AtomicU64,
    /// Each a length in bytes, and the text.
    places: [&'static [AtomicU64]; 2],
    /// Signalled with each.
    left: EventFd,
}

impl DoubleBuffer {
    /// An empty one, to be made before the process is forked.
    ///
    /// # Errors
    ///
    /// There is no memory or descriptor for it.
    #[cold]
    pub fn new() -> io::Result<Self> {
        let words = shared_memory::words(1 + 2 * (1 + WORDS))?;
        let (count, places) = words.split_first().ok_or(io::ErrorKind::OutOfMemory)?;
        let (first, second) = places.split_at(1 + WORDS);
        let left = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        Ok(Self { count, places: [first, second], left })
    }

    /// The place of the text with this number.
    fn place(&self, number: u64) -> Option<(&'static AtomicU64, &'static [AtomicU64])> {
        let [first, second] = self.places;
        let place = if number.is_multiple_of(2) { first } else { second };
        place.split_first()
    }

    /// Leaves a text; one thread at a time.
    ///
    /// # Errors
    ///
    /// It is too long.
    #[cold]
    pub fn put(&self, text: &str) -> io::Result<()> {
        let number = self.count.load(Ordering::Relaxed).wrapping_add(1);
        let place = self.place(number).filter(|_| text.len() <= CAPACITY);
        let (length, words) = place.ok_or(io::ErrorKind::FileTooLarge)?;
        length.store(text.len() as u64, Ordering::Relaxed);
        for (word, bytes) in words.iter().zip(text.as_bytes().chunks(size_of::<u64>())) {
            let mut whole = [0; size_of::<u64>()];
            whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        self.count.store(number, Ordering::Release);
        // Fails only while as many are signalled as the counter holds.
        let _ = self.left.write(1);
        Ok(())
    }

    /// The newest text and its number, if there is one with a higher number than `after`.
    #[cold]
    pub fn newest(&self, after: u64) -> Option<(u64, String)> {
        let _ = self.left.read();
        let number = self.count.load(Ordering::Acquire);
        let (length, words) = self.place(number).filter(|_| number > after)?;
        let length = usize::try_from(length.load(Ordering::Relaxed)).ok()?.min(CAPACITY);
        let words = words.iter().take(length.div_ceil(size_of::<u64>()));
        let mut bytes: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        bytes.truncate(length);
        // What a process that is broken makes of it is no text, or replaced meanwhile.
        Some((number, String::from_utf8_lossy(&bytes).into_owned()))
    }
}

impl AsRawFd for DoubleBuffer {
    /// What is readable when there is a new text.
    fn as_raw_fd(&self) -> RawFd {
        self.left.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_text_is_had_once() {
        let texts = DoubleBuffer::new().unwrap();
        assert_eq!(texts.newest(0), None);
        for text in ["one", "", "a longer one, of several words"] {
            texts.put(text).unwrap();
        }
        let (number, text) = texts.newest(0).unwrap();
        assert_eq!((number, &*text), (3, "a longer one, of several words"));
        assert_eq!(texts.newest(number), None);
        texts.put("short").unwrap();
        assert_eq!(texts.newest(number), Some((4, "short".to_owned())));
    }

    #[test]
    fn what_is_too_long_leaves_the_text_before() {
        let texts = DoubleBuffer::new().unwrap();
        let longest = "x".repeat(CAPACITY);
        texts.put(&longest).unwrap();
        assert!(texts.put(&(longest.clone() + "x")).is_err());
        assert_eq!(texts.newest(0), Some((1, longest)));
    }

    #[test]
    fn lengths_that_a_broken_process_leaves_are_bounded() {
        let texts = DoubleBuffer::new().unwrap();
        texts.put("x").unwrap();
        texts.place(1).unwrap().0.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(texts.newest(0).unwrap().1.len(), CAPACITY);
    }
}
