//! The DMA mappings, which are unmapped when dropped.

use std::ptr::NonNull;
use std::sync::Arc;

use super::super::uapi::{IoctlError, VfioOps};

/// Memory is mapped in chunks that end at multiples of this, in bytes. Pinning a chunk takes a fraction of
/// a second, during which the kernel handles no signal but SIGKILL; and IOMMUs have no larger pages.
const CHUNK: u64 = 1 << 30;

/// Mappings, unmapped in reverse order when dropped.
pub(super) struct Mappings {
    dma: Arc<dyn VfioOps>,
    /// IOVA and size of each, in bytes.
    made: Vec<(u64, u64)>,
}

impl Mappings {
    /// None yet; `dma` maps and unmaps.
    pub(super) fn new(dma: Arc<dyn VfioOps>) -> Self {
        Self { dma, made: Vec::new() }
    }

    /// How many bytes are mapped.
    pub(super) fn size(&self) -> u64 {
        self.made.iter().fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// Maps `size` bytes at `host` as IOVA `iova`.
    ///
    /// # Safety
    ///
    /// As for [`VfioOps::vfio_dma_map`], until this is dropped or unmapped.
    pub(super) unsafe fn map(
        &mut self,
        iova: u64,
        host: NonNull<u8>,
        size: u64,
    ) -> Result<(), IoctlError> {
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        // SAFETY: passed on.
        unsafe { self.dma.vfio_dma_map(iova, length, host.as_ptr()) }?;
        self.made.push((iova, size));
        Ok(())
    }

    /// As [`map`](Self::map), in [chunks](CHUNK), stopping between two if strait is to stop.
    ///
    /// # Safety
    ///
    /// As for [`map`](Self::map).
    pub(super) unsafe fn map_chunked(
        &mut self,
        iova: u64,
        host: NonNull<u8>,
        size: u64,
    ) -> Result<(), IoctlError> {
        let mut done = 0;
        while done < size {
            let at = iova.saturating_add(done);
            let chunk = (size - done).min(CHUNK - at % CHUNK);
            IoctlError::check_stop("mapping")?;
            let offset = usize::try_from(done).unwrap_or(usize::MAX);
            // SAFETY: `done` is less than `size`, the memory's. The rest is passed on.
            unsafe { self.map(at, host.add(offset), chunk) }?;
            done += chunk;
        }
        Ok(())
    }

    /// The kernel has unmapped all.
    pub(super) fn forget(&mut self) {
        self.made.clear();
    }

    /// Unmaps all, in reverse order. A failure is logged and doesn't stop the others.
    pub(super) fn unmap_all(&mut self) {
        while let Some((iova, size)) = self.made.pop() {
            let length = usize::try_from(size).unwrap_or(usize::MAX);
            if let Err(error) = self.dma.vfio_dma_unmap(iova, length).map_err(IoctlError::from) {
                log::error!("DMA mapping at {iova:#x}, {size:#x} bytes: {error}: {}", error.source);
            }
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.unmap_all();
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::sync::Mutex;

    use vmm_sys_util::errno;

    use super::super::super::uapi::VfioError;
    use super::*;

    /// Records calls; refuses those for IOVA `refuse`.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<(&'static str, u64, usize)>>,
        addresses: Mutex<Vec<usize>>,
        refuse: Option<u64>,
    }

    impl Recorder {
        fn record(&self, call: &'static str, iova: u64, size: usize) -> Result<(), VfioError> {
            self.calls.lock().unwrap().push((call, iova, size));
            if self.refuse != Some(iova) {
                return Ok(());
            }
            Err(VfioError::IommuDmaMap(errno::Error::new(libc::EINVAL)))
        }
    }

    impl VfioOps for Recorder {
        unsafe fn vfio_dma_map(
            &self,
            iova: u64,
            size: usize,
            at: *mut u8,
        ) -> Result<(), VfioError> {
            self.addresses.lock().unwrap().push(at.addr());
            self.record("map", iova, size)
        }

        fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
            self.record("unmap", iova, size)
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn map(mappings: &mut Mappings, iova: u64, size: u64) -> Result<(), IoctlError> {
        // SAFETY: the recorder touches no memory.
        unsafe { mappings.map(iova, NonNull::dangling(), size) }
    }

    #[test]
    fn mappings_are_unmapped_in_reverse_order() {
        let recorder = Arc::new(Recorder::default());
        let mut mappings = Mappings::new(recorder.clone());
        map(&mut mappings, 0x4000_0000, 0x1000).unwrap();
        map(&mut mappings, 0x1_0000_0000, 0x2000).unwrap();
        assert_eq!(mappings.size(), 0x3000);
        recorder.calls.lock().unwrap().clear();
        drop(mappings);
        let expected = [("unmap", 0x1_0000_0000, 0x2000), ("unmap", 0x4000_0000, 0x1000)];
        assert_eq!(*recorder.calls.lock().unwrap(), expected);
    }

    #[test]
    fn memory_is_mapped_in_chunks_that_end_at_large_pages() {
        const GIB: u64 = 1 << 30;
        const AT: usize = 0x1_0000_0000;
        for (gpa, size, pieces) in [
            (GIB, 1 << 20, &[1 << 20][..]),
            (GIB, GIB, &[GIB]),
            (GIB, 2 * GIB + 4096, &[GIB, GIB, 4096]),
            (GIB + 4096, GIB, &[GIB - 4096, 4096]),
        ] {
            let recorder = Arc::new(Recorder::default());
            let mut mappings = Mappings::new(recorder.clone());
            let host = NonNull::new(std::ptr::without_provenance_mut(AT)).unwrap();
            // SAFETY: the recorder touches no memory.
            unsafe { mappings.map_chunked(gpa, host, size) }.unwrap();
            let (mut expected, mut addresses, mut done) = (Vec::new(), Vec::new(), 0);
            for piece in pieces {
                expected.push(("map", gpa + done, usize::try_from(*piece).unwrap()));
                addresses.push(AT + usize::try_from(done).unwrap());
                done += piece;
            }
            assert_eq!((done, mappings.size()), (size, size));
            assert_eq!(*recorder.calls.lock().unwrap(), expected);
            assert_eq!(*recorder.addresses.lock().unwrap(), addresses);
        }
    }

    #[test]
    fn a_mapping_that_was_refused_is_not_unmapped() {
        let recorder = Arc::new(Recorder { refuse: Some(0x2000), ..Default::default() });
        let mut mappings = Mappings::new(recorder.clone());
        map(&mut mappings, 0x1000, 0x1000).unwrap();
        map(&mut mappings, 0x2000, 0x1000).unwrap_err();
        mappings.unmap_all();
        drop(mappings);
        let unmapped: Vec<_> =
            recorder.calls.lock().unwrap().iter().filter(|c| c.0 == "unmap").map(|c| c.1).collect();
        assert_eq!(unmapped, [0x1000]);
    }

    #[test]
    fn a_refused_unmapping_does_not_stop_the_others() {
        let refusing = Arc::new(Recorder { refuse: Some(0x2000), ..Default::default() });
        let made = vec![(0x1000, 1), (0x2000, 1)];
        let mut mappings = Mappings { dma: refusing.clone(), made };
        mappings.unmap_all();
        let expected = [("unmap", 0x2000, 1), ("unmap", 0x1000, 1)];
        assert_eq!(*refusing.calls.lock().unwrap(), expected);
    }
}
