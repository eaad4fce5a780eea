//! One node of the host's tree, as it is: names and bytes.

use std::path::{Path, PathBuf};

use super::error::HostError;
use crate::fdt::value::{Value, strings};

/// A property: its name and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProperty {
    /// Its name.
    pub name: String,
    /// Its bytes, at most [`super::MAX_PROPERTY_SIZE`] of them.
    pub bytes: Vec<u8>,
}

/// A node: its properties, sorted by name, and its children, sorted by name and number.
///
/// `name` and the phandle aren't among the properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNode {
    pub(super) name: String,
    pub(super) directory: PathBuf,
    pub(super) phandle: Option<u32>,
    pub(super) properties: Vec<HostProperty>,
    pub(super) children: Vec<HostNode>,
}

impl HostNode {
    /// Its name with the unit address, such as `dma@2c0a0000`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory it was read from, without symbolic links.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The number by which others refer to it, where it has one.
    pub fn phandle(&self) -> Option<u32> {
        self.phandle
    }

    /// Its properties.
    pub fn properties(&self) -> &[HostProperty] {
        &self.properties
    }

    /// Its children; none where only the node itself was read.
    pub fn children(&self) -> &[HostNode] {
        &self.children
    }

    /// The bytes of the property called `name`.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let index = self.properties.binary_search_by(|p| p.name.as_str().cmp(name)).ok()?;
        self.properties.get(index).map(|p| p.bytes.as_slice())
    }

    /// Whether there is a property called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.bytes(name).is_some()
    }

    /// The strings of the property called `name`, if there is one.
    ///
    /// # Errors
    ///
    /// It isn't NUL-terminated UTF-8.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<&str>>, HostError> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        strings(bytes).map(Some).ok_or_else(|| HostError::Text { path: self.file(name) })
    }

    /// The big-endian 32-bit cells of the property called `name`, if there is one.
    ///
    /// # Errors
    ///
    /// Its length is no multiple of four.
    pub fn cells(&self, name: &str) -> Result<Option<Vec<u32>>, HostError> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        let (cells, rest) = bytes.as_chunks();
        if !rest.is_empty() {
            return Err(self.length(name, "32-bit cells", bytes));
        }
        Ok(Some(cells.iter().map(|cell| u32::from_be_bytes(*cell)).collect()))
    }

    /// The one cell of the property called `name`, if there is one.
    ///
    /// # Errors
    ///
    /// Its length isn't four.
    pub fn u32(&self, name: &str) -> Result<Option<u32>, HostError> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        match bytes.try_into() {
            Ok(cell) => Ok(Some(u32::from_be_bytes(cell))),
            Err(_) => Err(self.length(name, "one 32-bit cell", bytes)),
        }
    }

    /// Whether `compatible` lists this string.
    ///
    /// # Errors
    ///
    /// `compatible` isn't NUL-terminated UTF-8.
    pub fn is_compatible(&self, with: &str) -> Result<bool, HostError> {
        Ok(self.strings("compatible")?.is_some_and(|all| all.contains(&with)))
    }

    /// The file that holds the property called `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The error of a property with the wrong length.
    fn length(&self, name: &str, expected: &'static str, bytes: &[u8]) -> HostError {
        HostError::Length { path: self.file(name), expected, length: bytes.len() }
    }
}

impl HostProperty {
    /// Its bytes as [`Value::of_bytes`] takes them.
    pub fn value(&self) -> Value {
        Value::of_bytes(&self.bytes)
    }
}
