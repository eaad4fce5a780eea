//! An initrd's file: archives, compressed or not, and U-Boot's header.

use arbitrary::{Result, Unstructured};
use boot::help::Help;
use boot::initrd::Initrd;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::file::{MemoryFile, gzip};

/// Where RAM begins (GPA), and its size in bytes.
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 256 << 10;

pub fn run(data: &[u8]) {
    let _ = open(&mut Unstructured::new(data));
}

fn open(u: &mut Unstructured<'_>) -> Result<()> {
    let is_root = u.arbitrary()?;
    let mut content = Vec::new();
    while !u.is_empty() {
        part(u, &mut content)?;
    }
    let file = MemoryFile::new(&content);
    match Initrd::open(&file.path(), is_root) {
        Ok(initrd) => {
            assert!(initrd.size() <= content.len() as u64);
            let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), RAM_SIZE)]);
            let ram: GuestMemoryMmap = ram.unwrap();
            let _ = initrd.load_into(&ram, RAM);
        }
        Err(error) => drop((error.to_string(), error.help())),
    }
    Ok(())
}

/// Adds a part: what the bytes tell, behind what begins such a part.
fn part(u: &mut Unstructured<'_>, content: &mut Vec<u8>) -> Result<()> {
    let kind = u.arbitrary::<u8>()? % 6;
    let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
    let bytes = u.bytes(len)?;
    match kind {
        0 => content.extend(bytes),
        1 => content.resize(content.len() + len * 4, 0),
        2 => entry(u, bytes, content)?,
        3 => content.extend(gzip(bytes)),
        4 => {
            let mut archive = Vec::new();
            entry(u, bytes, &mut archive)?;
            content.extend(gzip(&archive));
        }
        _ => {
            // U-Boot's legacy header: magic, size of the data; Linux, arm64, the type.
            let mut header = [0; 64];
            header[..4].copy_from_slice(&0x2705_1956_u32.to_be_bytes());
            header[12..16].copy_from_slice(&u32::from(u.arbitrary::<u16>()?).to_be_bytes());
            header[28..31].copy_from_slice(&[5, 22, u.arbitrary::<u8>()? % 8]);
            content.extend(header);
            content.extend(bytes);
        }
    }
    Ok(())
}

/// Adds a file of an archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
fn entry(u: &mut Unstructured<'_>, bytes: &[u8], content: &mut Vec<u8>) -> Result<()> {
    let is_last = u.arbitrary()?;
    let name: &[u8] = if is_last { b"TRAILER!!!\0" } else { b"init\0" };
    let mut fields = [1, 0o100_755, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len(), 0];
    let (spoiled, value) = (u.arbitrary::<u8>()?, u.arbitrary::<u32>()?);
    if let Some(field) = fields.get_mut(usize::from(spoiled)) {
        *field = usize::try_from(value).unwrap_or_default();
    }
    content.extend(b"070701");
    fields.iter().for_each(|field| content.extend(format!("{field:08x}").bytes()));
    content.extend(name);
    content.resize(content.len().next_multiple_of(4), 0);
    content.extend(bytes);
    content.resize(content.len().next_multiple_of(4), 0);
    Ok(())
}
