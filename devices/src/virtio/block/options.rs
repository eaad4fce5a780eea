//! What a person says of a disk.

use std::path::PathBuf;

/// The most queues of a disk.
pub const MAX_QUEUES: u16 = 64;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Its image, or a block device.
    pub path: PathBuf,
    /// What is wanted of it.
    pub access: Access,
    /// What the guest is told when it asks for its serial number.
    pub serial: Option<String>,
    /// How many queues it has, each with a thread; as the planner thinks if not given.
    pub queues: Option<u16>,
    /// How accesses are made.
    pub aio: Aio,
}

/// What is wanted of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The guest doesn't write.
    pub read_only: bool,
    /// What the guest writes goes elsewhere, and is lost at the end.
    pub snapshot: bool,
    /// Past the page cache of the host (`O_DIRECT`).
    pub direct: bool,
}

/// How a disk's image is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// What is cached by the queue's thread, the rest by io_uring where the host has it.
    #[default]
    Auto,
    /// All by io_uring.
    IoUring,
    /// All by the queues' threads, which wait.
    Threads,
}

impl BlockOptions {
    /// A disk with the defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let (access, serial, queues, aio) = Default::default();
        Self { path: path.into(), access, serial, queues, aio }
    }
}
