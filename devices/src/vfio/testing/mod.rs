//! Fakes of a host and its devices for tests.

mod device;
mod function;
mod host;
mod kernel;

pub(crate) use device::{Call, FakeDevice};
pub(crate) use function::FakeFunction;
pub(crate) use host::{FakeHost, node_builder, node_builder_with};
pub(crate) use kernel::FakeKernel;
