//! `--block FILE[,OPTION…]`.

use devices::virtio::block::{Aio, BlockOptions, MAX_QUEUES};

use super::values::GivenOnce;

/// The most bytes of a serial number (virtio 1.2, 5.2.6).
const MAX_SERIAL: usize = 20;

/// What may follow the file.
const FLAGS: [&str; 3] = ["ro", "snapshot", "direct"];
const KEYS: [&str; 3] = ["serial", "queues", "aio"];

/// Reads a disk. Options are taken from the end: what is no option belongs to the file's name, which may
/// have commas.
pub(super) fn block(text: &str) -> Result<BlockOptions, String> {
    let mut options = BlockOptions::new("");
    let mut given = GivenOnce::default();
    let mut rest = text;
    while let Some((before, piece)) = rest.rsplit_once(',') {
        let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
        let known = |names: [&'static str; 3]| names.into_iter().find(|name| *name == key);
        if let Some(flag) = known(FLAGS).filter(|_| key == piece) {
            given.note(flag, "on".as_ref())?;
        } else if let Some(key) = known(KEYS).filter(|_| key != piece) {
            given.note(key, value.as_ref())?;
        } else if piece.is_empty() || piece.contains('=') {
            let (flags, keys) = (FLAGS.join(", "), KEYS.join("=…, "));
            return Err(format!("`{piece}` is no option of a disk; {flags}, {keys}=… are"));
        } else {
            break;
        }
        match key {
            "ro" => options.access.read_only = true,
            "snapshot" => options.access.snapshot = true,
            "direct" => options.access.direct = true,
            "serial" => options.serial = Some(serial(value)?),
            "queues" => options.queues = Some(queues(value)?),
            _ => options.aio = aio(value)?,
        }
        rest = before;
    }
    if rest.is_empty() {
        return Err("the image's file comes first, such as disk.img".into());
    }
    if options.access.read_only && options.access.snapshot {
        return Err(
            "of ro and snapshot only one makes sense: what a guest can't write needn't go \
                    elsewhere"
                .into(),
        );
    }
    if options.access.snapshot && options.aio == Aio::IoUring {
        return Err("a snapshot is accessed by the queues' threads: leave out aio=io_uring".into());
    }
    options.path = rest.into();
    Ok(options)
}

fn serial(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > MAX_SERIAL || !printable {
        return Err(format!("a serial number has 1 to {MAX_SERIAL} printable characters"));
    }
    Ok(text.to_owned())
}

fn queues(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_QUEUES).contains(number));
    number.ok_or_else(|| format!("a disk has 1 to {MAX_QUEUES} queues"))
}

fn aio(text: &str) -> Result<Aio, String> {
    match text {
        "auto" => Ok(Aio::Auto),
        "io_uring" => Ok(Aio::IoUring),
        "threads" => Ok(Aio::Threads),
        _ => Err("aio is auto, io_uring or threads".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_alone_has_the_defaults() {
        assert_eq!(block("disk.img"), Ok(BlockOptions::new("disk.img")));
    }

    #[test]
    fn options_follow_the_file() {
        let all = block("a,b=c.img,direct,ro,serial=S-1,queues=4,aio=threads").unwrap_err();
        assert!(all.contains("`b=c.img` is no option of a disk"), "{all}");
        let all = block("a,b.img,direct,ro,serial=S-1,queues=4,aio=threads").unwrap();
        assert_eq!(all.path, Path::new("a,b.img"));
        assert!(all.access.direct && all.access.read_only && !all.access.snapshot);
        assert_eq!((all.serial.as_deref(), all.queues), (Some("S-1"), Some(4)));
        assert_eq!(all.aio, Aio::Threads);
        assert!(block("/dev/sda,snapshot").unwrap().access.snapshot);
        assert_eq!(block("ro").unwrap().path, Path::new("ro"));
        assert_eq!(block("a=b.img,ro").unwrap().path, Path::new("a=b.img"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",ro",
            "x,",
            "x,,ro",
            "x,ro=on",
            "x,colour=red",
            "x,ro,ro",
            "x,serial=a,serial=b",
            "x,serial=",
            "x,serial=123456789012345678901",
            "x,serial=a b",
            "x,queues=0",
            "x,queues=65",
            "x,queues=-1",
            "x,aio=native",
            "x,ro,snapshot",
            "x,snapshot,aio=io_uring",
        ] {
            assert!(block(text).is_err(), "{text}");
        }
    }
}
