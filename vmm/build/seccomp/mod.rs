//! The filters of system calls in `seccomp/*.filter`, as programs for the kernel.
//!
//! The crate seccompiler makes the instructions for each system call. Its filters are in order of the
//! calls' numbers; here they come in the order of the file, for what is asked for most is to be found
//! first, and jumps to jumps are left out.

mod program;
mod rules;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use program::Program;
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
        let program = program_of(&calls).map_err(|why| format!("{name}.filter: {why}"))?;
        let constant = name.to_uppercase().replace('-', "_");
        let words: Vec<String> = program.words().map(|word| format!("{word:#x}")).collect();
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

fn program_of(calls: &[Call]) -> Result<Program, String> {
    let mut program = Program::default();
    for call in calls {
        let compiled = seccompiler::compile_from_json(
            call.json().as_bytes(),
            seccompiler::TargetArch::aarch64,
        );
        let compiled = compiled.map_err(|error| format!("{}: {error}", call.name))?;
        program.append(compiled.get(rules::KEY).ok_or("seccompiler left it out")?)?;
    }
    program.finish()
}
