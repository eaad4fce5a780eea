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
use rules::{Call, Names};

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
        let calls = rules::parse(name, &files, &names)?;
        let words = program_of(&calls).map_err(|why| format!("{name}.filter: {why}"))?;
        let constant = name.to_uppercase().replace('-', "_");
        let words: Vec<String> = words.iter().map(|word| format!("{word:#x}")).collect();
        writeln!(
            text,
            "/// `seccomp/{name}.filter`.\npub(super) static {constant}: [u64; {}] = [{}];",
            words.len(),
            words.join(", ")
        )
        .map_err(|error| error.to_string())?;
        write!(all, "(\"{name}\", &{constant}), ").map_err(|error| error.to_string())?;
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
///
/// If the first call has arguments, its first rule is looked for first: the kernel runs the filter each time
/// that the call is made. It then runs it for all other calls, too, as it doesn't see which of them are
/// allowed whatever their arguments; but nor does it look, when a thread takes the filter, which takes
/// longer than all the rest. This is for threads that hardly make another call.
fn program_of(calls: &[Call]) -> Result<Vec<u64>, String> {
    let mut graph = Graph::default();
    let mut compiled = Vec::new();
    for call in calls {
        let filter = seccompiler::compile_from_json(
            call.json().as_bytes(),
            seccompiler::TargetArch::aarch64,
        );
        let filter = filter.map_err(|error| format!("{}: {error}", call.name))?;
        compiled.push(graph.call(filter.get(rules::KEY).ok_or("seccompiler left it out")?)?);
    }
    let first = calls.first().filter(|call| call.has_arguments());
    let first = first.map(|_| compiled.remove(0));
    compiled.sort_by_key(|call| call.number);
    let others = tree::search(&mut graph, &compiled);
    let start = match first {
        Some(first) => graph.rule_first(&first, others)?,
        None => graph.number(others),
    };
    graph.words(start)
}
