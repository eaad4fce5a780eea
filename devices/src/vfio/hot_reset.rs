//! Which PCI functions of a guest can be reset with their bus, as those must be that have no reset of their own:
//! all functions there have to be the guest's.

use std::path::Path;
use std::sync::Arc;

use super::error_chain::chain;
use super::host::{Host, HostBus, HostDevice};
use super::pci::{BusReset, PciFunction, StoppedByBus};
use super::uapi::{AffectedFunction, FunctionOwner, Group};

/// Tells each function that VFIO can't reset by itself how it can be reset with its bus, or why it can't. Each
/// stands beside its name in sysfs; together they are all functions of the guest. `group` gives the file of a group
/// that is attached to the guest's container.
pub fn prepare(
    host: &Host,
    group: impl Fn(u32) -> Option<Arc<Group>>,
    functions: &mut [(&str, &mut PciFunction)],
) {
    if !functions.iter().any(|(_, function)| function.needs_bus_reset()) {
        return;
    }
    let kept = functions.iter().filter(|(_, function)| !function.options().reset);
    let kept: Vec<String> = kept.map(|(name, _)| (*name).to_owned()).collect();
    let names: Vec<String> = functions.iter().map(|(name, _)| (*name).to_owned()).collect();
    let bus = Bus { host, group: &group, names: &names, kept: &kept };
    let stopped = StoppedByBus::default();
    for (name, function) in functions.iter_mut().filter(|(_, one)| one.needs_bus_reset()) {
        match function.functions_of_bus() {
            Ok(all) => function.set_bus_reset(bus.reset(name, &all, &stopped)),
            // Neither its bus nor its slot has a reset, as on the root bus.
            Err(error) if error.is(libc::ENODEV) => {}
            // Linux makes the group of a function when a driver is first bound to it.
            Err(error) if error.is(libc::EPERM) && !ungrouped(host, name).is_empty() => {
                function.set_bus_reset(bus.reset(name, &ungrouped(host, name), &stopped));
            }
            Err(error) => {
                let why =
                    format!("VFIO doesn't tell what a reset of its bus resets: {}", chain(&error));
                function.set_bus_reset(Err(why));
            }
        }
    }
}

/// The functions of this one's bus that have no group, for which VFIO refuses to tell what a reset of the bus resets
/// (`vfio_pci_fill_devs`).
#[cold]
fn ungrouped(host: &Host, name: &str) -> Vec<AffectedFunction> {
    let mut all = host.devices_on(HostBus::Pci);
    let here = all.iter().find(|device| device.name() == name);
    let bus = here.and_then(|device| device.path().parent()).map(Path::to_owned);
    all.retain(|device| {
        device.path().parent() == bus.as_deref() && matches!(device.group(), Ok(None))
    });
    let functions = all.iter().map(|device| device.name().to_owned());
    functions.map(|name| AffectedFunction { name, owner: FunctionOwner::Another }).collect()
}

/// What is known of the functions of a bus.
struct Bus<'a> {
    host: &'a Host,
    group: &'a dyn Fn(u32) -> Option<Arc<Group>>,
    /// The guest's functions.
    names: &'a [String],
    /// Those of them that aren't to be reset.
    kept: &'a [String],
}

