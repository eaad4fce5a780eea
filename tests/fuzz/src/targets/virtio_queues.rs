//! The queues of virtio devices, whose driver may write anything into guest RAM.

use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use arbitrary::{Error, Result, Unstructured};
use devices::console::{Input, Output, Room};
use devices::virtio::block::{Access, Aio, Block, BlockOptions, Image};
use devices::virtio::{Balloon, Console, Device, Entropy, FileEvent, net};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{Driver, ram};
use crate::file::MemoryFile;

/// The size of a disk in bytes.
const DISK: usize = 32 << 10;

pub fn block(data: &[u8]) {
    let _ = block_of(&mut Unstructured::new(data));
}

fn block_of(u: &mut Unstructured<'_>) -> Result<()> {
    let kind = u.arbitrary::<u8>()?;
    let file = MemoryFile::new(&[0; DISK]);
    let mut options = BlockOptions::new(file.path());
    options.access =
        Access { read_only: kind & 3 == 1, snapshot: kind & 3 == 2, ..Access::default() };
    options.aio = if kind & 4 == 0 { Aio::Auto } else { Aio::Threads };
    options.serial = Some("serial".to_owned());
    let image = Arc::new(Image::open(&options.path, options.access).unwrap());
    let mut block = Block::new("block0".to_owned(), image, &options, 1).unwrap();
    let mut config = [0; 64];
    block.read_config(u64::from(kind), &mut config);
    let (mut handler, memory) = (block.handler(), ram());
    let mut driver = Driver::new(u, 0, &memory)?;
    let done = driver.run(u, &mut |queue| handler.handle(queue), &mut |_| Ok(()));
    handler.stop();
    assert_eq!(file.size(), DISK as u64, "a disk keeps its size");
    done
}

pub fn entropy(data: &[u8]) {
    let _ = entropy_of(&mut Unstructured::new(data));
}

fn entropy_of(u: &mut Unstructured<'_>) -> Result<()> {
    let (mut handler, memory) = (Entropy::handler(), ram());
    Driver::new(u, 0, &memory)?.run(u, &mut |queue| handler.handle(queue), &mut |_| Ok(()))
}

pub fn balloon(data: &[u8]) {
    let _ = balloon_of(&mut Unstructured::new(data));
}

fn balloon_of(u: &mut Unstructured<'_>) -> Result<()> {
    let mut balloon = Balloon::new("balloon");
    let (features, index) = (u.arbitrary()?, u.arbitrary::<u8>()? % 5);
    let (mut handler, memory) = (balloon.handler(features), ram());
    let mut driver = Driver::new(u, index.into(), &memory)?;
    driver.run(u, &mut |queue| handler.handle(queue), &mut |u| {
        let (offset, value) = (u.arbitrary::<u8>()?, u.arbitrary::<[u8; 4]>()?);
        balloon.write_config(offset.into(), &value);
        balloon.read_config(offset.into(), &mut [0; 8]);
        Ok(())
    })
}

pub fn console(data: &[u8]) {
    let _ = console_of(&mut Unstructured::new(data));
}

/// Output that is full now and then.
struct Sink(usize);

impl Output for Sink {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<Room> {
        self.0 = self.0.wrapping_add(bytes.len());
        Ok(if self.0 & 0x400 == 0 { Room::Left } else { Room::Full })
    }
}

fn console_of(u: &mut Unstructured<'_>) -> Result<()> {
    let mut console = Console::new("console");
    let port = console.port().clone();
    port.connect(Box::new(Sink(0)), EventFd::new(EFD_NONBLOCK).unwrap());
    let index = u.arbitrary::<u8>()? % 2;
    let (mut handler, memory) = (console.handler(index.into()), ram());
    let mut driver = Driver::new(u, index.into(), &memory)?;
    driver.run(u, &mut |queue| handler.handle(queue), &mut |u| {
        let (len, columns) = (u.arbitrary::<u8>()?, u.arbitrary()?);
        port.enqueue(&vec![b'a'; usize::from(len) * 32]);
        port.resize(columns, 25);
        console.read_config(len.into(), &mut [0; 4]);
        Ok(())
    })
}

pub fn net(data: &[u8]) {
    let _ = net_of(&mut Unstructured::new(data));
}

fn net_of(u: &mut Unstructured<'_>) -> Result<()> {
    let [tap, mut network] = packets();
    let (features, index) = (u64::from(u.arbitrary::<u32>()?), u.arbitrary::<u8>()? % 2);
    let memory = ram();
    let handler = net::handler(tap, index.into(), memory.clone(), features);
    let mut handler = handler.map_err(|_| Error::IncorrectFormat)?;
    let mut driver = Driver::new(u, index.into(), &memory)?;
    let mut event = FileEvent::Driver;
    let mut handle = |queue: &mut _| {
        let handled = handler.handle(queue, event).map(drop);
        // One that has waited is told of each in turn.
        event = match event {
            FileEvent::Driver => FileEvent::File,
            FileEvent::File => FileEvent::Timeout,
            FileEvent::Timeout => FileEvent::Driver,
        };
        handled
    };
    driver.run(u, &mut handle, &mut |u| {
        let size = usize::from(u.arbitrary::<u8>()?) * 8;
        let packet = vec![0x5a; size];
        // What doesn't fit is lost, as in networks.
        let _ = network.write(&packet);
        Ok(())
    })
}

/// A tap and its network: two sockets that keep the boundaries of packets.
fn packets() -> [File; 2] {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: two descriptors are written to an array of two.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0, "socketpair: {}", std::io::Error::last_os_error());
    // SAFETY: made just now, and nobody else's.
    fds.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}
