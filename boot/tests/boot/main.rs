//! What the crate does for its users: files and trees made here, judged by independent readers.

mod device_tree;
mod helps;
mod host_bus;
mod host_tree;
mod initrd;
mod kernel;
mod overlay;
mod programs;
mod support {
    pub mod cpu_time;
    pub mod dtb;
    pub mod dtc;
    pub mod files;
    pub mod random;
    pub mod scratch;
}
