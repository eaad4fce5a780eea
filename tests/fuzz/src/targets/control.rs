//! Clients of the control socket: what they send, and whether they read.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use vmm::fuzzing::ControlClients;

/// The most clients at a time, and the most that may be kept for them, in bytes.
const MAX_CLIENTS: usize = 4;
const MAX_HELD: usize = MAX_CLIENTS * (2 << 20);

/// Pieces of messages.
const PIECES: [&str; 16] = [
    "{\"method\":\"",
    "io.systemd.MachineInstance.",
    "io.strait.Machine.",
    "org.varlink.service.",
    "SubscribeEvents",
    "GetInterfaceDescription",
    "Stats",
    "PowerOff",
    "QueryStatus",
    "\"",
    ",\"more\":true",
    ",\"oneway\":true",
    ",\"parameters\":{",
    "\"filter\":[\"STOP\"]}",
    "\"interface\":\"io.strait.Machine\"}",
    "}\0",
];

pub fn run(data: &[u8]) {
    let _ = drive(&mut Unstructured::new(data));
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let mut control = ControlClients::new().unwrap();
    let mut clients: Vec<UnixStream> = vec![control.connect().unwrap()];
    while !u.is_empty() {
        let (kind, count) = (u.arbitrary::<u8>()?, usize::from(u.arbitrary::<u8>()?));
        let (there, which) = (clients.len(), count % clients.len().max(1));
        match (kind & 7, clients.get_mut(which)) {
            (0, _) if there < MAX_CLIENTS => clients.push(control.connect().unwrap()),
            (1, Some(client)) => drop(client.read(&mut vec![0; count * 256])),
            (2, Some(_)) if kind > 0xf0 => drop(clients.remove(which)),
            (2, Some(client)) => drop(client.write(&vec![kind; count * 256])),
            (3, Some(client)) => drop(client.write(u.bytes(count.min(u.len()))?)),
            (4..=6, Some(client)) => {
                let pieces =
                    (0..count % 8).map(|_| Ok(PIECES[usize::from(u.arbitrary::<u8>()?) % 16]));
                let pieces = pieces.collect::<Result<String>>()?;
                let _ = client.write(pieces.as_bytes());
            }
            _ => control.serve(),
        }
        assert!(control.held() <= MAX_HELD, "{} bytes are kept", control.held());
    }
    control.serve();
    Ok(())
}
