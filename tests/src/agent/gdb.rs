//! A client of GDB's remote protocol (GDB's manual, appendix E).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::CommandError;

trait Connection: Read + Write {}

impl<T: Read + Write> Connection for T {}

/// Connects to `tcp:IP:PORT` or the socket at a path. Each line of standard input is a packet, whose answer
/// is printed as a line, with `|` for the ends of its own; behind `!` one whose answer isn't waited for; and `interrupt`. The end of the input
/// ends this without a word to the other end.
pub(crate) fn run(address: &str) -> Result<(), CommandError> {
    let mut connection = connect(address)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line == "interrupt" {
            connection.get_mut().write_all(&[3])?;
        } else {
            send(&mut connection, line.trim_start_matches('!'))?;
        }
        if !line.starts_with('!') {
            println!("< {}", answer(&mut connection)?.replace('\n', "|"));
        }
    }
    Ok(())
}

/// Sends this packet so often, each after the answer to the last, and prints how long that took. `interrupt` has
/// the guest run and stop.
pub(crate) fn time(address: &str, count: u64, packet: &str) -> Result<(), CommandError> {
    let mut connection = connect(address)?;
    let mut ask = || {
        if packet == "interrupt" {
            send(&mut connection, "vCont;c")?;
            connection.get_mut().write_all(&[3])?;
        } else {
            send(&mut connection, packet)?;
        }
        answer(&mut connection)
    };
    let first = ask()?;
    if first.is_empty() || first.starts_with('E') {
        return Err(format!("the answer to {packet} is {first:?}").into());
    }
    let start = Instant::now();
    for _ in 0..count {
        ask()?;
    }
    println!("{count} round trips, {} ns", start.elapsed().as_nanos());
    Ok(())
}

fn connect(address: &str) -> io::Result<BufReader<Box<dyn Connection>>> {
    let connection: Box<dyn Connection> = match address.strip_prefix("tcp:") {
        Some(address) => Box::new(TcpStream::connect(address)?),
        None => Box::new(UnixStream::connect(address)?),
    };
    Ok(BufReader::new(connection))
}

/// Sends a packet.
fn send(connection: &mut BufReader<Box<dyn Connection>>, packet: &str) -> io::Result<()> {
    let sum = packet.bytes().fold(0, u8::wrapping_add);
    let framed = format!("${packet}#{sum:02x}");
    connection.get_mut().write_all(framed.as_bytes())
}

/// The next packet, and before it what is for the console.
fn answer(connection: &mut BufReader<Box<dyn Connection>>) -> Result<String, CommandError> {
    let mut console = String::new();
    loop {
        let packet = packet(connection)?;
        // The other end is gone after its last.
        let _ = connection.get_mut().write_all(b"+");
        let text = String::from_utf8_lossy(&packet).into_owned();
        match text.strip_prefix('O').filter(|_| text != "OK") {
            Some(hex) => {
                let bytes = (0..hex.len() / 2).map(|at| {
                    let digits = hex.get(2 * at..2 * at + 2).unwrap_or_default();
                    u8::from_str_radix(digits, 16)
                });
                let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
                console += &String::from_utf8_lossy(&bytes);
            }
            None => return Ok(console + &text),
        }
    }
}

/// The contents of the next packet.
fn packet(connection: &mut impl Read) -> Result<Vec<u8>, CommandError> {
    let mut next = || {
        let mut byte = [0];
        connection.read_exact(&mut byte).map(|()| byte[0])
    };
    while next()? != b'$' {}
    let mut packet = Vec::new();
    let mut sum = 0_u8;
    loop {
        let byte = next()?;
        if byte == b'#' {
            let digits = [next()?, next()?];
            let given = u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?;
            return if given == sum { Ok(packet) } else { Err("a wrong checksum".into()) };
        }
        sum = sum.wrapping_add(byte);
        match byte {
            // The last byte so many times more.
            b'*' => {
                let count = next()?;
                sum = sum.wrapping_add(count);
                let last = *packet.last().ok_or("nothing to repeat")?;
                packet.extend(std::iter::repeat_n(last, usize::from(count.saturating_sub(29))));
            }
            b'}' => {
                let escaped = next()?;
                sum = sum.wrapping_add(escaped);
                packet.push(escaped ^ 0x20);
            }
            _ => packet.push(byte),
        }
    }
}
