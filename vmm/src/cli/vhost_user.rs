//! `--vhost-user TYPE|ID,socket=PATH[,OPTION…]` and `--share TAG=DIRECTORY[,OPTION…]`.

use std::path::PathBuf;
use std::str::FromStr;

use devices::peer::Peer;
use devices::vhost_user::{FS, Kind};

use super::pci::parse_peer;
use super::values::{GivenOnce, split, take_each};

/// The most queues of a device, as many as a PCI function of strait has.
const MAX_QUEUES: u16 = 64;
/// The largest queue (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;
/// The most bytes of a configuration, as many as the protocol has.
const MAX_CONFIG_SIZE: u16 = 4096;
/// The most bytes of a file system's tag (virtio 1.2, 5.11.4).
const MAX_TAG: usize = 36;

/// A virtio device of another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserOptions {
    /// Its kind, with the number and size of its queues and the size of its configuration.
    pub kind: Kind,
    /// The socket on which its backend listens.
    pub socket: PathBuf,
    /// A file system's tag, if the backend doesn't tell it.
    pub tag: Option<String>,
    /// Whose backend it may be.
    pub peer: Peer,
}

impl FromStr for VhostUserOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, given) = split(text)?;
        let mut kind = Kind::parse(kind)?;
        let (mut socket, mut tag, mut peer) = (None, None, Peer::default());
        let keys = ["socket", "queues", "queue-size", "config-size", "tag", "peer"];
        take_each(given, "a vhost-user device", &keys, &[], |key, value| {
            match key {
                "socket" => socket = Some(value).filter(|path| !path.is_empty()).map(PathBuf::from),
                "queues" => kind.queues = number(value, 1, MAX_QUEUES)?,
                "queue-size" => {
                    kind.queue_size = number(value, 1, MAX_QUEUE_SIZE)?;
                    if !kind.queue_size.is_power_of_two() {
                        return Err("a queue's size is a power of two".into());
                    }
                }
                "config-size" => kind.config_size = number(value, 0, MAX_CONFIG_SIZE)?,
                "tag" if kind.device.id != FS => return Err("tag= is for fs".into()),
                "tag" => tag = Some(check_tag(value)?),
                _ => peer = parse_peer(value)?,
            }
            Ok(())
        })?;
        let socket = socket.ok_or("the path of the backend's socket is missing: socket=PATH")?;
        if tag.is_some() && kind.queues < 2 {
            return Err("a file system has at least 2 queues".into());
        }
        Ok(Self { kind, socket, tag, peer })
    }
}

/// How virtiofsd keeps itself to the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShareSandbox {
    /// As well as the host lets it.
    #[default]
    Auto,
    /// By namespaces.
    Namespace,
    /// By a root directory of its own.
    Chroot,
    /// Not at all.
    None,
}

/// How long the guest may rely on what it knows of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShareCache {
    /// Until it opens a file again, and of names for a second.
    #[default]
    Auto,
    /// For ever: nobody else changes the directory.
    Always,
    /// Not at all.
    Never,
}

/// A directory of the host that the guest mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareOptions {
    /// What the guest mounts it by.
    pub tag: String,
    /// The directory.
    pub directory: PathBuf,
    /// The guest can't write to it.
    pub read_only: bool,
    /// How its server keeps itself to it.
    pub sandbox: ShareSandbox,
    /// How long the guest may rely on what it knows.
    pub cache: ShareCache,
}

