//! Documents name files of the clone as they are called.

use std::fs;

use tests::setup::workspace;

const CRATES: [&str; 4] = ["arch", "boot", "devices", "vmm"];

/// Whether this is a path of the clone, or a module: `devices/vfio` is `devices/src/vfio`.
fn exists(path: &str) -> bool {
    let root = workspace::root();
    let (directory, rest) = path.split_once('/').unwrap_or((path, ""));
    let module = root.join(directory).join("src").join(rest);
    root.join(path).exists() || module.exists() || module.with_extension("rs").exists()
}

#[test]
fn every_path_that_a_document_names_exists() {
    let root = workspace::root();
    let documents = fs::read_dir(root.join("resources/docs")).unwrap();
    let mut documents: Vec<_> = documents.map(|entry| entry.unwrap().path()).collect();
    documents.push(root.join("README.md"));
    documents.push(root.join("SECURITY.md"));
    let (mut count, mut missing) = (0, Vec::new());
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        // Within backquotes, a line each, are paths, commands and names.
        for word in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let directory = word.split_once('/').map_or("", |(directory, _)| directory);
            let names_path =
                CRATES.contains(&directory) || ["tests", "resources"].contains(&directory);
            if names_path && !word.ends_with(".yaml") && !word.contains([' ', '*', '…']) {
                count += 1;
                if !exists(word) {
                    missing.push(format!("{}: {word}", document.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(count > 30, "{count}");
}

#[test]
fn what_a_guest_s_kernel_needs_is_what_the_model_s_has() {
    let root = workspace::root();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let (guest, model) = (read("resources/guest.config"), read("tests/model/host.config"));
    let model: Vec<&str> = model.lines().collect();
    let options: Vec<&str> = guest.lines().filter(|line| line.starts_with("CONFIG_")).collect();
    let untested: Vec<_> = options.iter().filter(|option| !model.contains(option)).collect();
    assert!(options.len() > 40 && untested.is_empty(), "{untested:#?}");
}

/// The documents' text, without the manual's page.
fn documents() -> String {
    let root = workspace::root();
    let documents = fs::read_dir(root.join("resources/docs")).unwrap();
    let documents = documents.map(|entry| entry.unwrap().path()).chain([root.join("README.md")]);
    documents.map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn every_option_of_a_run_is_in_a_document() {
    let help = workspace::root().join("vmm/src/cli/help/run.txt");
    let help = fs::read_to_string(help).unwrap();
    let options =
        help.lines().filter_map(|line| line.strip_prefix("  --")?.split([' ', ',']).next());
    let options: Vec<_> = options.filter(|name| *name != "help").collect();
    let documents = documents();
    let is_named = |name: &&str| documents.contains(&format!("--{name}"));
    let missing: Vec<_> = options.iter().filter(|name| !is_named(name)).collect();
    assert!(options.len() > 40 && missing.is_empty(), "{missing:?}");
}

#[test]
fn every_command_of_the_model_is_in_its_table() {
    let root = workspace::root();
    let main = fs::read_to_string(root.join("tests/src/main.rs")).unwrap();
    let (_, commands) = main.split_once("enum Command {").unwrap();
    let commands = commands.lines().take_while(|line| *line != "}");
    // Variants are at the first level.
    let variants = commands.filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let kebab = |variant: &str| {
        let name = variant.trim_end_matches([',', ' ', '{']);
        let words = name.split_inclusive(|_: char| true).map(|letter| {
            let is_upper = letter.starts_with(|c: char| c.is_ascii_uppercase());
            if is_upper { format!("-{}", letter.to_lowercase()) } else { letter.to_owned() }
        });
        words.collect::<String>().trim_start_matches('-').to_owned()
    };
    let commands: Vec<_> = variants.map(kebab).collect();
    let table = fs::read_to_string(root.join("resources/docs/testing.md")).unwrap();
    let is_in = |name: &&String| {
        let row = format!("| `{name}");
        table
            .lines()
            .any(|line| line.strip_prefix(&row).is_some_and(|rest| rest.starts_with(['`', ' '])))
    };
    let missing: Vec<_> = commands.iter().filter(|name| !is_in(name)).collect();
    assert!(commands.len() > 10 && missing.is_empty(), "{missing:?}");
}

#[test]
fn every_label_of_strait_s_own_nodes_is_in_the_table() {
    let root = workspace::root();
    let table = fs::read_to_string(root.join("resources/docs/device-tree.md")).unwrap();
    let mut pending: Vec<_> = CRATES.map(|name| root.join(name).join("src")).into();
    let mut labels = Vec::new();
    while let Some(path) = pending.pop() {
        if path.ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for marker in ["LABEL: &str = \"", "CLOCK: &str = \"", ".label(\""] {
                let behind = text.split(marker).skip(1);
                labels.extend(behind.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    let missing: Vec<_> =
        labels.iter().filter(|label| !table.contains(&format!("`&{label}`"))).collect();
    assert!(labels.len() > 4 && missing.is_empty(), "{missing:?} of {labels:?}");
}
