//! The control groups that this process is in, whose limits hold together with those of all above
//! them (`cgroups(7)`; Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, pids.rst).

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use boot::size::{GIB, KIB, MIB};

/// Where control groups are, if anywhere (`cgroups(7)`).
const PLACE: &CStr = c"/sys/fs/cgroup";

/// Whether there are control groups where they usually are: in the unified hierarchy, or in older ones, which
/// are mounted in a tmpfs there. Asked where their limits are worth no more than that.
pub fn are_in_place() -> bool {
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is a C string, and statfs fills the structure it is given, or fails.
    if unsafe { libc::statfs(PLACE.as_ptr(), status.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: statfs succeeded, so the structure is filled.
    let kind = unsafe { status.assume_init() }.f_type;
    [libc::CGROUP2_SUPER_MAGIC, libc::CGROUP_SUPER_MAGIC, libc::TMPFS_MAGIC].contains(&kind)
}

/// Numbers from here on mean no limit: cgroup v1 writes the largest multiple of a page so.
const UNLIMITED: u64 = 1 << 62;

/// What a controller calls its files, in the unified hierarchy and in the older ones.
struct Names<'a> {
    controller: &'a str,
    limit: [&'a str; 2],
    used: [&'a str; 2],
}

const MEMORY: Names<'_> = Names {
    controller: "memory",
    limit: ["memory.max", "memory.limit_in_bytes"],
    used: ["memory.current", "memory.usage_in_bytes"],
};

/// As `memory.max`, but what exceeds it is slowed down rather than killed.
const MEMORY_HIGH: Names<'_> = Names { limit: ["memory.high", "memory.high"], ..MEMORY };

/// Of the older hierarchies, none limits swap alone.
const SWAP: Names<'_> = Names {
    controller: "memory",
    limit: ["memory.swap.max", "memory.swap.max"],
    used: ["memory.swap.current", "memory.swap.current"],
};

const PIDS: Names<'_> = Names {
    controller: "pids",
    limit: ["pids.max", "pids.max"],
    used: ["pids.current", "pids.current"],
};

/// Of `memory.stat`, what the kernel takes back before it kills anybody.
const RECLAIMABLE: [[&str; 3]; 2] = [
    ["inactive_file", "active_file", "slab_reclaimable"],
    ["total_inactive_file", "total_active_file", "total_slab_reclaimable"],
];

/// A limit of a group, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The file that sets it.
    pub file: PathBuf,
    /// How much the group may use.
    pub limit: u64,
    /// How much it uses and can't give back.
    pub used: u64,
}

impl Limit {
    /// What is left of it.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// The groups of a process.
#[derive(Debug)]
pub struct Groups {
    /// `/proc/PID/cgroup`.
    membership: String,
    mounts: Vec<Mount>,
}

/// A hierarchy that is mounted.
#[derive(Debug)]
struct Mount {
    /// The group that is its root.
    root: PathBuf,
    at: PathBuf,
    unified: bool,
    /// Of an older hierarchy, among others its controllers.
    options: String,
}

impl Groups {
    /// Those of this process.
    #[cold]
    pub fn own() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self::of(read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
    }

    /// Those of the process that these two files of `/proc` are of.
    fn of(membership: String, mountinfo: &str) -> Self {
        Self { membership, mounts: mountinfo.lines().filter_map(Mount::parse).collect() }
    }

    /// How much memory these groups may use, in bytes: the limit with the least left.
    pub fn memory(&self) -> Option<Limit> {
        self.tightest(&MEMORY)
    }

    /// How much memory they may use without being slowed down, in bytes.
    pub fn unthrottled_memory(&self) -> Option<Limit> {
        self.tightest(&MEMORY_HIGH)
    }

    /// How much of the host's swap they may use, in bytes.
    pub fn swap(&self) -> Option<Limit> {
        self.tightest(&SWAP)
    }

