//! Bytes and packets between a guest and its host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use crate::CommandError;

/// How long somebody who doesn't listen yet, or doesn't answer, is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much is written and read at once, in bytes.
const PIECE: usize = 64 << 10;

/// What bytes are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Different ones, whose sum the receiver computes.
    Checked,
    /// Always the same, for measurements: nothing but the sending costs anything.
    Plain,
}

impl Content {
    fn parse(words: &[&str]) -> Result<Self, CommandError> {
        match words {
            [] => Ok(Self::Checked),
            ["plain"] => Ok(Self::Plain),
            _ => Err("only `plain` may follow".into()),
        }
    }
}

/// Listens on `tcp:ADDRESS:PORT` or `vsock:CID:PORT`, takes one connection, and reads it to its end;
/// answers the number of bytes and their sum, and prints them with the time that it took in ns.
pub(crate) fn receive(address: &str, words: &[&str]) -> Result<(), CommandError> {
    let content = Content::parse(words)?;
    let mut stream = accept(address)?;
    let start = Instant::now();
    let (mut count, mut sum) = (0u64, Sum::default());
    let mut piece = vec![0; PIECE];
    loop {
        let read = match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        count += u64::try_from(read)?;
        if content == Content::Checked {
            sum.add(&piece[..read]);
        }
    }
    let elapsed = start.elapsed();
    stream.write_all(&[count, sum.0].map(u64::to_le_bytes).concat())?;
    println!("{count} bytes, sum {:016x}, {} ns", sum.0, elapsed.as_nanos());
    Ok(())
}

/// Connects to who [receives](receive), sends `bytes` bytes, and checks the answer.
pub(crate) fn send(address: &str, bytes: u64, words: &[&str]) -> Result<(), CommandError> {
    let content = Content::parse(words)?;
    let mut stream = connect(address)?;
    let start = Instant::now();
    let (mut sum, mut random) = (Sum::default(), Random::default());
    let mut piece = vec![0x5a; PIECE];
    for size in pieces(bytes) {
        let part = &mut piece[..size];
        if content == Content::Checked {
            random.fill(part);
            sum.add(part);
        }
        stream.write_all(part)?;
    }
    // SAFETY: takes numbers.
    if unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    let elapsed = start.elapsed();
    let expected = [bytes, sum.0].map(u64::to_le_bytes).concat();
    if answer[..] != expected {
        return Err(format!("{answer:x?} was received, {expected:x?} sent").into());
    }
    println!("{bytes} bytes, sum {:016x}, {} ns", sum.0, elapsed.as_nanos());
    Ok(())
}

