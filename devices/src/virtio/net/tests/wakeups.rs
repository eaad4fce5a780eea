//! A driver and the threads of a device at work at the same time, neither of which may miss what the other
//! tells it: each waits for the other before it goes on.

use std::thread;

use super::super::super::thread::QueueThread;
use super::*;
use crate::task_thread::TaskThread;

/// How many packets go in each direction.
const PACKETS: u32 = 10_000;

/// Has a thread work on the queue, and another be its driver. Every few rounds the queue is reset.
fn work<H: FileHandler>(
    bench: &mut Bench,
    handler: impl Fn(&Bench) -> H,
    mut round: impl FnMut(&mut Bench, u32),
) {
    let thread = TaskThread::start(ThreadKind::Net, "test", None).unwrap();
    for begin in (0..PACKETS).step_by(1000) {
        bench.driver.reset();
        let (events, log) = (bench.events.clone(), Arc::new(LogLimit::new("test")));
        let (queue, handler) = (bench.driver.queue(), handler(bench));
        let working = QueueThread::start_with_file(&thread, queue, handler, events, log).unwrap();
        for number in begin..begin + 1000 {
            round(bench, number);
            // Each at another moment of what the other does.
            (0..number % 193).for_each(|_| std::hint::spin_loop());
        }
        working.stop();
        while !working.is_finished() {
            thread::yield_now();
        }
    }
}

#[test]
fn no_sent_packet_and_no_end_of_one_is_missed() {
    let mut bench = Bench::new(1, 8);
    work(&mut bench, Bench::transmitter, |bench, _| {
        let head = bench.driver.add(&[(BUFFERS, 100)], &[]);
        bench.driver.notify();
        assert_eq!(bench.driver.wait(), [(head, 0)]);
        assert_eq!(bench.received().len(), 1);
    });
}

#[test]
fn no_received_packet_and_no_new_buffer_is_missed() {
    let mut bench = Bench::new(0, 8);
    work(
        &mut bench,
        |bench| bench.receiver(false),
        |bench, number| {
            // The buffer comes before the packet, or behind it.
            if number % 2 == 0 {
                bench.send(80);
            }
            let head = bench.driver.add(&[], &[(BUFFERS, 1526)]);
            bench.driver.notify();
            if number % 2 == 1 {
                bench.send(80);
            }
            assert_eq!(bench.driver.wait(), [(head, 80)]);
        },
    );
}
