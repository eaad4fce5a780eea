//! The host's huge pages (Documentation/admin-guide/mm/hugetlbpage.rst, transhuge.rst).

use std::fs;
use std::path::{Path, PathBuf};

use boot::order;

use super::cgroup::{Groups, Limit};
use super::mebibytes;
use crate::cli::Size;
use crate::error::Error;

/// Where the kernel shows reserved ones, a directory for each size.
const RESERVED: &str = "/sys/kernel/mm/hugepages";

/// Where it shows transparent ones.
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage";

/// From this size on they are found when the host starts, and rarely later. In bytes.
const GIGANTIC: u64 = 1 << 30;

/// The huge pages of one size that are reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Their size in bytes.
    pub page: u64,
    /// How many there are.
    pub total: u64,
    /// How many nobody has, nor has been promised.
    pub free: u64,
    /// The file that sets their number.
    file: PathBuf,
}

impl Pool {
    fn read(directory: &Path) -> Option<Self> {
        let name = directory.file_name()?.to_str()?;
        let kibibytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?;
        let number = |name: &str| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let total = number("nr_hugepages")?;
        let promised = number("resv_hugepages").unwrap_or(0);
        // What the kernel may make of free memory when they are asked for.
        let overcommit = number("nr_overcommit_hugepages").unwrap_or(0);
        let surplus = number("surplus_hugepages").unwrap_or(0);
        let free = number("free_hugepages")?.saturating_sub(promised);
        Some(Self {
            page: kibibytes.checked_mul(1024)?,
            total,
            free: free.saturating_add(overcommit.saturating_sub(surplus)),
            file: directory.join("nr_hugepages"),
        })
    }
}

/// The sizes that the host has, ascending.
#[cold]
pub fn pools() -> Vec<Pool> {
    pools_in(RESERVED.as_ref())
}

fn pools_in(directory: &Path) -> Vec<Pool> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut pools: Vec<Pool> = entries.filter_map(|entry| Pool::read(&entry.path())).collect();
    order::sort_by_key(&mut pools, |pool| pool.page);
    pools
}

/// Checks that `ram` bytes can be had in reserved huge pages of `page` bytes.
///
/// # Errors
///
/// The host has no such pages, or too few, or a control group of this process may have fewer.
#[cold]
pub fn check_reserved(ram: u64, page: u64) -> Result<(), Error> {
    check_pools(ram, page, &pools())?;
    check_group(ram, page, Groups::own().huge_pages(page))
}

/// Whether a control group limits them: then the host may refuse one even after it was promised.
#[cold]
pub fn is_limited(page: u64) -> bool {
    Groups::own().huge_pages(page).is_some()
}

fn check_pools(ram: u64, page: u64, pools: &[Pool]) -> Result<(), Error> {
    let size = Size::from(page);
    let Some(pool) = pools.iter().find(|pool| pool.page == page) else {
        let sizes: Vec<String> = pools.iter().map(|pool| Size(pool.page).to_string()).collect();
        let error = format!("this host has no huge pages of {size} to reserve");
        return Err(if sizes.is_empty() {
            Error::new(error).help("hugepages=thp; or a kernel with CONFIG_HUGETLBFS")
        } else {
            Error::new(error).help(format!("hugepages={}", sizes.join(", or ")))
        });
    };
    let needed = ram.div_ceil(page.max(1));
    let Some(missing) = needed.checked_sub(pool.free).filter(|missing| *missing > 0) else {
        return Ok(());
    };
    let (total, file) = (pool.total.saturating_add(missing), pool.file.display());
    let mut help = format!("echo {total} | sudo tee {file}");
    if page >= GIGANTIC {
        help += &format!(
            "; where the host's memory is too fragmented for that, hugepagesz={size} \
             hugepages={total} on its kernel's command line"
        );
    }
    Err(Error::new(format!(
        "{} of guest RAM takes {needed} huge page(s) of {size}: of this host's {}, {} are free",
        Size::from(ram),
        pool.total,
        pool.free
    ))
    .help(help))
}

fn check_group(ram: u64, page: u64, limit: Option<Limit>) -> Result<(), Error> {
    let Some(limit) = limit.filter(|limit| limit.left() < ram) else { return Ok(()) };
    let (file, wanted) = (limit.file.display(), limit.used.saturating_add(ram));
    Err(Error::new(format!(
        "{} of guest RAM in huge pages of {} can't be had: {file} leaves {} of {}",
        Size::from(ram),
        Size::from(page),
        mebibytes(limit.left()),
        mebibytes(limit.limit)
    ))
    .help(format!("echo {wanted} | sudo tee {file}; or a smaller --memory")))
}

