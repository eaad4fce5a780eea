//! A function's configuration space as the guest sees it: the function's own registers through VFIO,
//! which guards what could harm the host, except for bytes that are fixed here.

use std::ops::Range;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use super::super::uapi::{DeviceCalls, IoctlError, RegionInfo};
use super::capability::{
    self, Capability, CapabilityId, EXPRESS_FLAGS, FixedBytes, ROOT_COMPLEX_ENDPOINT,
};
use crate::pci::ConfigSnapshot;
use crate::pci::config::{
    CFG_SPACE_EXP_SIZE, HEADER_TYPE, HEADER_TYPE_MFD, INTERRUPT_PIN, STD_HEADER_SIZEOF,
};
use crate::ratelimit::LogLimit;

/// Of the PCI Express capability's flags: the version, and the port type of an endpoint.
const VERSION_MASK: u8 = 0x0f;
const ENDPOINT: u8 = 0x0;

/// Its link registers, and from version 2 on those of the second kind.
const LINK: Range<u16> = 0x0c..0x14;
const LINK2: Range<u16> = 0x2c..0x34;

/// What they hold behind a root port of the guest: as those of the port, 16 lanes at 16 GT/s, which have been
/// negotiated, without power management (PCI Express Base 5.0, 7.5.3.6 to 7.5.3.8, 7.5.3.18 to 7.5.3.20).
const LINKED: [u8; 8] = [0x04, 0x01, 0, 0, 0, 0, 0x04, 0x01];
const LINKED2: [u8; 8] = [0b1_1110, 0, 0, 0, 0x04, 0, 0, 0];

/// The number of its region, behind those of BARs and of the expansion ROM.
pub const CONFIG_REGION: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Why a configuration space can't be a guest's.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// VFIO doesn't describe it.
    #[error("VFIO doesn't describe its configuration space")]
    Info(#[source] IoctlError),
    /// It can't be read.
    #[error("its configuration space can't be read")]
    Read(#[source] std::io::Error),
    /// No configuration space has this size.
    #[error("its configuration space has {0:#x} bytes")]
    Size(u64),
    /// It is a bridge.
    #[error("its header is of type {0}, which isn't an endpoint's")]
    HeaderType(u8),
}

/// A configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    calls: Arc<dyn DeviceCalls>,
    region: RegionInfo,
    /// As it was when the function was opened.
    snapshot: ConfigSnapshot,
    capabilities: Vec<Capability>,
    /// It has no interrupt pin in the guest.
    pinless: bool,
    /// It is behind a root port of the guest.
    linked: bool,
    fixed: FixedBytes,
    log: LogLimit,
}

impl ConfigSpace {
    /// That of a function.
    ///
    /// # Errors
    ///
    /// If it can't be read, or isn't an endpoint's.
    pub fn open(calls: Arc<dyn DeviceCalls>, name: &str) -> Result<Self, ConfigError> {
        let region = calls.region_info(CONFIG_REGION).map_err(ConfigError::Info)?;
        if region.size < STD_HEADER_SIZEOF.into() || !region.size.is_multiple_of(4) {
            return Err(ConfigError::Size(region.size));
        }
        let size = region.size.min(CFG_SPACE_EXP_SIZE.into());
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        calls.read(&region, 0, &mut bytes).map_err(ConfigError::Read)?;
        let snapshot = ConfigSnapshot::new(bytes);
        let header = snapshot.u8(HEADER_TYPE) & !HEADER_TYPE_MFD;
        if header != 0 {
            return Err(ConfigError::HeaderType(header));
        }
        let capabilities = capability::all(&snapshot);
        let fixed = capability::fixed_bytes(&snapshot, &capabilities);
        let log = LogLimit::named(name);
        let (pinless, linked) = (false, false);
        let mut config =
            Self { calls, region, snapshot, capabilities, pinless, linked, fixed, log };
        config.fix_all();
        Ok(config)
    }

    /// As it was when the function was opened.
    pub fn snapshot(&self) -> &ConfigSnapshot {
        &self.snapshot
    }

    /// The function's capabilities, including hidden ones.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// The offset of a capability that isn't hidden.
    pub fn find(&self, id: CapabilityId) -> Option<u16> {
        let found = self.capabilities.iter().find(|c| c.id == id && c.hidden.is_none());
        found.map(|capability| capability.offset)
    }

    /// Hides a capability, if there is one, for this reason.
    pub fn hide(&mut self, id: CapabilityId, why: &'static str) {
        let of_kind = self.capabilities.iter_mut().filter(|c| c.id == id && c.hidden.is_none());
        of_kind.for_each(|capability| capability.hidden = Some(why));
        self.fix_all();
    }

    /// The interrupt pin: 1 for INTA to 4 for INTD, 0 for none.
    pub fn interrupt_pin(&self) -> u8 {
        if self.pinless { 0 } else { self.snapshot.u8(INTERRUPT_PIN) }
    }

    /// Hides its interrupt pin.
    pub fn drop_interrupt_pin(&mut self) {
        self.pinless = true;
        self.fix_all();
    }

