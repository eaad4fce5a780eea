//! One debugger's session, from its connection to its end.

use std::io;
use std::os::fd::AsRawFd;

use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStubBuilder, GdbStubError, MultiThreadStopReason};

use super::client::Client;
use super::guest::Guest;
use super::wait;

/// The largest packet, in bytes: one with all registers, or 8 KiB of memory.
const PACKET_SIZE: usize = 16 << 10;

type StateMachine = GdbStubStateMachine<'static, Guest, Client>;

/// How a session ended.
pub enum End {
    /// The debugger has let go of the guest.
    Detached,
    /// It ends the run.
    Killed,
    /// The run is over.
    Over,
}

/// Serves a debugger until it goes; the guest is stopped first.
///
/// # Errors
///
/// Why it is gone without a word, or what it has sent that is none of the protocol.
pub fn run(guest: &mut Guest, client: Client) -> Result<End, String> {
    let text = |e: io::Error| e.to_string();
    if !guest.pause().map_err(text)? {
        return Ok(End::Over);
    }
    let stub = GdbStubBuilder::new(client).packet_buffer_size(PACKET_SIZE).build();
    let stub = stub.map_err(|_| "there is no memory for its packets")?;
    let mut machine = stub.run_state_machine(guest).map_err(why)?;
    let mut buffer = [0; 4096];
    loop {
        let client = client_of(&mut machine);
        let fds = [client.as_raw_fd(), guest.gate().event().as_raw_fd()];
        let [has_sent, has_happened] = wait::until_readable(fds, None);
        if has_happened {
            // Only clears it.
            let _ = guest.gate().event().read();
            machine = report(machine, guest)?;
            if guest.gate().exit_status().is_some() {
                return Ok(End::Over);
            }
        }
        if !has_sent {
            continue;
        }
        let received = client_of(&mut machine).receive(&mut buffer).map_err(text)?;
        for byte in received.unwrap_or_default() {
            machine = take(machine, guest, *byte)?;
            if let StateMachine::Disconnected(end) = &machine {
                return Ok(match end.get_reason() {
                    DisconnectReason::Kill => End::Killed,
                    _ => End::Detached,
                });
            }
        }
    }
}

/// Why a session can't go on.
fn why(error: GdbStubError<io::Error, io::Error>) -> String {
    if error.is_target_error() {
        return error.into_target_error().map(|e| e.to_string()).unwrap_or_default();
    }
    let connection = error.into_connection_error();
    connection.map_or("what it sends is none of GDB's protocol".into(), |(e, _)| e.to_string())
}

fn client_of(machine: &mut StateMachine) -> &mut Client {
    match machine {
        StateMachine::Idle(machine) => machine.borrow_conn(),
        StateMachine::Running(machine) => machine.borrow_conn(),
        StateMachine::CtrlCInterrupt(machine) => machine.borrow_conn(),
        StateMachine::Disconnected(machine) => machine.borrow_conn(),
    }
}

/// Tells a debugger that waits for it that a vCPU has stopped, or that the run is over.
fn report(machine: StateMachine, guest: &mut Guest) -> Result<StateMachine, String> {
    let StateMachine::Running(running) = machine else { return Ok(machine) };
    let reason = guest.next_stop().map_err(|e| e.to_string())?;
    let ended = guest.gate().exit_status().map(MultiThreadStopReason::Exited);
    match ended.or(reason) {
        Some(reason) => running.report_stop(guest, reason).map_err(why),
        None => Ok(running.into()),
    }
}

/// Takes a byte that the debugger has sent.
fn take(machine: StateMachine, guest: &mut Guest, byte: u8) -> Result<StateMachine, String> {
    let machine = match machine {
        StateMachine::Idle(idle) => idle.incoming_data(guest, byte),
        StateMachine::Running(running) => running.incoming_data(guest, byte),
        other => return Ok(other),
    };
    match machine.map_err(why)? {
        StateMachine::CtrlCInterrupt(interrupt) => {
            // To one that waits for nothing there is nothing to tell.
            let reason = if guest.is_running() {
                guest.interrupt().map_err(|e| e.to_string())?
            } else {
                None
            };
            interrupt.interrupt_handled(guest, reason).map_err(why)
        }
        machine => Ok(machine),
    }
}
