//! The symbols of Kconfig for 64-bit Arm, with what each depends on and selects
//! (Documentation/kbuild/kconfig-language.rst).

use std::collections::BTreeMap;
use std::path::Path;

use super::expression::needs;
use super::source::{SourceError, lines, text};

/// How deeply files name one another, and symbols depend on one another.
const MAX_DEPTH: usize = 24;

/// All symbols.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    symbols: BTreeMap<String, Symbol>,
    /// By which symbols each is selected.
    selectors: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default)]
struct Symbol {
    /// A person can set it.
    prompt: bool,
    /// It is set where nobody says otherwise.
    default: bool,
    /// All of these have to hold.
    conditions: Vec<String>,
    selects: Vec<String>,
}

impl Symbols {
    /// Reads a tree's.
    pub(super) fn read(root: &Path) -> Result<Self, SourceError> {
        let first = root.join("Kconfig");
        std::fs::metadata(&first).map_err(|error| SourceError::NoTree(first, error))?;
        let mut reader = Reader { root, symbols: Self::default(), blocks: Vec::new() };
        reader.file("Kconfig", MAX_DEPTH);
        let mut symbols = reader.symbols;
        for (name, symbol) in &symbols.symbols {
            for selected in &symbol.selects {
                symbols.selectors.entry(selected.clone()).or_default().push(name.clone());
            }
        }
        Ok(symbols)
    }

    /// Adds what has to be set for this symbol to be set, itself last.
    pub(super) fn need(&self, name: &str, into: &mut Vec<String>) {
        self.need_within(name, into, &mut Vec::new());
    }

    fn need_within(&self, name: &str, into: &mut Vec<String>, pending: &mut Vec<String>) {
        let Some(symbol) = self.symbols.get(name) else { return };
        let known = |list: &[String]| list.iter().any(|other| other == name);
        if known(into) || known(pending) || pending.len() >= MAX_DEPTH {
            return;
        }
        pending.push(name.to_owned());
        if symbol.prompt {
            let exists = |name: &str| self.symbols.contains_key(name);
            let needed = symbol.conditions.iter().filter_map(|e| needs(e, &exists)).flatten();
            needed.for_each(|needed| self.need_within(&needed, into, pending));
            into.push(name.to_owned());
        } else if !symbol.default {
            self.need_selector(name, into, pending);
        }
        pending.pop();
    }

    /// Adds a symbol that selects this one, which nobody can set, unless one is set anyway.
    fn need_selector(&self, name: &str, into: &mut Vec<String>, pending: &mut Vec<String>) {
        let selectors = self.selectors.get(name).map(Vec::as_slice).unwrap_or_default();
        let is_set = |selector: &&String| {
            let symbol = self.symbols.get(*selector);
            let always = symbol.is_some_and(|symbol| symbol.default && !symbol.prompt);
            always || into.contains(*selector) || pending.contains(*selector)
        };
        if selectors.iter().any(|selector| is_set(&selector)) {
            return;
        }
        let settable = |selector: &&String| {
            let symbol = self.symbols.get(*selector);
            symbol.is_some_and(|symbol| symbol.prompt && self.can_be_set(symbol))
        };
        if let Some(selector) = selectors.iter().find(settable) {
            self.need_within(&selector.clone(), into, pending);
        }
    }

    fn can_be_set(&self, symbol: &Symbol) -> bool {
        let exists = |name: &str| self.symbols.contains_key(name);
        symbol.conditions.iter().all(|expression| needs(expression, &exists).is_some())
    }

    /// What a symbol selects.
    pub(super) fn selected_by(&self, name: &str) -> Vec<String> {
        self.symbols.get(name).map(|symbol| symbol.selects.clone()).unwrap_or_default()
    }
}

/// What an attribute belongs to.
enum Target {
    Symbol(String),
    Block,
    Other,
}

struct Reader<'a> {
    root: &'a Path,
    symbols: Symbols,
    /// The conditions of the blocks around.
    blocks: Vec<Vec<String>>,
}

impl Reader<'_> {
    fn file(&mut self, path: &str, depth: usize) {
        let Some(depth) = depth.checked_sub(1) else { return };
        let text = text(&self.root.join(path)).unwrap_or_default();
        let mut target = Target::Other;
        let mut help: Option<Option<usize>> = None;
        for line in lines(&text) {
            let indent = indent(&line);
            if let Some(first) = help {
                // A help text goes on as long as its lines are indented as its first.
                if line.trim().is_empty() || first.map_or(indent > 0, |first| indent >= first) {
                    let begun = first.or((!line.trim().is_empty()).then_some(indent));
                    help = Some(begun);
                    continue;
                }
                help = None;
            }
            let line = line.trim();
            let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let rest = rest.trim();
            match word {
                "help" | "---help---" => help = Some(None),
                "source" | "rsource" | "osource" => self.source(path, word, rest, depth),
                "config" | "menuconfig" => target = self.symbol(rest),
                "if" => {
                    self.blocks.push(vec![rest.to_owned()]);
                    target = Target::Other;
                }
                "menu" | "choice" => {
                    self.blocks.push(Vec::new());
                    target = Target::Block;
                }
                "endif" | "endmenu" | "endchoice" => {
                    self.blocks.pop();
                    target = Target::Other;
                }
                "comment" | "mainmenu" => target = Target::Other,
                _ => self.attribute(&target, word, rest),
            }
        }
    }

    fn source(&mut self, from: &str, word: &str, file: &str, depth: usize) {
        let file = file.trim_matches('"').replace("$(SRCARCH)", "arm64");
        let directory = from.rsplit_once('/').map_or("", |(directory, _)| directory);
        let file = if word == "rsource" { format!("{directory}/{file}") } else { file };
        // Never out of the tree.
        if !file.starts_with('/') && !file.split('/').any(|part| part == "..") {
            self.file(&file, depth);
        }
    }

    fn symbol(&mut self, name: &str) -> Target {
        let around: Vec<String> = self.blocks.concat();
        let symbol = self.symbols.symbols.entry(name.to_owned()).or_default();
        // Where one has several definitions, the first with a prompt counts.
        if !symbol.prompt {
            symbol.conditions = around;
        }
        Target::Symbol(name.to_owned())
    }

    fn attribute(&mut self, target: &Target, word: &str, rest: &str) {
        let depends = rest.strip_prefix("on").map(|rest| rest.trim().to_owned());
        match target {
            Target::Block if word == "depends" => {
                if let Some(block) = self.blocks.last_mut() {
                    block.extend(depends);
                }
            }
            Target::Symbol(name) => {
                let Some(symbol) = self.symbols.symbols.get_mut(name) else { return };
                match word {
                    "depends" => symbol.conditions.extend(depends),
                    "select" => {
                        let selected = rest.split_whitespace().next();
                        symbol.selects.extend(selected.map(str::to_owned));
                    }
                    "bool" | "tristate" | "string" | "int" | "hex" | "prompt" => {
                        symbol.prompt |= rest.starts_with(['"', '\'']);
                    }
                    "default" | "def_bool" | "def_tristate" => {
                        symbol.default |= rest == "y" || rest.starts_with("y ");
                    }
                    _ => {}
                }
            }
            Target::Block | Target::Other => {}
        }
    }
}

/// How far a line is indented, in columns.
fn indent(line: &str) -> usize {
    let blank = line.chars().take_while(|c| c.is_whitespace());
    blank.fold(0, |column, c| if c == '\t' { (column / 8 + 1) * 8 } else { column + 1 })
}
