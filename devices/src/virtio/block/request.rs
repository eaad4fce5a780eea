//! A request of the driver, read once from its chain (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

use super::buffers::Buffers;
use crate::virtio::Chain;
use crate::virtio::ram::Ram;

/// Bytes of a sector, the unit of all places and sizes (virtio 1.2, 5.2.6).
pub(super) const SECTOR: u64 = 512;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const SEGMENT: usize = 16;

/// The most of them in a request.
pub(super) const MAX_SEGMENTS: u32 = 32;

/// What a driver wants, all of whose places are within the disk.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The chain, by which it is given back.
    pub(super) head: u16,
    /// Where its status byte goes (GPA).
    pub(super) status: GuestAddress,
    /// What to do.
    pub(super) operation: Operation,
}

/// What a driver wants to be done with a disk. Places are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read into the buffers, which have `len` bytes.
    Read { offset: u64, len: u32 },
    /// Write what is in the buffers.
    Write { offset: u64 },
    /// Make what was written so far durable.
    Flush,
    /// Write the serial number into the buffers.
    GetId,
    /// Nobody needs what is there.
    Discard(Vec<Segment>),
    /// Make it zeroes.
    WriteZeroes(Vec<Segment>),
    /// Nothing that a disk does.
    Unsupported,
    /// It makes no sense, or reaches beyond the disk.
    Invalid,
}

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where it starts.
    pub(super) offset: u64,
    /// Its bytes.
    pub(super) len: u64,
    /// Its storage may be given up.
    pub(super) unmap: bool,
}

/// What a driver may ask of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Its size in bytes.
    pub(super) size: u64,
    /// Requests start and end at multiples of this.
    pub(super) block: u64,
    /// It can't be written.
    pub(super) read_only: bool,
}

impl Request {
    /// Reads the request in `chain`, and leaves its data's place in `buffers`.
    ///
    /// # Errors
    ///
    /// What is wrong with a chain that has no header, or no place for a status.
    pub(super) fn parse(
        chain: &Chain,
        ram: &Ram,
        buffers: &mut Buffers,
        limits: Limits,
    ) -> Result<Self, &'static str> {
        let outside = "outside guest RAM";
        let readable = Chain::bytes(chain.readable());
        // What a driver sends beside the header: what is to be written, or segments.
        let Some(out) = readable.checked_sub(HEADER as u64) else {
            return Err("without a request's header");
        };
        let (kind, sector) = match alone(chain, ram) {
            Some([kind, sector]) => {
                buffers.clear();
                // Its low half; what is behind is reserved.
                let [a, b, c, d, ..] = kind.to_le_bytes();
                (u32::from_le_bytes([a, b, c, d]), sector)
            }
            None => {
                if !buffers.set(ram, chain.readable()) {
                    return Err(outside);
                }
                let mut header = [0; HEADER];
                // SAFETY: the buffers are of `ram`, which is mapped.
                unsafe { buffers.read(&mut header) };
                fields(&header)
            }
        };
        let status = chain.writable().last().and_then(|last| {
            last.addr.0.checked_add(u64::from(last.len).checked_sub(1)?).map(GuestAddress)
        });
        let status = status.ok_or("without a place for a status")?;
        // Its data are either all read or all written.
        let within = Chain::bytes(chain.writable()).saturating_sub(1);
        let operation = match kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID => {
                if !buffers.set(ram, chain.writable()) {
                    return Err(outside);
                }
                buffers.truncate(within);
                match limits.place(sector, within) {
                    _ if kind == VIRTIO_BLK_T_GET_ID => Operation::GetId,
                    Some(offset) if out == 0 => {
                        Operation::Read { offset, len: u32::try_from(within).unwrap_or(u32::MAX) }
                    }
                    _ => Operation::Invalid,
                }
            }
            VIRTIO_BLK_T_OUT => match limits.place(sector, out) {
                Some(offset) if within == 0 && !limits.read_only => Operation::Write { offset },
                _ => Operation::Invalid,
            },
            VIRTIO_BLK_T_FLUSH => Operation::Flush,
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => {
                Operation::Invalid
            }
            // Discarding has no flags, zeroing has one (virtio 1.2, 5.2.6.2).
            VIRTIO_BLK_T_DISCARD => segments(buffers, limits, 0, Operation::Discard),
            VIRTIO_BLK_T_WRITE_ZEROES => segments(
                buffers,
                limits,
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
                Operation::WriteZeroes,
            ),
            _ => Operation::Unsupported,
        };
        Ok(Self { head: chain.head(), status, operation })
    }
}

impl Limits {
    /// Where a request for `len` bytes from `sector` on begins in the file, if it is within the disk.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let fits = offset.checked_add(len)? <= self.size;
        // The number of bytes written is 32 bits with the status.
        let countable = len < u64::from(u32::MAX);
        let whole = offset.is_multiple_of(self.block) && len.is_multiple_of(self.block) && len > 0;
        (fits && whole && countable).then_some(offset)
    }
}

/// The words of a header that is all that the device reads, as a reading driver sends it: the usual way
/// takes as long as the rest of the request.
#[inline(always)]
fn alone(chain: &Chain, ram: &Ram) -> Option<[u64; 2]> {
    match chain.readable() {
        [only] if only.len as usize == HEADER => ram.words(only.addr),
        _ => None,
    }
}

fn fields(header: &[u8; HEADER]) -> (u32, u64) {
    let [a, b, c, d, _, _, _, _, sector @ ..] = *header;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector))
}

/// The segments in the buffers, as what `operation` makes of them.
fn segments(
    buffers: &mut Buffers,
    limits: Limits,
    allowed: u32,
    operation: fn(Vec<Segment>) -> Operation,
) -> Operation {
    let bytes = buffers.left();
    let most = u64::from(MAX_SEGMENTS) * SEGMENT as u64;
    if bytes == 0 || bytes > most || !bytes.is_multiple_of(SEGMENT as u64) {
        return Operation::Invalid;
    }
    let mut all = Vec::new();
    while buffers.left() > 0 {
        let mut raw = [0; SEGMENT];
        // SAFETY: guest RAM is mapped while a request of its is read.
        unsafe { buffers.read(&mut raw) };
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = raw;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !allowed != 0 {
            return Operation::Unsupported;
        }
        let len = u64::from(sectors) * SECTOR;
        let place = sector.checked_mul(SECTOR).filter(|offset| {
            offset.checked_add(len).is_some_and(|end| end <= limits.size)
                && offset.is_multiple_of(limits.block)
                && len.is_multiple_of(limits.block)
        });
        let Some(offset) = place else { return Operation::Invalid };
        all.push(Segment { offset, len, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 });
    }
    operation(all)
}

/// A serial number as GET_ID writes it: zeroes behind it, unless it has all 20 bytes.
pub(super) fn id(serial: &str) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    id
}
