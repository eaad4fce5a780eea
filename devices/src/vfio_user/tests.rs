use boot::help::Help;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempdir::TempDir;

use super::device::VfioUserDevice;
use super::error::Reason;
use super::testing::{Action, LONG_TIMEOUT, Request, SHORT_TIMEOUT, Server, message, words};
use crate::peer::Peer;
use crate::vfio::uapi::{DeviceCalls, IrqAction, RegionInfo};

mod bounds;
mod failures;
mod random;
mod requests;

const BAR0: RegionInfo = RegionInfo {
    index: 0,
    size: 64,
    offset: 0,
    readable: true,
    writable: true,
    mappable: false,
    areas: None,
    msix_mappable: false,
};

/// A file in memory, sealed against shrinking or able to be.
fn memory(size: u64, flags: u32) -> File {
    // SAFETY: the name is a C string; the descriptor is ours alone.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags)) };
    file.set_len(size).unwrap();
    file
}

/// Waits for something that another thread does.
fn eventually<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LONG_TIMEOUT;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < until, "it did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A server that does as usual but for one command.
fn server_but(command: u16, mut act: impl FnMut(&Request) -> Action + Send + 'static) -> Server {
    Server::with(
        move |request| if request.command == command { act(request) } else { Action::Default },
    )
}

#[test]
fn a_device_is_described_by_its_server() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let info = device.info().unwrap();
    assert!(info.pci && info.reset && !info.platform);
    assert_eq!((info.regions, info.irqs), (9, 5));
    assert_eq!(device.version().to_string(), "0.1");
    assert_eq!(device.region_info(0).unwrap(), BAR0);
    let intx = device.irq_info(0).unwrap();
    assert!(intx.eventfd && intx.automasked, "INTx is a level");
    let msix = device.irq_info(2).unwrap();
    assert!(msix.eventfd && !msix.automasked && msix.count == 8);
    device.reset().unwrap();
    assert_eq!(server.device_state.lock().unwrap().resets, 1);
}

#[test]
fn accesses_are_split_to_the_server_s_data_size() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let bytes: Vec<u8> = (0..40).collect();
    device.write(&BAR0, 8, &bytes).unwrap();
    let mut back = [0; 40];
    device.read(&BAR0, 8, &mut back).unwrap();
    assert_eq!(back.as_slice(), bytes);
    let accesses = std::mem::take(&mut server.device_state.lock().unwrap().accesses);
    let expected = [(8, 16), (24, 16), (40, 8)];
    let expected = [10, 9].into_iter().flat_map(|c| expected.map(|(at, size)| (c, at, size)));
    assert_eq!(accesses, expected.collect::<Vec<_>>());
}

#[test]
fn a_refused_access_is_an_error_and_the_device_lives() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let error = device.read(&BAR0, 64, &mut [0; 4]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    device.write(&BAR0, 61, &[0; 4]).unwrap_err();
    device.read(&BAR0, 60, &mut [0; 4]).unwrap();
    assert_eq!(device.failure(), None);
    // Some refuse without a number.
    let mut server = server_but(13, |request| Action::Send(request.refuse(0)));
    assert!(server.connect().unwrap().reset().unwrap_err().is(libc::EIO));
}

