//! Compressed kernels: gzip, and EFI zboot (`drivers/firmware/efi/libstub/zboot-header.S`).

use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::StreamingDecoder;
use thiserror::Error;

use super::image::Header;
use crate::format::{Le, START_SIZE};
use crate::size::Size;

/// The largest kernel that is decompressed, so that a small file can't fill the host's memory.
pub(super) const MAX_UNPACKED_SIZE: u64 = 512 << 20;

/// Why compressed data gave no image.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum UnpackError {
    #[error("its data ends early")]
    EndsEarly,
    #[error("its data is damaged")]
    Damaged { source: io::Error },
    #[error("its data is damaged: the checksum is wrong")]
    Checksum,
    #[error("it unpacks to more than {:#}", Size(*limit))]
    TooLarge { limit: u64 },
    #[error("there isn't enough memory to unpack it")]
    NoMemory,
}

/// The compression of an EFI zboot kernel's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// `gzip`
    Gzip,
    /// `zstd`, in the variant `zstd22_with_size`
    Zstd,
}

/// The header of an EFI zboot kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Zboot {
    /// Where the payload starts in the file.
    pub(super) offset: u64,
    /// Bytes of the payload.
    pub(super) size: u64,
    /// Its compression, or the name of one that strait doesn't undo.
    pub(super) compression: Result<Compression, String>,
}

impl Zboot {
    /// The header in the first bytes of a file, if there is one.
    pub(super) fn parse(start: &[u8]) -> Option<Self> {
        const NAME: std::ops::Range<usize> = 24..56;
        let fields = Le(start);
        if !fields.has(0, b"MZ") || !fields.has(4, b"zimg") {
            return None;
        }
        let name = start.get(NAME)?.split(|byte| *byte == 0).next().unwrap_or_default();
        let compression = match name {
            b"gzip" => Ok(Compression::Gzip),
            // Older kernels have the name of the build rule, not of the format
            // (drivers/firmware/efi/libstub/Makefile.zboot).
            b"zstd" | b"zstd22" => Ok(Compression::Zstd),
            _ => Err(name.escape_ascii().to_string()),
        };
        let (offset, size) = (fields.u32(8)?.into(), fields.u32(12)?.into());
        Some(Self { offset, size, compression })
    }
}

/// A source that remembers whether it was read to its end.
struct Source<R> {
    inner: R,
    ended: bool,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.ended |= n == 0 && !buffer.is_empty();
        Ok(n)
    }
}

/// Decompresses what `source` holds, at most `limit` bytes.
///
/// Where it doesn't start with an [`Header`], only its start is returned, to be refused by name.
pub(super) fn unpack(
    compression: Compression,
    source: impl Read,
    limit: u64,
) -> Result<Vec<u8>, UnpackError> {
    let mut source = Source { inner: source, ended: false };
    match compression {
        Compression::Gzip => {
            let mut decoder = GzDecoder::new(io::BufReader::new(&mut source));
            match collect(&mut decoder, limit) {
                Err(UnpackError::Damaged { source })
                    if source.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    Err(UnpackError::EndsEarly)
                }
                other => other,
            }
        }
        Compression::Zstd => {
            let result = unpack_zstd(&mut source, limit);
            match result {
                Err(UnpackError::Damaged { .. }) if source.ended => Err(UnpackError::EndsEarly),
                other => other,
            }
        }
    }
}

/// Decompresses one zstd frame and compares its checksum, which ruzstd leaves to its user.
fn unpack_zstd(source: &mut impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut decoder = StreamingDecoder::new(source)
        .map_err(|e| UnpackError::Damaged { source: io::Error::other(e) })?;
    let unpacked = collect(&mut decoder, limit)?;
    let frame = decoder.into_frame_decoder();
    let whole = frame.is_finished();
    match frame.get_checksum_from_data() {
        Some(sum) if whole && frame.get_calculated_checksum() != Some(sum) => {
            Err(UnpackError::Checksum)
        }
        _ => Ok(unpacked),
    }
}

