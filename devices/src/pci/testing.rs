//! What tests use in place of an interrupt controller.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Gsi, MsiMessage, MsiRouter};

/// Routes as KVM has them, up to `limit`. [`Self::poll`] does what KVM does when eventfds are
/// signalled.
#[derive(Default)]
pub(crate) struct FakeMsiRouter {
    pub(crate) limit: usize,
    routes: Mutex<BTreeMap<u32, Connected>>,
}

struct Connected {
    trigger: EventFd,
    message: MsiMessage,
}

impl FakeMsiRouter {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The messages routed, in order of route.
    pub(crate) fn messages(&self) -> Vec<MsiMessage> {
        self.routes.lock().unwrap().values().map(|connected| connected.message).collect()
    }

    /// The messages that have been signalled since.
    pub(crate) fn poll(&self) -> Vec<MsiMessage> {
        let routes = self.routes.lock().unwrap();
        let signalled = routes.values().filter(|connected| connected.trigger.read().is_ok());
        signalled.map(|connected| connected.message).collect()
    }
}

impl MsiRouter for FakeMsiRouter {
    fn connect(&self, trigger: &EventFd, message: MsiMessage) -> io::Result<Gsi> {
        let mut routes = self.routes.lock().unwrap();
        if routes.len() >= self.limit {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let free = (0..).find(|route| !routes.contains_key(route)).unwrap();
        routes.insert(free, Connected { trigger: trigger.try_clone()?, message });
        Ok(Gsi(free))
    }

    fn redirect(&self, route: Gsi, message: MsiMessage) -> io::Result<()> {
        self.routes.lock().unwrap().get_mut(&route.0).unwrap().message = message;
        Ok(())
    }

    fn disconnect(&self, route: Gsi, trigger: &EventFd) {
        let connected = self.routes.lock().unwrap().remove(&route.0).unwrap();
        assert!(trigger.as_raw_fd() >= 0);
        let before = connected.trigger.read();
        assert!(before.is_err(), "a test polls before it disconnects");
    }
}
