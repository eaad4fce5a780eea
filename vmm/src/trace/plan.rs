//! What is traced of which device.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use devices::vfio::irq::IrqTap;
use devices::vfio::register_table::{Place, RegisterTable};

use super::table;
use crate::assigned::AssignedDevice;
use crate::cli::{TraceFormat, TraceOptions, TraceRegister, VfioPlatformOptions};
use crate::error::Error;

/// A trace to be.
pub struct TracePlan {
    /// The device's name in sysfs.
    pub device: String,
    /// Where it goes; standard error without.
    pub out: Option<PathBuf>,
    /// In which form.
    pub format: TraceFormat,
    /// The device's registers.
    pub table: RegisterTable,
    /// What is recorded, if that isn't all.
    pub filter: Option<Vec<Place>>,
    /// Only the newest of so many events, until they are asked for.
    pub last: Option<usize>,
    /// Which value in a register asks for them.
    pub trigger: Option<(Vec<Place>, u64)>,
    /// With the guest's program counter.
    pub pc: bool,
    /// Its interrupts.
    pub taps: Vec<IrqTap>,
}

/// Of which device, in which form, where to, and what.
impl Display for TracePlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { device, out, format, table, filter, last, trigger, .. } = self;
        write!(f, "{device}, {}, to ", format.name())?;
        match out {
            Some(path) => write!(f, "{}", path.display())?,
            None => write!(f, "standard error")?,
        }
        match (table.registers().len(), filter) {
            (0, None) => write!(f, "; its registers have no names")?,
            (count, None) => write!(f, "; {count} registers have names")?,
            (_, Some(_)) => write!(f, "; some registers")?,
        }
        if let Some(last) = last {
            write!(f, "; the newest {last} events, at the end")?;
        }
        trigger.iter().try_for_each(|(_, value)| write!(f, " or by {value:#x}"))
    }
}

/// Plans these traces of devices, which were given by these options, and has the devices' accesses and
/// interrupts come to strait.
///
/// # Errors
///
/// There is no such device, it is traced twice, its registers have no such names, or a table can't be read.
pub fn plan(
    traces: &[TraceOptions],
    given: &[VfioPlatformOptions],
    devices: &mut [AssignedDevice],
) -> Result<Vec<TracePlan>, Error> {
    let mut planned: Vec<TracePlan> = Vec::new();
    for options in traces {
        let name = &options.device;
        let names: Vec<_> = devices.iter().map(|device| device.name().to_owned()).collect();
        let mut given = devices.iter_mut().zip(given);
        let Some((device, _)) = given.find(|(device, given)| is_named(name, device, given)) else {
            let help = match names.as_slice() {
                [] => "--vfio-platform NAME --trace NAME".to_owned(),
                names => format!("--trace {}", names.join(" or ")),
            };
            let why = "the guest has no platform device of that name, and others can't be traced";
            return Err(Error::usage(format!("--trace {name}: {why}")).help(help));
        };
        if planned.iter().any(|other| other.device == device.name()) {
            return Err(Error::usage(format!("--trace {name}: it is traced already"))
                .help("--trace once for each device"));
        }
        planned.push(of_device(options, device)?);
    }
    Ok(planned)
}

/// Whether the device is called so: by its name in sysfs, as it was given, or by its node in the guest.
fn is_named(name: &str, device: &AssignedDevice, given: &VfioPlatformOptions) -> bool {
    let node = device.nodes.device.name();
    name == device.name()
        || given.which.name() == Some(name)
        || name.rsplit('/').next().is_some_and(|last| last == node)
}

fn of_device(options: &TraceOptions, device: &mut AssignedDevice) -> Result<TracePlan, Error> {
    let table = match (&options.table, device.device.binding()) {
        (Some(path), _) => table::read(path)?,
        (None, Some(binding)) => RegisterTable::parse(binding.registers),
        (None, None) => RegisterTable::default(),
    };
    let name = device.name().to_owned();
    let places = |register: &TraceRegister| match register {
        TraceRegister::Offsets(range) => Ok(vec![(0, range.clone())]),
        TraceRegister::Name(register) => match table.find(register) {
            places if places.is_empty() => Err(no_register(&name, register, &table)),
            places => Ok(places),
        },
    };
    let registers: Vec<_> = options.registers.iter().map(places).collect::<Result<_, _>>()?;
    let registers = registers.concat();
    let trigger = options.trigger.as_ref();
    let trigger = trigger.map(|(register, value)| Ok::<_, Error>((places(register)?, *value)));
    Ok(TracePlan {
        out: options.out.clone(),
        format: options.format,
        filter: (!registers.is_empty()).then_some(registers),
        last: options.last,
        trigger: trigger.transpose()?,
        pc: options.pc,
        taps: device.device.tap()?,
        device: name,
        table,
    })
}

/// The error of a register that isn't there.
fn no_register(device: &str, register: &str, table: &RegisterTable) -> Error {
    let names: Vec<_> = table.registers().iter().map(|register| register.name.as_str()).collect();
    let why = format!("--trace {device}: no register is called {register}");
    let help = match names.as_slice() {
        [] => "table=FILE with its registers, or offsets: 0x0-0xff".to_owned(),
        names => format!("they are {}; or offsets: 0x0-0xff", names.join(", ")),
    };
    Error::usage(why).help(help)
}
