//! Every kind of request, by every way to the file.

use std::os::fd::AsRawFd;

use super::request::{Operation, Request};
use super::*;

/// Whether this host has io_uring.
fn has_rings() -> bool {
    ring::Ring::probe(File::open("/dev/null").unwrap().as_raw_fd()).is_ok()
}

/// All ways to a file that it can be written by.
fn ways() -> Vec<(Access, Aio)> {
    let mut ways = vec![(RW, Aio::Auto), (RW, Aio::Threads), (SNAPSHOT, Aio::Auto)];
    let file = TempFile::disk();
    // Neither is there on every host.
    if Image::open(&file.0, DIRECT).is_ok() {
        ways.push((DIRECT, Aio::Threads));
    }
    if has_rings() {
        ways.push((RW, Aio::IoUring));
        if ways.iter().any(|(access, _)| access.direct) {
            ways.push((DIRECT, Aio::Auto));
        }
    }
    ways
}

#[test]
fn what_is_read_is_what_was_written_and_what_was_there() {
    for (access, aio) in ways() {
        let file = TempFile::disk();
        let mut rig = Rig::new(&file, access, aio);
        rig.put(DATA, &[0xaa; 1024]);
        assert_eq!(rig.request(OUT, 2, 1024, false), (OK, 1), "{access:?} {aio:?}");
        assert_eq!(rig.request(IN, 1, 2048, true), (OK, 2049));
        let expected = [vec![2; 512], vec![0xaa; 1024], vec![5; 512]].concat();
        assert_eq!(rig.get(DATA, 2048), expected, "{access:?} {aio:?}");
        assert_eq!(rig.request(FLUSH, 0, 0, false), (OK, 1));
        drop(rig);
        let kept = fs::read(&file.0).unwrap();
        let expected = if access.snapshot { [3; 512] } else { [0xaa; 512] };
        assert_eq!(kept[1024..1536], expected, "{access:?} {aio:?}");
    }
}

#[test]
fn several_requests_are_told_of_once() {
    for (access, aio) in ways() {
        let file = TempFile::disk();
        let mut rig = Rig::new(&file, access, aio);
        for n in 0..4 {
            let at = BUFFERS + 0x4000 + 0x1000 * n;
            rig.put(at, &[vec![0; 8], n.to_le_bytes().to_vec()].concat());
            rig.driver.add(&[(at, 16, false), (at + 512, 512, true), (at + 1024, 1, true)]);
        }
        let mut used = Vec::new();
        loop {
            rig.handle().unwrap();
            used.extend(std::iter::from_fn(|| rig.driver.used()));
            if used.len() == 4 {
                break;
            }
            rig.kick.read().unwrap();
        }
        assert!(used.iter().all(|(_, written)| *written == 513), "{used:?}");
        for n in 0..4u8 {
            let at = BUFFERS + 0x4000 + 0x1000 * u64::from(n);
            assert_eq!(rig.get(at + 512, 513), [vec![n + 1; 512], vec![0]].concat());
        }
        let told = rig.call.read().unwrap();
        assert!(told == 1 || (told <= 4 && aio != Aio::Threads), "{told} {access:?} {aio:?}");
    }
}

#[test]
fn buffers_may_be_cut_anywhere() {
    for (access, aio) in ways() {
        let file = TempFile::disk();
        let mut rig = Rig::new(&file, access, aio);
        // The header in two, the data in three, one with the status in it.
        rig.header(IN, 7);
        rig.driver.add(&[
            (BUFFERS, 3, false),
            (BUFFERS + 3, 13, false),
            (DATA + 1, 5, true),
            (DATA + 0x1003, 1000, true),
            (DATA + 0x2000, 20, true),
        ]);
        rig.handle().unwrap();
        while rig.get(DATA + 0x2013, 1) != [0] || rig.driver.used().is_none() {
            rig.kick.read().unwrap();
            rig.handle().unwrap();
        }
        let parts = [(DATA + 1, 5), (DATA + 0x1003, 1000), (DATA + 0x2000, 19)];
        let read: Vec<u8> = parts.iter().flat_map(|(at, len)| rig.get(*at, *len)).collect();
        assert_eq!(read, [vec![8; 512], vec![9; 512]].concat(), "{access:?} {aio:?}");
        assert_eq!(rig.get(DATA + 6, 1), [0]);
    }
}

