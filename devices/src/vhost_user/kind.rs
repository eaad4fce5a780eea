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
    /// Nothing is kept beside requests: it goes on where none is under way. In the queue of this index, if
    /// there is one, are no requests but buffers for events, which are filled in their order.
    BetweenRequests(Option<u16>),
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
    /// Features that strait can't offer for a backend of this kind.
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

/// `virtio_blk`'s number.
const BLOCK: u16 = 2;
/// `VIRTIO_BLK_F_MQ` (virtio 1.2, 5.2.3): the configuration tells the number of queues.
const BLOCK_MQ: u64 = 1 << 12;
/// `virtio_scsi`'s number.
const SCSI: u16 = 8;
/// Its queue for events (virtio 1.2, 5.6.2).
const SCSI_EVENTS: u16 = 1;
/// `virtio_crypto`'s number.
const CRYPTO: u16 = 20;

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
        ("block", BLOCK, 0x01_8000, [1, 128, 60], 0, BetweenRequests(None)),
        ("console", 3, 0x07_8000, [2, 128, 8], CONSOLE_MULTIPORT, InOrder),
        ("rng", 4, CLASS_OTHER, [1, 64, 0], 0, InOrder),
        ("scsi", SCSI, 0x01_0000, [3, 128, 36], 0, BetweenRequests(Some(SCSI_EVENTS))),
        ("gpu", 16, 0x03_8000, [2, 256, 16], 0, Never),
        ("input", INPUT, 0x09_8000, [2, 64, 136], 0, InOrder),
        ("vsock", 19, 0x02_8000, [3, 128, 8], 0, Never),
        ("crypto", CRYPTO, 0x0b_4000, [2, 128, 56], 0, Never),
        ("sound", 25, 0x04_0100, [4, 64, 12], 0, Never),
        ("fs", FS, 0x01_8000, [2, 128, 40], FS_NOTIFICATION, Never),
        ("scmi", 32, CLASS_OTHER, [2, 64, 0], 0, Never),
        ("i2c", 34, CLASS_OTHER, [1, 64, 0], 0, InOrder),
        // Whether the controller has been started is the backend's to know (virtio 1.4, 5.24).
        ("can", 36, CLASS_OTHER, [3, 64, 2], 0, Never),
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

    /// Features that strait can't offer for a backend.
    pub(super) fn withheld(&self) -> u64 {
        let of_queues = if self.device.id == BLOCK && self.queues == 1 { BLOCK_MQ } else { 0 };
        self.withheld | of_queues
    }

    /// Has a backend's configuration tell no more queues for requests than the device has: how many
    /// there are is strait's to say, and a driver asks for all.
    pub(super) fn limit_queues(&self, config: &mut [u8]) {
        // Where the number is, in how many bytes, and how many queues are for something else (virtio
        // 1.2, 5.2.4, 5.6.4, 5.9.4 and 5.11.4).
        let (at, size, others) = match self.device.id {
            BLOCK => (34, 2, 0),
            SCSI => (0, 4, 2),
            CRYPTO => (4, 4, 1),
            FS => (36, 4, 1),
            _ => return,
        };
        let Some(place) = config.get_mut(at..).and_then(|rest| rest.get_mut(..size)) else {
            return;
        };
        let told = place.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        let most = u32::from(self.queues.saturating_sub(others));
        place.iter_mut().zip(told.min(most).to_le_bytes()).for_each(|(to, from)| *to = from);
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
        let resumption = Resumption::BetweenRequests(None);
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
    fn a_configuration_tells_no_more_queues_than_there_are() {
        // The kind, its queues, where the number is; what a backend tells, and what becomes of it.
        type Case = (&'static str, u16, usize, &'static [u8], &'static [u8]);
        let cases: [Case; 7] = [
            ("block", 2, 34, &[0, 4], &[2, 0]),
            ("block", 4, 34, &[3, 0], &[3, 0]),
            ("scsi", 3, 0, &[1, 0, 0, 0x80], &[1, 0, 0, 0]),
            ("scsi", 1, 0, &[1, 0, 0, 0], &[0, 0, 0, 0]),
            ("crypto", 2, 4, &[0, 1, 0, 0], &[1, 0, 0, 0]),
            ("fs", 2, 36, &[9, 0, 0, 0], &[1, 0, 0, 0]),
            ("gpu", 2, 0, &[9, 9, 9, 9], &[9, 9, 9, 9]),
        ];
        for (name, queues, at, told, expected) in cases {
            let kind = Kind { queues, ..Kind::parse(name).unwrap() };
            let mut config = vec![0xff; 60];
            config[at..at + told.len()].copy_from_slice(told);
            kind.limit_queues(&mut config);
            assert_eq!(&config[at..at + told.len()], expected, "{name}");
            let rest = config.iter().filter(|byte| **byte == 0xff).count();
            assert_eq!(rest, 60 - told.len(), "{name}");
            // One that is cut short is left alone.
            let mut short = vec![0xff; at + 1];
            kind.limit_queues(&mut short);
            assert!(short.iter().all(|byte| *byte == 0xff), "{name}");
        }
        let block = |queues| Kind { queues, ..Kind::parse("block").unwrap() }.withheld();
        assert_eq!((block(1), block(2)), (1 << 12, 0));
    }

    #[test]
    fn sizes_are_those_of_queues() {
        for row in &KINDS {
            let kind = Kind::of_row(row);
            assert!(kind.queue_size.is_power_of_two() && kind.queues != 0, "{}", kind.name());
        }
    }
}
