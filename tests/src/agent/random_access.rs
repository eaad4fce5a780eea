//! Accesses of any size at any aligned place of physical memory, with any value: what a faulty
//! or hostile guest does to its devices.

use crate::CommandError;
use crate::devmem::Window;

/// Makes so many accesses within `length` bytes at `address`, half of them writes unless `read_only`.
pub(crate) fn run(
    address: u64,
    length: u64,
    accesses: u64,
    read_only: bool,
) -> Result<(), CommandError> {
    let window = Window::open(address, length)?;
    let mut state = address ^ 0x9e37_79b9_7f4a_7c15;
    // xorshift64 (Marsaglia, "Xorshift RNGs").
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut ones = 0_u64;
    for _ in 0..accesses {
        let (choice, value) = (next(), next());
        let size = 1 << (choice & 3);
        let offset = (choice >> 8) % (length / size) * size;
        if choice & 4 != 0 && !read_only {
            window.write_sized(offset, size, value)?;
        } else {
            ones += u64::from(window.read_sized(offset, size)? == u64::MAX >> (64 - 8 * size));
        }
    }
    println!("{accesses} accesses, {ones} reads of all ones");
    Ok(())
}
