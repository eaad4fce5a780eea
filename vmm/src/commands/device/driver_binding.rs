//! `strait device bind` and `unbind`, and what `strait run --bind` does around a run.

use std::fmt::{self, Display, Formatter};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use boot::file::shell_word;
use boot::help::Help;
use devices::vfio::driver_binding::{
    BindError, BindOptions, BindOutcome, DriverBinding, Owner, Sysfs,
};
use devices::vfio::error_chain;
use devices::vfio::host::{Host, HostDevice, IommuGroup};
use serde::Serialize;

use super::summary::{File, driver_before};
use crate::error::Error;
use crate::signals;

/// What became of devices.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Outcome(Vec<Step>);

/// What became of one.
#[derive(Debug, Serialize)]
struct Step {
    name: String,
    driver: Option<String>,
    driver_before: Option<String>,
    changed: bool,
    /// The files by which VFIO gives access to it.
    files: Vec<File>,
    /// What still keeps it from being assigned.
    note: Option<String>,
}

impl From<BindOutcome> for Step {
    fn from(outcome: BindOutcome) -> Self {
        let BindOutcome { device, driver, before, changed } = outcome;
        let (name, files) = (device.name().to_owned(), Vec::new());
        Self { name, driver, driver_before: before, changed, files, note: None }
    }
}

/// Binds devices to VFIO's drivers.
///
/// # Errors
///
/// One can't be bound; then none is.
pub fn bind(host: &Host, names: &[String], options: &BindOptions) -> Result<Outcome, Error> {
    let bound = DriverBinding::new(host, &Sysfs).bind(names, options)?;
    let closed = options.owner.and_then(|owner| closed_to(host, owner));
    let mut steps = Vec::new();
    for bound in bound {
        let group = bound.device.group()?;
        let note = group.and_then(|group| in_use(&host.group(group))).or_else(|| closed.clone());
        let (driver_before, files) =
            (driver_before(host, &bound.device)?, File::of(host, &bound.device));
        steps.push(Step { driver_before, files, note, ..Step::from(bound) });
    }
    Ok(Outcome(steps))
}

/// Binds devices to the drivers they had.
///
/// # Errors
///
/// One can't be unbound from VFIO's driver; the others are.
pub fn unbind(host: &Host, names: &[String], group: bool) -> Result<Outcome, Error> {
    let released = DriverBinding::new(host, &Sysfs).unbind(names, group)?;
    let steps =
        released.into_iter().map(|outcome| Step { driver_before: None, ..Step::from(outcome) });
    Ok(Outcome(steps.collect()))
}

/// Who else of the group is in use on the host.
fn in_use(group: &IommuGroup) -> Option<String> {
    let members = group.members().ok()?;
    let busy: Vec<String> =
        members.iter().filter(|m| !m.leaves_dma_to_vfio()).map(|m| m.name.clone()).collect();
    (!busy.is_empty()).then(|| {
        format!("its IOMMU group is shared with {}, which the host uses: --group", busy.join(", "))
    })
}

/// What a device's owner may not open yet: iommufd or the container, which all users of devices share and
/// which give access to no device by themselves.
fn closed_to(host: &Host, owner: Owner) -> Option<String> {
    let ways = [host.iommufd_node(), host.container_node()];
    let ways: Vec<_> = ways
        .iter()
        .filter_map(|path| Some((path, path.metadata().ok()?)))
        .filter(|(_, metadata)| metadata.mode() & 0o007 < 0o006 && metadata.uid() != owner.user)
        .map(|(path, _)| path.display().to_string())
        .collect();
    // One of the two is enough; if neither exists, `strait check` says so.
    let all = [host.iommufd_node(), host.container_node()].iter().filter(|p| p.exists()).count();
    let closed = owner.user != 0 && !ways.is_empty() && ways.len() == all;
    closed.then(|| format!("user {} also needs: sudo chmod 666 {}", owner.user, ways.join(" ")))
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let driver = self.driver.as_deref().map_or_else(
            || "it has no driver".to_owned(),
            |driver| format!("its driver is {driver}"),
        );
        let before = match (&self.driver_before, self.changed) {
            (Some(driver), true) => format!(", before {driver}"),
            (_, true) => String::new(),
            (_, false) => " already".to_owned(),
        };
        let files = match &self.files[..] {
            [] => String::new(),
            files => format!("; {}", File::list(files)),
        };
        let note = self.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        write!(f, "{}: {driver}{before}{files}{note}", self.name)
    }
}

/// Devices that are bound to VFIO for a run, and back to their drivers when dropped. The machine must be
/// gone by then: unbinding waits for processes that have a device open.
///
/// After SIGKILL, `strait device unbind` does that, by the records in /run/strait.
pub struct BindGuard {
    host: Host,
    names: Vec<String>,
}

