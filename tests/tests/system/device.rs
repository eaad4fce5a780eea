//! `strait device`: the host's devices before a guest is involved, and `strait run --bind`.

use serde_json::Value;
use tests::harness::{
    AMBA_DMA, BACKENDS, Board, Failure, Host, Launch, PLATFORM_DMA, TestResult, UART, payload,
};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// What a command prints as JSON, which must succeed.
pub(super) fn json(host: &Host, command: &str) -> Result<Value, Failure> {
    let text = host.sh(&format!("strait {command} --json"))?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|e| panic!("`{command}`: {e}: {text}")))
}

/// The entry of a device in a list.
fn entry<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut entries = list.as_array().into_iter().flatten();
    entries.find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name}: {list}"))
}

/// The drivers of two devices, one of each bus.
fn drivers(host: &Host) -> Result<[Option<String>; 2], Failure> {
    Ok([host.driver(PLATFORM_DMA[0])?, host.driver(AMBA_DMA[0])?])
}

/// What [`drivers`] are before anybody changes them.
fn own() -> [Option<String>; 2] {
    [None, Some("dma-pl330".into())]
}

fn vfio() -> [Option<String>; 2] {
    [Some("vfio-platform".into()), Some("vfio-amba".into())]
}

#[test]
fn device_list_shows_state_and_help() -> TestResult {
    let host = Board::new().boot()?;
    let list = json(&host, "device list")?;
    for name in PLATFORM_DMA {
        assert_eq!(entry(&list, name)["state"], "free", "{list}");
        assert_eq!(entry(&list, name)["bound"], false);
        assert_eq!(entry(&list, name)["what"], "arm,pl330");
        assert_eq!(entry(&list, name)["help"], format!("strait device bind {name}"));
    }
    assert_eq!(entry(&list, AMBA_DMA[0])["driver"], "dma-pl330");
    assert_eq!(entry(&list, AMBA_DMA[0])["group"], host.group(AMBA_DMA[0])?);
    // The only PCI device is the one through which this is asked.
    let mut pci = list.as_array().into_iter().flatten().filter(|entry| entry["bus"] == "pci");
    let agent = pci.next().unwrap_or(&Value::Null);
    assert_eq!((&agent["state"], pci.next()), (&"used-by-host".into(), None), "{list}");
    let uses = agent["host_uses"][0].as_str().unwrap_or_default();
    assert!(uses.starts_with("/dev/vport") && uses.contains("(agent)"), "{uses}");

    host.sh(&format!("strait device bind {}", AMBA_DMA[0]))?;
    let list = json(&host, "device list")?;
    let bound = entry(&list, AMBA_DMA[0]);
    assert_eq!((&bound["state"], &bound["driver"]), (&"free".into(), &"vfio-amba".into()));
    assert_eq!((&bound["driver_before"], &bound["bound"]), (&"dma-pl330".into(), &true.into()));
    let group = host.group(AMBA_DMA[0])?;
    assert_eq!(bound["files"][0]["path"], format!("/dev/vfio/{group}"));
    let text = host.sh("strait device list")?;
    let free = format!("free, bound: /dev/vfio/{group}, /dev/vfio/devices/vfio0");
    assert!(
        text.lines().any(|line| line.starts_with(AMBA_DMA[0]) && line.contains(&free)),
        "{text}"
    );
    Ok(())
}

