//! Why a file can't be a guest's disk, and what mends it.

use std::io;
use std::path::PathBuf;

use boot::file::shell_word;
use boot::format::{Compressor, DiskImage, Format};
use boot::help::Help;
use boot::size::Size;
use thiserror::Error;

use super::options::Access;

/// An image that can't be a disk.
#[derive(Debug, Error)]
#[error("block {} {fault}", path.display())]
pub struct ImageError {
    /// Where it is.
    pub path: PathBuf,
    /// What it was to be opened for.
    pub(super) access: Access,
    /// Why not.
    #[source]
    pub fault: ImageFault,
}

/// Why a file can't be a disk.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum ImageFault {
    #[error("doesn't exist")]
    Missing,
    #[error("can't be read: permission denied")]
    Permission,
    #[error("can't be written: permission denied, or its file system is read-only")]
    NotWritable,
    #[error("can't be opened")]
    Open(#[source] io::Error),
    #[error("is a directory: a disk is a raw image or a block device")]
    Directory,
    #[error("is neither a file nor a block device")]
    Special,
    #[error("is empty: a disk has at least a sector")]
    Empty,
    #[error("can't be read")]
    Read(#[source] io::Error),
    #[error("is {}: a disk of strait's is a raw image", Format::DiskImage(*.0))]
    Format(DiskImage),
    #[error("is {}", Format::Compressed(*.0))]
    Compressed(Compressor),
    #[error("has {:#}, which is no multiple of its {block}-byte sectors", Size(*size))]
    Size { size: u64, block: u32 },
    #[error("can't be accessed past the page cache (direct)")]
    Direct(#[source] io::Error),
    #[error("is in use by the host: mounted, or part of another device")]
    Busy,
    #[error("is in use by another program that has locked it{0}")]
    Locked(String),
    #[error("can't be kept unchanged (snapshot)")]
    Snapshot(#[source] io::Error),
    #[error("can't be accessed through io_uring (aio=io_uring)")]
    IoUring(#[source] io::Error),
}

impl Help for ImageError {
    fn help(&self) -> Option<String> {
        let Self { path, access, fault } = self;
        let word = shell_word(path);
        Some(match fault {
            ImageFault::Missing => format!("truncate -s 10G {word} makes one"),
            ImageFault::Directory => "--block FILE takes an image's path".to_owned(),
            ImageFault::Empty => format!("truncate -s 10G {word}"),
            ImageFault::Permission => format!("sudo setfacl -m u:$USER:r {word}"),
            ImageFault::NotWritable => format!(
                "sudo setfacl -m u:$USER:rw {word}\n\
                 or --block {word},ro, or --block {word},snapshot"
            ),
            // A VHD image of fixed size is taken for a raw one unless said otherwise.
            ImageFault::Format(DiskImage::Vhd) => {
                format!("qemu-img convert -f vpc -O raw {word} {word}.raw")
            }
            ImageFault::Format(_) => format!("qemu-img convert -O raw {word} {word}.raw"),
            ImageFault::Compressed(by) => {
                format!("{} -dc {word} > disk.raw", by.command())
            }
            ImageFault::Size { block, .. } => format!("truncate -s %{block} {word}"),
            ImageFault::Direct(_) => format!("--block {word} without direct"),
            ImageFault::Busy => {
                format!("lsblk {word} shows what uses it; --block {word},ro doesn't write to it")
            }
            ImageFault::Locked(_) if access.read_only || access.snapshot => {
                format!("end what writes to it; fuser -v {word} shows who has it open")
            }
            ImageFault::Locked(_) => format!(
                "fuser -v {word} shows who has it open; several guests share it with ro or snapshot"
            ),
            ImageFault::Snapshot(_) => {
                "TMPDIR=DIRECTORY strait run …, one that has room".to_owned()
            }
            ImageFault::IoUring(_) => {
                "--block FILE,aio=auto\nor sudo sysctl kernel.io_uring_disabled=0".to_owned()
            }
            ImageFault::Special | ImageFault::Open(_) | ImageFault::Read(_) => return None,
        })
    }
}
