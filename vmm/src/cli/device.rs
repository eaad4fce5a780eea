//! `strait device`.

use std::path::PathBuf;
use std::str::FromStr;

use devices::vfio::driver_binding::Owner;
use devices::vfio::export::Format;
use devices::vfio::iommu::{Backend, IommuOptions};
use lexopt::{Arg, Parser, ValueExt};

use super::owner::owner;
use super::values::GivenOnce;
use super::values::backend;
use super::{Command, VfioPlatformOptions, VfioUserOptions, usage_error};
use crate::error::Error;

pub(super) const HELP: &str = include_str!("help/device.txt");

/// What is to be done with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceVerb {
    /// List them.
    List,
    /// List them for container engines.
    ListCdi,
    /// Show one.
    Show(String),
    /// Show the one that the server with this socket offers.
    ShowVfioUser(VfioUserOptions),
    /// Give these to VFIO.
    Bind(Vec<String>),
    /// Give these back.
    Unbind(Vec<String>),
    /// Drive one, and write a report to this file.
    Test(String, Option<PathBuf>),
    /// Print the nodes of these for another VMM.
    Export(Format, Vec<VfioPlatformOptions>),
    /// Print what a guest's kernel needs for one, by this tree of Linux' sources.
    Kconfig(String, Option<PathBuf>),
}

/// What is to be done, and how it is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// What is to be done.
    pub verb: DeviceVerb,
    /// Include the other devices of the groups.
    pub group: bool,
    /// Take what the host uses.
    pub force: bool,
    /// Whose the devices' files are to be.
    pub owner: Option<Owner>,
    /// The way to the IOMMU.
    pub iommu: IommuOptions,
    /// Report as JSON.
    pub json: bool,
}

/// Parses what follows `device`.
#[cold]
pub(super) fn parse(parser: &mut Parser) -> Result<Command, Error> {
    let mut words = Words::default();
    if words.take_all(parser).map_err(|e| usage_error(&e, "device"))? {
        return Ok(Command::Print(HELP.into()));
    }
    words.resolve().map(Command::Device)
}

/// What is on the command line.
#[derive(Default)]
struct Words {
    verb: Option<String>,
    names: Vec<String>,
    vfio_user: Option<VfioUserOptions>,
    group: bool,
    force: bool,
    owner: Option<Owner>,
    backend: Option<Option<Backend>>,
    format: Option<Format>,
    tree: Option<PathBuf>,
    report: Option<PathBuf>,
    cdi: bool,
    json: bool,
}

