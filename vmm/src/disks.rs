//! The guest's disks, opened while planning.

use std::sync::Arc;

use boot::help::Help;
use devices::virtio::Device;
use devices::virtio::block::{Block, Image, ImageError};

use crate::cli::{RunOptions, Size};
use crate::error::Error;

/// What a disk is called, what it is, and the device.
type OpenDisk = (String, String, Box<dyn Device>);

/// The most queues of a disk that nobody asked for.
const USUAL_QUEUES: u64 = 4;

/// Opens the disks and locks their images.
///
/// # Errors
///
/// What can't be a disk, two that are the same file, two that have the same serial number.
pub fn open_disks(options: &RunOptions) -> Result<Vec<OpenDisk>, Error> {
    let mut images: Vec<Arc<Image>> = Vec::new();
    let mut open = Vec::new();
    for (index, disk) in options.block.iter().enumerate() {
        let failed = |e: ImageError| Error::chain(&e).maybe_help(e.help());
        let path = disk.path.display();
        let image = Image::open(&disk.path, disk.access).map_err(failed)?;
        if let Some(other) = images.iter().find(|other| other.conflicts_with(&image)) {
            let other = other.path().display();
            return Err(Error::usage(format!(
                "--block {path}: it is the same file as --block {other}, and written"
            ))
            .help("ro or snapshot for both, or a copy"));
        }
        let before = options.block.iter().take(index);
        if let Some(serial) = &disk.serial
            && before.map(|other| &other.serial).any(|other| other.as_ref() == Some(serial))
        {
            return Err(Error::usage(format!("--block {path}: two disks have serial={serial}"))
                .help("another serial= for one of them"));
        }
        image.lock().map_err(failed)?;
        let image = Arc::new(image);
        images.push(image.clone());
        let name = format!("block{index}");
        // A queue for each vCPU, as far as threads help.
        let usual = u16::try_from(options.cpus.min(USUAL_QUEUES)).unwrap_or(1);
        let queues = disk.queues.unwrap_or(usual);
        let device = Block::new(name.clone(), image.clone(), disk, queues).map_err(failed)?;
        open.push((name, describe(&image, queues), Box::new(device) as Box<dyn Device>));
    }
    Ok(open)
}

/// A disk, for people.
fn describe(image: &Image, queues: u16) -> String {
    let access = image.access();
    let how = if access.read_only {
        ", read-only"
    } else if access.snapshot {
        ", its changes dropped at the end"
    } else {
        ""
    };
    let direct = if access.direct { ", past the page cache" } else { "" };
    let (path, size) = (image.path().display(), Size::from(image.size()));
    let plural = if queues == 1 { "" } else { "s" };
    format!("{path}, {size:#}{how}{direct}, {queues} queue{plural}")
}
