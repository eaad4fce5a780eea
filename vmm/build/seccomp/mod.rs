//! The filters of system calls in `seccomp/*.filter`, as programs for the kernel.
//!
//! The crate seccompiler makes the instructions for each system call. They are put together here: the
//! calls' numbers are searched for in a [tree], equal instructions are there once, and nothing is loaded
//! twice.

mod program;
mod rules;
mod tree;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use program::Graph;
use rules::{Filter, Names};

/// Writes `seccomp.rs`, with a program for each `*.filter` in `source`, into `out`.
pub fn compile(source: &Path, out: &Path) -> Result<(), String> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let names = Names::parse(&read(&source.join("constants"))?)?;
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(source).map_err(|error| format!("{}: {error}", source.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.extension().is_some_and(|extension| extension == "filter") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(stem, read(&path)?);
        }
    }
    let mut text = String::new();
    let mut all = String::new();
    for name in files.keys().filter(|name| *name != rules::COMMON) {
        let filter = rules::parse(name, true, &files, &names)?;
        let plain = rules::parse(name, false, &files, &names)?;
        let mut add = |suffix: &str, about: &str, filter: &Filter| -> Result<(), String> {
            let words = program_of(filter).map_err(|why| format!("{name}.filter: {why}"))?;
            let words: Vec<String> = words.iter().map(|word| format!("{word:#x}")).collect();
            let constant = format!("{name}{suffix}").to_uppercase().replace('-', "_");
            let (count, list) = (words.len(), words.join(", "));
            writeln!(
                text,
                "/// `seccomp/{name}.filter`{about}.\npub(super) static {constant}: [u64; {count}] = [{list}];"
            )
            .and_then(|()| write!(all, "(\"{name}{suffix}\", &{constant}), "))
            .map_err(|error| error.to_string())
        };
        add("", "", &filter)?;
        if filter.has_devices {
            add("-plain", ", for guests without devices", &plain)?;
        }
    }
    writeln!(
        text,
        "/// All of them, with their names.\n#[cfg(test)]\npub(super) static ALL: &[(&str, &[u64])] = &[{all}];"
    )
    .map_err(|error| error.to_string())?;
    let path = out.join("seccomp.rs");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The program's words.
fn program_of(filter: &Filter) -> Result<Vec<u64>, String> {
    let mut graph = Graph::default();
    let mut compiled = Vec::new();
    for call in &filter.calls {
        let made = seccompiler::compile_from_json(
            call.json().as_bytes(),
            seccompiler::TargetArch::aarch64,
        );
        let made = made.map_err(|error| format!("{}: {error}", call.name))?;
        compiled.push(graph.call(made.get(rules::KEY).ok_or("seccompiler left it out")?)?);
    }
    // The kernel runs the filter each time that this call is made, and it is what this thread does.
    let first = filter.calls.first().filter(|call| filter.is_uncached && call.has_arguments());
    let first = first.map(|_| compiled.remove(0));
    compiled.sort_by_key(|call| call.number);
    let others = tree::search(&mut graph, &compiled, filter.is_uncached);
    let start = match first {
        Some(first) => graph.rule_first(&first, others)?,
        None if filter.is_uncached => graph.uncached(others),
        None => graph.number(others),
    };
    graph.words(start)
}