/// Checks that a process gets transparent huge pages when it asks for them; `shared`, of a file in
/// memory.
///
/// # Errors
///
/// The host gives none.
#[cold]
pub fn check_transparent(shared: bool) -> Result<(), Error> {
    check_transparent_in(TRANSPARENT.as_ref(), shared)
}

fn check_transparent_in(directory: &Path, shared: bool) -> Result<(), Error> {
    let (name, on) = if shared { ("shmem_enabled", "advise") } else { ("enabled", "madvise") };
    let file = directory.join(name);
    let Ok(text) = fs::read_to_string(&file) else {
        let error = "this host's kernel has no transparent huge pages";
        return Err(Error::new(error).help("a kernel with CONFIG_TRANSPARENT_HUGEPAGE"));
    };
    if ["[never]", "[deny]"].iter().all(|off| !text.contains(off)) {
        return Ok(());
    }
    let kind = if shared { " for memory that processes share" } else { "" };
    Err(Error::new(format!("this host's transparent huge pages are off{kind}"))
        .help(format!("echo {on} | sudo tee {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn directory(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("strait-{name}-{}", std::process::id()));
        for (file, text) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn what_is_promised_to_others_is_not_free() {
        let root = directory(
            "pools",
            &[
                ("hugepages-2048kB/nr_hugepages", "40\n"),
                ("hugepages-2048kB/free_hugepages", "33\n"),
                ("hugepages-2048kB/resv_hugepages", "3\n"),
                ("hugepages-2048kB/nr_overcommit_hugepages", "5\n"),
                ("hugepages-2048kB/surplus_hugepages", "4\n"),
                ("hugepages-64kB/nr_hugepages", "0\n"),
                ("hugepages-64kB/free_hugepages", "0\n"),
                ("hugepages-1048576kB/nr_hugepages", "1\n"),
                ("hugepages-1048576kB/free_hugepages", "1\n"),
                ("other/nr_hugepages", "1\n"),
            ],
        );
        let pools = pools_in(&root);
        let found: Vec<_> = pools.iter().map(|pool| (pool.page, pool.total, pool.free)).collect();
        assert_eq!(found, [(64 << 10, 0, 0), (2 * MIB, 40, 31), (1 << 30, 1, 1)]);
        check_pools(62 * MIB, 2 * MIB, &pools).unwrap();
        let report = check_pools(64 * MIB, 2 * MIB, &pools).unwrap_err().report();
        let file = root.join("hugepages-2048kB/nr_hugepages");
        for part in [
            "64M of guest RAM takes 32 huge page(s) of 2M: of this host's 40, 31 are free",
            &format!("help: echo 41 | sudo tee {}", file.display()),
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
        let report = check_pools(2 << 30, 1 << 30, &pools).unwrap_err().report();
        assert!(report.contains("hugepagesz=1G hugepages=2 on"), "{report}");
        let report = check_pools(64 * MIB, 32 * MIB, &pools).unwrap_err().report();
        assert!(report.contains("no huge pages of 32M"), "{report}");
        assert!(report.contains("help: hugepages=64K, or 2M, or 1G"), "{report}");
        let report = check_pools(64 * MIB, 2 * MIB, &[]).unwrap_err().report();
        assert!(report.contains("help: hugepages=thp"), "{report}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_control_group_may_have_fewer() {
        let limit = |limit, used| Some(Limit { file: "/c/hugetlb.2MB.max".into(), limit, used });
        check_group(64 * MIB, 2 * MIB, limit(66 * MIB, 2 * MIB)).unwrap();
        check_group(64 * MIB, 2 * MIB, None).unwrap();
        let report = check_group(64 * MIB, 2 * MIB, limit(66 * MIB, 4 * MIB)).unwrap_err().report();
        for part in [
            "64M of guest RAM in huge pages of 2M can't be had: /c/hugetlb.2MB.max leaves 62M of 66M",
            "help: echo 71303168 | sudo tee /c/hugetlb.2MB.max",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
    }

    #[test]
    fn transparent_ones_may_be_off() {
        let root = directory(
            "thp",
            &[
                ("enabled", "always madvise [never]\n"),
                ("shmem_enabled", "always within_size [advise] never deny force\n"),
            ],
        );
        check_transparent_in(&root, true).unwrap();
        let report = check_transparent_in(&root, false).unwrap_err().report();
        let file = root.join("enabled");
        let help = format!("help: echo madvise | sudo tee {}", file.display());
        assert!(report.contains("are off") && report.contains(&help), "{report}");
        let report = check_transparent_in(&root.join("none"), false).unwrap_err().report();
        assert!(report.contains("CONFIG_TRANSPARENT_HUGEPAGE"), "{report}");
        fs::remove_dir_all(root).unwrap();
    }
}
