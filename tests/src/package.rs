//! `cargo model package`: strait as a Debian package and as a tar archive, with man page, completions
//! and documents.
//!
//! Both are reproducible: the same clone and compiler make the same bytes. A Debian package is an `ar`
//! archive of two compressed tar archives (deb(5)).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::setup::workspace;

const NAME: &str = "strait";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What Debian calls 64-bit Arm.
const ARCHITECTURE: &str = "arm64";

/// Where the documents go, below the prefix: laid out as in the clone, so that their links lead to each
/// other.
const DOCUMENTS: &str = "share/doc/strait";

/// The documents, as files or directories of the clone.
const DOCUMENT_SOURCES: [&str; 10] = [
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "resources/ci",
    "resources/cluster",
    "resources/docs",
    "resources/examples",
    "resources/guest.config",
    "resources/paths.svg",
];

/// What Debian wants to know of the licence (Debian Policy, 12.5).
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: the authors of strait
License: Apache-2.0
 On Debian systems the text of the licence is in /usr/share/common-licenses/Apache-2.0.
";

/// A file to be installed.
struct File {
    /// Where, relative to the prefix (`/usr`, `/usr/local`).
    path: String,
    data: Vec<u8>,
    executable: bool,
}

impl File {
    fn new(path: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), data: data.into(), executable: false }
    }

    /// The same with what makes a file executable in the clone: it begins as a program or a script.
    fn of_clone(path: impl Into<String>, from: &Path) -> io::Result<Self> {
        let data = fs::read(from).map_err(|error| with_path(from, &error))?;
        let executable = data.starts_with(b"\x7fELF") || data.starts_with(b"#!");
        Ok(Self { path: path.into(), data, executable })
    }
}

/// Writes both packages of this strait into `directory`; returns their paths.
///
/// # Errors
///
/// A file of the clone can't be read, or a package can't be written.
pub fn write(strait: &Path, directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory).map_err(|error| with_path(directory, &error))?;
    let packages = [
        (format!("{NAME}_{VERSION}_{ARCHITECTURE}.deb"), debian_package(strait)?),
        (format!("{NAME}-{VERSION}-{ARCHITECTURE}.tar.gz"), tarball(strait)?),
    ];
    let written = packages.into_iter().map(|(name, bytes)| {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(|error| with_path(&path, &error)).map(|()| path)
    });
    written.collect()
}

/// The Debian package of this strait.
///
/// # Errors
///
/// A file of the clone can't be read.
pub fn debian_package(strait: &Path) -> io::Result<Vec<u8>> {
    let mut files = files(strait, "vendor-completions")?;
    files.push(File::new(format!("{DOCUMENTS}/copyright"), COPYRIGHT));
    let time = source_date();
    let size: usize = files.iter().map(|file| file.data.len().div_ceil(1024)).sum();
    let control = format!(
        "Package: {NAME}\n\
         Version: {VERSION}\n\
         Architecture: {ARCHITECTURE}\n\
         Maintainer: the authors of strait\n\
         Installed-Size: {size}\n\
         Section: admin\n\
         Priority: optional\n\
         Description: KVM virtual machine monitor for device assignment on 64-bit Arm\n \
         strait gives a guest real devices of the SoC through VFIO: it describes them in a\n \
         device tree made from the host's own, routes their interrupts in the kernel, and\n \
         boots an unmodified kernel whose own drivers drive the hardware.\n"
    );
    let control = archive("./", vec![File::new("control", control)], time)?;
    let data = archive("./usr/", files, time)?;
    let members =
        [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control), ("data.tar.gz", &data)];
    let mut package = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let length = bytes.len();
        writeln!(package, "{name:<16}{time:<12}{:<6}{:<6}{:<8}{length:<10}`", 0, 0, "100644")?;
        package.extend_from_slice(bytes);
        if length % 2 == 1 {
            package.push(b'\n');
        }
    }
    Ok(package)
}

/// The tar archive of this strait, to be unpacked into a prefix without its first directory.
///
/// # Errors
///
/// A file of the clone can't be read.
pub fn tarball(strait: &Path) -> io::Result<Vec<u8>> {
    archive(&format!("{NAME}-{VERSION}/"), files(strait, "site-functions")?, source_date())
}