#[test]
fn device_show_agrees_before_and_after_binding() -> TestResult {
    let host = Board::new().boot()?;
    let name = PLATFORM_DMA[0];
    let unbound = json(&host, &format!("device show {name}"))?;
    assert!(unbound["vfio"]["reset"].is_null() && unbound["group"].is_null(), "{unbound}");
    assert_eq!(unbound["help"], format!("strait device bind {name}"));
    assert!(unbound["host_node"].as_str().is_some_and(|node| node.contains("\"arm,pl330\"")));

    host.sh(&format!("strait device bind {name}"))?;
    let mut sheets = Vec::new();
    for backend in BACKENDS {
        let sheet = json(&host, &format!("device show {name} --iommu {backend}"))?;
        assert_eq!((&sheet["iommu"]["backend"], &sheet["reason"]), (&backend.into(), &Value::Null));
        sheets.push(sheet);
    }
    // Which IOVAs there are, both say alike; the page sizes are the container's to know.
    let (alignment, ranges) =
        (&sheets[0]["iommu"]["alignment"], &sheets[0]["iommu"]["iova_ranges"]);
    assert_eq!((alignment, ranges[0]["end"].as_u64()), (&4096.into(), Some(0x7ff_ffff)));
    assert_eq!(
        (alignment, ranges),
        (&sheets[1]["iommu"]["alignment"], &sheets[1]["iommu"]["iova_ranges"])
    );
    assert!(sheets[0]["iommu"]["page_sizes"].is_null(), "{}", sheets[0]);
    let text = host.sh(&format!("strait device show {name}"))?;
    assert!(text.contains("IOMMU (iommufd):\n  pages of 4K and larger"), "{text}");

    let bound = &sheets[1];
    assert_eq!(bound["vfio"]["regions"][0]["size"], 4096);
    let interrupts = bound["vfio"]["interrupts"].as_array().map(Vec::as_slice);
    assert_eq!(interrupts.map(<[Value]>::len), Some(9));
    assert!(interrupts.into_iter().flatten().all(|irq| irq["automasked"] == true));
    assert_eq!(bound["group"]["reserved"][0]["start"], 0x800_0000);
    assert_eq!(bound["iommu"]["page_sizes"], serde_json::json!([4096, 2 << 20, 1 << 30]));
    assert_eq!(bound["dma_coherent"], true);
    assert!(bound["guest_node"].as_str().is_some_and(|node| node.contains("arm,primecell")));
    assert!(bound["reason"].is_null(), "{bound}");
    // Of all that, what isn't VFIO's alone was known before.
    assert!(unbound["guest_node"].is_string() && bound["vfio"]["reset"].is_boolean(), "{unbound}");
    for part in ["guest_node", "host_node", "dma_coherent"] {
        assert_eq!(unbound[part], bound[part], "{part}");
    }
    for part in ["regions", "interrupts"] {
        assert_eq!(unbound["vfio"][part], bound["vfio"][part], "{part}");
    }

    let unknown = host.run("strait device show 2c0a000.dma")?;
    assert_eq!(unknown.status, 1);
    assert!(unknown.errors.contains("did you mean 2c0a0000.dma?"), "{}", unknown.errors);
    Ok(())
}

