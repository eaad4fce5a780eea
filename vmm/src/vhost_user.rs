//! The guest's virtio devices that other processes serve, opened while planning.

use devices::vhost_user::{self, ConfigSource, INPUT, Options, Target, VhostUserDevice};
use devices::virtio::Device;

use crate::cli::{RunOptions, VhostUserOptions};
use crate::error::Error;
use crate::programs::{ChildProgram, Served, Started};
use crate::reconnection::{self, Asker, Connector};
use crate::{passt, share};

/// A device: its name, what it is for people, and itself.
type Opened = (String, String, Box<dyn Device>);

/// What was made for the devices while the process could make it.
#[derive(Default)]
pub struct Backends {
    /// The connections to the programs that were started.
    pub started: Vec<Served>,
    /// Who connects again to each backend that was there; nobody where its device does.
    pub askers: Vec<Asker>,
}

/// Who connects again to the backends that are there, where devices don't.
///
/// # Errors
///
/// The host has no more descriptors.
pub fn connectors(options: &RunOptions) -> Result<Vec<(Connector, Asker)>, Error> {
    let pair = |device: &VhostUserOptions| reconnection::pair(device.socket.clone(), device.peer);
    options.vhost_user.iter().map(pair).collect::<Result<_, _>>().map_err(|e| {
        Error::new(format!("--vhost-user: no backend could be reached again: {e}"))
            .help("ulimit -n tells how many files there may be")
    })
}

/// Starts the backends that aren't there: those of directories, then passt for each network.
///
/// # Errors
///
/// One can't be started.
pub fn start_all(options: &RunOptions) -> Result<Vec<(Served, ChildProgram)>, Error> {
    let count = options.share.len().saturating_add(options.passt.len());
    let take_charge = |started| {
        ChildProgram::new(started).map_err(|e| {
            Error::new(format!("there is no memory or descriptor for a device's server: {e}"))
        })
    };
    (0..count).map(|index| start(options, index).and_then(take_charge)).collect()
}

/// Starts the backend of this number among those.
///
/// # Errors
///
/// It can't be started.
#[cold]
pub fn start(options: &RunOptions, index: usize) -> Result<Started, Error> {
    let network = || options.passt.get(index.checked_sub(options.share.len())?).map(passt::start);
    let started = options.share.get(index).map(share::start).or_else(network);
    started.unwrap_or_else(|| Err(Error::new(format!("there is no backend {index}"))))
}

/// Opens them: connects to the backends that are there, and to those that were started, but for a plan.
///
/// # Errors
///
/// A backend can't be reached, or doesn't offer its device.
#[cold]
pub fn open_all(options: &RunOptions, backends: Backends) -> Result<Vec<Opened>, Error> {
    let (mut started, mut askers) = (backends.started.into_iter(), backends.askers.into_iter());
    let mut opened = Vec::new();
    for (index, device) in options.vhost_user.iter().enumerate() {
        check_different(options.vhost_user.get(..index).unwrap_or_default(), device)?;
        let what = format!("{} by the backend at {}", device.kind.name(), device.socket.display());
        opened.push((format!("vhost-user{index}"), what, connect(device, askers.next())?));
    }
    for (index, directory) in options.share.iter().enumerate() {
        let earlier = options.share.get(..index).unwrap_or_default();
        if earlier.iter().any(|other| other.tag == directory.tag) {
            return Err(Error::usage(format!("--share {} is given twice", directory.tag))
                .help("a tag for each directory"));
        }
        let access = if directory.read_only { ", read-only" } else { "" };
        let path = directory.directory.display();
        let what = format!("{path} as `{}`{access}, by virtiofsd", directory.tag);
        opened.push((format!("share{index}"), what, share::open(directory, started.next())?));
    }
    for (index, network) in options.passt.iter().enumerate() {
        let mac = passt::mac(network, index);
        let device = passt::open(mac, started.next())?;
        opened.push((format!("passt{index}"), format!("a network by passt, {mac}"), device));
    }
    Ok(opened)
}

fn connect(device: &VhostUserOptions, asker: Option<Asker>) -> Result<Box<dyn Device>, Error> {
    let VhostUserOptions { kind, socket, tag, peer } = device;
    let path = socket.display().to_string();
    let config = match tag {
        Some(tag) => ConfigSource::Own(share::config(tag, kind.queues)),
        None if kind.device.id == INPUT => ConfigSource::Input,
        None => ConfigSource::Backend(kind.config_size),
    };
    let options = Options {
        option: format!("--vhost-user {},socket={path}", kind.name()),
        name: path,
        kind: *kind,
        config,
    };
    let asker = asker.map(|asker| Box::new(asker) as Box<dyn vhost_user::Connector>);
    let target = Target::Path(socket.clone(), *peer, asker);
    Ok(Box::new(VhostUserDevice::connect(target, options)?))
}

/// Refuses a socket that is given twice: a backend serves one device.
fn check_different(earlier: &[VhostUserOptions], device: &VhostUserOptions) -> Result<(), Error> {
    let path = |device: &VhostUserOptions| {
        device.socket.canonicalize().unwrap_or_else(|_| device.socket.clone())
    };
    if earlier.iter().any(|other| path(other) == path(device)) {
        let socket = device.socket.display();
        return Err(Error::usage(format!("--vhost-user has socket={socket} twice"))
            .help("a backend for each device, with a socket of its own"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_given_once() {
        let device = |text: &str| text.parse::<VhostUserOptions>().unwrap();
        check_different(&[device("rng,socket=/tmp/a")], &device("rng,socket=/tmp/b")).unwrap();
        let twice =
            check_different(&[device("rng,socket=/tmp")], &device("i2c,socket=/tmp/../tmp"));
        assert!(twice.unwrap_err().report().contains("twice"));
    }
}
