use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use devices::vfio::register_table::RegisterTable;

use super::super::format::Names;
use super::super::record::{Event, Line};
use super::*;
use crate::cli::TraceFormat;

fn event(number: usize) -> Record {
    Record { time: 0, cpu: 0, event: Event::Ended(number), pc: 0 }
}

fn names() -> Names {
    let (table, scmi) = (RegisterTable::default(), None);
    let interrupts: Vec<_> =
        (0..20_000).map(|number| Line { kind: "", number, ends: true }).collect();
    Names { device: "x".into(), is_function: false, interrupts, table, scmi }
}

fn format() -> Format {
    Format::new(TraceFormat::Text, names())
}

/// A file of a test's own, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("strait-trace-{test}-{}", std::process::id())))
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A stream with its thread, and what that is waited for by.
fn started(last: Option<usize>, path: &Path) -> (Arc<Stream>, thread::JoinHandle<()>) {
    let stream = Arc::new(Stream::new(Instant::now(), last));
    let (own, sink) = (stream.clone(), Sink::open(Some(path), "x").unwrap());
    stream.begin();
    (stream, thread::spawn(move || own.write(format(), &sink)))
}

#[test]
fn all_events_are_written_in_order() {
    let file = Scratch::new("order");
    let (stream, thread) = started(None, &file.0);
    for number in 0..3000 {
        stream.put(event(number), false);
        if number % 1000 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(stream.finish(|| false), 0);
    thread.join().unwrap();
    let lines = file.lines();
    assert_eq!(lines.len(), 3000);
    for (number, line) in lines.iter().enumerate() {
        assert!(line.ends_with(&format!("interrupt {number} ended")), "{line}");
    }
}

#[test]
fn what_there_is_no_room_for_is_counted_where_it_was_lost() {
    let file = Scratch::new("full");
    let stream = Arc::new(Stream::new(Instant::now(), None));
    let more = 7;
    for number in 0..(16 << 10) + more {
        stream.put(event(number), false);
    }
    let sink = Sink::open(Some(&file.0), "x").unwrap();
    stream.state().ended = true;
    stream.write(format(), &sink);
    assert_eq!(stream.finish(|| false), more as u64);
    let lines = file.lines();
    assert_eq!(lines.len(), (16 << 10) + 1);
    assert_eq!(lines.last().unwrap(), "# 7 events lost");
}

#[test]
fn only_the_newest_are_written_when_they_are_asked_for_and_at_the_end() {
    let file = Scratch::new("last");
    let (stream, thread) = started(Some(3), &file.0);
    for number in 0..10 {
        stream.put(event(number), number == 6);
        // The thread takes those that are asked for before there are more.
        while !stream.state().ready.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
    }
    stream.put(event(10), false);
    assert_eq!(stream.finish(|| false), 0);
    thread.join().unwrap();
    let lines: Vec<String> = file.lines();
    let words = |line: &String| line.split_once("interrupt ").map(|(_, rest)| rest.to_owned());
    let numbers: Vec<_> = lines.iter().filter_map(words).collect();
    assert_eq!(numbers, ["4 ended", "5 ended", "6 ended", "8 ended", "9 ended", "10 ended"]);
    assert_eq!(lines[0], "# 4 events left out");
    assert_eq!(lines[4], "# 1 events left out");
}

#[test]
fn the_newest_are_written_at_the_end_although_others_wait() {
    let file = Scratch::new("end");
    let stream = Arc::new(Stream::new(Instant::now(), Some(3)));
    stream.begin();
    for number in 0..7 {
        stream.put(event(number), number == 4);
    }
    let ends = thread::spawn({
        let stream = stream.clone();
        move || stream.finish(|| false)
    });
    // Busy with a slow disk until then, say.
    thread::sleep(Duration::from_millis(50));
    stream.write(format(), &Sink::open(Some(&file.0), "x").unwrap());
    assert_eq!(ends.join().unwrap(), 0);
    let lines = file.lines();
    let words = |line: &String| line.split_once("interrupt ").map(|(_, rest)| rest.to_owned());
    let numbers: Vec<_> = lines.iter().filter_map(words).collect();
    assert_eq!(numbers, ["2 ended", "3 ended", "4 ended", "5 ended", "6 ended"]);
}

#[test]
fn a_full_disk_holds_nobody_up() {
    // Events are counted, of whatever form.
    let stream = Stream::new(Instant::now(), None);
    for number in 0..100 {
        stream.put(event(number), false);
    }
    stream.state().ended = true;
    let sink = Sink::open(Some(Path::new("/dev/full")), "x").unwrap();
    stream.write(Format::new(TraceFormat::Vcd, names()), &sink);
    assert_eq!(stream.finish(|| false), 100);
    let (stream, thread) = started(None, Path::new("/dev/full"));
    for number in 0..100 {
        stream.put(event(number), false);
    }
    assert_eq!(stream.finish(|| false), 100);
    thread.join().unwrap();
}

#[test]
fn a_reader_that_goes_or_stalls_holds_nobody_up() {
    for stalls in [false, true] {
        let pipe = Scratch::new(if stalls { "stalls" } else { "goes" });
        let name = std::ffi::CString::new(pipe.0.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let error = Sink::open(Some(&pipe.0), "x").unwrap_err();
        assert!(error.message().contains("nobody reads"), "{}", error.message());
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
        let reader = options.read(true).open(&pipe.0).unwrap();
        let (stream, thread) = started(None, &pipe.0);
        let reader = stalls.then_some(reader);
        // More than a pipe takes, and more than waits for it.
        for number in 0..40_000 {
            stream.put(event(number), false);
        }
        let lost = stream.finish(|| true);
        assert!(stalls || lost > 0);
        thread.join().unwrap();
        assert!(stream.state().all_lost > 20_000, "{}", stream.state().all_lost);
        drop(reader);
    }
}

#[test]
fn what_fails_ends_a_trace() {
    let pipe = Scratch::new("ends");
    let name = std::ffi::CString::new(pipe.0.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut options = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), libc::O_NONBLOCK);
    let reader = options.open(&pipe.0).unwrap();
    let sink = Sink::open(Some(&pipe.0), "x").unwrap();
    assert!(sink.write("1\n", || false));
    drop(reader);
    assert!(!sink.write("2\n", || false));
    // Whoever comes later would begin in the middle.
    let _reader = options.open(&pipe.0).unwrap();
    assert!(!sink.write("3\n", || false));
}

#[test]
fn a_file_is_made_anew() {
    use std::os::unix::fs::PermissionsExt;

    let (file, other) = (Scratch::new("anew"), Scratch::new("other"));
    fs::write(&other.0, "mine").unwrap();
    fs::set_permissions(&other.0, fs::Permissions::from_mode(0o644)).unwrap();
    fs::hard_link(&other.0, &file.0).unwrap();
    assert!(Sink::open(Some(&file.0), "x").unwrap().write("new", || false));
    assert_eq!(fs::metadata(&file.0).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        (fs::read(&file.0).unwrap(), fs::read(&other.0).unwrap()),
        (b"new".into(), b"mine".into())
    );
}

#[test]
fn links_are_left_alone() {
    let (file, link) = (Scratch::new("file"), Scratch::new("link"));
    fs::write(&file.0, "mine").unwrap();
    std::os::unix::fs::symlink(&file.0, &link.0).unwrap();
    assert!(Sink::open(Some(&link.0), "x").is_err());
    assert_eq!(fs::read(&file.0).unwrap(), b"mine");
}