/// Devices of each kind, planned for a guest and shown while they are the host's, then VFIO's.
#[test]
fn plans_of_unbound_and_bound_devices_agree() -> TestResult {
    const FUNCTION: &str = "0000:00:05.0";
    let host =
        Board::new().uart().disk("d", 1 << 20).device("nvme,serial=1,drive=d,addr=5").boot()?;
    host.until(&format!("[ -e /sys/bus/pci/devices/{FUNCTION}/driver ]"))?;
    let names = [PLATFORM_DMA[0], AMBA_DMA[0], UART];
    let devices = names.map(|name| format!("--vfio-platform {name}")).join(" ");
    let run = format!("strait run --kernel /k/model {devices} --vfio-pci {FUNCTION}");
    let plan = |arguments: &str| -> Result<Value, Failure> {
        let text = host.sh(&format!("{run} --dry-run --json {arguments}"))?;
        Ok(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    };
    let all = format!("{} {FUNCTION}", names.join(" "));
    let drivers = "ls -ld /sys/bus/*/devices/*/driver";
    let before = host.sh(drivers)?;
    let foreseen = plan("--dump-dtb /tmp/foreseen.dtb")?;
    let text = host.sh(&format!("{run} --dry-run"))?;
    assert!(text.contains("without VFIO: whether VFIO can reset it"), "{text}");
    assert!(text.contains(&format!("help: strait device bind {FUNCTION}")), "{text}");
    let sheet = json(&host, &format!("device show {FUNCTION}"))?;
    assert_eq!(host.sh(drivers)?, before, "nothing was changed");
    let obstacles = foreseen["obstacles"].as_array().map_or(0, Vec::len);
    assert_eq!((obstacles, &foreseen["iommu"]), (4, &Value::Null), "{foreseen:#}");
    // A run itself goes no further.
    let refused = host.run(&run)?;
    assert!(refused.status == 1 && refused.errors.contains("device bind"), "{}", refused.errors);

    host.sh(&format!("strait device bind --group {all}"))?;
    let bound = plan("--dump-dtb /tmp/bound.dtb")?;
    assert_eq!((&bound["obstacles"], &bound["iommu"]), (&serde_json::json!([]), &"iommufd".into()));
    for part in ["devices", "interrupts", "memory_map"] {
        assert_eq!(foreseen[part], bound[part], "{part}");
    }
    let functions = [&foreseen, &bound].map(|plan| &plan["pci"]["functions"][0]);
    for part in ["address", "intx", "bars", "pin", "msi", "msix"] {
        assert_eq!(functions[0][part], functions[1][part], "{part}");
    }
    host.sh("[ $(stat -c %s /tmp/foreseen.dtb) = $(stat -c %s /tmp/bound.dtb) ]")?;
    let opened = json(&host, &format!("device show {FUNCTION}"))?;
    for part in ["bars", "pin", "msi", "msix"] {
        assert_eq!(sheet["function"][part], opened["function"][part], "{part}");
    }
    Ok(())
}

#[test]
fn devices_are_bound_and_unbound() -> TestResult {
    let host = Board::new().boot()?;
    assert_eq!(drivers(&host)?, own());
    let names = format!("{} {}", PLATFORM_DMA[0], AMBA_DMA[0]);
    host.sh(&format!("strait device bind {names}"))?;
    assert_eq!(drivers(&host)?, vfio());
    host.sh(&format!("[ -c /dev/vfio/{} ]", host.group(PLATFORM_DMA[0])?))?;
    assert!(host.sh("ls -ld /run/strait")?.starts_with("drwx------"));
    // Once more changes nothing, not even what is remembered.
    host.sh(&format!("strait device bind {names}"))?;
    host.sh(&format!("strait device unbind {names}"))?;
    assert_eq!(drivers(&host)?, own());
    let overrides = host.sh("cat /sys/bus/platform/devices/2c*.dma/driver_override \
                             /sys/bus/amba/devices/2c*.dma/driver_override")?;
    assert_eq!(overrides, "(null)\n(null)\n(null)\n(null)\n");
    assert_eq!(host.sh("find /run/strait -name '2c*'")?, "");
    let again = host.sh(&format!("strait device unbind {}", AMBA_DMA[0]))?;
    assert!(again.contains("its driver is dma-pl330 already"), "{again}");
    // The driver that has it again can use it.
    host.sh("insmod /m/dmatest.ko iterations=5 max_channels=8 timeout=20000 run=1 && \
             cat /sys/module/dmatest/parameters/wait && dmesg | grep -q 'summary 5 tests, 0 fail'")?;
    Ok(())
}

#[test]
fn a_failed_bind_is_undone() -> TestResult {
    let host = Board::new().param("vfio_platform.reset_required=1").boot()?;
    // The AMBA driver wants no reset function, the platform one does.
    let answer = host.run(&format!("strait device bind {} {}", AMBA_DMA[0], PLATFORM_DMA[0]))?;
    assert_eq!(answer.status, 1);
    assert!(answer.errors.contains("vfio_platform.reset_required=0"), "{}", answer.errors);
    assert_eq!(drivers(&host)?, own());
    assert_eq!(host.sh("find /run/strait -name '2c*'")?, "");
    let nobody = host.run(&format!("agent as 1000 strait device bind {}", AMBA_DMA[0]))?;
    assert_eq!(nobody.status, 1);
    assert!(nobody.errors.contains("sudo"), "{}", nobody.errors);
    assert_eq!(drivers(&host)?, own());
    Ok(())
}

#[test]
fn a_whole_group_can_be_bound() -> TestResult {
    let host = Board::new().boot()?;
    // On this board every device has a group of its own: another view of sysfs makes one shared.
    let [one, other] = AMBA_DMA;
    let group = format!("/sys/kernel/iommu_groups/{}", host.group(one)?);
    host.sh(&format!(
        "mkdir /tmp/shared && for name in {one} {other}; do \
         ln -s $(readlink -f /sys/bus/amba/devices/$name) /tmp/shared/; done && \
         mount --bind /tmp/shared {group}/devices"
    ))?;
    let alone = host.sh(&format!("strait device bind {one}"))?;
    assert!(alone.contains(other) && alone.contains("--group"), "{alone}");
    assert_eq!(host.driver(other)?.as_deref(), Some("dma-pl330"));
    let list = json(&host, "device list")?;
    assert_eq!(entry(&list, one)["shares_with"], serde_json::json!([other]));
    assert_eq!(entry(&list, one)["help"], format!("strait device bind --group {one}"));

    host.sh(&format!("strait device bind --group {one}"))?;
    for name in [one, other] {
        assert_eq!(host.driver(name)?.as_deref(), Some("vfio-amba"), "{name}");
    }
    assert_eq!(entry(&json(&host, "device list")?, one)["state"], "free");
    host.sh(&format!("strait device unbind --group {one}"))?;
    for name in [one, other] {
        assert_eq!(host.driver(name)?.as_deref(), Some("dma-pl330"), "{name}");
    }
    Ok(())
}

#[test]
fn a_device_in_use_is_not_unbound() -> TestResult {
    let host = Board::new().boot()?;
    let name = AMBA_DMA[0];
    host.sh(&format!("strait device bind {name}"))?;
    for backend in BACKENDS {
        let mut guest = host.guest(&format!("--vfio-platform {name} --iommu {backend}"))?;
        // Without a look beforehand the kernel would wait for the guest's end.
        let answer = host.run(&format!("strait device unbind {name}"))?;
        assert_eq!(answer.status, 1);
        assert!(answer.errors.contains("another process uses"), "{}", answer.errors);
        assert!(answer.errors.contains("fuser"), "{}", answer.errors);
        let who = format!("process {} (strait)", guest.pid()?);
        assert!(answer.errors.contains(&who), "{}", answer.errors);
        let list = json(&host, "device list")?;
        let listed = entry(&list, name);
        assert_eq!(listed["state"], "in-use", "{list}");
        assert_eq!(listed["users"][0]["pid"], guest.pid()?, "{list}");
        let text = host.sh(&format!("strait device list; strait device show {name}"))?;
        assert_eq!(text.matches(&format!("in use by {who}")).count(), 2, "{text}");
        if backend == "iommufd" {
            // Nor is it taken where the kernel has no files of groups.
            let group = format!("/dev/vfio/{}", host.group(name)?);
            let unbind = format!("strait device unbind {name}");
            let again = host.run(&format!("mv {group} /away; {unbind}; mv /away {group}"))?;
            assert!(again.errors.contains("uses /dev/vfio/devices/vfio"), "{}", again.errors);
        }
        let tested = host.run(&format!("strait device test {name}"))?;
        assert!(tested.status == 1 && tested.errors.contains("another process uses"));
        guest.sh("true")?;
        // Around strait the host waits for the end of the run.
        let unbind = format!("echo {name} >/sys/bus/amba/drivers/vfio-amba/unbind");
        let waiting = host.start(&format!("{unbind}; echo unbound"))?;
        host.until(&format!("[ ! -e /sys/bus/amba/drivers/vfio-amba/{name} ]"))?;
        guest.sh("true")?;
        assert!(!waiting.output().contains("unbound"));
        assert_eq!((guest.power_off()?, waiting.exit_status()?), (0, 0));
        host.sh(&format!("strait device bind {name}"))?;
    }
    host.sh(&format!("strait device unbind {name}"))?;
    assert_eq!(host.driver(name)?.as_deref(), Some("dma-pl330"));
    Ok(())
}

#[test]
fn owner_gives_a_device_to_an_unprivileged_user() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    host.sh("chmod 666 /dev/kvm && chmod 600 /dev/iommu")?;
    let name = AMBA_DMA[0];
    let owner = "agent as 1000 memlock=1073741824 strait";
    let run = format!("{owner} run --kernel /k/off --vfio-platform {name}");
    let bound = host.sh(&format!("strait device bind --owner 1000:100 {name}"))?;
    let group = format!("/dev/vfio/{}", host.group(name)?);
    for file in [&*group, "/dev/vfio/devices/vfio0"] {
        assert!(bound.contains(&format!("{file} (user 1000's)")), "{bound}");
        assert_eq!(host.sh(&format!("stat -c '%u %g %a' {file}"))?, "1000 100 660\n");
    }
    host.sh(&run)?;
    // What is bound and open to the user is no reason to stop, nor to give anything back.
    host.sh(&format!("{run} --bind"))?;
    assert_eq!(host.driver(name)?.as_deref(), Some("vfio-amba"));
    let list = host.sh(&format!("{owner} device list"))?;
    assert!(list.contains(&format!("free, bound: {group} (user 1000's)")), "{list}");
    // By iommufd, it takes one more file, and the error names just that.
    let answer = host.run(&format!("{run} --iommu iommufd"))?;
    assert!(answer.errors.contains("may not open /dev/iommu, which"), "{}", answer.errors);
    assert!(!answer.errors.contains("open /dev/vfio"), "{}", answer.errors);
    let help = answer.errors.lines().find_map(|line| line.split_once("help: sudo "));
    host.sh(help.map_or("no help", |(_, command)| command))?;
    host.sh(&format!("{run} --iommu iommufd"))?;

    // Given back and taken again, it is still the user's: also for the time of a run by root.
    host.sh(&format!("strait device unbind {name} && strait device bind {name}"))?;
    host.sh(&format!("{run} --iommu container && {run} --iommu iommufd"))?;
    // Others may not.
    let other = run.replace("as 1000", "as 1001");
    let answer = host.run(&other)?;
    assert_eq!(answer.status, 1);
    let help = format!("help: sudo strait device bind --owner 1001 {name}\n");
    assert!(answer.errors.contains(&help), "{}", answer.errors);
    assert!(answer.errors.contains("udevadm trigger -s vfio -s vfio-dev"), "{}", answer.errors);
    host.sh(&format!("strait device bind --owner 1001 {name} && {other}"))?;
    Ok(())
}

