//! What tests use in place of a host and its devices.

mod device;
mod host;

pub(crate) use device::{Call, FakeDevice};
pub(crate) use host::FakeHost;