#[test]
fn data_behind_an_error_reply_is_ignored() {
    // As libvfio-user answers: the request's structure, without or with what was to be written; the
    // largest that there may be; descriptors.
    let structures: [fn(&Request) -> Vec<u8>; 3] =
        [|r| r.payload[..16].to_vec(), |r| r.payload.clone(), |_| vec![7; 16 + (64 << 10)]];
    for structure in structures {
        let mut server = Server::with(move |request| {
            if !matches!(request.command, 9 | 10) || request.u64(0) != 4 {
                return Action::Default;
            }
            let bytes = message(request.id, request.command, 0x21, 22, &structure(request));
            Action::SendWithFile(bytes, memory(16, 0))
        });
        let device = server.connect().unwrap();
        device.start_guest().unwrap();
        let error = device.read(&BAR0, 4, &mut [0; 4]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let error = device.write(&BAR0, 4, &[0; 4]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        device.write(&BAR0, 8, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 4];
        device.read(&BAR0, 8, &mut back).unwrap();
        assert_eq!((back, device.failure()), ([1, 2, 3, 4], None));
    }
}

/// A server that lends this file for region 2, described by these words and with these sparse areas.
fn lending(file: &File, areas: &'static [u64]) -> Server {
    let file = file.try_clone().unwrap();
    server_but(5, move |request| {
        // READ 1, WRITE 2, MMAP 4, CAPS 8.
        let caps = if areas.is_empty() { 0 } else { 8 };
        let size = u32::try_from(32 + areas.len() * 8 + 16).unwrap();
        let mut payload = words(&[size, 7 | caps, 2, 32, 0x4000, 0, 0x1000, 0]);
        if caps != 0 {
            payload.extend(words(&[1 << 16 | 1, 0, u32::try_from(areas.len() / 2).unwrap(), 0]));
            payload.extend(areas.iter().flat_map(|word| word.to_ne_bytes()));
        }
        Action::SendWithFile(request.answer(&payload), file.try_clone().unwrap())
    })
}

#[test]
fn regions_with_a_file_can_be_mapped() {
    let file = memory(0x5000, libc::MFD_ALLOW_SEALING);
    let mut server = lending(&file, &[0, 0x1000, 0x3000, 0x1000]);
    let device = server.connect().unwrap();
    let info = device.region_info(2).unwrap();
    assert!(info.mappable);
    assert_eq!(info.areas, Some(vec![0..0x1000, 0x3000..0x4000]));
    let mapping = device.map(&info, 0x3000..0x4000).unwrap();
    mapping.write(8, 0x1234_5678);
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0x1000 + 0x3008).unwrap();
    assert_eq!(u32::from_ne_bytes(bytes), 0x1234_5678);
    // Nobody can pull it away from under the guest.
    file.set_len(0).unwrap_err();
    device.map(&info, 0x4000..0x5000).unwrap_err();
}

#[test]
fn files_that_could_end_under_the_guest_or_cant_be_written_are_not_mapped() {
    let sealed = |seals: i32| {
        let file = memory(0x5000, libc::MFD_ALLOW_SEALING);
        // SAFETY: F_ADD_SEALS takes a number.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        file
    };
    let cases = [
        ("can't be written", sealed(libc::F_SEAL_WRITE)),
        ("can't be written from now on", sealed(libc::F_SEAL_FUTURE_WRITE)),
        ("can be shortened", memory(0x5000, 0)),
        ("is too short", memory(0x4fff, libc::MFD_ALLOW_SEALING)),
        ("is no file in memory", File::open("/dev/zero").unwrap()),
    ];
    for (case, file) in cases {
        let device = lending(&file, &[]).connect().unwrap();
        let info = device.region_info(2).unwrap();
        assert!(!info.mappable, "{case}");
        device.map(&info, 0..0x1000).unwrap_err();
    }
}

#[test]
fn only_regions_that_are_readable_and_writable_are_mapped() {
    let file = memory(0x5000, libc::MFD_ALLOW_SEALING);
    // READ 1, WRITE 2, MMAP 4.
    for (flags, mappable) in [(7, true), (5, false), (6, false), (4, false), (3, false)] {
        let file = file.try_clone().unwrap();
        let mut server = server_but(5, move |request| {
            let info = words(&[32, flags, 2, 0, 0x4000, 0, 0x1000, 0]);
            Action::SendWithFile(request.answer(&info), file.try_clone().unwrap())
        });
        let device = server.connect().unwrap();
        let info = device.region_info(2).unwrap();
        assert_eq!((info.mappable, device.map(&info, 0..0x1000).is_ok()), (mappable, mappable));
    }
    // A file that can only be read, as is said of none.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let device = lending(&File::open(path).unwrap(), &[]).connect().unwrap();
    let info = device.region_info(2).unwrap();
    assert!(!info.mappable && info.readable && info.writable);
}

#[test]
fn vectors_are_set_in_messages_of_max_msg_fds() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let files: Vec<EventFd> = (0..5).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    let triggers =
        [Some(&files[0]), None, Some(&files[1]), Some(&files[2]), Some(&files[3]), Some(&files[4])];
    device.set_vectors(2, 1, &triggers).unwrap();
    let irqs = std::mem::take(&mut server.device_state.lock().unwrap().irqs);
    let sets: Vec<_> =
        irqs.iter().map(|(_, [_, _, start, n], fds)| (*start, *n, fds.len())).collect();
    // TRIGGER 32, EVENTFD 4; no descriptors take eventfds away; 3 at most.
    assert!(irqs.iter().all(|(_, [flags, index, ..], _)| (*flags, *index) == (36, 2)));
    assert_eq!(sets, [(1, 1, 1), (2, 1, 0), (3, 3, 3), (6, 1, 1)]);
    (&irqs[2].2[1]).write_all(&1u64.to_ne_bytes()).unwrap();
    assert_eq!(files[2].read().unwrap(), 1);
    assert!(files[1].read().is_err());

    device.set_irq(2, IrqAction::ClearTrigger).unwrap();
    let irqs = std::mem::take(&mut server.device_state.lock().unwrap().irqs);
    assert_eq!((irqs[0].1, irqs[0].2.len()), ([33, 2, 0, 0], 0));
}