    /// How many bytes of reserved huge pages of `page` bytes they may have, as they are promised and as
    /// they are used (Documentation/admin-guide/cgroup-v2.rst, "HugeTLB"; cgroup-v1/hugetlb.rst).
    pub fn huge_pages(&self, page: u64) -> Option<Limit> {
        let size = match page {
            GIB.. => format!("{}GB", page / GIB),
            MIB.. => format!("{}MB", page / MIB),
            _ => format!("{}KB", page / KIB),
        };
        let limits = [".rsvd", ""].map(|kind| {
            let name = |file: &str| format!("hugetlb.{size}{kind}.{file}");
            let limit = ["max", "limit_in_bytes"].map(name);
            let used = ["current", "usage_in_bytes"].map(name);
            self.tightest(&Names {
                controller: "hugetlb",
                limit: limit.each_ref().map(String::as_str),
                used: used.each_ref().map(String::as_str),
            })
        });
        limits.into_iter().flatten().min_by_key(Limit::left)
    }

    /// How many tasks they may have.
    pub fn tasks(&self) -> Option<Limit> {
        self.tightest(&PIDS)
    }

    fn tightest(&self, names: &Names<'_>) -> Option<Limit> {
        let (version, groups) = self.groups(names.controller)?;
        let limits = groups.iter().filter_map(|group| limit(group, version, names));
        limits.min_by_key(Limit::left)
    }

    /// The version of the hierarchy that a controller is in (0 for v2, 1 for v1), and this process's
    /// groups there, the innermost first.
    fn groups(&self, controller: &str) -> Option<(usize, Vec<PathBuf>)> {
        let (mount, path) = self
            .mounts
            .iter()
            .filter(|mount| mount.has(controller))
            .find_map(|mount| Some((mount, self.path(mount, controller)?)))?;
        let inside = Path::new(path).strip_prefix(&mount.root).ok()?;
        // A group outside of this process's namespace shows as one above its root.
        let group = mount.at.join(inside);
        let above = group.ancestors().take_while(|group| group.starts_with(&mount.at));
        let groups = above.map(Path::to_owned).collect();
        Some((usize::from(!mount.unified), groups))
    }

    /// The group in the hierarchy of a mount (`/proc/PID/cgroup`: number, controllers, path).
    fn path(&self, mount: &Mount, controller: &str) -> Option<&str> {
        self.membership.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let here = if mount.unified {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|name| name == controller)
            };
            here.then_some(path)
        })
    }
}

impl Mount {
    /// Parses a line of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`); `None` if it is no
    /// hierarchy's.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, at) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let unified = match kind.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = kind.nth(1).unwrap_or_default().to_owned();
        Some(Self { root: root.into(), at: at.into(), unified, options })
    }

    /// Whether a controller can be in it; in an older hierarchy, whether it is.
    fn has(&self, controller: &str) -> bool {
        self.unified || self.options.split(',').any(|option| option == controller)
    }
}

