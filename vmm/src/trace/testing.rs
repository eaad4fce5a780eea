//! Traces of tests: without a device, and what is written of them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use devices::vfio::register_table::{Place, RegisterTable};

use super::Trace;
use super::format::{Format, Names};
use super::record::Line;
use super::sink::Sink;
use super::stream::Stream;
use crate::cli::TraceFormat;

/// A trace of the device `x`, of these places or of all, of which only the newest `last` are kept.
pub(super) fn trace(
    filter: Option<Vec<Place>>,
    trigger: Option<(Vec<Place>, u64)>,
    last: Option<usize>,
) -> Arc<Trace> {
    Arc::new(Trace {
        name: "x".into(),
        filter,
        trigger,
        pc: false,
        on: AtomicBool::new(true),
        stream: Stream::new(Instant::now(), last),
        firmware: Vec::new(),
        writer: Mutex::new(None),
    })
}

/// What is written of the events that are there, which are none of a vCPU's, without their times.
pub(super) fn written(trace: &Trace, interrupts: Vec<Line>, is_function: bool) -> Vec<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name =
        format!("strait-trace-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let sink = Sink::open(Some(&path), "x").unwrap();
    let (device, table, scmi) = ("x".to_owned(), RegisterTable::default(), None);
    let names = Names { device, is_function, interrupts, table, scmi };
    trace.stream.begin();
    thread::scope(|scope| {
        let format = Format::new(TraceFormat::Text, names);
        scope.spawn(|| trace.stream.write(format, &sink));
        assert_eq!(trace.stream.finish(|| false), 0);
    });
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    text.lines().map(|line| line.split_once("-    ").unwrap().1.to_owned()).collect()
}
