//! `monitor` commands.

use std::io;

use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};

use super::Guest;

/// What `monitor info` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The devices and how often they were accessed.
    Devices,
    /// The interrupts of assigned devices.
    Irqs,
    /// The counters of `--stats`.
    Stats,
}

const HELP: &str = "\
info devices              the devices that trap, and how often the guest has accessed them
info irqs                 the interrupts of assigned devices
info stats                the counters of --stats
memory physical|virtual   which addresses the debugger's are
";

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> io::Result<()> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        let answer = match words.as_slice() {
            ["info", "devices"] => (self.info)(Topic::Devices),
            ["info", "irqs"] => (self.info)(Topic::Irqs),
            ["info", "stats"] => (self.info)(Topic::Stats),
            ["memory", kind @ ("physical" | "virtual")] => {
                self.is_physical = *kind == "physical";
                format!("addresses are {kind} from here on\n")
            }
            _ => HELP.into(),
        };
        out.write_raw(answer.as_bytes());
        Ok(())
    }
}