/// All files but those of one kind of package alone; `zsh` is the directory that zsh looks for
/// completions in.
fn files(strait: &Path, zsh: &str) -> io::Result<Vec<File>> {
    let root = workspace::root();
    let resources = root.join("resources");
    let completion = |from: &str, to: &str| {
        File::of_clone(format!("share/{to}"), &resources.join("completions").join(from))
    };
    let page = fs::read(resources.join("strait.1"))?;
    let mut files = vec![
        File::of_clone("bin/strait", strait)?,
        File::new("share/man/man1/strait.1.gz", compressed(&page)?),
        completion("strait.bash", "bash-completion/completions/strait")?,
        completion("strait.fish", "fish/vendor_completions.d/strait.fish")?,
        completion("_strait", &format!("zsh/{zsh}/_strait"))?,
    ];
    for source in DOCUMENT_SOURCES {
        add(&mut files, &format!("{DOCUMENTS}/{source}"), &root.join(source))?;
    }
    Ok(files)
}

/// Adds a file of the clone, or all that is in a directory of it.
fn add(files: &mut Vec<File>, path: &str, from: &Path) -> io::Result<()> {
    if !from.is_dir() {
        files.push(File::of_clone(path, from)?);
        return Ok(());
    }
    for entry in fs::read_dir(from).map_err(|error| with_path(from, &error))? {
        let entry = entry?;
        add(files, &format!("{path}/{}", entry.file_name().to_string_lossy()), &entry.path())?;
    }
    Ok(())
}

/// A compressed tar archive of these files below `prefix`, sorted, with their directories, everything
/// root's and of this time.
fn archive(prefix: &str, mut files: Vec<File>, time: u64) -> io::Result<Vec<u8>> {
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let mut archive = tar::Builder::new(Vec::new());
    let mut append = |path: &str, kind, mode, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_size(data.len().try_into().map_err(io::Error::other)?);
        // Set by hand: the path's setter drops the `./` that Debian's tools write.
        let field = header.as_old_mut().name.get_mut(..path.len());
        field
            .ok_or_else(|| io::Error::other("a path is too long"))?
            .copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, data)
    };
    let mut directories = std::collections::BTreeSet::new();
    for File { path, data, executable } in &files {
        let path = format!("{prefix}{path}");
        for (end, _) in path.match_indices('/') {
            let directory = path.split_at(end + 1).0;
            if directories.insert(directory.to_owned()) {
                append(directory, tar::EntryType::Directory, 0o755, &[])?;
            }
        }
        append(&path, tar::EntryType::Regular, if *executable { 0o755 } else { 0o644 }, data)?;
    }
    compressed(&archive.into_inner()?)
}

fn compressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The time that all files carry, in seconds since 1970: `SOURCE_DATE_EPOCH`, else the commit's, else
/// none.
fn source_date() -> u64 {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    let of_commit = || {
        let mut git = Command::new("git");
        git.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]);
        String::from_utf8(git.output().ok()?.stdout).ok()
    };
    let text = given.or_else(of_commit).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program, for which `true` will do.
    const PROGRAM: &str = "/bin/true";

    #[test]
    fn the_same_clone_makes_the_same_packages() {
        let program = Path::new(PROGRAM);
        assert_eq!(debian_package(program).unwrap(), debian_package(program).unwrap());
        assert_eq!(tarball(program).unwrap(), tarball(program).unwrap());
    }

    #[test]
    fn entries_are_sorted_and_belong_to_root() {
        let files = ["b/c", "a", "b/a"].map(|path| File::new(path, path)).into();
        let bytes = archive("./", files, 77).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let (uid, gid, time) = (header.uid(), header.gid(), header.mtime());
            assert_eq!((uid.unwrap(), gid.unwrap(), time.unwrap()), (0, 0, 77));
            String::from_utf8(header.path_bytes().into_owned()).unwrap()
        });
        assert_eq!(entries.collect::<Vec<_>>(), ["./", "./a", "./b/", "./b/a", "./b/c"]);
    }

    #[test]
    fn every_link_between_packaged_documents_leads_to_a_packaged_file() {
        let files = files(Path::new(PROGRAM), "site-functions").unwrap();
        let mut links = 0;
        for file in files.iter().filter(|file| file.path.ends_with(".md")) {
            let text = String::from_utf8(file.data.clone()).unwrap();
            let directory = Path::new(&file.path).parent().unwrap();
            for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
                if link.is_empty() || link.contains("://") {
                    continue;
                }
                let mut target = PathBuf::new();
                for part in directory.join(link).components() {
                    match part {
                        std::path::Component::ParentDir => drop(target.pop()),
                        part => target.push(part),
                    }
                }
                links += 1;
                let leads = files.iter().any(|file| Path::new(&file.path).starts_with(&target));
                assert!(leads, "{}: {link}", file.path);
            }
        }
        assert!(links > 20, "{links}");
    }
}