/// The limit that a group has, if it has one.
fn limit(group: &Path, version: usize, names: &Names<'_>) -> Option<Limit> {
    let number = |name: &str| {
        let text = fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let file = group.join(names.limit.get(version)?);
    let text = fs::read_to_string(&file).ok()?;
    let limit = text.trim().parse().ok().filter(|limit| *limit < UNLIMITED)?;
    let mut used = number(names.used.get(version)?)?;
    if names.used == MEMORY.used {
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let kinds = RECLAIMABLE.get(version)?;
        used = used.saturating_sub(kinds.iter().filter_map(|kind| field(&stat, kind)).sum());
    }
    Some(Limit { file, limit, used })
}

/// A number of `memory.stat`.
fn field(stat: &str, name: &str) -> Option<u64> {
    let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy in a directory, gone when dropped.
    struct Hierarchy(PathBuf);

    impl Hierarchy {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("strait-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn group(&self, path: &str, files: &[(&str, &str)]) {
            let group = self.0.join(path);
            fs::create_dir_all(&group).unwrap();
            for (file, text) in files {
                fs::write(group.join(file), text).unwrap();
            }
        }

        fn mountinfo(&self, root: &str, kind: &str, options: &str) -> String {
            let at = self.0.display();
            format!(
                "22 1 0:21 / /proc rw - proc proc rw\n\
                 31 24 0:27 {root} {at} rw,nosuid shared:9 - {kind} cgroup {options}\n"
            )
        }
    }

    impl Drop for Hierarchy {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_tightest_of_all_groups_above_holds() {
        let hierarchy = Hierarchy::new("cgroup2");
        hierarchy.group(
            "ci",
            &[
                ("memory.max", "1000\n"),
                ("memory.high", "950\n"),
                ("memory.current", "900\n"),
                ("memory.stat", "anon 300\ninactive_file 400\nactive_file 100\nfile 500\n"),
                ("pids.max", "max\n"),
                ("pids.current", "7\n"),
            ],
        );
        let inner = [("memory.max", "700"), ("memory.current", "100"), ("memory.high", "max")];
        hierarchy.group("ci/job", &inner);
        hierarchy.group("ci/job", &[("pids.max", "3"), ("pids.current", "1")]);
        let mounts = hierarchy.mountinfo("/", "cgroup2", "rw,nsdelegate");
        let groups = Groups::of("0::/ci/job\n".into(), &mounts);
        let file = |name: &str| hierarchy.0.join(name);
        let memory = groups.memory().unwrap();
        // 1000 - 400 that can't be given back and 700 - 100: the outer and the inner are level, but
        // for the stat that the inner lacks.
        assert_eq!(memory.left(), 600);
        let outer = Limit { file: file("ci/memory.high"), limit: 950, used: 400 };
        assert_eq!(groups.unthrottled_memory(), Some(outer));
        assert_eq!(groups.swap(), None);
        hierarchy.group("ci", &[("memory.swap.max", "300"), ("memory.swap.current", "100")]);
        assert_eq!(groups.swap().map(|limit| limit.left()), Some(200));
        let tasks = Limit { file: file("ci/job/pids.max"), limit: 3, used: 1 };
        assert_eq!(groups.tasks(), Some(tasks));
    }

    #[test]
    fn huge_pages_are_limited_as_promised_and_as_used() {
        let hierarchy = Hierarchy::new("hugetlb");
        let mounts = hierarchy.mountinfo("/", "cgroup2", "rw");
        let groups = Groups::of("0::/a\n".into(), &mounts);
        assert_eq!(groups.huge_pages(2 << 20), None);
        hierarchy.group("a", &[("hugetlb.2MB.max", "max"), ("hugetlb.2MB.current", "0")]);
        assert_eq!(groups.huge_pages(2 << 20), None);
        hierarchy.group("a", &[("hugetlb.2MB.rsvd.max", "900"), ("hugetlb.2MB.rsvd.current", "5")]);
        hierarchy.group("", &[("hugetlb.2MB.max", "800"), ("hugetlb.2MB.current", "0")]);
        assert_eq!(groups.huge_pages(2 << 20).map(|limit| limit.left()), Some(800));
        hierarchy.group("", &[("hugetlb.1GB.max", "7"), ("hugetlb.1GB.current", "0")]);
        assert_eq!(groups.huge_pages(1 << 30).map(|limit| limit.left()), Some(7));
        assert_eq!(groups.huge_pages(64 << 10), None);
    }

    #[test]
    fn a_container_s_root_is_not_the_host_s() {
        let hierarchy = Hierarchy::new("container");
        hierarchy.group("", &[("memory.max", "500"), ("memory.current", "20")]);
        let mounts = hierarchy.mountinfo("/docker/abc", "cgroup2", "rw");
        let groups = Groups::of("0::/docker/abc\n".into(), &mounts);
        assert_eq!(groups.memory().map(|limit| limit.left()), Some(480));
        let outside = Groups::of("0::/../x\n".into(), &mounts);
        assert_eq!(outside.memory(), None);
        assert_eq!(Groups::of(String::new(), "").memory(), None);
    }

    #[test]
    fn older_hierarchies_have_one_for_each_controller() {
        let hierarchy = Hierarchy::new("cgroup1");
        let files = [("memory.limit_in_bytes", "900"), ("memory.usage_in_bytes", "500")];
        hierarchy.group("a", &files);
        hierarchy.group("a", &[("memory.stat", "inactive_file 1\ntotal_inactive_file 300\n")]);
        let none =
            [("memory.limit_in_bytes", "9223372036854771712"), ("memory.usage_in_bytes", "9")];
        hierarchy.group("", &none);
        let mounts = hierarchy.mountinfo("/", "cgroup", "rw,memory");
        let groups = Groups::of("4:memory:/a\n3:pids,x:/b\n0::/c\n".into(), &mounts);
        let file = hierarchy.0.join("a/memory.limit_in_bytes");
        assert_eq!(groups.memory(), Some(Limit { file, limit: 900, used: 200 }));
        assert_eq!(groups.tasks(), None);
    }
}
