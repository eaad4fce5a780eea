//! Clients of a console: they come and go, type, read or don't.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use devices::peer;
use vmm::fuzzing::ConsoleClients;

use crate::scratch::Scratch;

/// After so many turns of the event loop there is nothing more to be done for what has happened.
const TURNS: usize = 200;

/// The most clients at a time.
const MAX_CLIENTS: usize = 4;

pub fn run(data: &[u8]) {
    let _ = drive(&mut Unstructured::new(data));
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let scratch = Scratch::new();
    let path = scratch.path().join("console");
    let mut console = ConsoleClients::listen(&path).unwrap();
    let mut clients: Vec<UnixStream> = Vec::new();
    while !u.is_empty() {
        let (kind, count) = (u.arbitrary::<u8>()?, usize::from(u.arbitrary::<u8>()?));
        let (there, which) = (clients.len(), count % clients.len().max(1));
        match (kind & 7, clients.get_mut(which)) {
            (0, _) if there < MAX_CLIENTS => {
                // As many as may wait are waiting already.
                let Ok(client) = peer::connect(&path) else { continue };
                clients.push(client.into());
            }
            (1, Some(client)) => drop(client.write(&vec![b'x'; usize::from(kind) * 8])),
            (2, Some(client)) => drop(client.read(&mut vec![0; usize::from(kind) * 64])),
            (3, Some(client)) => {
                let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both];
                let _ = client.shutdown(how[usize::from(kind >> 3) % 3]);
            }
            (4, Some(_)) => drop(clients.remove(which)),
            (5, _) => console.write(&vec![b'y'; count << (kind >> 4 & 7)]),
            (6, _) => console.make_room(count * 16),
            _ => assert!(!console.serve(TURNS), "the event loop spins"),
        }
    }
    assert!(!console.serve(TURNS), "the event loop spins");
    Ok(())
}