    /// Has it behind a root port of the guest, where an endpoint has a link, and an integrated one can't be
    /// (PCI Express Base 5.0, 1.3.2.3).
    pub fn put_behind_port(&mut self) {
        self.linked = true;
        self.fix_all();
    }

    /// Fixes the bytes that the guest must not see or change.
    fn fix_all(&mut self) {
        self.fixed = capability::fixed_bytes(&self.snapshot, &self.capabilities);
        self.hide_link();
        if self.pinless {
            self.fixed.fix(INTERRUPT_PIN, 0);
        }
    }

    /// Hides the host's link of an endpoint: behind a port of the guest, the link leads there; on the guest's
    /// root bus, where it would have no other end, the endpoint is one that is integrated in the root complex.
    fn hide_link(&mut self) {
        let Some(express) = self.find(capability::EXPRESS) else { return };
        let flags = self.snapshot.u8(express + EXPRESS_FLAGS);
        if flags >> 4 != ENDPOINT {
            return;
        }
        let (link, link2) = if self.linked {
            (LINKED, LINKED2)
        } else {
            let integrated = ROOT_COMPLEX_ENDPOINT << 4 | flags & VERSION_MASK;
            self.fixed.fix(express + EXPRESS_FLAGS, integrated);
            ([0; 8], [0; 8])
        };
        LINK.zip(link).for_each(|(register, value)| self.fixed.fix(express + register, value));
        if flags & VERSION_MASK >= 2 {
            LINK2
                .zip(link2)
                .for_each(|(register, value)| self.fixed.fix(express + register, value));
        }
    }

    /// Reads 1, 2 or 4 bytes at `offset`; all ones beyond its end, or if the read fails.
    pub fn read(&mut self, offset: u16, data: &mut [u8]) {
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        if !self.snapshot.contains(offset, length) {
            data.fill(0xff);
            return;
        }
        let read = self.calls.read(&self.region, u64::from(offset), data);
        if self.log_failed("read from", offset, read) {
            data.fill(0xff);
        }
        for (byte, offset) in data.iter_mut().zip(offset..) {
            *byte = self.fixed.get(offset).unwrap_or(*byte);
        }
    }

    /// The little-endian number at `offset`, a multiple of 4.
    pub fn read_u32(&mut self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes 1, 2 or 4 bytes at `offset`, except for fixed ones.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        if !self.snapshot.contains(offset, length) {
            return;
        }
        let open: Vec<_> =
            (offset..).zip(data).filter(|(at, _)| self.fixed.get(*at).is_none()).collect();
        if open.len() == data.len() {
            let written = self.calls.write(&self.region, u64::from(offset), data);
            self.log_failed("write to", offset, written);
            return;
        }
        for (offset, byte) in open {
            let written = self.calls.write(&self.region, u64::from(offset), &[*byte]);
            self.log_failed("write to", offset, written);
        }
    }

