//! `cargo model clean`: gives disk space back.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::cache::{Cache, PARTIAL, remove_dir};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::part::Parts;
use super::progress::{Step, size_of};

/// Directories of the cache that aren't entries.
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
    let freed = clean(&cache, &keep, all)?;
    println!("freed {} MB in {}", freed / 1_000_000, cache.root().display());
    Ok(())
}

/// Removes all entries but those in `keep` and those in use, and with `all` the rest of the cache
/// too; returns how many bytes that freed.
fn clean(cache: &Cache, keep: &BTreeSet<OsString>, all: bool) -> Result<u64, Error> {
    let mut freed = 0_u64;
    let mut in_use = false;
    for path in entries(cache)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if keep.contains(OsStr::new(name)) {
            continue;
        }
        let entry = name.strip_suffix(PARTIAL).unwrap_or(name);
        match cache.lock(entry).try_exclusive()? {
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
    Ok(freed)
}

/// Removes what runs that broke off left half made.
pub(super) fn sweep(cache: &Cache, step: &Step) -> Result<(), Error> {
    for path in entries(cache)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(entry) = name.and_then(|name| name.strip_suffix(PARTIAL)) else { continue };
        // Whoever makes it at this moment holds the lock.
        if let Some(_lock) = cache.lock(entry).try_exclusive()? {
            step.phase("removing what an interrupted run left");
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
    let parts = Parts::new(&machine, cache, &versions);
    let mut names = BTreeSet::new();
    for part in parts.all() {
        names.extend(part.entry(cache)?.name().map(ToOwned::to_owned));
    }
    Ok(names)
}

/// The directories of entries, finished or not.
fn entries(cache: &Cache) -> Result<Vec<PathBuf>, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::progress::Progress;

    /// A cache with entries of these names.
    fn cache(test: &str, names: &[&str]) -> Cache {
        let root = std::env::temp_dir().join(format!("clean-test-{}-{test}", std::process::id()));
        for name in names {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "12345").unwrap();
        }
        Cache::at(root).unwrap()
    }

    fn left(cache: &Cache) -> Vec<String> {
        let entries = fs::read_dir(cache.root()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_kept_or_used_stays_and_all_else_goes() {
        let cache = cache("some", &["apt", "a-1", "a-2", "a-3", "b-1.partial"]);
        let used = cache.lock("a-3").try_exclusive().unwrap();
        let freed = clean(&cache, &BTreeSet::from(["a-1".into()]), false).unwrap();
        assert_eq!(left(&cache), ["a-1", "a-3", "apt", "locks"]);
        assert_eq!(freed, 10);
        drop(used);
        clean(&cache, &BTreeSet::new(), true).unwrap();
        assert!(left(&cache).is_empty());
        remove_dir(cache.root()).unwrap();
    }

    #[test]
    fn all_spares_the_locks_of_what_is_in_use() {
        let cache = cache("locks", &["a-1"]);
        let used = cache.lock("a-1").try_exclusive().unwrap();
        clean(&cache, &BTreeSet::new(), true).unwrap();
        assert_eq!(left(&cache), ["a-1", "locks"]);
        drop(used);
        remove_dir(cache.root()).unwrap();
    }

    #[test]
    fn a_sweep_spares_what_is_being_made() {
        let cache = cache("sweep", &["a-1", "b-1.partial", "c-1.partial"]);
        let made = cache.lock("c-1").try_exclusive().unwrap();
        let progress = Progress::start();
        sweep(&cache, &progress.step("cache", PathBuf::new())).unwrap();
        assert_eq!(left(&cache), ["a-1", "c-1.partial", "locks"]);
        drop(made);
        remove_dir(cache.root()).unwrap();
    }
}
