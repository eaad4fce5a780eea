//! The DMA mappings that were made, so that they are undone.

use std::ptr::NonNull;

use super::super::sys::{DmaCalls, IoctlError};

/// Mappings, undone in reverse order when dropped.
pub(super) struct Mappings<C: DmaCalls> {
    calls: C,
    /// IOVA and size of each.
    made: Vec<(u64, u64)>,
}

impl<C: DmaCalls> Mappings<C> {
    pub(super) fn new(calls: C) -> Self {
        Self { calls, made: Vec::new() }
    }

    /// What makes them.
    pub(super) fn calls(&self) -> &C {
        &self.calls
    }

    /// How many bytes are mapped.
    pub(super) fn size(&self) -> u64 {
        self.made.iter().fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// Makes a mapping.
    ///
    /// # Safety
    ///
    /// As for [`DmaCalls::map_dma`], until this is dropped or unmapped.
    pub(super) unsafe fn map(
        &mut self,
        iova: u64,
        host: NonNull<u8>,
        size: u64,
    ) -> Result<(), IoctlError> {
        // SAFETY: passed on.
        unsafe { self.calls.map_dma(iova, host, size) }?;
        self.made.push((iova, size));
        Ok(())
    }

    pub(super) fn unmap_all(&mut self) {
        while let Some((iova, size)) = self.made.pop() {
            if let Err(error) = self.calls.unmap_dma(iova, size) {
                log::error!("DMA mapping at {iova:#x}, {size:#x} bytes: {error}: {}", error.source);
            }
        }
    }
}

impl<C: DmaCalls> Drop for Mappings<C> {
    fn drop(&mut self) {
        self.unmap_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    /// Refuses whatever is mapped or unmapped at `refuse`.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<(&'static str, u64, u64)>>,
        refuse: Option<u64>,
    }

    impl Recorder {
        fn record(&self, call: &'static str, iova: u64, size: u64) -> Result<(), IoctlError> {
            self.calls.lock().unwrap().push((call, iova, size));
            if self.refuse != Some(iova) {
                return Ok(());
            }
            Err(IoctlError { request: call, source: io::Error::from_raw_os_error(libc::EINVAL) })
        }
    }

    impl DmaCalls for &Recorder {
        unsafe fn map_dma(&self, iova: u64, _: NonNull<u8>, size: u64) -> Result<(), IoctlError> {
            self.record("map", iova, size)
        }

        fn unmap_dma(&self, iova: u64, size: u64) -> Result<(), IoctlError> {
            self.record("unmap", iova, size)
        }
    }

    fn map(mappings: &mut Mappings<&Recorder>, iova: u64, size: u64) -> Result<(), IoctlError> {
        // SAFETY: the recorder touches no memory.
        unsafe { mappings.map(iova, NonNull::dangling(), size) }
    }

    #[test]
    fn mappings_are_undone_the_last_first() {
        let recorder = Recorder::default();
        let mut mappings = Mappings::new(&recorder);
        map(&mut mappings, 0x4000_0000, 0x1000).unwrap();
        map(&mut mappings, 0x1_0000_0000, 0x2000).unwrap();
        assert_eq!(mappings.size(), 0x3000);
        recorder.calls.lock().unwrap().clear();
        drop(mappings);
        let expected = [("unmap", 0x1_0000_0000, 0x2000), ("unmap", 0x4000_0000, 0x1000)];
        assert_eq!(*recorder.calls.lock().unwrap(), expected);
    }

    #[test]
    fn what_was_refused_is_not_undone() {
        let recorder = Recorder { refuse: Some(0x2000), ..Default::default() };
        let mut mappings = Mappings::new(&recorder);
        map(&mut mappings, 0x1000, 0x1000).unwrap();
        map(&mut mappings, 0x2000, 0x1000).unwrap_err();
        mappings.unmap_all();
        drop(mappings);
        let unmapped: Vec<_> =
            recorder.calls.lock().unwrap().iter().filter(|c| c.0 == "unmap").map(|c| c.1).collect();
        assert_eq!(unmapped, [0x1000]);
    }

    #[test]
    fn a_refused_unmapping_does_not_keep_the_others() {
        let refusing = Recorder { refuse: Some(0x2000), ..Default::default() };
        let mut mappings = Mappings { calls: &refusing, made: vec![(0x1000, 1), (0x2000, 1)] };
        mappings.unmap_all();
        let expected = [("unmap", 0x2000, 1), ("unmap", 0x1000, 1)];
        assert_eq!(*refusing.calls.lock().unwrap(), expected);
    }
}