#[test]
fn run_with_bind_restores_the_drivers() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let devices =
        format!("--bind --vfio-platform {} --vfio-platform {}", PLATFORM_DMA[0], AMBA_DMA[0]);
    // However it ends: by the guest, by a signal, by an error before there is a guest.
    let guest = host.guest(&devices)?;
    assert_eq!(drivers(&host)?, vfio());
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(drivers(&host)?, own());

    let mut guest = host.launch(&Launch::model().does("busy").with(&devices))?;
    guest.process().signal(SIGTERM)?;
    assert_eq!(guest.exit_status()?, 128 + SIGTERM);
    assert_eq!(drivers(&host)?, own());

    assert_eq!(host.run(&format!("strait run --kernel /nowhere {devices}"))?.status, 1);
    assert_eq!(drivers(&host)?, own());

    // Killed, it can give nothing back; what it remembered can.
    let mut guest = host.launch(&Launch::model().does("busy").with(&devices))?;
    guest.process().signal(SIGKILL)?;
    assert_eq!(guest.exit_status()?, 128 + SIGKILL);
    assert_eq!(drivers(&host)?, vfio());
    // The process with the guest ends with it, but not in the same moment.
    host.until(&format!("strait device unbind {} {}", PLATFORM_DMA[0], AMBA_DMA[0]))?;
    assert_eq!(drivers(&host)?, own());

    // Where only the guest's process is killed, they are stopped too, wherever its RAM and their registers were.
    let moved = format!("{devices},addr=0x40000000");
    let launch = Launch::model().does("busy").memory("96M,base=0x80000000").with(&moved);
    let mut guest = host.launch(&launch)?;
    let child = format!("grep -ls '^PPid:.{}$' /proc/[0-9]*/status | cut -d/ -f3", guest.pid()?);
    host.sh(&format!("kill -{SIGKILL} $({child})"))?;
    guest.process().wait_for("ended by signal 9")?;
    assert_eq!(guest.exit_status()?, 128 + SIGKILL);
    let output = guest.process().output();
    assert_eq!(output.matches("error: ").count(), 1, "{output}");
    assert_eq!(drivers(&host)?, own());

    // What was bound before stays bound.
    host.sh(&format!("strait device bind {}", AMBA_DMA[0]))?;
    host.sh(&format!("strait run --kernel /k/off {devices}"))?;
    assert_eq!(drivers(&host)?, [None, Some("vfio-amba".into())]);
    Ok(())
}
