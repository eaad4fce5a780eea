//! What the service manager is told (sd_notify(3)): that the guest runs, that it ends, and, where the
//! manager watches, that the event loop lives.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// The service manager's socket.
pub struct Notifier {
    socket: UnixDatagram,
    /// Runs out when it is to be told that the event loop lives.
    watchdog: Option<TimerFd>,
}

impl Notifier {
    /// That of the environment, if a service manager has set one (`NOTIFY_SOCKET`), with its watchdog
    /// (`WATCHDOG_USEC`) if it watches this process or its parent. One that can't be reached is nobody whom a
    /// run would have to wait for, so it is only warned of.
    pub fn from_environment() -> Option<Self> {
        let address = env::var_os("NOTIFY_SOCKET").filter(|value| !value.is_empty())?;
        let watchdog = interval(env::var_os("WATCHDOG_USEC"), env::var_os("WATCHDOG_PID"));
        Self::open(&address, watchdog).inspect_err(|e| warn(&address, e)).ok()
    }

    /// Connects to this address, to tell it at such intervals that the event loop lives.
    #[cold]
    fn open(address: &OsString, watchdog: Option<Duration>) -> io::Result<Self> {
        let bytes = address.as_bytes();
        let address = match bytes.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            Some((b'/', _)) => SocketAddr::from_pathname(address)?,
            _ => {
                let what = "neither an absolute path nor an abstract socket (@…)";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that is stuck holds nobody up.
        socket.set_nonblocking(true)?;
        let watchdog = watchdog.map(start_timer).transpose()?;
        Ok(Self { socket, watchdog })
    }

    /// The guest is about to run.
    #[cold]
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=The guest runs");
    }

    /// The guest is to end, for which it has so long.
    #[cold]
    pub fn stopping_within(&self, time: Duration) {
        let microseconds = time.as_micros();
        self.tell(&format!(
            "STOPPING=1\nSTATUS=The guest's power button is pressed\nEXTEND_TIMEOUT_USEC={microseconds}"
        ));
    }

    /// The guest has ended.
    #[cold]
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=The guest has ended");
    }

    /// The watchdog's timer has run out, and the event loop lives.
    #[cold]
    pub fn handle_timer(&mut self) {
        if let Some(timer) = &mut self.watchdog {
            // It has run out, and so can be read.
            let _ = timer.wait();
        }
        self.tell("WATCHDOG=1");
    }

    /// The watchdog's timer.
    pub fn watchdog(&self) -> Option<RawFd> {
        self.watchdog.as_ref().map(|timer| timer.as_raw_fd())
    }

    fn tell(&self, state: &str) {
        if let Err(e) = self.socket.send(state.as_bytes()) {
            let what = state.split('\n').next().unwrap_or_default();
            log::info!("the service manager wasn't told {what}: {e}");
        }
    }
}

#[cold]
fn warn(address: &OsString, e: &io::Error) {
    log::warn!(
        "the service manager isn't told of the guest: NOTIFY_SOCKET is {}: {e}",
        address.display()
    );
}

/// How often the event loop is to say that it lives: twice in the time after which the manager takes it for
/// dead (sd_watchdog_enabled(3)).
fn interval(microseconds: Option<OsString>, pid: Option<OsString>) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    let microseconds = number(microseconds?)?;
    let for_us = pid.is_none_or(|pid| {
        let ours = [std::process::id(), std::os::unix::process::parent_id()];
        number(pid).is_some_and(|pid| ours.map(u64::from).contains(&pid))
    });
    (for_us && microseconds > 1).then(|| Duration::from_micros(microseconds / 2))
}

fn start_timer(interval: Duration) -> io::Result<TimerFd> {
    let failed = |e: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(e.errno());
    let mut timer = TimerFd::new().map_err(failed)?;
    timer.reset(interval, Some(interval)).map_err(failed)?;
    Ok(timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_of_it_at_paths_and_abstract_sockets() {
        let name = format!("strait-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let _ = std::fs::remove_file(&path);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstract_one = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, address) in
            [(by_path, path.clone().into()), (abstract_one, format!("@{name}").into())]
        {
            let mut notifier = Notifier::open(&address, Some(Duration::from_millis(1))).unwrap();
            notifier.ready();
            assert_eq!(received(&manager), "READY=1\nSTATUS=The guest runs");
            assert!(notifier.watchdog().is_some());
            notifier.handle_timer();
            assert_eq!(received(&manager), "WATCHDOG=1");
            notifier.stopping_within(Duration::from_secs(2));
            assert!(received(&manager).ends_with("\nEXTEND_TIMEOUT_USEC=2000000"));
            // One that reads nothing, and one that is gone.
            (0..1000).for_each(|_| notifier.stopping());
            drop(manager);
            notifier.stopping();
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn addresses_that_nobody_listens_at_are_refused() {
        for address in ["relative", "vsock:2:1234", "/no/such", "@strait-no-such-socket"] {
            assert!(Notifier::open(&address.into(), None).is_err(), "{address}");
        }
    }

    #[test]
    fn the_watchdog_is_told_twice_in_its_time() {
        let of = |microseconds: &str, pid: Option<u32>| {
            interval(Some(microseconds.into()), pid.map(|pid| pid.to_string().into()))
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(of("2000000", None), second);
        assert_eq!(of("2000000", Some(std::process::id())), second);
        assert_eq!(of("2000000", Some(std::os::unix::process::parent_id())), second);
        assert_eq!(of("2000000", Some(u32::MAX)), None);
        for wrong in ["", "0", "1", "-1", "many"] {
            assert_eq!(of(wrong, None), None);
        }
        assert_eq!(interval(None, None), None);
    }
}
