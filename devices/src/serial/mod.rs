//! Serial ports: an ns16550a, or a PL011 as firmware and bare-metal programs for Arm expect it.
//!
//! No input reaches a port's receiver before the guest takes input, by interrupt or by polling: a driver
//! first discards what is in the receiver, and what was typed early would be lost.

mod input_queue;
mod ns16550a;
mod pl011;
mod transmitter;

use crate::bus::SharedDevice;
use crate::console::Input;

pub use self::ns16550a::{Serial, node as ns16550a_node};
pub use self::pl011::{Pl011, node as pl011_node};

/// A serial port of either kind: its registers, and what takes its input.
pub trait SerialPort: SharedDevice + Input {}

impl<P: SharedDevice + Input> SerialPort for P {}
