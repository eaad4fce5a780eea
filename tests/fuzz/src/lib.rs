//! Fuzz targets: what a guest, a server, a file or a person hands to strait.
//!
//! A target is a function of bytes that must return: it may not panic, hang, or use memory without a
//! bound, whatever the bytes are. `cargo model fuzz` has libFuzzer look for bytes that reach code which
//! none reached before; the test `corpora` runs what it found, and variations of that, in every run of
//! the test suite.

pub mod corpus;
mod driver;
mod file;
mod host;
mod scratch;
mod targets;
mod tree;

/// A target.
pub struct Target {
    /// What it is called on the command line; its corpus is `corpora/NAME.hex`.
    pub name: &'static str,
    /// Runs an input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "command-line", run: targets::command_line::run },
    Target { name: "console-clients", run: targets::console_clients::run },
    Target { name: "control", run: targets::control::run },
    Target { name: "gdb", run: targets::gdb::run },
    Target { name: "kernel", run: targets::kernel::run },
    Target { name: "initrd", run: targets::initrd::run },
    Target { name: "overlay", run: targets::overlay::run },
    Target { name: "host-tree", run: targets::host_tree::run },
    Target { name: "pci", run: targets::pci::run },
    Target { name: "platform-devices", run: targets::platform_devices::run },
    Target { name: "scmi", run: targets::scmi::run },
    Target { name: "vfio-user", run: targets::vfio_user::run },
    Target { name: "vhost-user", run: targets::vhost_user::run },
    Target { name: "virtio-balloon", run: targets::virtio_queues::balloon },
    Target { name: "virtio-block", run: targets::virtio_queues::block },
    Target { name: "virtio-console", run: targets::virtio_queues::console },
    Target { name: "virtio-entropy", run: targets::virtio_queues::entropy },
    Target { name: "virtio-net", run: targets::virtio_queues::net },
    Target { name: "virtio-pci", run: targets::virtio_pci::run },
];

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
