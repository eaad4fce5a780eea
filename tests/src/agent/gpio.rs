//! Lines of a GPIO chip, as its character device has them (Linux' include/uapi/linux/gpio.h, version 2).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::CommandError;

/// `GPIO_V2_GET_LINE_IOCTL`, `GPIO_V2_LINE_GET_VALUES_IOCTL`.
const GET_LINE: u64 = 0xc250_b407;
const GET_VALUES: u64 = 0xc010_b40e;

/// `GPIO_V2_LINE_FLAG_…`, and `GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES`.
const INPUT: u64 = 1 << 2;
const OUTPUT: u64 = 1 << 3;
const OUTPUT_VALUES: u32 = 2;
const EDGE_RISING: u64 = 1 << 4;

/// `struct gpio_v2_line_config_attribute`, with the `struct gpio_v2_line_attribute` that it begins with.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attribute {
    id: u32,
    padding: u32,
    values: u64,
    mask: u64,
}

/// `struct gpio_v2_line_request`, with the `struct gpio_v2_line_config` in it.
#[repr(C)]
struct LineRequest {
    offsets: [u32; 64],
    consumer: [u8; 32],
    flags: u64,
    num_attributes: u32,
    config_padding: [u32; 5],
    attributes: [Attribute; 10],
    num_lines: u32,
    event_buffer_size: u32,
    padding: [u32; 5],
    fd: i32,
}

/// Requests a line of the chip whose file this is.
fn request(
    chip: &str,
    line: u32,
    flags: u64,
    attribute: Option<Attribute>,
) -> Result<OwnedFd, CommandError> {
    let file = File::open(chip)?;
    // SAFETY: all zeroes is a valid request: numbers and arrays of them.
    let mut request: LineRequest = unsafe { std::mem::zeroed() };
    (request.offsets[0], request.num_lines, request.flags) = (line, 1, flags);
    request.consumer[..5].copy_from_slice(b"agent");
    if let Some(attribute) = attribute {
        (request.attributes[0], request.num_attributes) = (attribute, 1);
    }
    ioctl(file.as_raw_fd(), GET_LINE, &mut request)?;
    // SAFETY: the kernel has opened it for this process, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(request.fd) })
}

fn ioctl<T>(fd: i32, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: the kernel reads and writes the structure of that request.
    match unsafe { libc::ioctl(fd, request as _, std::ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a line be an output of this value.
pub(crate) fn drive(chip: &str, line: u32, value: u64) -> Result<(), CommandError> {
    let attribute = Attribute { id: OUTPUT_VALUES, padding: 0, values: value, mask: 1 };
    request(chip, line, OUTPUT, Some(attribute)).map(drop)
}

/// Has a line be an input, and prints its value.
pub(crate) fn read(chip: &str, line: u32) -> Result<(), CommandError> {
    let line = request(chip, line, INPUT, None)?;
    // `struct gpio_v2_line_values`: bits, and the mask of those that are asked for.
    let mut values = [0u64, 1];
    ioctl(line.as_raw_fd(), GET_VALUES, &mut values)?;
    println!("{}", values[0] & 1);
    Ok(())
}

/// The size of a `struct gpio_v2_line_event`.
const EVENT_SIZE: usize = 48;

/// Waits until a line has risen this many times.
pub(crate) fn rises(chip: &str, line: u32, count: u64) -> Result<(), CommandError> {
    let mut events = File::from(request(chip, line, INPUT | EDGE_RISING, None)?);
    println!("waiting for edges");
    for number in 1..=count {
        events.read_exact(&mut [0; EVENT_SIZE])?;
        println!("edge {number}");
    }
    Ok(())
}