/// Reads an image to its end, or only the start of what isn't one.
fn collect(decoder: &mut impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let damaged = |source| UnpackError::Damaged { source };
    let mut unpacked = Vec::with_capacity(START_SIZE);
    decoder.take(START_SIZE as u64).read_to_end(&mut unpacked).map_err(damaged)?;
    let Some(header) = Header::parse(&unpacked) else {
        return Ok(unpacked);
    };
    // One allocation for all of it. What the header claims beyond the data is never touched, and
    // one byte more lets the decoder see the end without growing the buffer.
    let size = header.image_size().unwrap_or_default().min(limit).saturating_add(1);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    unpacked.try_reserve(size.saturating_sub(unpacked.len())).map_err(|_| UnpackError::NoMemory)?;
    let rest = limit.saturating_add(1).saturating_sub(unpacked.len() as u64);
    decoder.take(rest).read_to_end(&mut unpacked).map_err(damaged)?;
    if unpacked.len() as u64 > limit {
        return Err(UnpackError::TooLarge { limit });
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    /// An image header without size, then zeroes: `length` bytes.
    fn image(length: usize) -> Vec<u8> {
        let mut image = vec![0; length];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn unpacks_up_to_the_limit_and_not_beyond() {
        let packed = gzip(&image(100_000));
        assert_eq!(unpack(Compression::Gzip, &packed[..], 100_000).unwrap(), image(100_000));
        let error = unpack(Compression::Gzip, &packed[..], 99_999).unwrap_err();
        assert!(matches!(error, UnpackError::TooLarge { limit: 99_999 }), "{error:?}");
    }

    #[test]
    fn what_is_no_image_is_unpacked_only_at_its_start() {
        let packed = gzip(&vec![b'x'; 1 << 20]);
        assert_eq!(unpack(Compression::Gzip, &packed[..], 1 << 30).unwrap(), [b'x'; START_SIZE]);
    }

    #[test]
    fn a_gzip_cut_off_anywhere_ends_early() {
        let packed = gzip(&image(5000));
        for length in 0..packed.len() {
            let error = unpack(Compression::Gzip, &packed[..length], 1 << 20).unwrap_err();
            assert!(matches!(error, UnpackError::EndsEarly), "{length}: {error:?}");
        }
    }

    #[test]
    fn a_flipped_bit_is_damage() {
        let mut packed = gzip(&image(5000));
        let checksum = packed.len() - 8;
        packed[checksum] ^= 1;
        let error = unpack(Compression::Gzip, &packed[..], 1 << 20).unwrap_err();
        assert!(matches!(error, UnpackError::Damaged { .. }), "{error:?}");
    }

    #[test]
    fn a_zboot_header_names_its_payload() {
        let mut start = [0; 64];
        start[..8].copy_from_slice(b"MZ\0\0zimg");
        start[8..16].copy_from_slice(&[0, 16, 0, 0, 5, 0, 0, 0]);
        for (name, compression) in [
            (&b"gzip\0"[..], Ok(Compression::Gzip)),
            (b"zstd\0", Ok(Compression::Zstd)),
            (b"zstd22\0", Ok(Compression::Zstd)),
            (b"zstd22_with_size\0", Err("zstd22_with_size".to_owned())),
            (b"gzip2\0", Err("gzip2".to_owned())),
            (b"\xff\0", Err("\\xff".to_owned())),
        ] {
            start[24..24 + name.len()].copy_from_slice(name);
            let zboot = Zboot::parse(&start).unwrap();
            assert_eq!(zboot, Zboot { offset: 4096, size: 5, compression });
        }
        start[4] = b'Z';
        assert_eq!(Zboot::parse(&start), None);
        assert_eq!(Zboot::parse(b"MZ\0\0zimg"), None);
    }
}
