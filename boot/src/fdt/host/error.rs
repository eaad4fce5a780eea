//! What can be wrong with the host's device tree.

use crate::help::Help;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::size::Size;

/// What can be wrong with the host's device tree; each names the file or directory.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum HostError {
    #[error("this host has no device tree: {} doesn't exist", path.display())]
    NoTree { path: PathBuf },
    #[error("the device tree node {} doesn't exist", path.display())]
    NoNode { path: PathBuf },
    #[error("{} can't be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is neither a node nor a property", path.display())]
    UnexpectedType { path: PathBuf },
    #[error("{}: its name isn't UTF-8", path.display())]
    Name { path: PathBuf },
    #[error("{} has more than {:#}", path.display(), Size(*limit))]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("the device tree below {} has more than {limit} nodes", path.display())]
    TooMany { path: PathBuf, limit: usize },
    #[error("{} lies deeper than {limit} levels", path.display())]
    TooDeep { path: PathBuf, limit: usize },
    #[error("{} should hold {expected}, but has {length} bytes", path.display())]
    Length { path: PathBuf, expected: &'static str, length: usize },
    #[error("{} should hold NUL-terminated text", path.display())]
    Text { path: PathBuf },
    #[error("{} refers to phandle {phandle:#x}, which no node of the host has", path.display())]
    NoPhandle { path: PathBuf, phandle: u32 },
    #[error("{} doesn't exist, but {} refers to its node", path.display(), from.display())]
    NoCells { path: PathBuf, from: PathBuf },
    #[error("{} has no numbers of {cells} cells, or they exceed 64 bits", path.display())]
    Cells { path: PathBuf, cells: u32 },
    #[error("{} holds numbers, but by the bus' #address-cells and #size-cells it has none", path.display())]
    NoEntry { path: PathBuf },
    #[error("the bus {} doesn't let the CPU reach its address {address:#x}", path.display())]
    NoTranslation { path: PathBuf, address: u64 },
    #[error("{} has more than {limit} entries, or cuts those of others into as many", path.display())]
    TooManyRanges { path: PathBuf, limit: usize },
    #[error("{} ends within a reference: {wanted} cells should follow its phandle", path.display())]
    CutOff { path: PathBuf, wanted: u32 },
}

impl Help for HostError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoTree { .. } => Some(
                "platform devices are assigned on hosts that boot with a device tree; where the \
                 firmware offers both, boot with acpi=off"
                    .to_owned(),
            ),
            Self::NoNode { path } => {
                let parent = path.parent()?;
                Some(format!("ls {}", parent.display()))
            }
            _ => None,
        }
    }
}
