//! What is traced of which device.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use devices::vfio::assign::DeviceRef;
use devices::vfio::bindings;
use devices::vfio::fd_limit;
use devices::vfio::pci::PciFunction;
use devices::vfio::register_table::{Place, RegisterTable};

use super::table;
use super::tap::Tap;
use crate::assigned::{AssignedDevice, AssignedDevices};
use crate::cli::{RunOptions, TraceFormat, TraceOptions, TraceRegister};
use crate::error::Error;
use crate::functions::AssignedFunction;

/// The descriptors of an interrupt that is passed on: two eventfds of a level, or one and a vector's again.
const DESCRIPTORS_OF_TAP: u64 = 2;

/// A trace to be.
pub struct TracePlan {
    /// The device's name: in sysfs, or of its server's socket.
    pub device: String,
    /// It is a PCI function.
    pub is_function: bool,
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
    /// It begins with the guest, or when it is turned on.
    pub start: bool,
    /// Its interrupts.
    pub taps: Vec<Tap>,
}

impl TracePlan {
    /// How many descriptors its interrupts take at most, beside those of an interrupt that isn't traced.
    pub fn descriptors(&self) -> u64 {
        (self.taps.len() as u64).saturating_mul(DESCRIPTORS_OF_TAP)
    }
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

/// Plans the traces of a run's devices, and has the devices' accesses and interrupts come to strait.
///
/// # Errors
///
/// There is no such device, it is traced twice, its registers have no such names, or a table can't be read.
pub fn plan(options: &RunOptions, assigned: &mut AssignedDevices) -> Result<Vec<TracePlan>, Error> {
    let mut planned: Vec<TracePlan> = Vec::new();
    for trace in &options.trace {
        let name = &trace.device;
        let Some(traced) = Traced::find(name, options, assigned) else {
            return Err(no_device(name, assigned));
        };
        if planned.iter().any(|other| other.device == traced.name()) {
            return Err(Error::usage(format!("--trace {name}: it is traced already"))
                .help("--trace once for each device"));
        }
        planned.push(of_device(trace, traced)?);
    }
    Ok(planned)
}

/// A device that is traced.
enum Traced<'a> {
    Platform(&'a mut AssignedDevice),
    Function(&'a AssignedFunction),
}

impl<'a> Traced<'a> {
    /// The device that is called so.
    fn find(name: &str, options: &RunOptions, assigned: &'a mut AssignedDevices) -> Option<Self> {
        let is_given = |which: &DeviceRef| which.name() == Some(name);
        let mut platform = assigned.platform.iter_mut().zip(&options.vfio_platform);
        // By its name in sysfs, as it was given, or by its node in the guest.
        let found = platform.find(|(device, given)| {
            let node = device.nodes.device.name();
            name == device.name()
                || is_given(&given.which)
                || name.rsplit('/').next().is_some_and(|last| last == node)
        });
        if let Some((device, _)) = found {
            return Some(Self::Platform(device));
        }
        // Those of the host come first, in the order given.
        let functions = assigned.functions.iter().enumerate();
        let mut found = functions.filter(|(index, function)| {
            let given = options.vfio_pci.get(*index);
            name == function.name || given.is_some_and(|given| is_given(&given.which))
        });
        found.next().map(|(_, function)| Self::Function(function))
    }

    fn name(&self) -> &str {
        match self {
            Self::Platform(device) => device.name(),
            Self::Function(function) => &function.name,
        }
    }

    /// The registers that strait knows of it, beside those of `given`, if that is the device's own.
    fn table(&self, given: Option<RegisterTable>) -> RegisterTable {
        match (self, given) {
            (Self::Platform(_), Some(given)) => given,
            (Self::Platform(device), None) => {
                let binding = device.device.binding();
                binding.map(|binding| RegisterTable::parse(binding.registers)).unwrap_or_default()
            }
            (Self::Function(_), Some(given)) => bindings::with_header(given),
            (Self::Function(function), None) => {
                let function = function.lock();
                let config = function.get().map(PciFunction::snapshot);
                config.map(bindings::function_registers).unwrap_or_default()
            }
        }
    }

    /// Has its accesses trap, and its interrupts come to strait.
    fn tap(self) -> Result<Vec<Tap>, Error> {
        match self {
            Self::Platform(device) => Ok(Tap::of_device(device.device.tap()?)),
            Self::Function(function) => {
                let mut function = function.lock();
                let Some(function) = function.get_mut() else { return Ok(Vec::new()) };
                let interrupts = function.interrupts();
                let vectors = interrupts.msi_capacity().saturating_add(interrupts.msix_capacity());
                fd_limit::reserve(DESCRIPTORS_OF_TAP.saturating_mul(u64::from(vectors) + 1))?;
                Ok(Tap::of_function(function.tap()?))
            }
        }
    }
}

/// The error of a device that isn't there.
#[cold]
fn no_device(name: &str, assigned: &AssignedDevices) -> Error {
    let platform = assigned.platform.iter().map(AssignedDevice::name);
    let functions = assigned.functions.iter().map(|function| function.name.as_str());
    let names: Vec<_> = platform.chain(functions).collect();
    let help = match names.as_slice() {
        [] => "--vfio-platform NAME or --vfio-pci NAME, and --trace NAME".to_owned(),
        names => format!("--trace {}", names.join(" or ")),
    };
    let why = "the guest has no assigned device of that name, and others can't be traced";
    Error::usage(format!("--trace {name}: {why}")).help(help)
}

fn of_device(options: &TraceOptions, traced: Traced<'_>) -> Result<TracePlan, Error> {
    let table = traced.table(options.table.as_deref().map(table::read).transpose()?);
    let name = traced.name().to_owned();
    let places = |register: &TraceRegister| match register {
        TraceRegister::Offsets(region, range) => Ok(vec![(*region, range.clone())]),
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
        start: options.start,
        is_function: matches!(traced, Traced::Function(_)),
        taps: traced.tap()?,
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
