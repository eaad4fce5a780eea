//! `strait device`: the host's devices, before any guest is involved.

mod cdi;
mod driver_binding;
mod export;
mod function;
mod kconfig;
mod list;
mod pci_ids;
mod report;
mod show;
mod summary;
mod test;
mod vfio_info;
mod vfio_user;

use std::io;
use std::path::Path;

use devices::vfio::driver_binding::BindOptions;
use devices::vfio::host::Host;
use log::LevelFilter;

use super::print::print;
use crate::cli::{DeviceOptions, DeviceVerb};
use crate::error::Error;
use crate::{outfile, output};

pub use driver_binding::BindGuard;
pub use function::FunctionDetails;

/// Whoever the umask leaves may read a report.
const REPORT_MODE: u32 = 0o666;

/// The error of a report that can't be written.
#[cold]
fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::new(format!("the report {} can't be written: {error}", path.display()))
        .help("--report with a path in a directory that this user may write to")
}

/// Does what is asked for, and returns the exit status.
///
/// # Errors
///
/// There is no such device, or it can't be done.
#[cold]
pub fn run(options: &DeviceOptions) -> Result<u8, Error> {
    output::init_log(LevelFilter::Warn);
    let host = Host::default();
    let json = options.json;
    match &options.verb {
        DeviceVerb::List => {
            let list = list::List::of(&host)?;
            print(json, &list)?;
        }
        DeviceVerb::ListCdi => print(json, &cdi::Specification::of(&host)?)?,
        DeviceVerb::Show(name) => {
            let details = show::Details::of(&host, name, options.iommu)?;
            print(json, &details)?;
        }
        DeviceVerb::ShowVfioUser(options) => {
            let info = vfio_user::ServerInfo::of(options)?;
            print(json, &info)?;
        }
        DeviceVerb::Bind(names) => {
            let (group, force, owner) = (options.group, options.force, options.owner);
            let outcome = driver_binding::bind(&host, names, &BindOptions { group, force, owner })?;
            print(json, &outcome)?;
        }
        DeviceVerb::Unbind(names) => {
            let outcome = driver_binding::unbind(&host, names, options.group)?;
            print(json, &outcome)?;
        }
        DeviceVerb::Export(format, devices) => {
            let exported = export::Exported::of(&host, *format, devices)?;
            print(json, &exported)?;
        }
        DeviceVerb::Kconfig(name, tree) => {
            let requirements = kconfig::Requirements::of(&host, name, tree.as_deref())?;
            print(json, &requirements)?;
        }
        DeviceVerb::Test(name, report) => {
            if let Some(path) = report {
                outfile::check(path, REPORT_MODE).map_err(|error| unwritable(path, &error))?;
            }
            let verdict = test::run(&host, name, options.iommu)?;
            if let Some(path) = report {
                let details = show::Details::of(&host, name, options.iommu)?.to_string();
                let page = report::Report { verdict: &verdict, details: &details }.to_string();
                outfile::write(path, REPORT_MODE, page.as_bytes())
                    .map_err(|error| unwritable(path, &error))?;
            }
            print(json, &verdict)?;
            return Ok(u8::from(!verdict.passed()));
        }
    }
    Ok(0)
}
