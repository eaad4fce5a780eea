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
