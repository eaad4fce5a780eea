//! Layers: inside a crate no two modules import each other, directly or by way of others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tests::setup::workspace;

const CRATES: [&str; 4] = ["arch", "boot", "devices", "vmm"];

/// A module: its crate, and the names that lead to it.
type Module = Vec<String>;

/// What each module imports.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

#[test]
fn no_two_modules_import_each_other() {
    let files: BTreeMap<Module, String> = CRATES.iter().flat_map(|name| modules(name)).collect();
    assert!(files.len() > 100, "{} modules", files.len());
    let found: BTreeSet<Vec<&str>> = circles(&imports(&files))
        .iter()
        .map(|circle| {
            let mut circle: Vec<&str> =
                circle.iter().map(|module| files[module].as_str()).collect();
            circle.sort_unstable();
            circle
        })
        .collect();
    assert!(found.is_empty(), "modules import each other in a circle: {found:#?}");
}

/// The modules of a crate and their files, relative to the workspace; tests are left out.
fn modules(name: &str) -> Vec<(Module, String)> {
    let source = workspace::root().join(name).join("src");
    let mut pending = vec![source.clone()];
    let mut modules = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if is_test(&path) {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(workspace::root()).unwrap();
                modules.push((module(name, &path, &source), relative.display().to_string()));
            }
        }
    }
    modules
}

fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.contains("testing") || matches!(stem, "test" | "tests") || stem.ends_with("_tests")
}

fn module(name: &str, file: &Path, source: &Path) -> Module {
    let path: PathBuf = file.strip_prefix(source).unwrap().with_extension("");
    let names = path.iter().map(|part| part.to_string_lossy().into_owned());
    let mut module: Module = [name.to_owned()].into_iter().chain(names).collect();
    if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// What the modules import of their own crate. A module and its child may import each other, for
/// one is part of the other, and a crate's root is but its list of modules.
fn imports(files: &BTreeMap<Module, String>) -> Imports {
    let of = |(module, file): (&Module, &String)| {
        let source = fs::read_to_string(workspace::root().join(file)).unwrap();
        let targets = uses(&source).into_iter().filter_map(|path| {
            let mut path = absolute(module, &path)?;
            while !files.contains_key(&path) {
                path.pop()?;
            }
            let (parent, own) = (parent(module), parent(&path));
            let counts = path.len() > 1 && path != *module && path != parent && own != *module;
            counts.then_some(path)
        });
        (module.clone(), targets.collect())
    };
    files.iter().map(of).collect()
}

fn parent(module: &[String]) -> Module {
    module.split_last().map_or(Vec::new(), |(_, parent)| parent.to_vec())
}

/// The paths of all `use` declarations in `source`, but for those of its tests.
fn uses(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line).trim_start().to_owned() + "\n")
        .collect();
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut paths = Vec::new();
    for declaration in code.split(';') {
        let starts = declaration.match_indices("use ").map(|(at, _)| at).filter(|at| {
            let before = declaration[..*at].lines().last().unwrap_or_default();
            before.is_empty() || declaration[..*at].ends_with('\n') || before.starts_with("pub")
        });
        if let Some(at) = starts.last() {
            flatten("", declaration[at + 4..].trim(), &mut paths);
        }
    }
    paths
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn flatten(lead: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree).trim();
        if !path.is_empty() {
            paths.push(format!("{lead}{path}"));
        }
        return;
    };
    let lead = format!("{lead}{}", head.trim());
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                flatten(&lead, &inside[from..at], paths);
                from = at + 1;
            }
            _ => (),
        }
    }
    flatten(&lead, &inside[from..], paths);
}

/// A path as names from the crate on; none if it leads to another crate.
fn absolute(module: &Module, path: &str) -> Option<Module> {
    let mut names: Vec<&str> = path.split("::").map(str::trim).collect();
    let mut base = match *names.first()? {
        "crate" => vec![module.first()?.clone()],
        "self" => module.clone(),
        "super" => parent(module),
        _ => return None,
    };
    names.remove(0);
    while names.first() == Some(&"super") {
        base.pop();
        names.remove(0);
    }
    base.extend(names.into_iter().map(str::to_owned));
    Some(base)
}

/// The largest sets of modules of which each leads to each.
fn circles(imports: &Imports) -> BTreeSet<BTreeSet<Module>> {
    let reach: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|module| (module, reachable(imports, module))).collect();
    let circle = |module: &Module| -> BTreeSet<Module> {
        let back = |other: &&&Module| reach[**other].contains(module);
        reach[module].iter().filter(back).map(|other| (*other).clone()).collect()
    };
    imports.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

fn reachable<'a>(imports: &'a Imports, from: &'a Module) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut pending = vec![from];
    while let Some(module) = pending.pop() {
        let next = imports[module].iter().filter(|next| reached.insert(*next));
        pending.extend(next.collect::<Vec<_>>());
    }
    reached
}

#[test]
fn declarations_are_read_as_rust_does() {
    let source = "//! use crate::no;\nuse std::fmt;\npub use self::a::{B, c::{self, D as E}};\n\
                  use crate::x::{\n    y,\n    z::Z, // use crate::nor;\n};\n    use super::super::w;\n\
                  const T: &str = \"please use crate::t\";\n#[cfg(test)]\nmod tests {\n    use crate::u;\n}";
    let expected = [
        "std::fmt",
        "self::a::B",
        "self::a::c::self",
        "self::a::c::D",
        "crate::x::y",
        "crate::x::z::Z",
        "super::super::w",
    ];
    assert_eq!(uses(source), expected);
    let module: Module = ["boot", "fdt", "host"].map(str::to_owned).into();
    assert_eq!(absolute(&module, "super::super::w").unwrap(), ["boot", "w"]);
    assert_eq!(absolute(&module, "self::a").unwrap(), ["boot", "fdt", "host", "a"]);
    assert_eq!(absolute(&module, "std::fmt"), None);
}

#[test]
fn a_circle_is_found_by_way_of_others() {
    let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e")];
    let mut imports = Imports::new();
    for (from, to) in edges {
        imports.entry(vec![from.to_owned()]).or_default().insert(vec![to.to_owned()]);
        imports.entry(vec![to.to_owned()]).or_default();
    }
    let expected: BTreeSet<Module> = ["a", "b", "c"].map(|name| vec![name.to_owned()]).into();
    assert_eq!(circles(&imports), BTreeSet::from([expected]));
}
