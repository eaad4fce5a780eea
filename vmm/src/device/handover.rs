//! `strait device bind` and `unbind`, and what `strait run --bind` does around a run.

use devices::vfio::host::{Handover, Host, IommuGroup, Sysfs};
use serde::Serialize;

use crate::error::Error;

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
    /// What still keeps it from being assigned.
    note: Option<String>,
}

/// Gives devices to VFIO.
///
/// # Errors
///
/// One can't be; then none is.
pub fn bind(host: &Host, names: &[String], group: bool) -> Result<Outcome, Error> {
    let bound = Handover::new(host, &Sysfs).bind(names, group)?;
    let mut steps = Vec::new();
    for bound in bound {
        steps.push(Step {
            name: bound.device.name().to_owned(),
            driver: bound.device.driver()?,
            driver_before: bound.before,
            changed: !bound.already,
            note: bound.device.group()?.and_then(|group| in_use(&host.group(group))),
        });
    }
    Ok(Outcome(steps))
}

/// Gives devices back.
///
/// # Errors
///
/// One can't be; the others are.
pub fn unbind(host: &Host, names: &[String], group: bool) -> Result<Outcome, Error> {
    let released = Handover::new(host, &Sysfs).unbind(names, group)?;
    let steps = released.into_iter().map(|released| Step {
        name: released.device.name().to_owned(),
        driver: released.driver,
        driver_before: None,
        changed: !released.already,
        note: None,
    });
    Ok(Outcome(steps.collect()))
}

/// Who else of the group is in use on the host.
fn in_use(group: &IommuGroup) -> Option<String> {
    let members = group.members().ok()?;
    let busy: Vec<String> =
        members.iter().filter(|m| !m.yields()).map(|m| m.name.clone()).collect();
    (!busy.is_empty()).then(|| {
        format!("its IOMMU group is shared with {}, which the host uses: --group", busy.join(", "))
    })
}

impl Outcome {
    /// A line for each device.
    pub fn to_text(&self) -> String {
        self.0.iter().map(Step::to_text).collect()
    }
}

impl Step {
    fn to_text(&self) -> String {
        let driver = self.driver.as_deref().map_or_else(
            || "it has no driver".to_owned(),
            |driver| format!("its driver is {driver}"),
        );
        let before = match (&self.driver_before, self.changed) {
            (Some(driver), true) => format!(", before {driver}"),
            (_, true) => String::new(),
            (_, false) => " already".to_owned(),
        };
        let note = self.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        format!("{}: {driver}{before}{note}\n", self.name)
    }
}

/// Devices bound for the time of a run; given back when dropped. The machine must be gone by then:
/// the kernel waits for whoever has a device open.
///
/// A strait that is killed (SIGKILL) can give nothing back: `strait device unbind` does it then,
/// from what is remembered in /run/strait.
pub struct Borrowed {
    host: Host,
    names: Vec<String>,
}

impl Borrowed {
    /// Binds those of these devices that aren't bound; those of descriptors are.
    ///
    /// # Errors
    ///
    /// One can't be; then none is.
    pub fn take(names: &[&str]) -> Result<Self, Error> {
        let host = Host::default();
        let bound = Handover::new(&host, &Sysfs).bind(names, false)?;
        let changed = bound.iter().filter(|bound| !bound.already);
        let names = changed.map(|bound| bound.device.path().display().to_string()).collect();
        Ok(Self { host, names })
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let names = std::mem::take(&mut self.names);
        if names.is_empty() {
            return;
        }
        if let Err(error) = Handover::new(&self.host, &Sysfs).unbind(&names, false) {
            log::error!("{}", Error::from(error).told());
        }
    }
}
