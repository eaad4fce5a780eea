//! Options that go together, or don't.

use arch::layout;
use devices::vfio::assign::DeviceRef;
use devices::vfio::iommu::Backend;

use super::super::MemoryOptions;
use super::super::console::ConsoleKind;
use super::super::sandbox::SandboxMode;
use super::options::RunOptions;
use crate::error::Error;

/// Checks that the options go together, and settles what one leaves to another.
///
/// # Errors
///
/// They don't.
pub(super) fn check(options: &mut RunOptions, console_is_given: bool) -> Result<(), Error> {
    check_passed(options)?;
    check_firmware(options)?;
    check_consoles(options, console_is_given)?;
    check_balloon(options)?;
    check_monitor(options)?;
    check_traces(options)?;
    if options.bind && options.dry_run {
        return Err(Error::usage("--dry-run changes no drivers, so it can't --bind")
            .help("--dry-run alone: devices needn't be bound for it"));
    }
    if options.user.is_some() && options.sandbox == SandboxMode::Off {
        return Err(Error::usage("--user: with --sandbox off strait stays who it is")
            .help("--user alone, or sudo -u"));
    }
    if options.force && !options.bind {
        return Err(Error::usage("--force is for --bind").help("--bind --force"));
    }
    if options.control.is_none()
        && let Some(trace) = options.trace.iter().find(|trace| !trace.start)
    {
        return Err(Error::usage(format!(
            "--trace {},start=off: without --control nothing turns it on",
            trace.device
        ))
        .help("--control unix:PATH, and io.strait.Machine.Trace by varlinkctl"));
    }
    if options.json && !options.dry_run {
        return Err(
            Error::usage("--json: a run prints nothing of its own").help("--dry-run --json")
        );
    }
    Ok(())
}

/// Checks that firmware gets what it can use.
fn check_firmware(options: &RunOptions) -> Result<(), Error> {
    if options.firmware.is_none() {
        return Ok(());
    }
    let other = [
        (!options.kernel.path.as_os_str().is_empty(), "--kernel"),
        (options.initrd.is_some(), "--initrd"),
    ];
    if let Some((_, option)) = other.iter().find(|(given, _)| *given) {
        return Err(Error::usage(format!(
            "{option} and --firmware: a guest begins with a kernel or with firmware, which finds its \
             system on a disk"
        ))
        .help("--firmware FILE --block DISK"));
    }
    if options.memory.base != layout::RAM_START {
        return Err(Error::usage(format!(
            "--memory {}: firmware looks for RAM at {:#x}",
            options.memory,
            layout::RAM_START
        ))
        .help("--memory without base="));
    }
    Ok(())
}

/// Checks that the consoles go together. The serial port gives way where it `is_given` nothing.
fn check_consoles(options: &mut RunOptions, is_given: bool) -> Result<(), Error> {
    if options.virtio_console != ConsoleKind::Stdio || options.console != ConsoleKind::Stdio {
        return Ok(());
    }
    if is_given {
        return Err(Error::usage("--console stdio and --virtio-console stdio: there is one")
            .help("--console off, or another of them"));
    }
    options.console = ConsoleKind::Off;
    Ok(())
}

/// Checks that descriptors go together with the other options.
fn check_passed(options: &RunOptions) -> Result<(), Error> {
    let device = options.devices().any(|which| matches!(which, DeviceRef::Descriptor(_)));
    if device && options.bind {
        return Err(Error::usage("--bind binds devices by name, not by descriptor (fd=)")
            .help("strait device bind NAME, and then whoever opens it"));
    }
    if (device || options.iommu.iommufd.is_some())
        && options.iommu.backend == Some(Backend::Container)
    {
        return Err(Error::usage("--iommu container: fd= and --iommufd-fd are for iommufd")
            .help("--iommu iommufd"));
    }
    Ok(())
}

/// Checks that there is a console where one is watched.
fn check_monitor(options: &RunOptions) -> Result<(), Error> {
    if options.console.is_on() || options.virtio_console.is_on() {
        return Ok(());
    }
    let watched = [
        ("--until", !options.until.is_empty()),
        ("--fail-on", !options.fail_on.is_empty()),
        ("--log", options.log.is_some()),
    ];
    match watched.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Error::usage(format!("{option}: the guest has no console"))
            .help("--console file:/dev/null, and nobody sees it")),
        None => Ok(()),
    }
}

/// Checks that no trace takes the place of another.
fn check_traces(options: &RunOptions) -> Result<(), Error> {
    let mut files: Vec<_> = options.trace.iter().filter_map(|trace| trace.out.as_ref()).collect();
    while let Some(file) = files.pop() {
        if files.contains(&file) {
            let why = format!("--trace …,out={}: it is another trace's, too", file.display());
            return Err(Error::usage(why).help("out=FILE with another name for each device"));
        }
    }
    Ok(())
}

/// Checks that memory can be given back.
fn check_balloon(options: &RunOptions) -> Result<(), Error> {
    let MemoryOptions { pages, .. } = options.memory;
    if options.balloon && (options.devices().next().is_some() || !options.vfio_user.is_empty()) {
        return Err(Error::usage(
            "--balloon: all of the guest's RAM stays where it is for the DMA of its assigned devices, \
             so none of it can be given back",
        )
        .help("--balloon for guests without assigned devices"));
    }
    if options.balloon && pages.are_reserved() {
        return Err(Error::usage(format!(
            "--balloon: --memory {}: reserved huge pages are the guest's alone, and not given back",
            options.memory
        ))
        .help("hugepages=thp"));
    }
    Ok(())
}
