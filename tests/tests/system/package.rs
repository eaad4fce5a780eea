//! The packages that `cargo model package` makes, installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use elf::ElfBytes;
use elf::endian::LittleEndian;
use tests::artifacts::Artifacts;
use tests::harness::{Board, TestResult};
use tests::package;
use tests::setup::workspace;

/// What a command prints, which must succeed.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}:\n{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a program is installed.
fn is_installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null")])
        .status()
        .unwrap()
        .success()
}

/// The most bytes that strait may have.
const MAX_SIZE: usize = 2_800_000;

#[test]
fn strait_is_stripped_and_small() {
    let program = fs::read(Artifacts::from_env().unwrap().strait).unwrap();
    let file = ElfBytes::<LittleEndian>::minimal_parse(&program).unwrap();
    assert!(file.symbol_table().unwrap().is_none(), "strait has its symbols");
    if std::env::var_os("CARGO_PROFILE_RELEASE_LTO").is_some() {
        println!("strait was built in another way than people do: how large it is says nothing");
        return;
    }
    assert!(program.len() <= MAX_SIZE, "{} bytes", program.len());
}

#[test]
fn dpkg_installs_the_debian_package() {
    if !is_installed("dpkg-deb") {
        println!("dpkg-deb isn't here: the Debian package isn't tried");
        return;
    }
    let strait = Artifacts::from_env().unwrap().strait;
    let directory = std::env::temp_dir().join(format!("strait-package-{}", std::process::id()));
    let paths = package::write(&strait, &directory).unwrap();
    let deb = paths[0].to_str().unwrap();
    for (field, value) in [("Package", "strait"), ("Architecture", "arm64")] {
        assert_eq!(output("dpkg-deb", &["--field", deb, field]).trim(), value);
    }
    let contents = output("dpkg-deb", &["--contents", deb]);
    let entry =
        |path: &str| contents.lines().find(|line| line.ends_with(&format!(" ./usr/{path}")));
    for (path, mode) in [
        ("bin/strait", "-rwxr-xr-x root/root"),
        ("share/man/man1/strait.1.gz", "-rw-r--r-- root/root"),
        ("share/bash-completion/completions/strait", "-rw-r--r-- "),
        ("share/fish/vendor_completions.d/strait.fish", "-rw-r--r-- "),
        ("share/zsh/vendor-completions/_strait", "-rw-r--r-- "),
        ("share/doc/strait/copyright", "-rw-r--r-- "),
        ("share/doc/strait/README.md", "-rw-r--r-- "),
        ("share/doc/strait/resources/docs/host.md", "-rw-r--r-- "),
        ("share/doc/strait/resources/examples/60-strait.rules", "-rw-r--r-- "),
        ("share/doc/strait/resources/ci/boot-test.sh", "-rwxr-xr-x "),
        ("share/doc/strait/resources/ci/lava/strait.yaml", "-rw-r--r-- "),
        ("share/doc/strait/resources/guest.config", "-rw-r--r-- "),
    ] {
        let line = entry(path).unwrap_or_else(|| panic!("no {path} in:\n{contents}"));
        assert!(line.starts_with(mode), "{line}");
    }
    // Examples are for reading: nothing is active because it is installed.
    assert!(!contents.contains("/etc/") && !contents.contains("/systemd/"), "{contents}");

    let root = directory.join("root");
    let root = root.to_str().unwrap();
    output("dpkg-deb", &["--extract", deb, root]);
    assert!(fs::read(format!("{root}/usr/bin/strait")).unwrap() == fs::read(&strait).unwrap());
    let page = format!("{root}/usr/share/man/man1/strait.1.gz");
    if is_installed("man") {
        let text = output("man", &["--warnings", &page]);
        assert!(text.contains("--vfio-platform"), "{text}");
    }
    installed_by_dpkg(deb, &format!("{root}-dpkg"));
    fs::remove_dir_all(&directory).unwrap();
}

/// Has dpkg install the package into an empty system of its own, and remove it again.
fn installed_by_dpkg(deb: &str, root: &str) {
    fs::create_dir_all(format!("{root}/var/lib/dpkg/updates")).unwrap();
    fs::create_dir_all(format!("{root}/var/lib/dpkg/info")).unwrap();
    fs::write(format!("{root}/var/lib/dpkg/status"), "").unwrap();
    let root_option = format!("--root={root}");
    let dpkg = |arguments: &[&str]| {
        let fixed = [&root_option, "--force-architecture", "--force-not-root", "--log=/dev/null"];
        output("dpkg", &[&fixed[..], arguments].concat())
    };
    dpkg(&["--install", deb]);
    assert!(dpkg(&["--status", "strait"]).contains("Status: install ok installed"));
    assert!(Path::new(&format!("{root}/usr/bin/strait")).exists());
    dpkg(&["--purge", "strait"]);
    assert!(!Path::new(&format!("{root}/usr")).exists());
}

#[test]
fn the_tar_archive_unpacks_on_a_board() -> TestResult {
    let strait = Artifacts::from_env().unwrap().strait;
    let archive = package::tarball(&strait).unwrap();
    let host = Board::new().file("tmp/strait.tar.gz", archive).boot()?;
    host.sh(
        "mkdir -p /usr/local && cd /usr/local && tar -xzf /tmp/strait.tar.gz --strip-components=1",
    )?;
    let version = host.sh("/usr/local/bin/strait --version")?;
    assert_eq!(version.trim(), concat!("strait ", env!("CARGO_PKG_VERSION")));
    host.sh("cmp /usr/local/bin/strait /bin/strait && ! find /usr/local ! -user 0 | grep .")?;
    let page = host.sh("zcat /usr/local/share/man/man1/strait.1.gz")?;
    assert_eq!(page, fs::read_to_string(workspace::root().join("resources/strait.1")).unwrap());
    Ok(())
}
