//! Connecting to a server and agreeing with it.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::REPLY_TIMEOUT;
use super::budget::{TimeBudget, Wait};
use super::client::{Answer, Client};
use super::device::VfioUserDevice;
use super::error::VfioUserError;
use super::message::Command;
use super::peer::{self, Peer};
use super::socket::Socket;
use super::version::{self, Agreement, OURS};
use crate::stop;
use crate::vfio::uapi::DeviceInfo;

/// The listening thread's stack in bytes: it keeps payloads on the heap.
const STACK: usize = 64 << 10;

impl VfioUserDevice {
    /// Connects to the server whose socket is at `path`, which may be `peer`'s, agrees on a version
    /// with it and asks what its device is. Nothing is waited for once
    /// [strait is to end](stop::is_requested), until a guest has the device.
    ///
    /// # Errors
    ///
    /// There is no server, it is a stranger's, it is none of a PCI device, it doesn't answer in time,
    /// or strait is to end.
    #[cold]
    pub fn connect(path: &Path, peer: Peer) -> Result<Self, VfioUserError> {
        let socket =
            Socket::connect(path).map_err(|error| VfioUserError::connecting(path, error))?;
        peer::check(path, &socket, peer)?;
        Self::over(path, socket, TimeBudget::new(REPLY_TIMEOUT, stop::is_requested))
    }

    pub(super) fn over(
        path: &Path,
        socket: Socket,
        budget: TimeBudget,
    ) -> Result<Self, VfioUserError> {
        let host = |source| VfioUserError::Host { path: path.to_owned(), source };
        let name = path.display().to_string();
        let client = Arc::new(Client::new(&name, socket, budget).map_err(host)?);
        let listening = client.clone();
        let listener = thread::Builder::new()
            .name("vfio-user".to_owned())
            .stack_size(STACK)
            .spawn(move || listening.listen())
            .map_err(host)?;
        let mut device = Self::new(client.clone(), listener);
        let mut wait = client.budget.begin();
        device.agreement = device.agree(path, &mut wait)?;
        let asked = device.ask_info(&mut wait);
        device.info =
            asked.map_err(|error| VfioUserError::asking(path, Command::GetInfo, error))?;
        let DeviceInfo { pci, .. } = device.info;
        if pci { Ok(device) } else { Err(VfioUserError::NotPci { path: path.to_owned() }) }
    }

    fn agree(&self, path: &Path, wait: &mut Wait<'_>) -> Result<Agreement, VfioUserError> {
        let (command, most) = (Command::Version, version::MOST);
        let answer = self
            .client
            .call(wait, command, &version::proposal(), &[], most)
            .map_err(|error| VfioUserError::asking(path, command, error))?;
        let nonsense = |what| VfioUserError::NoServer {
            path: path.to_owned(),
            why: format!("the server sent {what}"),
        };
        let Answer { payload, files } = answer;
        let agreement = version::answer(&payload).map_err(nonsense)?;
        let version = agreement.version;
        if version.major != OURS.major || version.minor > OURS.minor {
            return Err(VfioUserError::Version { path: path.to_owned(), version });
        }
        if let Some(index) = agreement.twin {
            let none = || nonsense("no descriptor for the twin_socket it speaks of".to_owned());
            let twin = files.into_iter().nth(index).ok_or_else(none)?;
            self.client
                .take_twin(twin)
                .map_err(|error| nonsense(format!("a twin_socket that is none: {error}")))?;
        }
        Ok(agreement)
    }
}
