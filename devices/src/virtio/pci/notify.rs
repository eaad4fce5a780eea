//! Notifications of queues: an ioeventfd each.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::layout::{NOTIFY, NOTIFY_MULTIPLIER, notification};
use crate::bus::IoEvents;
use crate::ratelimit::LogLimit;

/// The queues' notifications.
pub(super) struct Notifications {
    queues: Vec<Notification>,
    ioevents: Option<Arc<dyn IoEvents>>,
}

struct Notification {
    kick: EventFd,
    /// The GPA of its ioeventfd, if it has one.
    gpa: Option<u64>,
}

impl Notifications {
    /// Those of so many queues: blocking eventfds, as the queues' threads wait in a read.
    pub(super) fn new(queues: u16) -> io::Result<Self> {
        let queue = |_| Ok(Notification { kick: EventFd::new(EFD_CLOEXEC)?, gpa: None });
        let queues = (0..queues).map(queue).collect::<io::Result<_>>()?;
        Ok(Self { queues, ioevents: None })
    }

    /// Makes KVM signal them from here on.
    pub(super) fn attach(&mut self, ioevents: Arc<dyn IoEvents>) {
        self.ioevents = Some(ioevents);
    }

    /// The notification of a queue.
    pub(super) fn kick(&self, queue: u16) -> Option<&EventFd> {
        self.queues.get(usize::from(queue)).map(|queue| &queue.kick)
    }

    /// The notifications of all queues, in order of their number.
    pub(super) fn kicks(&self) -> Vec<&EventFd> {
        self.queues.iter().map(|queue| &queue.kick).collect()
    }

    /// The BAR is forwarded at this GPA from here on, or nowhere.
    pub(super) fn forward(&mut self, bar: Option<u64>, log: &LogLimit) {
        let Some(ioevents) = &self.ioevents else { return };
        for (number, queue) in (0..).zip(&mut self.queues) {
            let gpa = bar.map(|bar| notification(bar, number));
            if gpa == queue.gpa {
                continue;
            }
            if let Some(old) = queue.gpa.take()
                && let Err(error) = ioevents.remove(old, &queue.kick)
            {
                log.warn(format_args!("the ioeventfd of queue {number} stays: {error}"));
            }
            let Some(gpa) = gpa else { continue };
            match ioevents.add(gpa, &queue.kick) {
                Ok(()) => queue.gpa = Some(gpa),
                Err(error) => log.warn(format_args!(
                    "queue {number} has no ioeventfd, so that its notifications trap: {error}"
                )),
            }
        }
    }

    /// The guest writes at `offset` of the BAR, by a trap.
    pub(super) fn write(&self, offset: u64) {
        let within = offset.saturating_sub(NOTIFY.start) / u64::from(NOTIFY_MULTIPLIER);
        let kick = u16::try_from(within).ok().and_then(|queue| self.kick(queue));
        if let Some(kick) = kick {
            // Blocks only while as many notifications are pending as the counter holds, 2^64 - 2.
            let _ = kick.write(1);
        }
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        self.forward(None, &LogLimit::new("virtio"));
    }
}
