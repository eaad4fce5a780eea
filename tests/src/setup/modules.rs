//! Kernel modules: what they depend on, and the order in which they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, FileError};
use super::process;
use super::progress::Step;

/// The file that lists the modules of a directory in loading order, one name a line.
pub(super) const ORDER: &str = "modules.order";

/// Copies the modules called `wanted` and all they depend on from the tree `from` to the directory
/// `to`, decompressed, and writes [`ORDER`] there. A module that is nowhere in the tree and isn't
/// wanted itself is built in.
///
/// # Errors
///
/// A wanted module isn't there, or files can't be read or written.
pub(super) fn collect(step: &Step, from: &Path, wanted: &[&str], to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).at("create", to)?;
    let mut available = BTreeMap::new();
    find(from, &mut available)?;
    let mut depends = BTreeMap::new();
    let mut open: Vec<String> = wanted.iter().map(|name| normal(name)).collect();
    let roots = open.clone();
    while let Some(name) = open.pop() {
        if depends.contains_key(&name) {
            continue;
        }
        let Some(file) = available.get(&name) else {
            if roots.contains(&name) {
                return Err(Error::Missing {
                    what: format!("module {name}"),
                    place: from.to_owned(),
                });
            }
            continue;
        };
        let module = unpack(step, file, &to.join(format!("{name}.ko")))?;
        open.extend(module.iter().cloned());
        depends.insert(name, module);
    }
    let order: String = order(&depends)?.iter().map(|name| format!("{name}.ko\n")).collect();
    let path = to.join(ORDER);
    fs::write(&path, order).at("write", &path)
}

/// The modules that the file [`ORDER`] of this directory lists.
///
/// # Errors
///
/// There is no such file.
pub(super) fn listed(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let path = dir.join(ORDER);
    let order = fs::read_to_string(&path).at("read", &path)?;
    Ok(order.lines().filter(|line| !line.is_empty()).map(|name| dir.join(name)).collect())
}

/// Module names have `_` where file names may have `-`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// All modules below `dir` by name.
fn find(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        let path = entry.path();
        if entry.file_type().at("examine", &path)?.is_dir() {
            find(&path, found)?;
        } else if let Some(name) = module_name(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(normal(name))
}

/// Puts a module at `to`, decompressed; returns what it depends on.
fn unpack(step: &Step, from: &Path, to: &Path) -> Result<Vec<String>, Error> {
    if from.extension().is_some_and(|ending| ending == "xz") {
        let packed = to.with_extension("ko.xz");
        fs::copy(from, &packed).at("copy", from)?;
        process::run(step, process::command("xz").arg("--decompress").arg(&packed), |_| {})?;
    } else {
        fs::copy(from, to).at("copy", from)?;
    }
    let module = fs::read(to).at("read", to)?;
    Ok(depends_of(&module))
}

/// The modules that the `depends=` entry of a module's `.modinfo` section names
/// (`include/linux/moduleparam.h`, `scripts/mod/modpost.c`).
fn depends_of(module: &[u8]) -> Vec<String> {
    let mut entries = module.split(|byte| *byte == 0);
    let names = entries.find_map(|entry| entry.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(names.unwrap_or_default());
    names.split(',').filter(|name| !name.is_empty()).map(normal).collect()
}

/// The modules with each after those it depends on.
fn order(depends: &BTreeMap<String, Vec<String>>) -> Result<Vec<&str>, Error> {
    let mut ordered: Vec<&str> = Vec::new();
    while ordered.len() < depends.len() {
        let is_met =
            |need: &String| !depends.contains_key(need) || ordered.contains(&need.as_str());
        let next = depends
            .iter()
            .find(|(name, needs)| !ordered.contains(&name.as_str()) && needs.iter().all(is_met));
        match next {
            Some((name, _)) => ordered.push(name),
            None => return Err(cycle(depends, &ordered)),
        }
    }
    Ok(ordered)
}

fn cycle(depends: &BTreeMap<String, Vec<String>>, ordered: &[&str]) -> Error {
    let stuck = depends.iter().find(|(name, _)| !ordered.contains(&name.as_str()));
    let (module, depends_on) =
        stuck.map(|(name, needs)| (name.clone(), needs.join(", "))).unwrap_or_default();
    Error::ModuleOrder { module, depends_on, wrong: "leads back to it" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        edges.iter().map(|(name, needs)| ((*name).to_owned(), owned(needs))).collect()
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let depends = graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &["built_in"])]);
        assert_eq!(order(&depends).unwrap(), ["c", "b", "a"]);
    }

    #[test]
    fn a_dependency_cycle_is_an_error() {
        let depends = graph(&[("a", &["b"]), ("b", &["a"]), ("c", &[])]);
        assert!(matches!(order(&depends), Err(Error::ModuleOrder { .. })));
    }

    #[test]
    fn modinfo_names_the_dependencies() {
        let table: [(&[u8], &[&str]); 4] = [
            (b"license=GPL\0depends=virt-dma,async_tx\0name=x\0", &["virt_dma", "async_tx"]),
            (b"\0depends=\0vermagic=6", &[]),
            (b"softdepends=no\0", &[]),
            (b"", &[]),
        ];
        for (module, expected) in table {
            assert_eq!(depends_of(module), expected);
        }
    }

    #[test]
    fn a_module_is_known_by_its_file() {
        let table = [
            ("/lib/virt-dma.ko.xz", Some("virt_dma")),
            ("pl330.ko", Some("pl330")),
            ("pl330.ko.sig", None),
            ("pl330.o", None),
        ];
        for (path, name) in table {
            assert_eq!(module_name(Path::new(path)).as_deref(), name);
        }
    }
}