impl FromStr for ShareOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tag, mut rest) =
            text.split_once('=').ok_or("TAG=DIRECTORY is needed, as in src=/home/me/src")?;
        let tag = check_tag(tag)?;
        let (mut read_only, mut given) = (false, GivenOnce::default());
        let (mut sandbox, mut cache) = Default::default();
        // From the end: what is no option belongs to the directory's name, which may have commas.
        while let Some((before, piece)) = rest.rsplit_once(',') {
            match piece.split_once('=') {
                None if piece == "ro" => {
                    given.note("ro", "on".as_ref())?;
                    read_only = true;
                }
                Some(("sandbox", value)) => {
                    given.note("sandbox", value.as_ref())?;
                    sandbox = match value {
                        "auto" => ShareSandbox::Auto,
                        "namespace" => ShareSandbox::Namespace,
                        "chroot" => ShareSandbox::Chroot,
                        "none" => ShareSandbox::None,
                        _ => return Err("sandbox is auto, namespace, chroot or none".into()),
                    };
                }
                Some(("cache", value)) => {
                    given.note("cache", value.as_ref())?;
                    cache = match value {
                        "auto" => ShareCache::Auto,
                        "always" => ShareCache::Always,
                        "never" => ShareCache::Never,
                        _ => return Err("cache is auto, always or never".into()),
                    };
                }
                None if !piece.is_empty() => break,
                _ => {
                    return Err(format!(
                        "`{piece}` is no option of a share; ro, cache=… and sandbox=… are"
                    ));
                }
            }
            rest = before;
        }
        if rest.is_empty() {
            return Err("there is no directory behind the tag".into());
        }
        Ok(Self { tag, directory: rest.into(), read_only, sandbox, cache })
    }
}

fn check_tag(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_TAG || text.contains(|c: char| c.is_control()) {
        return Err(format!("a tag has 1 to {MAX_TAG} bytes"));
    }
    Ok(text.to_owned())
}

fn number(text: &str, min: u16, max: u16) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("`{text}` is no number from {min} to {max}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_device_is_a_kind_and_a_socket() {
        let parse = |text: &str| text.parse::<VhostUserOptions>().unwrap();
        let plain = parse("gpio,socket=/run/gpio.sock");
        assert_eq!(
            (plain.kind, plain.socket.as_path()),
            (Kind::parse("41").unwrap(), Path::new("/run/gpio.sock"))
        );
        let all = parse("63,queues=3,queue-size=256,config-size=16,peer=any,socket=/run/a,b");
        assert_eq!((all.kind.queues, all.kind.queue_size, all.kind.config_size), (3, 256, 16));
        assert_eq!((all.socket.as_path(), all.peer), (Path::new("/run/a,b"), Peer::Any));
        assert_eq!(parse("fs,socket=s,tag=root").tag.as_deref(), Some("root"));
        for text in [
            "",
            "gpio",
            "socket=s",
            "gpio,socket=",
            "disk,socket=s",
            "gpio,socket=s,queues=0",
            "gpio,socket=s,queues=65",
            "gpio,socket=s,queue-size=100",
            "gpio,socket=s,queue-size=65536",
            "gpio,socket=s,config-size=4097",
            "gpio,socket=s,tag=x",
            "fs,socket=s,tag=",
            "fs,socket=s,tag=x,queues=1",
            "gpio,socket=s,socket=t",
            "gpio,socket=s,peer=me",
            "gpio,socket=s,colour=red",
        ] {
            assert!(text.parse::<VhostUserOptions>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_a_tag_and_a_directory() {
        let parse = |text: &str| text.parse::<ShareOptions>().unwrap();
        let plain = parse("src=/home/me/src");
        assert_eq!(
            (plain.tag.as_str(), plain.directory.as_path()),
            ("src", Path::new("/home/me/src"))
        );
        assert_eq!((plain.read_only, plain.sandbox), (false, ShareSandbox::Auto));
        let all = parse("a=b,c=d,e,sandbox=none,ro");
        assert_eq!(all.directory, Path::new("b,c=d,e"));
        assert_eq!((all.read_only, all.sandbox), (true, ShareSandbox::None));
        assert_eq!(
            (all.cache, parse("a=b,cache=always").cache),
            (ShareCache::Auto, ShareCache::Always)
        );
        let long = "x".repeat(37);
        for text in [
            "",
            "src",
            "=/x",
            "a=",
            "a=,ro",
            "a=/x,",
            "a=/x,ro,ro",
            "a=/x,rw=1",
            "a=/x,sandbox=maybe",
            "a=/x,cache=maybe",
            &format!("{long}=/x"),
        ] {
            assert!(text.parse::<ShareOptions>().is_err(), "{text}");
        }
    }
}
