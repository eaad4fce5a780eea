//! Why a tree can't be written, and what can be wrong with a blob that is read.

use crate::help::Help;
use thiserror::Error;

use super::node::MAX_DEPTH;
use super::value::Label;

/// Why a tree can't be written.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum BlobError {
    #[error("device tree node {path}: {property} refers to &{label}, which no node has")]
    UnknownLabel { path: String, property: String, label: Label },
    #[error("device tree: {first} and {second} both have the label {label}")]
    DuplicateLabel { label: Label, first: String, second: String },
    #[error("device tree: {first} and {second} both have the phandle {phandle:#x}")]
    DuplicatePhandle { phandle: u32, first: String, second: String },
    #[error("device tree node {path} can't have the phandle {phandle:#x}")]
    Phandle { path: String, phandle: u32 },
    #[error("device tree node {path} has two children named {name:?}")]
    DuplicateChild { path: String, name: String },
    #[error("device tree node {path} can't be named {name:?}")]
    NodeName { path: String, name: String },
    #[error("device tree node {path}: a property can't be named {name:?}")]
    PropertyName { path: String, name: String },
    #[error("device tree node {path}: a string of {property} holds a NUL")]
    Nul { path: String, property: String },
    #[error("device tree node {path} lies deeper than {MAX_DEPTH} levels")]
    TooDeep { path: String },
    #[error("the device tree has more than the 4 GiB that a blob can have")]
    TooLarge,
    #[error("the device tree can't be written: {source}")]
    Writer { source: vm_fdt::Error },
}

impl From<vm_fdt::Error> for BlobError {
    fn from(source: vm_fdt::Error) -> Self {
        match source {
            vm_fdt::Error::PropertyValueTooLarge | vm_fdt::Error::TotalSizeTooLarge => {
                Self::TooLarge
            }
            source => Self::Writer { source },
        }
    }
}

impl Help for BlobError {
    fn help(&self) -> Option<String> {
        match self {
            Self::PropertyName { .. } => {
                Some("names consist of the characters a-z A-Z 0-9 , . _ + ? # -".to_owned())
            }
            Self::NodeName { .. } => Some(
                "names consist of the characters a-z A-Z 0-9 , . _ + -; @ and an address may follow"
                    .to_owned(),
            ),
            Self::UnknownLabel { .. }
            | Self::DuplicateLabel { .. }
            | Self::DuplicatePhandle { .. } => {
                Some("strait run --dry-run shows the tree with its labels".to_owned())
            }
            Self::DuplicateChild { .. } => Some(
                "--vfio-platform NAME,node-name=N gives an assigned device's node another name"
                    .to_owned(),
            ),
            Self::Nul { .. }
            | Self::TooDeep { .. }
            | Self::Phandle { .. }
            | Self::TooLarge
            | Self::Writer { .. } => None,
        }
    }
}

/// What can be wrong with a blob.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum ReadError {
    #[error("it isn't a device tree blob")]
    Magic,
    #[error("it is of version {version}, which can't be read")]
    Version { version: u32 },
    #[error("it ends within {what}")]
    CutOff { what: &'static str },
    #[error("its {what} at byte {offset:#x} of the structure block is malformed")]
    Malformed { what: &'static str, offset: usize },
    #[error("its nodes lie deeper than {MAX_DEPTH} levels")]
    TooDeep,
}
