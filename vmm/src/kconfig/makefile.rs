//! Makefiles: under which options an object is built (Documentation/kbuild/makefiles.rst).

use std::collections::{BTreeMap, BTreeSet};

use super::source::{is_name, lines};

/// How many steps an object may be part of another, or a directory below another.
const MAX_STEPS: usize = 8;

/// The Makefiles of a tree.
#[derive(Debug, Default)]
pub(super) struct Makefiles {
    /// The assignments, by the directories of their files.
    directories: BTreeMap<String, Vec<Assignment>>,
}

/// `obj-$(CONFIG_X) += a.o b/`, or `c-$(CONFIG_Y) += d.o`.
#[derive(Debug)]
struct Assignment {
    /// The module that the objects are part of; none if they are built by themselves.
    module: Option<String>,
    /// The option under which; none if always.
    option: Option<String>,
    objects: Vec<String>,
}

impl Makefiles {
    /// Notes what a Makefile says.
    pub(super) fn add(&mut self, path: &str, text: &str) {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let all = lines(text);
        let assignments = all.iter().filter_map(|line| assignment(line));
        self.directories.entry(directory.to_owned()).or_default().extend(assignments);
    }

    /// The options under which a source file is built, its own last; nothing if no Makefile builds it.
    pub(super) fn options_of(&self, file: &str) -> Option<Vec<String>> {
        let (directory, name) = file.rsplit_once('/')?;
        let object = format!("{}.o", name.strip_suffix(".c").unwrap_or(name));
        self.options(directory, &object, MAX_STEPS)
    }

    /// The directories in which a module of this name is built, and the options.
    pub(super) fn options_of_module(&self, module: &str) -> Vec<(String, Vec<String>)> {
        let same = |object: &String| {
            object.strip_suffix(".o").is_some_and(|name| name.replace('-', "_") == module)
        };
        let mut found = Vec::new();
        for (directory, assignments) in &self.directories {
            let built = assignments.iter().filter(|assignment| assignment.module.is_none());
            let built = built.filter(|assignment| assignment.objects.iter().any(same));
            let option = built.filter_map(|assignment| assignment.option.clone()).next();
            found.extend(option.map(|option| (format!("{directory}/Makefile"), vec![option])));
        }
        found
    }

    fn options(&self, directory: &str, object: &str, steps: usize) -> Option<Vec<String>> {
        let steps = steps.checked_sub(1)?;
        for assignment in self.directories.get(directory).into_iter().flatten() {
            if !assignment.objects.iter().any(|other| other == object) {
                continue;
            }
            let above = match &assignment.module {
                // Some objects have the name of their own module.
                Some(module) if format!("{module}.o") == object => None,
                Some(module) => self.options(directory, &format!("{module}.o"), steps),
                None if assignment.option.is_some() => Some(Vec::new()),
                None => Some(self.options_of_directory(directory, steps)),
            };
            if let Some(mut options) = above {
                // What an optional part needs comes behind what the whole needs.
                options.extend(assignment.option.clone());
                return Some(options);
            }
        }
        // The directory above may name it.
        let (above, name) = directory.rsplit_once('/')?;
        self.options(above, &format!("{name}/{object}"), steps)
    }

    /// The option under which a directory is entered whose objects have none of their own.
    fn options_of_directory(&self, directory: &str, steps: usize) -> Vec<String> {
        let Some((steps, (above, name))) = steps.checked_sub(1).zip(directory.rsplit_once('/'))
        else {
            return Vec::new();
        };
        let entry = format!("{name}/");
        let assignments = self.directories.get(above).into_iter().flatten();
        let entered = assignments.filter(|assignment| assignment.objects.contains(&entry));
        let options: BTreeSet<Option<&String>> =
            entered.map(|assignment| assignment.option.as_ref()).collect();
        match options.into_iter().next() {
            Some(Some(option)) => vec![option.clone()],
            _ => self.options_of_directory(above, steps),
        }
    }
}

fn assignment(line: &str) -> Option<Assignment> {
    let line = line.split('#').next().unwrap_or_default();
    let (left, right) = line.split_once('=')?;
    let left = left.trim_end_matches(['+', ':', '?']).trim();
    let objects: Vec<String> = right
        .split_whitespace()
        .filter(|word| word.ends_with(".o") || word.ends_with('/'))
        .map(str::to_owned)
        .collect();
    let option = left
        .split_once("$(CONFIG_")
        .map(|(_, rest)| rest.chars().take_while(|c| is_name(*c)).collect::<String>());
    let name = match left.split_once("$(CONFIG_") {
        Some((name, _)) => name.trim_end_matches('-'),
        None => left.trim_end_matches("-y").trim_end_matches("-m").trim_end_matches("-objs"),
    };
    let name = name.trim_end_matches("-objs");
    let module = (!matches!(name, "obj" | "lib")).then(|| name.to_owned());
    (!objects.is_empty()).then_some(Assignment { module, option, objects })
}
