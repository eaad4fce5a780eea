//! Files of a tree of sources.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use boot::help::Help;

/// The deepest directory that is read.
const MAX_DEPTH: usize = 16;

/// The largest file that is read, in bytes: larger ones are tables of other things.
const MAX_SIZE: u64 = 4 << 20;

/// Why a tree can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such file.
    #[error("{0} can't be read, so --tree is no tree of Linux' sources")]
    NoTree(PathBuf, #[source] io::Error),
}

impl Help for SourceError {
    fn help(&self) -> Option<String> {
        Some("--tree DIRECTORY, in which Kconfig, Makefile and drivers are".into())
    }
}

/// A file as text, whatever its bytes are; nothing if it can't be read.
pub(super) fn text(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.len() <= MAX_SIZE)?;
    let bytes = metadata.is_file().then(|| fs::read(path).ok()).flatten()?;
    Some(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Hands each file below `directory` to `look`, with its path from `root`, in the order of their names.
pub(super) fn walk(root: &Path, directory: &str, look: &mut dyn FnMut(&str, &Path)) {
    let mut pending = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = pending.pop() {
        let Ok(entries) = fs::read_dir(root.join(&directory)) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else { continue };
            let name = format!("{directory}/{}", entry.file_name().to_string_lossy());
            if kind.is_dir() && depth < MAX_DEPTH {
                pending.push((name, depth + 1));
            } else if kind.is_file() {
                look(&name, &entry.path());
            }
        }
    }
}

/// The lines of a Makefile or Kconfig, those that go on behind a `\` joined.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut begun = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(part) => begun = begun + part + " ",
            None => lines.push(std::mem::take(&mut begun) + line),
        }
    }
    lines
}

/// Whether a character can be in the name of an option.
pub(super) fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
