//! The tables of drivers: `of_device_id`, `amba_id`, and the `…_DECLARE` macros.

use std::collections::BTreeMap;
use std::path::Path;

use super::makefile::Makefiles;
use super::source::{SourceError, text, walk};

/// Where drivers are.
const DIRECTORIES: [&str; 2] = ["drivers", "sound"];

/// Of a peripheral ID, designer and part number; revision and configuration are above.
const AMBA_PART: u32 = 0xf_ffff;

/// What the drivers of a tree know.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    /// The files by what `compatible` says.
    compatible: BTreeMap<String, Vec<File>>,
    /// ID, mask, and file.
    amba: Vec<(u32, u32, String)>,
}

/// A file with a table.
#[derive(Clone, Debug)]
struct File {
    path: String,
    /// Devices are bound to it by its table, rather than looked up in it.
    is_driver: bool,
}

impl Drivers {
    /// Reads a tree's drivers, and its Makefiles on the way.
    pub(super) fn read(root: &Path, makefiles: &mut Makefiles) -> Result<Self, SourceError> {
        let drivers = root.join("drivers");
        std::fs::read_dir(&drivers).map_err(|error| SourceError::NoTree(drivers, error))?;
        let mut all = Self::default();
        let mut look = |name: &str, path: &Path| {
            let file = name.rsplit('/').next().unwrap_or_default();
            if matches!(file, "Makefile" | "Kbuild") {
                makefiles.add(name, &text(path).unwrap_or_default());
            } else if file.ends_with(".c") {
                all.add(name, &text(path).unwrap_or_default());
            }
        };
        for directory in DIRECTORIES {
            walk(root, directory, &mut look);
        }
        Ok(all)
    }

    /// The files that have this in a table: drivers, or if there is none, others.
    pub(super) fn of(&self, compatible: &str) -> Vec<String> {
        let files = self.compatible.get(compatible).map(Vec::as_slice).unwrap_or_default();
        let some = files.iter().any(|file| file.is_driver);
        let files = files.iter().filter(|file| file.is_driver == some);
        files.map(|file| file.path.clone()).collect()
    }

    /// The files of drivers for this peripheral ID.
    pub(super) fn of_amba(&self, wanted: u32) -> Vec<String> {
        let matching =
            self.amba.iter().filter(|(id, mask, _)| (id ^ wanted) & mask & AMBA_PART == 0);
        matching.map(|(.., file)| file.clone()).collect()
    }

    /// Notes what a source file has tables for.
    pub(super) fn add(&mut self, path: &str, text: &str) {
        let is_driver = ["of_match_table", "_DECLARE(", "IRQCHIP_MATCH("]
            .iter()
            .any(|mark| text.contains(mark));
        let mut note = |compatible: &str| {
            let files = self.compatible.entry(compatible.to_owned()).or_default();
            if files.iter().all(|file| file.path != path) {
                files.push(File { path: path.to_owned(), is_driver });
            }
        };
        for (_, rest) in after(text, ".compatible") {
            let value = rest.trim_start().strip_prefix('=').map(str::trim_start);
            value.and_then(string).into_iter().for_each(&mut note);
        }
        for (before, rest) in after(text, "_DECLARE(") {
            let argument = rest.split_once(',').map(|(_, rest)| rest.trim_start());
            if !before.ends_with("EARLYCON") {
                argument.and_then(string).into_iter().for_each(&mut note);
            }
        }
        for (_, rest) in after(text, "IRQCHIP_MATCH(") {
            string(rest.trim_start()).into_iter().for_each(&mut note);
        }
        if text.contains("struct amba_id") {
            self.add_amba(path, text);
        }
    }

    fn add_amba(&mut self, path: &str, text: &str) {
        for (_, rest) in after(text, ".id") {
            let id = assigned(rest);
            let mask = rest.split_once(".mask").and_then(|(_, rest)| assigned(rest));
            self.amba.extend(id.zip(mask).map(|(id, mask)| (id, mask, path.to_owned())));
        }
        for name in ["CS_AMBA_ID(", "CS_AMBA_UCI_ID("] {
            for (_, rest) in after(text, name) {
                let id = number(rest);
                self.amba.extend(id.map(|id| (id, AMBA_PART, path.to_owned())));
            }
        }
    }
}

/// What is before and behind each occurrence of a word.
fn after<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.match_indices(word).filter_map(move |(at, _)| {
        Some((text.get(..at)?, text.get(at.saturating_add(word.len())..)?))
    })
}

/// The string that a text begins with.
fn string(text: &str) -> Option<&str> {
    Some(text.strip_prefix('"')?.split_once('"')?.0)
}

/// The number that is assigned at the beginning of a text.
fn assigned(text: &str) -> Option<u32> {
    number(text.trim_start().strip_prefix('=')?)
}

/// The hexadecimal number that a text begins with.
fn number(text: &str) -> Option<u32> {
    let digits = text.trim_start().strip_prefix("0x")?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    u32::from_str_radix(digits.get(..end)?, 16).ok()
}
