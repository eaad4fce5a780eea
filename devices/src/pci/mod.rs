//! PCI Express as a guest sees it: a host bridge, its windows, and the functions behind it.
//!
//! What is behind a function (a device of the host through VFIO, one of another process through
//! vfio-user) is not known here: it is a [`Function`].

pub mod function;

pub use function::{Function, Space, Window};
