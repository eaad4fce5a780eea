//! Which options a guest's kernel needs for a device, read from Linux' sources: from `compatible`
//! through the table of a driver to the object that a Makefile builds of it, and to the symbol of Kconfig
//! with what that needs.
//!
//! The sources are read as text, without a compiler or make: what is written in an unusual way isn't
//! found, and the answer says so.

mod drivers;
mod expression;
mod makefile;
mod source;
mod symbols;

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use self::drivers::Drivers;
use self::source::SourceError;
use self::symbols::Symbols;

/// The designer of a peripheral ID: Arm.
const ARM: u32 = 0x4_1000;

/// What is asked of a device.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// `compatible`, the most specific first.
    pub compatible: Vec<String>,
    /// The peripheral ID of an AMBA device, where it is known.
    pub amba_id: Option<u32>,
    /// The modules that the host's kernel would load for it.
    pub modules: Vec<String>,
}

impl Query {
    /// Of a device's node. The names of Arm's PrimeCells have the part number of their peripheral ID
    /// (`arm,pl330`), which their drivers know instead of them.
    pub fn of_compatible(compatible: Vec<String>) -> Self {
        let part = |name: &String| {
            u32::from_str_radix(name.strip_prefix("arm,pl").or(name.strip_prefix("arm,sp"))?, 16)
                .ok()
        };
        let amba_id = compatible.iter().find_map(part).map(|part| ARM | part);
        Self { compatible, amba_id, modules: Vec::new() }
    }
}

/// A driver, and what its kernel needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What of the device the driver knows: one of `compatible`, an AMBA ID, or a module's name.
    pub matched: String,
    /// The driver's file, or its object's Makefile, in the tree.
    pub file: String,
    /// The driver's own option; none where every kernel has it.
    pub option: Option<String>,
    /// All options that have to be set, its own last.
    pub options: Vec<String>,
    /// What is set by that.
    pub selects: Vec<String>,
}

/// A tree of Linux' sources, read.
pub struct Tree {
    drivers: Drivers,
    makefiles: makefile::Makefiles,
    symbols: Symbols,
}

impl Tree {
    /// Reads a tree: its drivers, and the configuration of 64-bit Arm.
    ///
    /// # Errors
    ///
    /// It isn't one, or can't be read.
    #[cold]
    pub fn read(root: &Path) -> Result<Self, SourceError> {
        let symbols = Symbols::read(root)?;
        let mut makefiles = makefile::Makefiles::default();
        let drivers = Drivers::read(root, &mut makefiles)?;
        Ok(Self { drivers, makefiles, symbols })
    }

    /// The drivers of a device, the likeliest first; none if nothing in the tree knows it.
    pub fn ask(&self, query: &Query) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::new();
        let known = query.compatible.iter().map(|name| (name.clone(), self.drivers.of(name)));
        let amba = query.amba_id.map(|id| (format!("AMBA ID {id:#x}"), self.drivers.of_amba(id)));
        for (matched, files) in known.chain(amba) {
            for file in files {
                let options = self.makefiles.options_of(&file);
                answers.extend(options.map(|options| self.answer(&matched, &file, options)));
            }
        }
        for module in &query.modules {
            for (makefile, options) in self.makefiles.options_of_module(module) {
                answers.push(self.answer(module, &makefile, options));
            }
        }
        let mut seen = BTreeSet::new();
        answers.retain(|answer| seen.insert(answer.option.clone()));
        answers
    }

    fn answer(&self, matched: &str, file: &str, own: Vec<String>) -> Answer {
        let mut needed = Vec::new();
        for symbol in &own {
            self.symbols.need(symbol, &mut needed);
        }
        let selects = own.iter().flat_map(|symbol| self.symbols.selected_by(symbol));
        let selects: BTreeSet<String> = selects.collect();
        Answer {
            matched: matched.to_owned(),
            file: file.to_owned(),
            option: own.last().map(|symbol| format!("CONFIG_{symbol}")),
            options: needed.iter().map(|symbol| format!("CONFIG_{symbol}")).collect(),
            selects: selects.iter().map(|symbol| format!("CONFIG_{symbol}")).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
