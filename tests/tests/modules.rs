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
    let names = |circle: &BTreeSet<Module>| -> Vec<String> {
        circle.iter().map(|module| files[module].clone()).collect()
    };
    let found: Vec<Vec<String>> = circles(&imports(&files)).iter().map(names).collect();
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

/// What the modules import of their own crate. A module and those in it may import each other, for
/// one is part of the other, and a crate's root is but its list of modules.
fn imports(files: &BTreeMap<Module, String>) -> Imports {
    let paths: BTreeMap<&Module, Vec<String>> = files
        .iter()
        .map(|(module, file)| {
            (module, paths(&fs::read_to_string(workspace::root().join(file)).unwrap()))
        })
        .collect();
    // What a module re-exports is a name of its own, which leads to where it comes from.
    let exports: BTreeMap<Module, Module> = paths
        .iter()
        .flat_map(|(module, paths)| {
            let exported = paths.iter().filter_map(|path| path.strip_prefix("pub "));
            exported.filter_map(|path| {
                let target = absolute(module, path, files)?;
                Some(([&module[..], &target[target.len() - 1..]].concat(), target))
            })
        })
        .collect();
    let of = |(module, paths): (&&Module, &Vec<String>)| {
        let targets = paths.iter().filter_map(|path| {
            let path = path.strip_prefix("pub ").unwrap_or(path);
            let target = resolve(absolute(module, path, files)?, files, &exports)?;
            let counts =
                target.len() > 1 && !target.starts_with(module) && !module.starts_with(&target);
            counts.then_some(target)
        });
        ((*module).clone(), targets.collect())
    };
    paths.iter().map(of).collect()
}

/// The module in which the item at a path is, by way of re-exports.
fn resolve(
    mut path: Module,
    files: &BTreeMap<Module, String>,
    exports: &BTreeMap<Module, Module>,
) -> Option<Module> {
    let mut rest = Module::new();
    for _ in 0..100 {
        if files.contains_key(&path) {
            return Some(path);
        }
        match exports.get(&path) {
            Some(target) if *target != path => {
                path = [target.clone(), std::mem::take(&mut rest)].concat()
            }
            _ => rest.insert(0, path.pop()?),
        }
    }
    panic!("re-exports of {path:?} lead to each other");
}

fn parent(module: &[String]) -> Module {
    module.split_last().map_or(Vec::new(), |(_, parent)| parent.to_vec())
}

/// The paths of all `use` declarations in `source`, those of `pub use` with a `pub ` before, and those
/// in its code; tests are left out.
fn paths(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line).trim_start().to_owned() + "\n")
        .collect();
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let declaration = statement.rmatch_indices("use ").find_map(|(at, _)| {
            let before = statement[..at].rsplit('\n').next().unwrap_or_default();
            let visible = before.starts_with("pub") && before.ends_with(' ');
            (before.is_empty() || visible).then_some((at, visible))
        });
        match declaration {
            Some((at, false)) if statement[..at].ends_with("#[cfg(test)]\n") => (),
            Some((at, visible)) => {
                flatten(if visible { "pub " } else { "" }, statement[at + 4..].trim(), &mut paths);
            }
            None => paths.extend(qualified(statement)),
        }
    }
    paths
}

/// The paths in code that begin with `crate` or `super`.
fn qualified(code: &str) -> impl Iterator<Item = String> {
    let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let starts = |word: &&str| word.starts_with("crate::") || word.starts_with("super::");
    words.filter(starts).map(|word| word.trim_end_matches(':').to_owned())
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
fn absolute(module: &Module, path: &str, files: &BTreeMap<Module, String>) -> Option<Module> {
    let mut names: Vec<&str> = path.split("::").map(str::trim).collect();
    let first = *names.first()?;
    let child = || [&module[..], &[first.to_owned()]].concat();
    let mut base = match first {
        "crate" => vec![module.first()?.clone()],
        "super" => parent(module),
        "self" => module.clone(),
        _ if files.contains_key(&child()) => child(),
        _ => return None,
    };
    names.remove(0);
    while names.first() == Some(&"super") {
        base.pop();
        names.remove(0);
    }
    base.extend(names.into_iter().filter(|name| *name != "self").map(str::to_owned));
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
fn paths_are_read_as_rust_does() {
    let source = "//! use crate::no;\nuse std::fmt;\npub use self::a::{B, c::{self, D as E}};\n\
                  use crate::x::{\n    y,\n    z::Z, // use crate::nor;\n};\n\
                  const T: &str = \"please use me\";\n#[cfg(test)]\nuse crate::v;\n\
                  fn f() { super::g(crate::h::i::J) }\n\
                  #[cfg(test)]\nmod tests {\n    use crate::u;\n}";
    let expected = [
        "std::fmt",
        "pub self::a::B",
        "pub self::a::c::self",
        "pub self::a::c::D",
        "crate::x::y",
        "crate::x::z::Z",
        "super::g",
        "crate::h::i::J",
    ];
    assert_eq!(paths(source), expected);
}

#[test]
fn an_item_is_where_its_re_exports_lead() {
    let module = |path: &str| -> Module { path.split("::").map(str::to_owned).collect() };
    let files: BTreeMap<Module, String> = ["boot", "boot::fdt", "boot::fdt::node", "boot::w"]
        .map(|path| (module(path), String::new()))
        .into();
    let absolute = |path| absolute(&module("boot::fdt"), path, &files);
    assert_eq!(absolute("super::w::x"), Some(module("boot::w::x")));
    assert_eq!(absolute("self::node::Node"), Some(module("boot::fdt::node::Node")));
    assert_eq!(absolute("node::self"), Some(module("boot::fdt::node")));
    assert_eq!(absolute("std::fmt"), None);
    let exports = [("boot::fdt::Node", "boot::fdt::node::Node"), ("boot::Node", "boot::fdt::Node")];
    let exports = exports.map(|(from, to)| (module(from), module(to))).into();
    let resolve = |path| resolve(module(path), &files, &exports);
    assert_eq!(resolve("boot::Node::new"), Some(module("boot::fdt::node")));
    assert_eq!(resolve("boot::w::Other"), Some(module("boot::w")));
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
