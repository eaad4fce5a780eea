//! A debugger: what it sends, before it goes.

use vmm::fuzzing;

/// Packets, each behind a byte that says how it is sent: in order, with a checksum, or as it is.
pub fn run(data: &[u8]) {
    let mut sent = Vec::new();
    for packet in data.split(|byte| *byte == b'\n') {
        match packet.split_first() {
            Some((b'!', raw)) => sent.extend_from_slice(raw),
            Some((b'^', _)) => sent.push(3),
            _ => {
                let sum = packet.iter().copied().fold(0, u8::wrapping_add);
                sent.push(b'$');
                sent.extend_from_slice(packet);
                sent.extend_from_slice(format!("#{sum:02x}").as_bytes());
            }
        }
    }
    fuzzing::debug(&sent).unwrap();
}