#[test]
fn msi_and_msi_x_are_enabled_in_the_device_s_capabilities() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let lay = |at: usize, bytes: &[u8]| {
        let config = &mut server.device_state.lock().unwrap().config;
        config[at..at + bytes.len()].copy_from_slice(bytes);
    };
    lay(0x06, &[0x10]);
    lay(0x34, &[0x48]);
    lay(0x48, &[0x05, 0x4c, 0x80, 0x00]);
    lay(0x4c, &[0x11, 0x48, 0x03, 0x40]);
    let control = |at: usize| {
        let config = &server.device_state.lock().unwrap().config;
        u16::from_le_bytes([config[at], config[at + 1]])
    };
    device.set_vectors(2, 0, &[None, None]).unwrap();
    assert_eq!((control(0x4a), control(0x4e)), (0x0080, 0xc003));
    device.set_vectors(2, 1, &[None]).unwrap();
    device.set_irq(0, IrqAction::ClearTrigger).unwrap();
    assert_eq!(control(0x4e), 0xc003);
    device.set_irq(2, IrqAction::ClearTrigger).unwrap();
    assert_eq!(control(0x4e), 0x4003);
    device.set_vectors(1, 0, &[None, None, None]).unwrap();
    assert_eq!(control(0x4a), 0x00a1);
    // A list that goes in circles ends, and one without the capability is left alone.
    lay(0x4c, &[0x12]);
    device.set_irq(1, IrqAction::ClearTrigger).unwrap();
    device.set_vectors(2, 0, &[None]).unwrap();
    assert_eq!((control(0x4a), control(0x4e)), (0x00a0, 0x4003));
}

#[test]
fn the_server_is_told_of_intx_unmasking() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let (resample, other) =
        (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
    device.set_irq(0, IrqAction::SetUnmask(&resample)).unwrap();
    // The same message as when strait itself unmasks, but that nobody waits for the answer.
    device.set_irq(0, IrqAction::Unmask).unwrap();
    for round in 1..=3 {
        resample.write(1).unwrap();
        eventually(|| (server.device_state.lock().unwrap().irqs.len() == 1 + round).then_some(()));
    }
    let irqs = std::mem::take(&mut server.device_state.lock().unwrap().irqs);
    let flags: Vec<u32> = irqs.iter().map(|irq| irq.0).collect();
    assert_eq!(flags, [0, 0x10, 0x10, 0x10]);
    // UNMASK 16, NONE 1.
    assert!(irqs.iter().all(|(_, set, fds)| *set == [17, 0, 0, 1] && fds.is_empty()));
    // Another takes its place, then none is left.
    device.set_irq(0, IrqAction::SetUnmask(&other)).unwrap();
    resample.write(1).unwrap();
    other.write(1).unwrap();
    eventually(|| (server.device_state.lock().unwrap().irqs.len() == 1).then_some(()));
    device.set_irq(0, IrqAction::ClearUnmask).unwrap();
    other.write(1).unwrap();
    device.reset().unwrap();
    assert_eq!(server.device_state.lock().unwrap().irqs.len(), 1);
}

#[test]
fn a_refused_mask_is_ignored() {
    // Some answer to a refused message even if it wants no answer.
    let mut server = server_but(8, |request| Action::Send(request.refuse(95)));
    let device = server.connect().unwrap();
    let resample = EventFd::new(EFD_NONBLOCK).unwrap();
    device.set_irq(0, IrqAction::Mask).unwrap();
    device.set_irq(0, IrqAction::SetUnmask(&resample)).unwrap();
    resample.write(1).unwrap();
    thread::sleep(Duration::from_millis(20));
    device.read(&BAR0, 0, &mut [0; 4]).unwrap();
    device.set_irq(0, IrqAction::SetTrigger(&resample)).unwrap_err();
}

