//! Messages of SCMI: the guest's accesses to the shared memory, and the doorbell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Result, Unstructured};
use devices::bus::{Action, SharedDevice};
use devices::scmi::{Clock, PowerDomain, Reset, ResetDomain, Resources, SIZE, Scmi};

/// Counts its resets; one in two fails.
#[derive(Default)]
struct Device(AtomicU32);

impl Reset for Device {
    fn reset(&self) -> std::result::Result<(), String> {
        match self.0.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Ok(()),
            _ => Err("it is broken".into()),
        }
    }
}

pub fn run(data: &[u8]) {
    let _ = drive(&mut Unstructured::new(data));
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let device = Arc::new(Device::default());
    let counts = u.arbitrary::<[u8; 3]>()?.map(|count| count % 4);
    let clocks = (0..counts[0]).map(|number| Clock {
        name: format!("clock.{number}"),
        of: "a clock".into(),
        rate: u64::from(number) << 31,
        off: number == 1,
    });
    let resets = (0..counts[1]).map(|number| ResetDomain {
        name: format!("reset.{number}"),
        of: "a device".into(),
        device: device.clone(),
    });
    let domains = (0..counts[2]).map(|number| PowerDomain::new(format!("domain.{number}")));
    let resources = Resources {
        clocks: clocks.collect(),
        resets: resets.collect(),
        power_domains: domains.collect(),
    };
    let scmi = Scmi::new(resources);
    let write = |offset, value: u32| {
        assert_eq!(scmi.write(offset, &value.to_le_bytes()), Action::None);
    };
    let read = |offset| {
        let mut data = [0; 4];
        scmi.read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    while !u.is_empty() {
        let kind = u.arbitrary::<u8>()?;
        match kind & 3 {
            0 => {
                let mut data = u.arbitrary::<[u8; 8]>()?;
                let (offset, size) = (u.arbitrary::<u64>()?, 1 << (kind >> 2 & 3));
                scmi.read(offset, &mut data[..size]);
                let _ = scmi.write(offset >> (kind >> 2), &data[..size]);
            }
            // A message whose length needn't be that of its words.
            kind => {
                let [protocol, command, length, count] = u.arbitrary::<[u8; 4]>()?;
                let words = (0..count % 5).map(|_| u.arbitrary::<u32>());
                let words = words.collect::<Result<Vec<u32>>>()?;
                let right = 4 + 4 * u32::try_from(words.len()).unwrap_or_default();
                write(4, 0);
                write(0x14, if kind == 1 { right } else { u32::from(length) << (length & 24) });
                let protocol = 0x10 | u32::from(protocol & 7);
                write(0x18, protocol << 10 | u32::from(command & 0x1f) | u32::from(length) << 20);
                for (offset, word) in (0x1c..).step_by(4).zip(&words) {
                    write(offset, *word);
                }
            }
        }
        let resets = device.0.load(Ordering::Relaxed);
        let busy = read(4) & 1 == 0;
        let header = read(0x18);
        assert_eq!(scmi.ring(), busy, "a message is answered");
        if busy {
            assert_eq!((read(4), read(0x18)), (1, header));
            let length = u64::from(read(0x14));
            assert!((8..=SIZE - 0x18).contains(&length) && length.is_multiple_of(4), "{length}");
            let status = read(0x1c).cast_signed();
            assert!((-10..=0).contains(&status), "{status}");
        }
        let reset = device.0.load(Ordering::Relaxed) - resets;
        assert!(reset <= u32::from(busy && counts[1] > 0), "a message resets one device");
    }
    Ok(())
}
