//! The guest's network devices and sockets, opened while planning.

use devices::virtio::net::{Net, Tap, TapRef};
use devices::virtio::vsock::Vsock;
use devices::virtio::{Device, net};

use crate::cli::NetOptions;
use crate::error::Error;

/// A device: its name, what it is for people, and itself.
type Opened = (String, String, Box<dyn Device>);

/// Opens the taps, and makes a device of each.
///
/// # Errors
///
/// A tap is given twice, or can't be used; or the kernel's part of the device can't.
pub fn open_networks(options: &[NetOptions]) -> Result<Vec<Opened>, Error> {
    let mut taps = Vec::new();
    for NetOptions { tap, .. } in options {
        if taps.contains(&tap) {
            let tap = match tap {
                TapRef::Name(name) => format!("tap={name}"),
                TapRef::Descriptor(fd) => format!("fd={fd}"),
            };
            return Err(Error::usage(format!("--net {tap} is given twice"))
                .help("each network device of the guest has a tap of its own"));
        }
        taps.push(tap);
    }
    options.iter().enumerate().map(|(index, options)| open(index, options)).collect()
}

fn open(index: usize, options: &NetOptions) -> Result<Opened, Error> {
    let name = format!("net{index}");
    let tap = Tap::open(&options.tap).map_err(net::NetError::from)?;
    let tap_name = tap.name().to_owned();
    let net = Net::new(&name, tap, options.mac, options.vhost)?;
    let by = if net.has_vhost() { "vhost-net" } else { "two threads" };
    let what = format!("the tap {tap_name}, {}, by {by}", net.mac());
    Ok((name, what, Box::new(net)))
}

/// Opens the kernel's part of the guest's sockets.
///
/// # Errors
///
/// It can't be used, or another guest has the address.
pub fn open_sockets(cid: u64) -> Result<Opened, Error> {
    let device = Vsock::new("vsock", cid)?;
    Ok(("vsock".to_owned(), format!("CID {cid}, by vhost-vsock"), Box::new(device)))
}