impl Words {
    /// Takes all that is there; whether help was asked for.
    fn take_all(&mut self, parser: &mut Parser) -> Result<bool, lexopt::Error> {
        let mut once = GivenOnce::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("json") => self.json = true,
                Arg::Long("cdi") => self.cdi = true,
                Arg::Long("group") => self.group = true,
                Arg::Long("force") => self.force = true,
                Arg::Long("owner") => self.owner = Some(once.parsed("--owner", parser, owner)?),
                Arg::Long("iommu") => {
                    self.backend = Some(once.parsed("--iommu", parser, backend)?);
                }
                Arg::Long("for") => self.format = Some(once.parsed("--for", parser, format)?),
                Arg::Long("tree") => self.tree = Some(once.value("--tree", parser)?.into()),
                Arg::Long("report") => {
                    self.report = Some(once.value("--report", parser)?.into());
                }
                Arg::Long("vfio-user") => {
                    self.vfio_user =
                        Some(once.parsed("--vfio-user", parser, VfioUserOptions::from_str)?);
                }
                Arg::Long("help") | Arg::Short('h') => return Ok(true),
                Arg::Value(word) if self.verb.is_none() => self.verb = Some(word.string()?),
                Arg::Value(word) => self.names.push(word.string()?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(false)
    }

    fn resolve(self) -> Result<DeviceOptions, Error> {
        let help = "strait device --help";
        let verb = self.verb.ok_or_else(|| {
            Error::usage("list, show, bind, unbind, test, export or kconfig is needed").help(help)
        })?;
        let nameless = || {
            Error::usage(format!("`device {verb}` needs a device's name"))
                .help("strait device list")
        };
        let one = || match &self.names[..] {
            [] => Err(nameless()),
            [name] => Ok(name.clone()),
            _ => Err(Error::usage(format!("`device {verb}` takes one device")).help(help)),
        };
        let some = || if self.names.is_empty() { Err(nameless()) } else { Ok(self.names.clone()) };
        let parsed = match verb.as_str() {
            "list" if self.names.is_empty() && self.cdi => DeviceVerb::ListCdi,
            "list" if self.names.is_empty() => DeviceVerb::List,
            "list" => return Err(Error::usage("`device list` takes no name").help(help)),
            "show" => match &self.vfio_user {
                Some(vfio_user) if self.names.is_empty() => {
                    DeviceVerb::ShowVfioUser(vfio_user.clone())
                }
                _ => DeviceVerb::Show(one()?),
            },
            "bind" => DeviceVerb::Bind(some()?),
            "unbind" => DeviceVerb::Unbind(some()?),
            "test" => DeviceVerb::Test(one()?, self.report.clone()),
            "kconfig" => DeviceVerb::Kconfig(one()?, self.tree.clone()),
            "export" => {
                let format = self.format.ok_or_else(|| {
                    Error::usage("`device export` needs --for").help(format!(
                        "strait device export {} --for {}",
                        some().map_or_else(|_| "NAME".to_owned(), |names| names.join(" ")),
                        Format::Crosvm.name()
                    ))
                })?;
                let devices = some()?.into_iter().map(|name| {
                    name.parse().map_err(|why: String| Error::usage(format!("{name}: {why}")))
                });
                DeviceVerb::Export(format, devices.collect::<Result<_, _>>()?)
            }
            other => {
                return Err(Error::usage(format!(
                    "`{other}` is nothing that can be done with a device"
                ))
                .help(help));
            }
        };
        if self.vfio_user.is_some() && !matches!(parsed, DeviceVerb::ShowVfioUser(_)) {
            return Err(Error::usage(format!("`device {verb}` takes no --vfio-user"))
                .help("strait device show --vfio-user PATH"));
        }
        if self.group && !matches!(parsed, DeviceVerb::Bind(_) | DeviceVerb::Unbind(_)) {
            return Err(Error::usage(format!("`device {verb}` takes no --group")).help(help));
        }
        for (option, is_there) in [("force", self.force), ("owner", self.owner.is_some())] {
            if is_there && !matches!(parsed, DeviceVerb::Bind(_)) {
                return Err(Error::usage(format!("`device {verb}` takes no --{option}")).help(help));
            }
        }
        if self.backend.is_some() && !matches!(parsed, DeviceVerb::Show(_) | DeviceVerb::Test(..)) {
            return Err(Error::usage(format!("`device {verb}` takes no --iommu")).help(help));
        }
        if self.cdi && parsed != DeviceVerb::ListCdi {
            return Err(Error::usage(format!("`device {verb}` takes no --cdi")).help(help));
        }
        if self.tree.is_some() && !matches!(parsed, DeviceVerb::Kconfig(..)) {
            return Err(Error::usage(format!("`device {verb}` takes no --tree")).help(help));
        }
        if self.report.is_some() && !matches!(parsed, DeviceVerb::Test(..)) {
            return Err(Error::usage(format!("`device {verb}` takes no --report")).help(help));
        }
        if self.format.is_some() && !matches!(parsed, DeviceVerb::Export(..)) {
            return Err(Error::usage(format!("`device {verb}` takes no --for")).help(help));
        }
        let backend = self.backend.flatten();
        let iommu = IommuOptions { backend, iommufd: None };
        let Self { group, force, owner, json, .. } = self;
        Ok(DeviceOptions { verb: parsed, group, force, owner, iommu, json })
    }
}

/// The VMM for which a node is exported.
fn format(text: &str) -> Result<Format, String> {
    let names = || Format::ALL.map(Format::name).join(", ");
    let named = Format::ALL.into_iter().find(|format| format.name() == text);
    named.ok_or_else(|| format!("there are {}", names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(words: &[&str]) -> Result<DeviceOptions, Error> {
        let words = ["strait", "device"].iter().chain(words);
        match super::super::parse(Parser::from_iter(words))? {
            Command::Device(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_verb_takes_its_names() {
        let xen = vec!["a,addr=host".parse().unwrap(), "b".parse().unwrap()];
        let cases: [(&[&str], DeviceVerb); 11] = [
            (&["list"], DeviceVerb::List),
            (&["list", "--cdi"], DeviceVerb::ListCdi),
            (&["show", "a"], DeviceVerb::Show("a".into())),
            (&["show", "--vfio-user", "/s"], DeviceVerb::ShowVfioUser("/s".parse().unwrap())),
            (&["bind", "a", "b"], DeviceVerb::Bind(vec!["a".into(), "b".into()])),
            (&["unbind", "a"], DeviceVerb::Unbind(vec!["a".into()])),
            (&["test", "a"], DeviceVerb::Test("a".into(), None)),
            (&["test", "a", "--report", "/r"], DeviceVerb::Test("a".into(), Some("/r".into()))),
            (&["kconfig", "a"], DeviceVerb::Kconfig("a".into(), None)),
            (&["kconfig", "a", "--tree", "/t"], DeviceVerb::Kconfig("a".into(), Some("/t".into()))),
            (&["export", "a,addr=host", "b", "--for", "xen"], DeviceVerb::Export(Format::Xen, xen)),
        ];
        for (words, verb) in cases {
            assert_eq!(device(words).unwrap().verb, verb, "{words:?}");
        }
        let options = device(&["--json", "bind", "--group", "a"]).unwrap();
        assert!(options.json && options.group);
        let options = device(&["bind", "--owner", "1000:100", "--force", "a"]).unwrap();
        assert!(options.force && options.owner == Some(Owner { user: 1000, group: Some(100) }));
        for verb in ["show", "test"] {
            let options = device(&[verb, "--iommu", "container", "a"]).unwrap();
            assert_eq!(options.iommu.backend, Some(Backend::Container), "{verb}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases: [&[&str]; 29] = [
            &[],
            &["list", "a"],
            &["show"],
            &["show", "a", "b"],
            &["bind"],
            &["test", "--group", "a"],
            &["list", "--group"],
            &["unbind", "--force", "a"],
            &["unbind", "--owner", "1000", "a"],
            &["bind", "--owner", "no-such-user", "a"],
            &["bind", "a", "--owner"],
            &["bind", "--iommu", "container", "a"],
            &["show", "--iommu", "none", "a"],
            &["eat", "a"],
            &["list", "--yaml"],
            &["show", "--vfio-user"],
            &["show", "--vfio-user", "/s", "a"],
            &["test", "--vfio-user", "/s", "a"],
            &["show", "--vfio-user", "/s", "--vfio-user", "/t"],
            &["test", "a", "--iommu", "auto", "--iommu", "auto"],
            &["show", "a", "--cdi"],
            &["show", "a", "--report", "/r"],
            &["kconfig"],
            &["show", "a", "--tree", "/t"],
            &["export", "a"],
            &["export", "--for", "xen"],
            &["export", "a", "--for", "bhyve"],
            &["export", "a,size=1", "--for", "xen"],
            &["show", "a", "--for", "xen"],
        ];
        for words in cases {
            assert_eq!(device(words).unwrap_err().exit_status(), 2, "{words:?}");
        }
    }
}
