//! What strait is asked to do: `run`, `device`, `check`.

pub mod check;
pub mod device;
mod print;
pub mod run;
