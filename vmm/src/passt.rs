//! Networks without root: a passt for each, to which the guest's packets go and which speaks for it by
//! sockets of its own.

use std::fmt::Display;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use boot::help::Help;
use devices::vhost_user::{
    ConfigSource, Kind, Options, OwnConfig, PlannedDevice, Target, VhostUserDevice,
};
use devices::virtio::Device;
use devices::virtio::net::MacAddress;

use crate::cli::PasstOptions;
use crate::error::Error;
use crate::programs::{self, Served, Started};

/// What is executed, with the options for ports behind.
const COMMAND: &str = "passt --foreground --quiet --vhost-user --fd FD";
/// Its options for ports (passt(1)).
const TCP: &str = "-t";
const UDP: &str = "-u";

/// `VIRTIO_NET_F_MAC` and `VIRTIO_NET_F_STATUS`: what the configuration has (virtio 1.2, 5.1.3).
const FEATURES: u64 = 1 << 5 | 1 << 16;

/// The device's address: the given one, or one of the host's and this number's.
pub fn mac(options: &PasstOptions, index: usize) -> MacAddress {
    options.mac.unwrap_or_else(|| MacAddress::of_tap(&format!("passt{index}")))
}

fn failed(why: &dyn Display) -> Error {
    Error::new(format!("--net passt: {why}"))
}

fn find() -> Result<PathBuf, Error> {
    programs::find("passt", &[]).ok_or_else(|| {
        failed(&"there is no passt on this host").help("apt install passt (Debian 13 or later)")
    })
}

/// Starts a passt.
///
/// # Errors
///
/// There is none, or it can't be started.
#[cold]
pub fn start(options: &PasstOptions) -> Result<Started, Error> {
    let program = find()?;
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed(&format_args!("no socket: {e}")))?;
    // Its end tells that passt has ended, once this is closed.
    let theirs = OwnedFd::from(theirs);
    let mut command = Command::new(&program);
    command.args(arguments(options, theirs.as_raw_fd()));
    let child = programs::spawn(&mut command, &theirs);
    let child = child.map_err(|e| failed(&format_args!("{}: {e}", program.display())))?;
    Ok(Started { stream: ours, file: program, child })
}

/// Opens the network's device, which is served so; or for a plan, by nothing.
///
/// # Errors
///
/// There is no passt, or it doesn't serve such devices.
#[cold]
pub fn open(mac: MacAddress, served: Option<Served>) -> Result<Box<dyn Device>, Error> {
    let device = describe(mac);
    let Some(Served { stream, program, .. }) = served else {
        find()?;
        return Ok(Box::new(PlannedDevice(device)));
    };
    let target = Target::Started(Some(stream), Box::new(program));
    let device = VhostUserDevice::connect(target, device).map_err(|error| {
        let help = "passt's own message tells more; one of 2024-11-27 or later speaks vhost-user, Debian \
                    12's doesn't: passt --version";
        failed(&error).maybe_help(error.help().map(|_| help.to_owned()))
    })?;
    Ok(Box::new(device))
}

fn describe(mac: MacAddress) -> Options {
    // The link is up; there is one pair of queues, and no MTU.
    let bytes = [mac.bytes().as_slice(), &[1, 0, 1, 0, 0, 0]].concat();
    let config = ConfigSource::Own(OwnConfig { bytes, features: FEATURES });
    Options {
        name: "passt".to_owned(),
        option: "--net passt".to_owned(),
        kind: Kind::net(),
        config,
    }
}

fn arguments(options: &PasstOptions, descriptor: i32) -> Vec<String> {
    let number = descriptor.to_string();
    let fixed = COMMAND.split(' ').skip(1).map(|word| if word == "FD" { &number } else { word });
    let mut arguments: Vec<_> = fixed.map(str::to_owned).collect();
    let tcp = options.tcp.iter().map(|ports| [TCP, ports]);
    let udp = options.udp.iter().map(|ports| [UDP, ports]);
    arguments.extend(tcp.chain(udp).flatten().map(str::to_owned));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_has_the_connection_and_the_ports() {
        let [tcp, udp] = ["2222:22", "53"].map(|ports| vec![ports.to_owned()]);
        let words = arguments(&PasstOptions { mac: None, tcp, udp }, 7).join(" ");
        assert_eq!(words, "--foreground --quiet --vhost-user --fd 7 -t 2222:22 -u 53");
    }

    #[test]
    fn the_configuration_has_the_address() {
        let options = describe("02:00:00:00:00:01".parse().unwrap());
        let ConfigSource::Own(OwnConfig { bytes, features }) = options.config else { panic!() };
        assert_eq!((bytes, features), (vec![2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0], 0x1_0020));
        assert_eq!(options.kind.queues, 2);
    }
}