#[test]
fn ram_is_mapped_by_its_file_or_by_messages() {
    let mut server = Server::new();
    let device = server.connect().unwrap();
    let mut bytes = vec![0u8; 0x4000];
    let host = NonNull::from(bytes.as_mut_slice()).cast::<u8>();
    device.set_ram_file(memory(0x2000, 0), host, 0x2000);
    // SAFETY: within the vector, which outlives the device.
    let (second, third) = unsafe { (host.add(0x1000), host.add(0x2000)) };
    // SAFETY: as above; nothing else looks at the bytes while they are lent.
    unsafe {
        device.map_dma(0x4000_1000, second, 0x1000).unwrap();
        device.map_dma(0x4000_2000, third, 0x2000).unwrap();
    }
    let dma = std::mem::take(&mut server.device_state.lock().unwrap().dma);
    let lent: Vec<_> =
        dma.iter().map(|(_, at, size, file)| (*at, *size, file.as_ref().map(|f| f.1))).collect();
    assert_eq!(lent, [(0x4000_1000, 0x1000, Some(0x1000)), (0x4000_2000, 0x2000, None)]);
    device.unmap_dma(0x4000_1000, 0x1000).unwrap();
    let dma = std::mem::take(&mut server.device_state.lock().unwrap().dma);
    assert_eq!(
        dma.iter().map(|(c, at, size, _)| (*c, *at, *size)).collect::<Vec<_>>(),
        [(3, 0x4000_1000, 0x1000)]
    );
}

#[test]
fn connection_errors_are_told_apart() {
    let version = |major: u8, minor: u8| vec![major, 0, minor, 0, b'{', b'}', 0];
    let answering =
        |payload: Vec<u8>| server_but(1, move |request| Action::Send(request.answer(&payload)));
    let cases = [
        ("speaks vfio-user 1.0", answering(version(1, 0))),
        ("speaks vfio-user 0.2", answering(version(0, 2))),
        (
            "is no vfio-user server: the server sent invalid version data",
            answering(b"\0\0\x01\0hello\0".to_vec()),
        ),
        ("is no vfio-user server: the server sent a reply without a version", answering(vec![])),
        (
            "is no vfio-user server: the server sent",
            server_but(1, |_| Action::Send(b"220 mail.example ESMTP ready\r\n".to_vec())),
        ),
        ("refused a request", server_but(1, |request| Action::Send(request.refuse(22)))),
        ("closed the connection", server_but(1, |_| Action::Close)),
        ("doesn't answer within", server_but(1, |_| Action::Ignore)),
        ("closed the connection", server_but(4, |_| Action::Close)),
        (
            "offers no PCI device",
            server_but(4, |request| Action::Send(request.answer(&words(&[16, 1, 9, 5])))),
        ),
        ("is invalid", server_but(4, |request| Action::Send(request.answer(&[0; 15])))),
    ];
    for (expected, mut server) in cases {
        let deadline = if expected.contains("within") { SHORT_TIMEOUT } else { LONG_TIMEOUT };
        let error = server.connect_for(deadline).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(error.help().is_some(), "{expected}");
    }
}

#[test]
fn paths_without_a_server_are_told_apart() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.as_path().join(name);
    std::fs::write(at("file"), "").unwrap();
    drop(UnixListener::bind(at("stale")).unwrap());
    let cases = [
        (at("nothing"), "start the server first"),
        (at("file"), "takes the path of the socket"),
        (at("stale"), "its server has ended: rm "),
        (at(&"long".repeat(30)), "shorter path"),
    ];
    for (path, help) in cases {
        let error = VfioUserDevice::connect(&path, Peer::Own).unwrap_err();
        assert!(error.help().unwrap().contains(help), "{}: {error:?}", path.display());
    }
    // Whoever waits already doesn't keep strait waiting.
    let busy = UnixListener::bind(at("busy")).unwrap();
    // SAFETY: listen takes numbers.
    unsafe { libc::listen(busy.as_raw_fd(), 0) };
    let started = Instant::now();
    let mut waiting = Vec::new();
    let error = loop {
        match super::connection::Connection::open(&at("busy")) {
            Ok(socket) => waiting.push(socket),
            Err(error) => break Reason::connecting(&at("busy"), error).at(&at("busy")),
        }
        assert!(waiting.len() < 16);
    };
    assert!(error.help().unwrap().contains("busy with other clients"), "{error:?}");
    assert!(started.elapsed() < LONG_TIMEOUT);
}