impl Bus<'_> {
    /// What resets the bus of the function `name`, on which there are `all` these; or why it can't be reset, with
    /// what to type.
    fn reset(
        &self,
        name: &str,
        all: &[AffectedFunction],
        stopped: &StoppedByBus,
    ) -> Result<BusReset, String> {
        let others = all.iter().filter(|function| function.name != name);
        let obstacles: Vec<String> = others.clone().filter_map(|one| self.obstacle(one)).collect();
        if !obstacles.is_empty() {
            return Err(format!("a reset of its bus resets {}", obstacles.join("; ")));
        }
        let mut groups: Vec<Arc<Group>> = Vec::new();
        for function in all {
            let FunctionOwner::Group(number) = function.owner else { continue };
            let file = (self.group)(number)
                .filter(|file| !groups.iter().any(|other| Arc::ptr_eq(other, file)));
            groups.extend(file);
        }
        let others = others.map(|function| function.name.clone()).collect();
        let groups = groups.iter().map(Arc::downgrade).collect();
        Ok(BusReset { groups, others, stopped: stopped.clone() })
    }

    /// Why another function mustn't be reset, with what to type; `None` if it may.
    #[cold]
    fn obstacle(&self, function: &AffectedFunction) -> Option<String> {
        let name = &function.name;
        if self.kept.contains(name) {
            return Some(format!("{name} too, which has reset=off (leave that out)"));
        }
        let is_ours = match function.owner {
            FunctionOwner::Group(number) => (self.group)(number).is_some(),
            FunctionOwner::SameIommufd => return None,
            FunctionOwner::Another => false,
        };
        if is_ours && self.names.contains(name) {
            return None;
        }
        let device = self.host.find_on(HostBus::Pci, name).ok().flatten();
        if device.as_ref().is_some_and(|device| matches!(device.is_bridge(), Ok(true))) {
            return Some(format!("what is behind the bridge {name} too, which can't be a guest's"));
        }
        let driver = device.as_ref().and_then(|device| device.driver().ok().flatten());
        let with_vfio = driver.as_deref().is_some_and(|driver| driver.starts_with("vfio-"));
        if is_ours && with_vfio {
            return None;
        }
        let gives = format!("--vfio-pci {name} gives it to the guest");
        // VFIO resets what is in a group of the guest, too, if no driver of the host has it.
        let in_group = device.as_ref().is_some_and(|device| self.shares_group(device));
        let bind = format!("strait device bind {name}");
        let bind = if in_group { bind } else { format!("{bind}, and {gives}") };
        Some(match driver {
            Some(_) if with_vfio => format!("{name} too, which isn't the guest's ({gives})"),
            Some(driver) => format!("{name} too, which the host's driver {driver} has ({bind})"),
            None => format!("{name} too, which has no driver ({bind})"),
        })
    }

    /// Whether a function of the guest is in this one's group.
    fn shares_group(&self, device: &HostDevice) -> bool {
        let group = |device: &HostDevice| device.group().ok().flatten();
        let mut groups = self
            .names
            .iter()
            .filter_map(|name| group(&self.host.find_on(HostBus::Pci, name).ok().flatten()?));
        let wanted = group(device);
        wanted.is_some() && groups.any(|number| Some(number) == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pci::PciOptions;
    use super::super::quiesce::Quiesced;
    use super::super::testing::{Call, FakeDevice, FakeFunction, FakeHost};
    use super::*;
    use crate::pci::Function;

    const A: &str = "0000:01:00.0";
    const B: &str = "0000:01:00.1";

    /// A bus with the functions A and B, which VFIO tells are these owners'.
    fn bus(a: FunctionOwner, b: FunctionOwner) -> Vec<AffectedFunction> {
        let function = |name: &str, owner| AffectedFunction { name: name.to_owned(), owner };
        vec![function(A, a), function(B, b)]
    }

    /// A function that can't be reset by itself, on this bus.
    fn function(bus: &[AffectedFunction]) -> FakeFunction {
        let mut function = FakeFunction::new(256);
        function.put(0x06, &[0x10]);
        (function.can_reset, function.bus) = (false, bus.to_vec());
        function
    }

    fn open(device: &Arc<FakeDevice>, name: &str, reset: bool) -> PciFunction {
        let options = PciOptions { reset, ..PciOptions::default() };
        PciFunction::open(device.clone(), name, options, 0x1000).unwrap()
    }

    /// Why A can't be reset on a host, where `reset` says whether B is the guest's and is to be reset; `None` if
    /// it can be.
    fn why(host: &FakeHost, bus: &[AffectedFunction], reset: Option<bool>) -> Option<String> {
        let device = function(bus).calls();
        let mut a = open(&device, A, true);
        let mut b = open(&function(bus).calls(), B, reset.unwrap_or_default());
        let mut functions = vec![(A, &mut a)];
        functions.extend(reset.map(|_| (B, &mut b)));
        let group = |number: u32| {
            let file = host.path(format!("dev/vfio/{number}"));
            (number == 3).then(|| Arc::new(Group::open(&file).unwrap()))
        };
        prepare(&host.host(), group, &mut functions);
        match a.quiesce().unwrap() {
            Quiesced::ByBusReset => None,
            quiesced => {
                assert_eq!((quiesced, device.take_calls()), (Quiesced::Unsupported, vec![]));
                Some(a.obstacle_to_bus_reset().unwrap_or_default().to_owned())
            }
        }
    }

    #[test]
    fn a_bus_is_reset_if_all_of_it_is_the_guest_s() {
        use FunctionOwner::{Another, Group, SameIommufd};
        let host = |driver: Option<&str>, group: u32| {
            let fake = FakeHost::with_vfio();
            fake.device("pci", A, Some("vfio-pci"), Some(3));
            fake.device("pci", B, driver, Some(group));
            fake
        };
        let (vfio, nvme) = (Some("vfio-pci"), Some("nvme"));
        let iommufd = |owner| bus(SameIommufd, owner);
        let groups = |b| bus(Group(3), Group(b));
        // B's driver and group, whose it is by VFIO, and whether the guest has it: what is said.
        let bind = "(strait device bind 0000:01:00.1)";
        let bind_and_give = "(strait device bind 0000:01:00.1, and --vfio-pci 0000:01:00.1 gives it \
                             to the guest)";
        let cases: [(_, u32, _, _, Option<&str>); 12] = [
            (vfio, 3, iommufd(SameIommufd), Some(true), None),
            (vfio, 3, iommufd(SameIommufd), None, None),
            (vfio, 3, groups(3), Some(true), None),
            (vfio, 3, groups(3), None, None),
            (vfio, 3, iommufd(SameIommufd), Some(false), Some("which has reset=off")),
            (vfio, 3, groups(3), Some(false), Some("which has reset=off")),
            (None, 3, iommufd(Another), None, Some(bind)),
            (None, 3, groups(3), None, Some(bind)),
            (nvme, 4, iommufd(Another), None, Some(bind_and_give)),
            (nvme, 4, groups(4), None, Some("which the host's driver nvme has")),
            (vfio, 4, groups(4), None, Some("(--vfio-pci 0000:01:00.1 gives it to the guest)")),
            (vfio, 4, iommufd(Another), None, Some("which isn't the guest's")),
        ];
        for (number, (driver, group, bus, reset, expected)) in cases.into_iter().enumerate() {
            let said = why(&host(driver, group), &bus, reset);
            let matches = match (&said, expected) {
                (Some(said), Some(text)) => said.contains(text) && said.contains(B),
                (said, expected) => said.is_none() && expected.is_none(),
            };
            assert!(matches, "{number}: {said:?}");
        }
        let bridged = host(Some("pcieport"), 3);
        bridged.write(format!("sys/devices/pci/{B}/class"), "0x060400\n");
        let said = why(&bridged, &iommufd(Another), None);
        assert!(said.as_ref().is_some_and(|said| said.contains("bridge")), "{said:?}");
    }

    #[test]
    fn a_function_without_a_group_is_named_though_vfio_does_not_name_it() {
        let fake = FakeHost::with_vfio();
        fake.device("pci", A, Some("vfio-pci"), Some(3));
        fake.device("pci", B, None, None);
        let device = function(&[]).calls();
        device.refuse_hot_reset_info(libc::EPERM);
        let mut a = open(&device, A, true);
        prepare(&fake.host(), |_| None, &mut [(A, &mut a)]);
        let said = a.obstacle_to_bus_reset().unwrap_or_default();
        assert!(said.contains("resets 0000:01:00.1 too, which has no driver"), "{said}");
        fake.join_group("pci", B, 4);
        prepare(&fake.host(), |_| None, &mut [(A, &mut a)]);
        let said = a.obstacle_to_bus_reset().unwrap_or_default();
        assert!(said.contains("VFIO doesn't tell"), "{said}");
    }

    #[test]
    fn functions_that_are_stopped_together_reset_their_bus_once() {
        let (fake, bus) =
            (FakeHost::with_vfio(), bus(FunctionOwner::Group(3), FunctionOwner::Group(3)));
        fake.device("pci", A, Some("vfio-pci"), Some(3));
        fake.device("pci", B, Some("vfio-pci"), Some(3));
        let file = Arc::new(Group::open(&fake.path("dev/vfio/3")).unwrap());
        let devices = [function(&bus).calls(), function(&bus).calls()];
        let (mut a, mut b) = (open(&devices[0], A, true), open(&devices[1], B, true));
        prepare(&fake.host(), |_| Some(file.clone()), &mut [(A, &mut a), (B, &mut b)]);
        for _ in 0..2 {
            assert_eq!(a.quiesce().unwrap(), Quiesced::ByBusReset);
            assert_eq!(b.quiesce().unwrap(), Quiesced::ByBusReset);
            assert_eq!(devices[0].take_calls(), [Call::HotReset(1)]);
            assert_eq!(devices[1].take_calls(), []);
        }
        // Its guest resets the bus of each, one of them twice: no reset stands for another.
        for index in [0, 1, 0, 0] {
            Function::reset(if index == 0 { &mut a } else { &mut b });
            assert!(devices[index].take_calls().contains(&Call::HotReset(1)), "{index}");
        }
        assert_eq!(a.quiesce().unwrap(), Quiesced::ByBusReset);
        assert!(devices[0].take_calls().contains(&Call::HotReset(1)));
        // The host is busy with it for a while.
        devices[0].refuse_resets(3, libc::EBUSY);
        assert_eq!(a.quiesce().unwrap(), Quiesced::ByBusReset);
        assert_eq!(b.quiesce().unwrap(), Quiesced::ByBusReset);
        // The host has taken one back.
        devices[1].refuse_resets(1, libc::EINVAL);
        assert_eq!(b.quiesce().unwrap(), Quiesced::Unsupported);
        devices[1].refuse_resets(1, libc::EIO);
        let error = b.quiesce().unwrap_err();
        assert!(error.to_string().contains("can't be reset"), "{error}");
    }

    #[test]
    fn a_bus_that_has_no_reset_is_no_reason_to_say_anything() {
        let device = function(&[]).calls();
        let mut a = open(&device, A, true);
        prepare(&FakeHost::with_vfio().host(), |_| None, &mut [(A, &mut a)]);
        assert_eq!(a.quiesce().unwrap(), Quiesced::Unsupported);
        assert_eq!((a.obstacle_to_bus_reset(), a.reset_with()), (None, None));
    }
}