    /// Logs the failure of an access, if it is one.
    fn log_failed(&self, what: &str, offset: u16, result: std::io::Result<()>) -> bool {
        if let Err(error) = &result {
            let place = "its configuration space at";
            self.log.warn(format_args!("a {what} {place} {offset:#x} failed: {error}"));
        }
        result.is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeFunction;
    use super::*;

    /// A function with AGP at 0x40, PCI Express at 0x50 and SR-IOV in extended space.
    fn function() -> FakeFunction {
        let mut function = FakeFunction::new(4096);
        function.put(0x06, &[0x10]);
        function.put(0x34, &[0x40]);
        function.put(0x3d, &[1]);
        function.put(0x40, &[0x02, 0x50, 0xaa, 0xbb, 0xcc]);
        function.put(0x50, &[0x10, 0x00, 0x02, 0x00]);
        function.put(0x5c, &[0x77; 8]);
        function.put(0x7c, &[0x77; 8]);
        function.put(0x100, &[0x10, 0x00, 0x01, 0x00, 0x55]);
        function
    }

    fn read<const N: usize>(config: &mut ConfigSpace, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        config.read(offset, &mut data);
        data
    }

    #[test]
    fn hidden_capabilities_are_nowhere_and_the_link_is_gone() {
        let mut config = ConfigSpace::open(function().calls(), "x").unwrap();
        assert_eq!(read(&mut config, 0x34), [0x50]);
        assert_eq!(read(&mut config, 0x40), [0; 4]);
        assert_eq!(read(&mut config, 0x44), [0; 4]);
        assert_eq!(read(&mut config, 0x50), [0x10, 0x00, 0x92, 0x00]);
        assert_eq!(read(&mut config, 0x5c), [0; 4]);
        assert_eq!(read(&mut config, 0x60), [0; 4]);
        assert_eq!(read(&mut config, 0x7c), [0; 4]);
        assert_eq!(read(&mut config, 0x100), [0; 4]);
        assert_eq!(config.find(capability::EXPRESS), Some(0x50));
        assert_eq!(config.find(CapabilityId::Standard(2)), None);
        assert_eq!(config.capabilities().len(), 3);
    }

    #[test]
    fn behind_a_port_an_endpoint_has_a_link_of_the_guest() {
        let mut config = ConfigSpace::open(function().calls(), "x").unwrap();
        config.put_behind_port();
        config.drop_interrupt_pin();
        assert_eq!(read(&mut config, 0x50), [0x10, 0x00, 0x02, 0x00]);
        assert_eq!(
            (read(&mut config, 0x5c), read(&mut config, 0x60)),
            ([4, 1, 0, 0], [0, 0, 4, 1])
        );
        assert_eq!(
            (read(&mut config, 0x7c), read(&mut config, 0x80)),
            ([30, 0, 0, 0], [4, 0, 0, 0])
        );
        config.write(0x60, &[3, 0]);
        assert_eq!(read(&mut config, 0x60), [0, 0]);
    }

    #[test]
    fn what_is_fixed_cant_be_written_and_the_rest_can() {
        let function = function();
        let mut config = ConfigSpace::open(function.calls(), "x").unwrap();
        config.write(0x58, &[1, 2, 3, 4]);
        assert_eq!(read(&mut config, 0x58), [1, 2, 3, 4]);
        // Half of it is fixed: the capability's pointer and number.
        config.write(0x50, &[9, 9, 9, 9]);
        assert_eq!(read(&mut config, 0x50), [0x10, 0x00, 0x92, 9]);
        let mut stored = [0; 4];
        function.config().read_exact_at(&mut stored, 0x50).unwrap();
        assert_eq!(stored, [0x10, 0x00, 0x02, 9], "only what is open reached the function");
        config.drop_interrupt_pin();
        config.write(0x3c, &[5, 5]);
        assert_eq!((read(&mut config, 0x3c), config.interrupt_pin()), ([5, 0], 0));
    }

    #[test]
    fn outside_the_header_and_the_guest_s_capabilities_is_nothing() {
        // Every byte of the hardware reads as ones where nothing else is.
        let mut function = FakeFunction::new(4096);
        function.put(0x40, &[0xff; 4096 - 0x40]);
        function.put(0x06, &[0x10]);
        function.put(0x34, &[0x60]);
        // Power management, a vendor's of 5 bytes, and MSI-X right behind that one's end.
        function.put(0x60, &[0x01, 0x70]);
        function.put(0x70, &[0x09, 0x78, 5]);
        function.put(0x78, &[0x11, 0x00]);
        // Error reporting, device serial number; between them PASID, which isn't in the chain: VFIO
        // has taken it out.
        function.put(0x100, &[0x01, 0x00, 0x02, 0x20]);
        function.put(0x180, &[0x1b, 0x00, 0x01, 0x00]);
        function.put(0x200, &[0x03, 0x00, 0x01, 0x00]);
        let mut config = ConfigSpace::open(function.calls(), "x").unwrap();
        let open = [0..0x40, 0x60..0x68, 0x70..0x75, 0x78..0x84, 0x100..0x12c, 0x200..0x20c];
        let before = function.config();
        for offset in 0x40..4096u16 {
            let (mut hardware, mut after) = ([0], [0]);
            before.read_exact_at(&mut hardware, offset.into()).unwrap();
            let is_open = open.iter().any(|range| range.contains(&offset));
            let header = [0x60, 0x70, 0x78, 0x100, 0x200]
                .iter()
                .any(|cap| (*cap..cap + if *cap < 0x100 { 2 } else { 4 }).contains(&offset));
            let expected = if is_open { hardware } else { [0] };
            assert_eq!(read(&mut config, offset), expected, "{offset:#x}");
            config.write(offset, &[!hardware[0]]);
            before.read_exact_at(&mut after, offset.into()).unwrap();
            assert_eq!(after != hardware, is_open && !header, "{offset:#x}");
        }
    }

    #[test]
    fn beyond_the_end_is_nobody() {
        let mut config = ConfigSpace::open(FakeFunction::new(256).calls(), "x").unwrap();
        assert_eq!(read(&mut config, 0x100), [0xff; 4]);
        assert_eq!(read(&mut config, 0xffc), [0xff; 4]);
        config.write(0x100, &[0; 4]);
        config.write(u16::MAX, &[0; 4]);
        assert_eq!(read(&mut config, u16::MAX), [0xff; 4]);
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for size in [0, 60, 66] {
            let opened = ConfigSpace::open(FakeFunction::new(size).calls(), "x");
            assert!(matches!(opened, Err(ConfigError::Size(_))), "{size}");
        }
        for header in [1, 0x81, 0x7f] {
            let mut bridge = FakeFunction::new(256);
            bridge.put(0x0e, &[header]);
            let opened = ConfigSpace::open(bridge.calls(), "x");
            assert!(matches!(opened, Err(ConfigError::HeaderType(_))), "{header}");
        }
        let mut many = FakeFunction::new(256);
        many.put(0x0e, &[0x80]);
        ConfigSpace::open(many.calls(), "x").unwrap();
        // No such region: not a PCI device's.
        let none = Arc::new(super::super::super::testing::FakeDevice::new(Vec::new(), Vec::new()));
        assert!(matches!(ConfigSpace::open(none, "x"), Err(ConfigError::Info(_))));
    }
}
