//! What a guest's network costs: packets and streams between guest and host over a tap.

use std::error::Error;

use super::figure::Figure;
use crate::artifacts::Artifacts;
use crate::harness::{Board, Failure, Guest, Host};

/// The host's address on its tap, and the guest's.
const HOST: &str = "192.168.77.1";
const GUEST: &str = "192.168.77.2";

/// Round trips of packets in the shorter of two runs whose difference counts.
const ROUND_TRIPS: u64 = 2000;
/// KiB in the shorter of two streams whose difference counts.
const STREAM: u64 = 16 << 10;

/// The limits in instructions: of a round trip of a packet with 64 bytes, and of a KiB by TCP to the
/// host and from it.
struct Limits {
    options: &'static str,
    name: &'static str,
    round_trip: f64,
    to_host: f64,
    from_host: f64,
}

/// By default, and without the kernel's part: the best of other VMMs on the same kernel.
const LIMITS: [Limits; 2] = [
    Limits {
        options: "",
        name: "network",
        round_trip: 45_000.0,
        to_host: 1400.0,
        from_host: 1650.0,
    },
    Limits {
        options: ",vhost=off",
        name: "network, vhost=off",
        round_trip: 59_600.0,
        to_host: 1420.0,
        from_host: 1650.0,
    },
];

/// Exits to user space for a round trip: none, but for a stray one of the guest's clock.
const EXITS: f64 = 0.01;

/// Measures them, on a machine that counts instructions.
///
/// # Errors
///
/// The model doesn't come up, or a byte gets lost.
pub(super) fn measure(artifacts: &Artifacts) -> Result<Vec<Figure>, Box<dyn Error>> {
    let host = Board::with(artifacts).icount().param(super::NO_ACCOUNTING).boot()?;
    host.sh(&format!(
        "agent tap tap0 0 tap && ip addr add {HOST}/24 dev tap0 && ip link set tap0 up"
    ))?;
    let _echo = host.start(&format!("agent udp-echo {HOST}:7"))?;
    let mut figures = Vec::new();
    for limits in &LIMITS {
        let mut guest = host.guest(&format!("--net tap=tap0{}", limits.options))?;
        guest.sh(&format!("ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up"))?;
        let mut add = |what: &str, measured, limit| {
            figures.push(Figure { what: format!("{}: {what}", limits.name), measured, limit });
        };
        // What both sides make at first is made now.
        round_trip(&host, &mut guest)?;
        let (instructions, exits) = round_trip(&host, &mut guest)?;
        add("round trip of 64 bytes by UDP, instr", instructions, limits.round_trip);
        add("exits for it", exits, EXITS);
        add("KiB by TCP to the host, instr", stream(&host, &mut guest, true)?, limits.to_host);
        add("KiB by TCP from the host, instr", stream(&host, &mut guest, false)?, limits.from_host);
        guest.power_off()?;
    }
    Ok(figures)
}

/// The instructions of a round trip, and its exits to user space.
fn round_trip(host: &Host, guest: &mut Guest) -> Result<(f64, f64), Failure> {
    let pid = guest.pid()?;
    let mut run = |count: u64| -> Result<(u64, u64), Failure> {
        let before = host.exit_counts(pid)?.to_user_space();
        let time = nanoseconds(&guest.sh(&format!("agent udp {HOST}:7 {count} 64"))?)?;
        Ok((time, host.exit_counts(pid)?.to_user_space() - before))
    };
    let (once, twice) = (run(ROUND_TRIPS)?, run(2 * ROUND_TRIPS)?);
    Ok((each(once.0, twice.0, ROUND_TRIPS), each(once.1, twice.1, ROUND_TRIPS)))
}

/// The instructions of a KiB.
fn stream(host: &Host, guest: &mut Guest, to_host: bool) -> Result<f64, Failure> {
    let mut run = |kib: u64| -> Result<u64, Failure> {
        let address = if to_host { HOST } else { GUEST };
        let receive = format!("agent receive tcp:{address}:5000 plain");
        let send = format!("agent send tcp:{address}:5000 {} plain", kib << 10);
        let (on_host, in_guest) = if to_host { (receive, send) } else { (send, receive) };
        let process = host.start(&on_host)?;
        let said = guest.sh(&in_guest)?;
        process.exit_status()?;
        nanoseconds(&said)
    };
    Ok(each(run(STREAM)?, run(2 * STREAM)?, STREAM))
}

/// What each costs of as many as two measurements differ in.
pub(super) fn each(once: u64, twice: u64, count: u64) -> f64 {
    let float = |number| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    float(twice.saturating_sub(once)) / float(count)
}

/// The time that the agent says it took.
pub(super) fn nanoseconds(said: &str) -> Result<u64, Failure> {
    let time = said.trim().strip_suffix(" ns").and_then(|rest| rest.rsplit(' ').next());
    let time = time.and_then(|time| time.parse().ok());
    time.ok_or_else(|| Failure::new(format!("the agent doesn't say how long it took: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_two_runs_counts() {
        assert_eq!(nanoseconds("2000 round trips, 123 ns\n").unwrap(), 123);
        assert!(nanoseconds("no").is_err());
        assert!((each(100, 300, 50) - 4.0).abs() < 1e-9);
        assert!(each(300, 100, 50).abs() < 1e-9);
    }
}
