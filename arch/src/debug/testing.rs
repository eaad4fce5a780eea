//! A vCPU that is only its registers.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use super::{Control, DebuggedCpu, Register};

#[derive(Default)]
pub(super) struct FakeCpu(Mutex<HashMap<String, u128>>);

impl DebuggedCpu for FakeCpu {
    fn read(&self, register: Register) -> io::Result<u128> {
        let registers = self.0.lock().unwrap();
        Ok(registers.get(&format!("{register:?}")).copied().unwrap_or_default())
    }

    fn write(&self, register: Register, value: u128) -> io::Result<()> {
        self.0.lock().unwrap().insert(format!("{register:?}"), value);
        Ok(())
    }

    fn control(&self, _: &Control) -> io::Result<()> {
        Ok(())
    }

    fn interrupt(&self) {}

    fn proceed(&self) {}
}
