//! `cargo model clean`: gives disk space back.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::cache::{Cache, PARTIAL, remove_dir};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::part::Parts;
use super::progress::size_of;

/// Directories of the cache that aren't artefacts.
const OTHERS: [&str; 3] = ["apt", "locks", "logs"];

/// Removes what the present clone doesn't use; with `all`, the whole cache. What another
/// `cargo model` uses or makes stays.
///
/// # Errors
///
/// The cache can't be read, or something can't be removed.
pub fn run(all: bool) -> Result<(), Error> {
    let cache = Cache::open()?;
    let keep = if all { BTreeSet::new() } else { current(&cache)? };
    let mut freed = 0_u64;
    let mut in_use = false;
    for path in artefacts(&cache)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let artefact = name.strip_suffix(PARTIAL).unwrap_or(name);
        if keep.contains(&OsString::from(name)) {
            continue;
        }
        match cache.lock(artefact).try_exclusive()? {
            Some(lock) => {
                freed = freed.saturating_add(remove(&path)?);
                lock.remove()?;
            }
            None => {
                println!("{name}: left alone, another `cargo model` uses it");
                in_use = true;
            }
        }
    }
    if all && !in_use {
        for name in OTHERS {
            let path = cache.root().join(name);
            if path.exists() {
                freed = freed.saturating_add(remove(&path)?);
            }
        }
    }
    println!("freed {} MB in {}", freed / 1_000_000, cache.root().display());
    Ok(())
}

/// Removes what runs that broke off left half made.
pub(super) fn sweep(cache: &Cache) -> Result<(), Error> {
    for path in artefacts(cache)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(artefact) = name.and_then(|name| name.strip_suffix(PARTIAL)) else { continue };
        // Whoever makes it at this moment holds the lock.
        if let Some(_lock) = cache.lock(artefact).try_exclusive()? {
            remove_dir(&path)?;
        }
    }
    Ok(())
}

/// The names of what the present clone is run with.
fn current(cache: &Cache) -> Result<BTreeSet<OsString>, Error> {
    let machine = Machine::detect();
    let archive = Archive::new(cache, &machine, None);
    let Some(versions) = archive.known() else { return Ok(BTreeSet::new()) };
    let parts = Parts::new(&machine, &versions);
    let mut names = BTreeSet::new();
    for part in parts.all() {
        names.extend(part.artefact(cache)?.name().map(ToOwned::to_owned));
    }
    Ok(names)
}

/// The directories of artefacts, finished or not.
fn artefacts(cache: &Cache) -> Result<Vec<PathBuf>, Error> {
    let root = cache.root();
    let mut paths = Vec::new();
    for entry in fs::read_dir(root).at("read", root)? {
        let path = entry.at("read", root)?.path();
        let is_other =
            path.file_name().is_some_and(|name| OTHERS.iter().any(|other| name == *other));
        if path.is_dir() && !is_other {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn remove(path: &Path) -> Result<u64, Error> {
    let size = size_of(path);
    remove_dir(path)?;
    println!("removed {} ({} MB)", path.display(), size / 1_000_000);
    Ok(size)
}