/// Connects to somebody who sends back what it gets, sends `bytes` bytes, and fails unless the same
/// come back.
pub(crate) fn echoed(address: &str, bytes: u64) -> Result<(), CommandError> {
    let mut stream = connect(address)?;
    let mut sender = stream.try_clone()?;
    let sent = thread::spawn(move || -> io::Result<()> {
        let mut random = Random::default();
        let mut piece = vec![0; PIECE];
        for size in pieces(bytes) {
            random.fill(&mut piece[..size]);
            sender.write_all(&piece[..size])?;
        }
        // SAFETY: takes numbers.
        match unsafe { libc::shutdown(sender.as_raw_fd(), libc::SHUT_WR) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
    let mut random = Random::default();
    let (mut expected, mut piece) = (vec![0; PIECE], vec![0; PIECE]);
    for size in pieces(bytes) {
        stream.read_exact(&mut piece[..size])?;
        random.fill(&mut expected[..size]);
        if piece[..size] != expected[..size] {
            return Err("what came back is something else".into());
        }
    }
    if stream.read(&mut piece)? != 0 {
        return Err("more came back".into());
    }
    sent.join().map_err(|_| "the sender panicked")??;
    println!("{bytes} bytes came back");
    Ok(())
}

/// The sizes of the pieces in which so many bytes are sent.
fn pieces(bytes: u64) -> impl Iterator<Item = usize> {
    let piece = PIECE as u64;
    (0..bytes.div_ceil(piece))
        .map(move |number| usize::try_from((bytes - number * piece).min(piece)).unwrap_or(PIECE))
}

/// Bytes that differ (Marsaglia, Xorshift RNGs), the same each time.
struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// A sum of bytes that depends on their order, however they are cut (FNV-1a, 64 bits).
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The port that packets are [sent](round_trips) from.
const SENDER_PORT: u16 = 7007;

/// Sends back each packet that comes to this port, until it is killed. As a server with one client
/// does, it is connected to whoever sends first.
pub(crate) fn echo(address: &str) -> Result<(), CommandError> {
    let socket = UdpSocket::bind(address)?;
    let mut packet = [0; 2048];
    let (size, client) = socket.recv_from(&mut packet)?;
    socket.connect(client)?;
    socket.send(&packet[..size])?;
    loop {
        let size = match socket.recv(&mut packet) {
            Ok(size) => size,
            // The client has gone, and may come again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error.into()),
        };
        let _ = socket.send(&packet[..size]);
    }
}

/// Sends `count` packets of `size` bytes to who [sends them back](echo), one after the other, and
/// prints the time that it took in ns.
pub(crate) fn round_trips(address: &str, count: u64, size: u64) -> Result<(), CommandError> {
    let socket = UdpSocket::bind(("0.0.0.0", SENDER_PORT))?;
    socket.connect(address)?;
    // Until somebody answers.
    let deadline = Instant::now() + PATIENCE;
    let mut packet = vec![0; usize::try_from(size)?.max(8)];
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    while socket.send(&packet).and_then(|_| socket.recv(&mut packet)).is_err() {
        if Instant::now() > deadline {
            return Err(format!("{address} doesn't answer").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    socket.set_read_timeout(None)?;
    let start = Instant::now();
    for number in 1..=count {
        packet[..8].copy_from_slice(&number.to_le_bytes());
        socket.send(&packet)?;
        // What was sent before somebody answered may come back late.
        while socket.recv(&mut packet)? != packet.len() || packet[..8] != number.to_le_bytes() {}
    }
    println!("{count} round trips, {} ns", start.elapsed().as_nanos());
    Ok(())
}

fn accept(address: &str) -> Result<File, CommandError> {
    if let Some(address) = address.strip_prefix("tcp:") {
        return Ok(OwnedFd::from(TcpListener::bind(address)?.accept()?.0).into());
    }
    let socket = vsock_socket()?;
    let name = vsock_name(address)?;
    // SAFETY: the address is valid, of the size given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), VSOCK_SIZE) };
    // SAFETY: takes numbers.
    if bound != 0 || unsafe { libc::listen(socket.as_raw_fd(), 1) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let (no_name, no_size) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: no address is asked for.
    let accepted = unsafe { libc::accept(socket.as_raw_fd(), no_name, no_size) };
    if accepted < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: made just now, and nobody else's.
    Ok(unsafe { File::from_raw_fd(accepted) })
}

fn connect(address: &str) -> Result<File, CommandError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = match address.strip_prefix("tcp:") {
            Some(address) => TcpStream::connect(address).map(|stream| OwnedFd::from(stream).into()),
            None => connect_vsock(vsock_name(address)?),
        };
        match result {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn connect_vsock(name: libc::sockaddr_vm) -> io::Result<File> {
    let socket = vsock_socket()?;
    // SAFETY: the address is valid, of the size given.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const name).cast(), VSOCK_SIZE) } {
        0 => Ok(socket.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "16")]
const VSOCK_SIZE: u32 = size_of::<libc::sockaddr_vm>() as u32;

fn vsock_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// `vsock:CID:PORT`.
fn vsock_name(address: &str) -> Result<libc::sockaddr_vm, CommandError> {
    let parts = address.strip_prefix("vsock:").and_then(|rest| rest.split_once(':'));
    let (cid, port) = parts.ok_or("tcp:ADDRESS:PORT or vsock:CID:PORT is needed")?;
    // SAFETY: all zeroes is a valid address.
    let mut name: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    name.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK)?;
    name.svm_cid = match cid {
        "any" => libc::VMADDR_CID_ANY,
        cid => cid.parse()?,
    };
    name.svm_port = port.parse()?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn a_sum_depends_on_order_and_not_on_cuts() {
        let of = |parts: &[&[u8]]| {
            let mut sum = Sum::default();
            parts.iter().for_each(|part| sum.add(part));
            sum.0
        };
        assert_eq!(of(&[b"abc", b"d"]), of(&[b"a", b"bcd"]));
        assert_ne!(of(&[b"abcd"]), of(&[b"abdc"]));
    }
}
