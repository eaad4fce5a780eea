//! Devices that don't stop: an access of theirs hangs in the host.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::thread_kind::ThreadKind;
use crate::virtio::{DeviceType, QueueHandler, QueueThreads};

/// What works on the queue of a device whose storage hangs until it is told otherwise.
struct Hanging {
    begun: Sender<()>,
    go_on: Receiver<()>,
}

impl QueueHandler for Hanging {
    fn handle(&mut self, _: &mut VirtQueue) -> Result<(), QueueError> {
        let _ = self.begun.send(());
        let _ = self.go_on.recv();
        Ok(())
    }
}

struct HangingDevice {
    handler: Option<Hanging>,
    threads: QueueThreads,
}

impl Device for HangingDevice {
    fn device_type(&self) -> DeviceType {
        Entropy::new("entropy").device_type()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![8]
    }

    fn read_config(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn threads(&mut self) -> Option<&mut QueueThreads> {
        Some(&mut self.threads)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let log = Arc::new(LogLimit::new("test"));
        let handlers = self.handler.take().into_iter();
        handlers.zip(activation.queues).try_for_each(|(handler, queue)| {
            self.threads.start("test", queue, handler, activation.events.clone(), log.clone())
        })
    }
}

/// A driver whose device works on a request, and what ends the request.
fn hanging() -> (Driver, Sender<()>) {
    let ((begun, begins), (go, go_on)) = (channel(), channel());
    let handler = Some(Hanging { begun, go_on });
    let threads = QueueThreads::new(ThreadKind::Block);
    let mut driver = Driver::of(Box::new(HangingDevice { handler, threads }), true, false);
    let queue = DriverQueue::new(&driver.memory, RAM, 8);
    driver.start(&queue);
    begins.recv().unwrap();
    (driver, go)
}

#[test]
fn the_end_of_a_run_waits_for_no_access_that_hangs() {
    let (mut driver, go) = hanging();
    let begun = Instant::now();
    driver.function.begin_release();
    driver.function.release(begun + Duration::from_millis(10));
    assert!(begun.elapsed() >= Duration::from_millis(10));
    // Neither the next attempt nor the drop waits: both would for ever, or for their time.
    let (done, is_done) = channel();
    let ending = thread::spawn(move || {
        driver.function.release(Instant::now() + Duration::from_secs(3600));
        drop(driver);
        let _ = done.send(());
    });
    is_done.recv_timeout(Duration::from_secs(300)).unwrap();
    ending.join().unwrap();
    drop(go);
}

#[test]
fn a_device_that_stops_late_is_released_then() {
    let (mut driver, go) = hanging();
    driver.function.release(Instant::now());
    drop(go);
    assert!(wait_for(|| {
        driver.function.release(Instant::now());
        driver.function.state == State::Idle
    }));
}
