//! `strait device`: the host's devices, before any guest is involved.

mod cdi;
mod driver_binding;
mod export;
mod function;
mod kconfig;
mod list;
mod pci_ids;
mod show;
mod summary;
mod test;
mod vfio_info;
mod vfio_user;

use devices::vfio::driver_binding::BindOptions;
use devices::vfio::host::Host;
use log::LevelFilter;

use super::print::print;
use crate::cli::{DeviceOptions, DeviceVerb};
use crate::error::Error;
use crate::output;

pub use driver_binding::BindGuard;
pub use function::FunctionDetails;

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
        DeviceVerb::Test(name) => {
            let verdict = test::run(&host, name, options.iommu)?;
            print(json, &verdict)?;
            return Ok(u8::from(!verdict.passed()));
        }
    }
    Ok(0)
}
