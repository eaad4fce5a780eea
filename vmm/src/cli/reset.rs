//! `--on-reset`.

/// What becomes of a guest that asks for a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// The run ends.
    #[default]
    Exit,
    /// It begins anew.
    Restart,
}

/// As it is given.
///
/// # Errors
///
/// It is nothing that there is.
pub(super) fn on_reset(text: &str) -> Result<OnReset, String> {
    match text {
        "exit" => Ok(OnReset::Exit),
        "restart" => Ok(OnReset::Restart),
        _ => Err("restart or exit is needed".to_owned()),
    }
}
