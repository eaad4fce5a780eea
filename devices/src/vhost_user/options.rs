//! What is known of a device before its backend is asked.

use super::kind::Kind;

/// A device's configuration that strait has instead of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnConfig {
    /// Its bytes (virtio 1.2, 5).
    pub bytes: Vec<u8>,
    /// The features that tell that it has its fields.
    pub features: u64,
}

/// Who tells a device's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// The backend, so many bytes.
    Backend(u16),
    /// Strait.
    Own(OwnConfig),
    /// The backend, of an input device.
    Input,
    /// The backend, so many bytes, if it does; else strait.
    Either(u16, OwnConfig),
}

/// What is known of a device before its backend is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the log calls it: its socket, or its program.
    pub name: String,
    /// The option that asks for it, for what helps.
    pub option: String,
    /// Its kind, with the number and size of its queues.
    pub kind: Kind,
    /// Who tells its configuration.
    pub config: ConfigSource,
}
