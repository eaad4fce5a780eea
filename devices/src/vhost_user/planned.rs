//! A device whose backend isn't started, for a plan.

use std::io;

use super::options::Options;
use crate::virtio::{Activation, Device, DeviceType};

/// A device as far as it is known before there is a backend.
#[derive(Debug)]
pub struct PlannedDevice(pub Options);

impl Device for PlannedDevice {
    fn device_type(&self) -> DeviceType {
        self.0.kind.device
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.0.kind.queue_sizes()
    }

    fn read_config(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _: Activation) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn stop(&mut self) {}

    fn is_stopped(&mut self) -> bool {
        true
    }
}
