//! KVM's own counters (Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use vmm_sys_util::ioctl::ioctl;

mod number {
    use vmm_sys_util::ioctl_io_nr;
    ioctl_io_nr!(KVM_GET_STATS_FD, 0xae, 0xce);
}

/// The header: flags, name_size, num_desc, id_offset, desc_offset, data_offset, each a u32.
const HEADER_SIZE: usize = 24;

/// A descriptor before its name: flags u32, exponent i16, size u16, offset u32, bucket_size u32.
const DESCRIPTOR_SIZE: usize = 16;

/// Far above any kernel's number of counters and length of names.
const MAX_DESCRIPTORS: usize = 4096;
const MAX_NAME: usize = 1024;

/// The counters of a VM or of a vCPU.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Their names, and where each is in the file.
    counters: Vec<(String, u64)>,
}

impl KvmStats {
    /// Opens the counters of a VM or vCPU.
    ///
    /// # Errors
    ///
    /// The host's kernel (before 5.14) has none, or its descriptors are malformed.
    pub fn open(object: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: KVM_GET_STATS_FD takes no argument; an object that is no VM or vCPU refuses it.
        let fd = unsafe { ioctl(object, number::KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let counters = describe(&file)?;
        Ok(Self { file, counters })
    }

    /// Reads the counters that are a single number, by name.
    ///
    /// # Errors
    ///
    /// The descriptor can't be read.
    pub fn read(&self) -> io::Result<Vec<(&str, u64)>> {
        let mut bytes = [0; 8];
        self.counters
            .iter()
            .map(|(name, offset)| {
                self.file.read_exact_at(&mut bytes, *offset)?;
                Ok((name.as_str(), u64::from_le_bytes(bytes)))
            })
            .collect()
    }
}

fn describe(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER_SIZE];
    file.read_exact_at(&mut header, 0)?;
    let field = |index: usize| u32_at(&header, index * 4);
    let name_size = field(1)? as usize;
    let count = field(2)? as usize;
    let descriptors_at = u64::from(field(4)?);
    let data_at = u64::from(field(5)?);
    if name_size > MAX_NAME || count > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let stride = DESCRIPTOR_SIZE + name_size;
    let mut bytes = vec![0; stride * count];
    file.read_exact_at(&mut bytes, descriptors_at)?;
    let mut counters = Vec::with_capacity(count);
    for descriptor in bytes.chunks_exact(stride) {
        // `size` is the number of values: histograms have more than one and are left out.
        if u32_at(descriptor, 4)? >> 16 != 1 {
            continue;
        }
        let offset = data_at + u64::from(u32_at(descriptor, 8)?);
        let name = descriptor.get(DESCRIPTOR_SIZE..).unwrap_or_default();
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned();
        counters.push((name, offset));
    }
    Ok(counters)
}

fn u32_at(bytes: &[u8], offset: usize) -> io::Result<u32> {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .map(|chunk| u32::from_le_bytes(*chunk))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