impl BindGuard {
    /// Binds those of these devices that aren't bound. With `force`, also those that the host uses.
    ///
    /// # Errors
    ///
    /// One can't be bound; then none is.
    pub fn bind(names: &[&str], force: bool) -> Result<Self, Error> {
        let host = Host::default();
        let options = BindOptions { force, ..BindOptions::default() };
        let bound =
            DriverBinding::new(&host, &Sysfs).bind(names, &options).inspect_err(|error| {
                // The run ends by the signal then, and says nothing more.
                if error.is_hung() && signals::is_end_pending() {
                    log::error!("{}", error_chain::chain(error));
                }
            })?;
        let changed = bound.iter().filter(|bound| bound.changed);
        let names = changed.map(|bound| bound.device.path().display().to_string()).collect();
        Ok(Self { host, names })
    }

    /// Whether none had to be bound.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Leaves those of these devices bound to VFIO that were bound here, and says how they can be given back.
    #[cold]
    pub fn keep(&mut self, devices: &[HostDevice]) {
        for device in devices {
            let before = self.names.len();
            self.names.retain(|name| Path::new(name) != device.path());
            if self.names.len() < before {
                log::warn!("{}", kept(device.name()));
            }
        }
    }

    /// Leaves them to another process that has this.
    pub fn leave(mut self) {
        self.names.clear();
    }
}

impl Drop for BindGuard {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.names);
        if names.is_empty() {
            return;
        }
        let unbind = || DriverBinding::new(&self.host, &Sysfs).unbind(&names, false);
        // The host may have been short of something for a moment.
        let again =
            |error: BindError| if error.is_hung() { Err(error) } else { unbind().map(drop) };
        if let Err(error) = unbind().map(drop).or_else(again) {
            log::error!("{}", not_given_back(&names, error).log_text());
        }
    }
}

/// What is said of a device that stays bound because it may still run.
#[cold]
fn kept(name: &str) -> String {
    let unbind = format!("strait device unbind {}", shell_word(Path::new(name)));
    Error::new(format!(
        "{name} stays bound to VFIO: it didn't stop, and its driver would find it running"
    ))
    .help(format!("if its driver can take it as it is: {unbind}"))
    .log_text()
}

/// What is said of devices that stay bound after a run, with how they can be given back.
#[cold]
fn not_given_back(names: &[String], error: BindError) -> Error {
    let names = names.iter().map(|name| Path::new(name).file_name().unwrap_or_default());
    let names: Vec<_> = names.map(|name| shell_word(Path::new(name))).collect();
    let unbind = format!("strait device unbind {}", names.join(" "));
    let help = match error.help() {
        Some(help) if help.contains(&unbind) => help,
        Some(help) => format!("{help}\nthen: {unbind}"),
        None => unbind,
    };
    Error::from(error).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_may_still_run_is_not_given_back() {
        let root = std::env::temp_dir().join(format!("strait-kept-{}", std::process::id()));
        for name in ["1.dma", "2.dma"] {
            std::fs::create_dir_all(root.join("bus/platform/devices").join(name)).unwrap();
        }
        let host = Host::at(&root, &root, &root, &root);
        let devices = ["1.dma", "2.dma"].map(|name| host.find(name).unwrap().unwrap());
        let names = devices.iter().map(|device| device.path().display().to_string()).collect();
        let mut guard = BindGuard { host, names };
        guard.keep(&devices[..1]);
        assert_eq!(guard.names, [devices[1].path().display().to_string()]);
        guard.leave();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(kept("1.dma").ends_with("strait device unbind 1.dma"));
    }

    #[test]
    fn devices_that_stay_bound_are_said_with_the_command() {
        let names = ["/sys/devices/platform/2c0a0000.dma", "/sys/devices/pci0000:00/0000:00:05.0"];
        let names = names.map(str::to_owned);
        let gone = || BindError::DriverGone {
            name: "2c0a0000.dma".into(),
            driver: "dma-pl330".into(),
            module: Some("pl330".into()),
            path: "/sys/devices/platform/2c0a0000.dma".into(),
        };
        let error = gone();
        let text = not_given_back(&names, error).log_text();
        let end = "modprobe pl330 && strait device unbind 2c0a0000.dma\n        \
                   then: strait device unbind 2c0a0000.dma 0000:00:05.0";
        assert!(text.ends_with(end), "{text}");
        let error = gone();
        assert_eq!(not_given_back(&names[..1], error).log_text().matches("unbind").count(), 1);
    }
}
