//! What a driver reads of a disk (`struct virtio_blk_config`, virtio 1.2, 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::image::Image;
use super::request::{MAX_SEGMENTS, SECTOR};

/// Entries of a queue: a chain has no more (virtio 1.2, 2.7.5.3.1), and 1 MiB of the driver's in pages of
/// 4 KiB is to be one request.
pub(super) const QUEUE_SIZE: u16 = 512;

/// Bytes of the configuration, up to what belongs to features that aren't offered.
const SIZE: usize = 60;

/// The most sectors of a segment to discard or to zero: what a bio of Linux holds, in whole pages.
const MAX_SECTORS: u32 = 0x7f_fff8;

/// The feature bits of a disk.
pub(super) fn features(image: &Image) -> u64 {
    let both = [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
    ];
    let written: &[u32] = if image.access().read_only {
        &[VIRTIO_BLK_F_RO]
    } else {
        &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
    };
    both.iter().chain(written).fold(0, |bits, feature| bits | 1 << feature)
}

/// The configuration of a disk with so many queues.
pub(super) fn config(image: &Image, queues: u16) -> [u8; SIZE] {
    let topology = image.topology();
    let exponent = (topology.physical / topology.block).checked_ilog2().unwrap_or(0);
    let exponent = u8::try_from(exponent).unwrap_or(0);
    let aligned = u8::try_from(topology.alignment / topology.block).unwrap_or(0);
    let minimum = u16::try_from(topology.minimum / topology.block).unwrap_or(0);
    let granule = topology.physical / u32::try_from(SECTOR).unwrap_or(512);
    let mut bytes = [0; SIZE];
    let mut put = |at: usize, field: &[u8]| {
        for (to, from) in bytes.iter_mut().skip(at).zip(field) {
            *to = *from;
        }
    };
    put(0, &(image.size() / SECTOR).to_le_bytes());
    // A chain has the header's and the status' descriptors, too.
    put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    put(20, &topology.block.to_le_bytes());
    put(24, &[exponent, aligned]);
    put(26, &minimum.to_le_bytes());
    put(28, &(topology.optimum / topology.block).to_le_bytes());
    put(34, &queues.to_le_bytes());
    // To discard: at most, in how many segments, in multiples of. To zero: the same, and its storage
    // may be given up.
    put(36, &MAX_SECTORS.to_le_bytes());
    put(40, &MAX_SEGMENTS.to_le_bytes());
    put(44, &granule.to_le_bytes());
    put(48, &MAX_SECTORS.to_le_bytes());
    put(52, &MAX_SEGMENTS.to_le_bytes());
    put(56, &[1]);
    bytes
}
