//! The devices of the board: serial port, clock, pvpanic and the GICv2m frame, behind the bus.

use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use devices::bus::{Action, Bus, SharedDevice};
use devices::gicv2m::{Frame, Registers};
use devices::pvpanic::PvPanic;
use devices::rtc::{Alarm, Rtc};
use devices::serial::Serial;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::host::NoInterrupts;

/// Where they are (GPA), and how many bytes each takes.
const FIRST: u64 = 0x900_0000;
const SIZE: u64 = 0x1000;

/// An alarm that never comes by itself.
struct NoAlarm;

impl Alarm for NoAlarm {
    fn set(&mut self, _: u64) {}
}

pub fn run(data: &[u8]) {
    let _ = drive(&mut Unstructured::new(data));
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let serial = Serial::new(event(), Box::new(std::io::sink()), event());
    let serial = Arc::new(Mutex::new(serial));
    let rtc = Arc::new(Mutex::new(Rtc::new(Box::new(NoInterrupts), Box::new(NoAlarm))));
    let frame = Frame::new(FIRST + 3 * SIZE, 64..128).unwrap();
    let frame = Registers::new(frame, Arc::new(NoInterrupts));
    let devices: [(&str, Arc<dyn SharedDevice>); 4] = [
        ("serial", serial.clone()),
        ("rtc", rtc.clone()),
        ("pvpanic", Arc::new(Mutex::new(PvPanic::default()))),
        ("v2m", Arc::new(frame)),
    ];
    let mut bus = Bus::default();
    for ((name, device), start) in devices.into_iter().zip((FIRST..).step_by(0x1000)) {
        bus.add(name, start..start + SIZE, device).unwrap();
    }
    while !u.is_empty() {
        let kind = u.arbitrary::<u8>()?;
        let mut data = u.arbitrary::<[u8; 8]>()?;
        let size = 1 << (kind >> 2 & 3);
        let gpa = match kind >> 4 {
            0..=3 => FIRST + u64::from(data[7] & 15),
            4..=7 => FIRST + SIZE + u64::from(data[7] & 63),
            8 => FIRST + SIZE + 0xfe0 + u64::from(data[7] & 63),
            9 => FIRST + 2 * SIZE + u64::from(data[7] & 3),
            10 | 11 => FIRST + 3 * SIZE + u64::from(data[7]),
            12 => FIRST + 3 * SIZE + 0xfc0 + u64::from(data[7] & 63),
            _ => u64::from_le_bytes(data),
        };
        match kind & 3 {
            0 => bus.read(gpa, &mut data[..size]),
            1 | 2 => {
                let action = bus.write(gpa, &data[..size]);
                assert!(action != Action::AwaitOutput, "the output has room");
            }
            _ if kind & 4 == 0 => {
                serial.lock().unwrap().enqueue(&data);
            }
            _ => rtc.lock().unwrap().expire(),
        }
    }
    bus.accesses();
    Ok(())
}
