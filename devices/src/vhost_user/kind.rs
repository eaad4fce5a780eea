//! Kinds of devices: what is to be known of one to offer it to a guest before its backend is asked.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ, VIRTIO_NET_F_NOTF_COAL,
    VIRTIO_NET_F_RSS,
};

use crate::virtio::DeviceType;

/// What a backend that was started anew can go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumption {
    /// Requests are done in their order, and nothing else is kept: those from the used index on are
    /// made again.
    InOrder,
    /// Nothing is kept beside requests: it goes on where none is under way.
    BetweenRequests,
    /// What the driver has set up is lost with the backend.
    Never,
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its number and its class as a PCI function.
    pub device: DeviceType,
    /// The number of its queues, unless told.
    pub queues: u16,
    /// The largest size of a queue, unless told.
    pub queue_size: u16,
    /// The size of its configuration in bytes (virtio 1.2, 5), unless told.
    pub config_size: u16,
    /// Features that strait can't offer for a backend.
    pub(super) withheld: u64,
    pub(super) resumption: Resumption,
}

/// `virtio_net`'s number.
pub const NET: u16 = 1;
/// `virtio_input`'s number.
pub const INPUT: u16 = 18;
/// `virtiofs`' number.
pub const FS: u16 = 26;

/// What needs a control queue, which is the VMM's own to serve where the backend is another process.
const NET_CONTROL: u64 = 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_VLAN
    | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA
    | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE
    | 1 << VIRTIO_NET_F_MQ
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
    | 1 << VIRTIO_NET_F_NOTF_COAL
    | 1 << VIRTIO_NET_F_HASH_REPORT
    | 1 << VIRTIO_NET_F_RSS;

/// `VIRTIO_CONSOLE_F_MULTIPORT` (virtio 1.2, 5.3.3): control queues behind those of the first port.
const CONSOLE_MULTIPORT: u64 = 1 << 1;
/// `VIRTIO_FS_F_NOTIFICATION` (virtio 1.2, 5.11.3): another queue.
const FS_NOTIFICATION: u64 = 1 << 0;

/// Other devices (PCI Code and ID Assignment Specification, 1.1).
const CLASS_OTHER: u32 = 0x00_ff00;

type Row = (&'static str, u16, u32, [u16; 3], u64, Resumption);

/// Name, number (virtio 1.2, 5), class; queues, their largest size, bytes of configuration; features
/// withheld. The sizes of queues are what the backends that there are take at least.
const KINDS: [Row; 15] = {
    use Resumption::{BetweenRequests, InOrder, Never};
    [
        ("net", NET, 0x02_0000, [2, 256, 12], NET_CONTROL, InOrder),
        ("block", 2, 0x01_8000, [1, 128, 60], 0, BetweenRequests),
        ("console", 3, 0x07_8000, [2, 128, 8], CONSOLE_MULTIPORT, InOrder),
        ("rng", 4, CLASS_OTHER, [1, 64, 0], 0, InOrder),
        ("scsi", 8, 0x01_0000, [3, 128, 36], 0, BetweenRequests),
        ("gpu", 16, 0x03_8000, [2, 256, 16], 0, Never),
        ("input", INPUT, 0x09_8000, [2, 64, 136], 0, InOrder),
        ("vsock", 19, 0x02_8000, [3, 128, 8], 0, Never),
        ("crypto", 20, 0x0b_4000, [2, 128, 56], 0, Never),
        ("sound", 25, 0x04_0100, [4, 64, 12], 0, Never),
        ("fs", FS, 0x01_8000, [2, 128, 40], FS_NOTIFICATION, Never),
        ("scmi", 32, CLASS_OTHER, [2, 64, 0], 0, Never),
        ("i2c", 34, CLASS_OTHER, [1, 64, 0], 0, InOrder),
        ("can", 36, CLASS_OTHER, [3, 64, 2], 0, BetweenRequests),
        ("gpio", 41, CLASS_OTHER, [2, 64, 8], 0, Never),
    ]
};

impl Kind {
    /// The kind of this name, or this number.
    ///
    /// # Errors
    ///
    /// There is none; the text says what there is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = text.parse::<u16>().ok().filter(|id| (1..=0x3f).contains(id));
        let row = KINDS.iter().find(|(name, id, ..)| *name == text || number == Some(*id));
        match (row, number) {
            (Some(row), _) => Ok(Self::of_row(row)),
            (None, Some(id)) => Ok(Self::numbered(id)),
            (None, None) => {
                let names: Vec<_> = KINDS.iter().map(|(name, ..)| *name).collect();
                let names = names.join(", ");
                Err(format!("`{text}` is no kind of device: {names}, or virtio's number of one"))
            }
        }
    }

    /// The kind of network devices.
    pub fn net() -> Self {
        KINDS.iter().find(|(_, id, ..)| *id == NET).map_or(Self::numbered(NET), Self::of_row)
    }

    /// The kind of file systems.
    pub fn fs() -> Self {
        KINDS.iter().find(|(_, id, ..)| *id == FS).map_or(Self::numbered(FS), Self::of_row)
    }

    /// The largest size of each queue.
    pub(super) fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    /// Its name, or its number.
    pub fn name(&self) -> String {
        let row = KINDS.iter().find(|(_, id, ..)| *id == self.device.id);
        row.map_or_else(|| self.device.id.to_string(), |(name, ..)| (*name).to_owned())
    }

    fn of_row(row: &Row) -> Self {
        let &(_, id, class, [queues, queue_size, config_size], withheld, resumption) = row;
        let device = DeviceType { id, class };
        Self { device, queues, queue_size, config_size, withheld, resumption }
    }

    /// A kind of which nothing else is known.
    fn numbered(id: u16) -> Self {
        let device = DeviceType { id, class: CLASS_OTHER };
        let resumption = Resumption::BetweenRequests;
        Self { device, queues: 1, queue_size: 64, config_size: 0, withheld: 0, resumption }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_a_name_or_a_number() {
        assert_eq!(Kind::parse("fs"), Kind::parse("26"));
        assert_eq!(Kind::parse("fs").unwrap(), Kind::fs());
        assert_eq!(Kind::parse("1").unwrap(), Kind::net());
        let other = Kind::parse("63").unwrap();
        assert_eq!((other.name().as_str(), other.queues, other.config_size), ("63", 1, 0));
        assert_eq!(Kind::parse("41").unwrap().name(), "gpio");
        for text in ["", "0", "64", "-1", "disk", "FS"] {
            assert!(Kind::parse(text).unwrap_err().contains("gpio"), "{text}");
        }
    }

    #[test]
    fn sizes_are_those_of_queues() {
        for row in &KINDS {
            let kind = Kind::of_row(row);
            assert!(kind.queue_size.is_power_of_two() && kind.queues != 0, "{}", kind.name());
        }
    }
}
