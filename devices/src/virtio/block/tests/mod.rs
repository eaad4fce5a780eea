//! Disks without a hypervisor: a driver in memory, images in files.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

mod broken;
mod images;
mod requests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::handler::{RequestHandler, Shared};
use super::image::Image;
use super::options::{Aio, BlockOptions};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{DriverQueue, RAM, ram};
use crate::virtio::{QueueError, QueueHandler, VirtQueue};

/// Sectors of a test's disk.
const SECTORS: u64 = 64;

/// A file that is gone with the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("strait-block-{}-{number}", std::process::id());
        // Not in memory, where that is possible, so that the ways for disks are taken.
        let directory = if Path::new("/var/tmp").is_dir() { "/var/tmp" } else { "/tmp" };
        let path = Path::new(directory).join(name);
        fs::write(&path, bytes).unwrap();
        Self(path)
    }

    /// Sector N is full of N + 1.
    fn disk() -> Self {
        let sector = |n: u64| vec![n as u8 + 1; 512];
        Self::new(&(0..SECTORS).flat_map(sector).collect::<Vec<_>>())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A disk at work, and its driver.
struct Rig {
    driver: DriverQueue,
    queue: VirtQueue,
    handler: RequestHandler,
    kick: vmm_sys_util::eventfd::EventFd,
    call: vmm_sys_util::eventfd::EventFd,
}

impl Rig {
    fn new(file: &TempFile, access: Access, aio: Aio) -> Self {
        let image = Arc::new(Image::open(&file.0, access).unwrap());
        let mut options = BlockOptions::new(&file.0);
        (options.aio, options.access) = (aio, access);
        options.serial = Some("serial-1".into());
        let block = Block::new("block0".into(), image, &options, 1).unwrap();
        let driver = DriverQueue::new(&ram(), RAM, 16);
        let (queue, kick, call) = driver.device(0, 0);
        let handler = RequestHandler::new(block.shared.clone(), 0, false);
        Self { driver, queue, handler, kick, call }
    }

    fn shared(&self) -> Arc<Shared> {
        self.handler.shared().clone()
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(BUFFERS, &header);
        self.put(STATUS, &[0xff]);
    }

    /// Makes a request with so many bytes for the device to read or to write at [`DATA`].
    fn begin(&mut self, kind: u32, sector: u64, len: u32, write: bool) {
        self.header(kind, sector);
        let mut chain = vec![(BUFFERS, 16, false), (DATA, len, write), (STATUS, 1, true)];
        chain.retain(|(_, len, _)| *len > 0);
        self.driver.reuse();
        self.driver.add(&chain);
    }

    /// Writes guest RAM.
    fn put(&self, at: u64, bytes: &[u8]) {
        self.driver.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Reads guest RAM.
    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Works until a request is done: its status, and how many bytes were written.
    fn finish(&mut self) -> (u8, u32) {
        loop {
            self.handler.handle(&mut self.queue).unwrap();
            if let Some((_, written)) = self.driver.used() {
                return (self.get(STATUS, 1)[0], written);
            }
            // As the thread does.
            self.kick.read().unwrap();
        }
    }

    fn request(&mut self, kind: u32, sector: u64, len: u32, write: bool) -> (u8, u32) {
        self.begin(kind, sector, len, write);
        self.finish()
    }

    fn handle(&mut self) -> Result<(), QueueError> {
        self.handler.handle(&mut self.queue)
    }
}

/// Where tests' headers, data and statuses are (GPA).
const BUFFERS: u64 = RAM + 0x1_0000;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x800;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

const RW: Access = Access { read_only: false, snapshot: false, direct: false };
const RO: Access = Access { read_only: true, ..RW };
const SNAPSHOT: Access = Access { snapshot: true, ..RW };
const DIRECT: Access = Access { direct: true, ..RW };

fn truncate(path: &Path, size: u64) {
    File::options().write(true).open(path).unwrap().set_len(size).unwrap();
}