#[test]
fn the_serial_number_is_padded_with_zeroes() {
    let file = TempFile::disk();
    let mut rig = Rig::new(&file, RW, Aio::Auto);
    rig.put(DATA, &[0xff; 32]);
    assert_eq!(rig.request(GET_ID, 0, 20, true), (OK, 21));
    assert_eq!(rig.get(DATA, 21), b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    assert_eq!(rig.request(GET_ID, 0, 4, true), (OK, 5));
}

#[test]
fn what_is_zeroed_or_discarded_reads_as_zeroes() {
    for (access, aio) in ways() {
        for (kind, flags) in [(WRITE_ZEROES, 0), (WRITE_ZEROES, 1), (DISCARD, 0)] {
            let file = TempFile::disk();
            let mut rig = Rig::new(&file, access, aio);
            rig.put(DATA, &[segment(8, 8, flags), segment(24, 8, flags)].concat());
            assert_eq!(rig.request(kind, 0, 32, false), (OK, 1), "{access:?} {kind} {flags}");
            assert_eq!(rig.request(IN, 7, 10 * 512, true), (OK, 10 * 512 + 1));
            let read = rig.get(DATA, 10 * 512);
            let expected = [vec![8; 512], vec![0; 8 * 512], vec![17; 512]].concat();
            assert!(read == expected, "{access:?} {aio:?} {kind}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    let file = TempFile::disk();
    let before = fs::read(&file.0).unwrap();
    let mut rig = Rig::new(&file, RW, Aio::Auto);
    rig.put(DATA, &segment(0, 1, 2));
    for (kind, sector, len, write, status) in [
        (IN, SECTORS, 512, true, IOERR),
        (IN, SECTORS - 1, 1024, true, IOERR),
        (IN, u64::MAX, 512, true, IOERR),
        (IN, u64::MAX / 512, 512, true, IOERR),
        (IN, 0, 0, true, IOERR),
        (IN, 0, 100, true, IOERR),
        (IN, 0, 512, false, IOERR),
        (OUT, 0, 512, true, IOERR),
        (OUT, 0, 511, false, IOERR),
        (OUT, SECTORS, 512, false, IOERR),
        (OUT, 0, 0, false, IOERR),
        (WRITE_ZEROES, 0, 15, false, IOERR),
        (DISCARD, 0, 0, false, IOERR),
        (DISCARD, 0, 33 * 16, false, IOERR),
        (WRITE_ZEROES, 0, 16, false, UNSUPP),
        (DISCARD, 0, 16, false, UNSUPP),
        (2, 0, 512, true, UNSUPP),
        (14, 0, 16, false, UNSUPP),
        (u32::MAX, 0, 0, false, UNSUPP),
    ] {
        let result = rig.request(kind, sector, len, write);
        assert_eq!(result, (status, 1), "{kind} {sector} {len} {write}");
    }
    for bad in [segment(SECTORS, 1, 0), segment(u64::MAX, 1, 0), segment(0, u32::MAX, 0)] {
        for kind in [WRITE_ZEROES, DISCARD] {
            rig.put(DATA, &bad);
            assert_eq!(rig.request(kind, 0, 16, false), (IOERR, 1), "{bad:?}");
        }
    }
    assert!(fs::read(&file.0).unwrap() == before);
}

#[test]
fn a_disk_that_is_read_only_stays_as_it_is() {
    let file = TempFile::disk();
    let before = fs::read(&file.0).unwrap();
    let mut rig = Rig::new(&file, RO, Aio::Auto);
    rig.put(DATA, &segment(0, 1, 0));
    for (kind, len) in [(OUT, 512), (WRITE_ZEROES, 16), (DISCARD, 16)] {
        assert_eq!(rig.request(kind, 0, len, false), (IOERR, 1), "{kind}");
    }
    assert_eq!(rig.request(FLUSH, 0, 0, false), (OK, 1));
    assert!(fs::read(&file.0).unwrap() == before);
}

#[test]
fn a_flush_that_was_interrupted_is_made_once_more() {
    let file = TempFile::disk();
    let rig = Rig::new(&file, RW, Aio::Threads);
    let finish = |result| {
        let (head, status) = (0, GuestAddress(STATUS));
        let request = Request { head, status, operation: Operation::Flush };
        let (buffers, access) = (Default::default(), ring::Access::Flush);
        rig.handler.finish(&mut ring::Job { request, buffers, access }, result)
    };
    let interrupted = [libc::EINTR, libc::EAGAIN].map(io::Error::from_raw_os_error);
    assert!(interrupted.into_iter().all(|e| finish(Err(e)).is_ok()));
    // Now it fails, where it is made.
    truncate(&file.0, 512);
    let interrupted = [libc::EINTR, libc::EAGAIN].map(io::Error::from_raw_os_error);
    assert!(interrupted.into_iter().all(|e| finish(Err(e)).is_err()));
    assert!(finish(Ok(0)).is_ok());
}

#[test]
fn a_file_that_has_shrunk_is_an_error() {
    for (access, aio) in ways() {
        let file = TempFile::disk();
        let mut rig = Rig::new(&file, access, aio);
        truncate(&file.0, 16 * 512);
        assert_eq!(rig.request(IN, 8, 4096, true).0, OK, "{access:?} {aio:?}");
        assert_eq!(rig.request(IN, 12, 4096, true).0, IOERR, "{access:?} {aio:?}");
        assert_eq!(rig.request(IN, 40, 512, true).0, IOERR, "{access:?} {aio:?}");
        let flushed = if access.snapshot { OK } else { IOERR };
        assert_eq!(rig.request(FLUSH, 0, 0, false).0, flushed, "{access:?} {aio:?}");
    }
}

#[test]
fn a_driver_without_flushes_is_written_through() {
    for (access, aio) in ways() {
        let file = TempFile::disk();
        let mut rig = Rig::new(&file, access, aio);
        rig.handler = RequestHandler::new(rig.shared(), 0, true);
        rig.put(DATA, &[7; 512]);
        assert_eq!(rig.request(OUT, 5, 512, false), (OK, 1));
        rig.put(DATA, &segment(0, 1, 0));
        assert_eq!(rig.request(WRITE_ZEROES, 0, 16, false), (OK, 1));
        assert_eq!(rig.request(IN, 5, 512, true), (OK, 513));
        assert_eq!(rig.get(DATA, 512), [7; 512]);
    }
}

#[test]
fn what_is_under_way_is_waited_for_at_the_end() {
    if !has_rings() {
        return;
    }
    let file = TempFile::disk();
    let mut rig = Rig::new(&file, RW, Aio::IoUring);
    rig.begin(IN, 3, 4096, true);
    rig.handle().unwrap();
    rig.handler.stop();
    // It is in RAM now, though nobody was told.
    assert_eq!(rig.get(DATA, 512), [4; 512]);
}

#[test]
fn a_ring_that_was_made_before_is_used_by_one_handler_after_the_other() {
    if !has_rings() {
        return;
    }
    let file = TempFile::disk();
    let mut rig = Rig::new(&file, RW, Aio::IoUring);
    rig.shared().make_rings(&[&rig.kick]);
    for _ in 0..3 {
        rig.handler = RequestHandler::new(rig.shared(), 0, false);
        assert!(rig.handler.has_ring());
        assert_eq!(rig.request(IN, 3, 512, true), (OK, 513));
        assert_eq!(rig.get(DATA, 512), [4; 512]);
        rig.handler.stop();
    }
    // There is one for each queue, and no other is made.
    rig.handler = RequestHandler::new(rig.shared(), 1, false);
    assert!(!rig.handler.has_ring());
    assert_eq!(rig.request(IN, 3, 512, true), (OK, 513));
    assert!(!rig.handler.has_ring());
}
