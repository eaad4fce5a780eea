//! `--sandbox`.

/// What is done with what a guest could use against the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SandboxMode {
    /// Nothing is given up: to debug strait itself.
    Off,
    /// All is given up; a system call that is not allowed is logged by the host and made.
    Log,
    /// All is given up; a system call that is not allowed ends strait.
    #[default]
    On,
}

/// Reads the mode.
pub(super) fn mode(text: &str) -> Result<SandboxMode, String> {
    Ok(match text {
        "off" => SandboxMode::Off,
        "log" => SandboxMode::Log,
        "on" => SandboxMode::On,
        _ => return Err("off, log or on is needed".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_by_name() {
        let read = ["off", "log", "on"].map(|text| mode(text).unwrap());
        assert_eq!(read, [SandboxMode::Off, SandboxMode::Log, SandboxMode::On]);
        assert!(mode("yes").is_err() && mode("").is_err());
    }
}
