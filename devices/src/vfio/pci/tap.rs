//! Messages of a function that are watched. VFIO signals an eventfd that whoever watches polls, and who then
//! signals the vector's own eventfd: no message is lost, and those that come meanwhile are one, as they are
//! while a vector is masked.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::irq::IrqTap;
use crate::sync::lock;

/// What passes the messages of a vector on, and so sees each of them.
#[derive(Debug)]
pub struct VectorTap {
    /// What VFIO signals.
    fired: EventFd,
    /// The vector's own eventfd, while VFIO signals the vector.
    vector: Mutex<Option<EventFd>>,
}

/// What passes the interrupts of a function on.
#[derive(Debug)]
pub struct FunctionTaps {
    /// Those of its line, if it has one.
    pub intx: Option<IrqTap>,
    /// Those of the vectors of MSI.
    pub msi: Arc<[VectorTap]>,
    /// Those of the vectors of MSI-X.
    pub msix: Arc<[VectorTap]>,
}

impl VectorTap {
    /// Those of so many vectors, which VFIO doesn't signal yet.
    ///
    /// # Errors
    ///
    /// There are no more eventfds.
    #[cold]
    pub(super) fn all(count: u16) -> io::Result<Arc<[Self]>> {
        let tap = |_| {
            let fired = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            Ok(Self { fired, vector: Mutex::new(None) })
        };
        (0..count).map(tap).collect()
    }

    /// What is to be polled.
    pub fn polled(&self) -> &EventFd {
        &self.fired
    }

    /// Passes on that the vector was signalled, if it was; `note` is told first, how often.
    pub fn pass(&self, note: impl FnOnce(u64)) {
        let vector = lock(&self.vector);
        if let (Ok(count), Some(vector)) = (self.fired.read(), &*vector) {
            note(count);
            // It can't be full: it has one for each time that this one was read.
            let _ = vector.write(1);
        }
    }

    /// From here on passes signals to this eventfd; answers what VFIO is to signal.
    ///
    /// # Errors
    ///
    /// There are no more descriptors.
    #[cold]
    pub(super) fn connect(&self, vector: &EventFd) -> io::Result<&EventFd> {
        *lock(&self.vector) = Some(vector.try_clone()?);
        Ok(&self.fired)
    }

    /// Passes nothing on from here on: VFIO doesn't signal it any more, and the vector is gone.
    #[cold]
    pub(super) fn disconnect(&self) {
        let mut vector = lock(&self.vector);
        *vector = None;
        // Only clears it; there may be nothing to clear.
        let _ = self.fired.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_noted_and_reach_the_vector_while_there_is_one() {
        let taps = VectorTap::all(2).unwrap();
        let [tap, _] = &*taps else { panic!("{taps:?}") };
        let vector = EventFd::new(EFD_NONBLOCK).unwrap();
        let fired = tap.connect(&vector).unwrap();
        tap.pass(|_| panic!("nothing was signalled"));
        fired.write(3).unwrap();
        let mut noted = 0;
        tap.pass(|count| noted = count);
        assert_eq!((noted, vector.read().unwrap()), (3, 1));
        // What comes between the last pass and the end, and behind that, is no one's, also of the next vector.
        fired.write(1).unwrap();
        tap.disconnect();
        tap.pass(|_| panic!("there is no vector"));
        fired.write(1).unwrap();
        tap.pass(|_| panic!("there is no vector"));
        tap.connect(&vector).unwrap();
        tap.pass(|_| panic!("that was the other vector's"));
        assert!(vector.read().is_err());
        // One that is connected anew reaches the new one.
        let next = EventFd::new(EFD_NONBLOCK).unwrap();
        tap.connect(&next).unwrap().write(1).unwrap();
        tap.pass(|count| assert_eq!(count, 1));
        assert!(vector.read().is_err() && next.read().is_ok());
    }
}
