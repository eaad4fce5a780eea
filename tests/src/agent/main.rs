//! The test agent inside the system model, on the host and in its guests.
//!
//! On the host it serves the harness on the control channel. Its other commands are what tests run
//! there and in guests: they access devices, watch memory, drop privileges, measure programs.

mod canary;
mod client;
mod control;
mod cpu;
mod datagrams;
mod delayed_cat;
mod devmem;
mod disk;
mod edu;
mod fail;
mod gdb;
mod gpio;
mod inject;
mod kexec;
mod measure;
mod microcode;
mod network;
mod noiommu;
mod pl330;
mod privileges;
mod ptrace;
mod random_access;
mod rings;
mod tap;
mod testdev;
mod trace;
mod vfio;
mod vfio_user;
mod vhost_user;

use std::process::ExitCode;

const USAGE: &str = "\
usage: agent COMMAND
  serve PORT                            serve the harness on a virtio-serial port
  pl330 BASE status                     state of the manager, the channels and the events
  pl330 BASE raise EVENT                raise an event with its interrupt enabled
  pl330 BASE clear                      disable and clear all interrupts
  pl330 BASE copy CHANNEL AT FROM TO N  copy N bytes by a program placed at AT (bus addresses)
  pl330 BASE copy-on EVENT CHANNEL AT FROM TO N  the same whenever an event happens; doesn't wait
  pl330 BASE signal EVENT               make an event happen
  pl330 BASE kill CHANNEL               kill a channel
  memory fill ADDRESS LENGTH BYTE       fill physical memory
  memory check ADDRESS LENGTH BYTE      fail unless all of it is BYTE
  memory pair ADDRESS                   read two words by one instruction
  memory vector ADDRESS                 read two words into a vector register
  canary LOW HIGH                       fill a page of physical address in [LOW, HIGH), say which,
                                        and after a line of input check that it is unchanged
  cpu                                   use what there is of SVE and pointer authentication, and say so
  random-access ADDRESS LENGTH N [read-only]
                                        N accesses of any size at any place of physical memory, half
                                        of them writes unless read-only
  rings BAR ADDRESS N [lenient]         hand broken queues, of physical memory at ADDRESS, to the virtio
                                        device with that BAR, which has no driver; N of them random;
                                        if lenient, it may do nothing
  disk read FILE BYTES DEPTH N [in-order]
                                        N reads of so many bytes by O_DIRECT, DEPTH at a time, anywhere
                                        unless in order; prints the ns that each took
  disk verify FILE SIZE DEPTH ROUNDS [JOBS]
                                        write and read back blocks by O_DIRECT, DEPTH at a time, a part
                                        of them by each of JOBS threads, on a CPU of its own
  disk verified FILE SIZE DEPTH ROUNDS [JOBS]
                                        check that what that wrote is there
  disk record FILE FROM                 write numbered blocks, each made durable before it is told
  disk recorded FILE LAST               check that all blocks up to LAST are there
  gpio CHIP drive LINE 0|1              have a line of /dev/gpiochip… be an output
  gpio CHIP read LINE                   have it be an input, and print its value
  edu BDF msi|line ROUNDS               drive QEMU's edu device, in a guest: registers, factorial,
                                        pages copied there and back, all told by interrupts
  testdev BDF N                         have both BARs of QEMU's pci-testdev count N writes
  vfio mask|unmask PID INTERRUPT        an interrupt of the VFIO device that a process has open
  vfio memory on|off PID                the memory of the PCI function that a process has open
  as UID [memlock=BYTES] COMMAND…       run a command as a user, without privileges
  files PID N                           let a process have no descriptor of N or above from now on
  kexec KERNEL INITRD CMDLINE           run another kernel instead of this one
  kexec-on-crash KERNEL INITRD CMDLINE  the same when this one crashes
  client PATH                           of a guest's console, a socket or a terminal: copy what it
                                        says, and standard input to it, to the end of either
  call PATH MESSAGE                     send a message of varlink, and print the answer
  datagrams PATH                        print what is sent to a socket of datagrams
  gdb PATH|tcp:IP:PORT                  be a debugger: send each line of input as a packet of GDB's
                                        protocol, and print its answer; !LINE doesn't wait for it,
                                        interrupt is one
  gdb PATH|tcp:IP:PORT COUNT PACKET     print how long so many round trips of a packet take, or of
                                        interrupt, which has the guest run and stop
  delayed-cat SECONDS                   copy input to output after SECONDS, with a pipe of a page
  vfio-user serve PATH [messages|single]
                                        serve a PCI device on a socket; as libvfio-user does, with
                                        memory by messages on a connection of its own, or on one
  vfio-user drive BDF                   drive that device in a guest, all of it
  vfio-user line BDF                    drive it by its interrupt line alone
  vfio-user copy BDF ROUNDS             have it copy pages, 16 a round
  vfio-user wrong BDF WAY               have its server go wrong: 1 die, 2 stop, 3 send nonsense;
                                        and say what is left of the device
  vfio-user look BDF                    say what is left of it
  tap NAME UID tap|tun|multi-queue      make an interface of this kind that stays, for a user
  ring-size NAME RX TX                  have a network interface use queues of these sizes
  vhost-user serve PATH [REQUEST WAY]   serve an entropy device over vhost-user; on this request hang,
                                        die, send nonsense, or descriptors
  receive ADDRESS [plain]               read a connection to its end: tcp:IP:PORT or vsock:CID:PORT
  send ADDRESS BYTES [plain]            connect to that, and send bytes that are checked, or plain ones
  echoed ADDRESS BYTES                  connect to who sends all back, and check that it is the same
  udp-echo IP:PORT                      send packets back
  udp IP:PORT COUNT SIZE                send packets to that, each after the answer to the last
  trace FILE COMMAND…                   run a command, and append to FILE which system calls its threads
                                        make that filter theirs; with kills before FILE only the
                                        call that ends it, if one does
  fail FILE CALL ERRNO N[+] COMMAND…    run a command whose Nth system call of this number fails, or that
                                        and all after it, and write to FILE whose that was
  inject PID THREAD CALL [ARGUMENT]…    have a thread of this name ask for a system call
  measure RUNS COMMAND…                 wall and CPU time, largest RSS, exit status of each run
Numbers are decimal or 0x….";

/// Why a command did not do what it should.
type CommandError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", port] => control::serve(port.as_ref()),
        ["pl330", base, command @ ..] => number(base).and_then(|base| pl330::run(base, command)),
        ["memory", "fill", address, length, byte] => memory(address, length, byte, devmem::fill),
        ["memory", "check", address, length, byte] => memory(address, length, byte, devmem::check),
        ["canary", low, high] => {
            number(low).and_then(|low| number(high).and_then(|high| canary::watch(low, high)))
        }
        ["cpu"] => cpu::run(),
        ["memory", "pair", address] => number(address).and_then(devmem::pair),
        ["memory", "vector", address] => number(address).and_then(devmem::vector),
        ["random-access", address, length, count] => random_access(address, length, count, false),
        ["random-access", address, length, count, "read-only"] => {
            random_access(address, length, count, true)
        }
        ["rings", bar, address, rounds] => rings(bar, address, rounds, false),
        ["rings", bar, address, rounds, "lenient"] => rings(bar, address, rounds, true),
        ["disk", "read", file, numbers @ .., "in-order"] => disk_read(file, numbers, true),
        ["disk", "read", file, numbers @ ..] => disk_read(file, numbers, false),
        ["disk", "verify", file, numbers @ ..] => disk_check(file, numbers, disk::verify),
        ["disk", "verified", file, numbers @ ..] => disk_check(file, numbers, disk::verified),
        ["disk", "record", file, from] => number(from).and_then(|from| disk::record(file, from)),
        ["disk", "recorded", file, last] => {
            number(last).and_then(|last| disk::recorded(file, last))
        }
        ["gpio", chip, "drive", line, value] => number32(line)
            .and_then(|line| number(value).and_then(|value| gpio::drive(chip, line, value))),
        ["gpio", chip, "read", line] => number32(line).and_then(|line| gpio::read(chip, line)),
        ["gpio", chip, "rises", line, count] => number32(line)
            .and_then(|line| number(count).and_then(|count| gpio::rises(chip, line, count))),
        ["edu", name, by, rounds] => number(rounds).and_then(|rounds| edu::run(name, by, rounds)),
        ["testdev", name, writes] => number(writes).and_then(|n| testdev::run(name, n)),
        ["vfio", "memory", state, process] => vfio::memory(state, process),
        ["vfio", action, process, interrupt] => vfio::run(action, process, interrupt),
        ["files", process, count] => {
            number32(process).and_then(|process| privileges::limit_files(process, number(count)?))
        }
        ["kexec", kernel, initrd, cmdline] => kexec::run(kernel, initrd, cmdline),
        ["kexec-on-crash", kernel, initrd, cmdline] => kexec::on_crash(kernel, initrd, cmdline),
        ["client", path] => client::run(path.as_ref()),
        ["call", path, message] => client::call(path.as_ref(), message),
        ["datagrams", path] => datagrams::print(path.as_ref()),
        ["gdb", address] => gdb::run(address),
        ["gdb", address, count, packet] => {
            number(count).and_then(|count| gdb::time(address, count, packet))
        }
        ["delayed-cat", seconds] => number(seconds).and_then(delayed_cat::copy),
        ["as", user, command @ ..] => privileges::run(user, command),
        ["without-signals", ignored, command @ ..] => privileges::without_signals(ignored, command),
        ["vfio-user", "serve", path] => vfio_user::serve(path.as_ref(), None),
        ["vfio-user", "serve", path, mode] => vfio_user::serve(path.as_ref(), Some(mode)),
        ["vfio-user", "drive", name] => vfio_user::drive(name),
        ["vfio-user", "line", name] => vfio_user::by_line(name),
        ["vfio-user", "copy", name, rounds] => {
            number(rounds).and_then(|rounds| vfio_user::copy(name, rounds))
        }
        ["vfio-user", "wrong", name, way] => vfio_user::wrong(name, way),
        ["vfio-user", "look", name] => vfio_user::look(name),
        ["tap", name, user, kind] => number32(user).and_then(|user| tap::make(name, user, kind)),
        ["ring-size", name, receive, transmit] => number32(receive)
            .and_then(|receive| tap::resize_rings(name, receive, number32(transmit)?)),
        ["vhost-user", "serve", path] => vhost_user::serve(path, None),
        ["vhost-user", "serve", path, request, way] => {
            number32(request).and_then(|request| vhost_user::serve(path, Some((request, way))))
        }
        ["receive", address, how @ ..] => network::receive(address, how),
        ["send", address, bytes, how @ ..] => {
            number(bytes).and_then(|bytes| network::send(address, bytes, how))
        }
        ["echoed", address, bytes] => {
            number(bytes).and_then(|bytes| network::echoed(address, bytes))
        }
        ["udp-echo", address] => network::echo(address),
        ["udp", address, count, size] => {
            number(count).and_then(|count| network::round_trips(address, count, number(size)?))
        }
        ["trace", "kills", file, command @ ..] => trace::run(file, command, false),
        ["trace", file, command @ ..] => trace::run(file, command, true),
        ["fail", file, call, error, which, command @ ..] => {
            fail::run(file, [call, error, which], command)
        }
        ["inject", process, thread, call, arguments @ ..] => {
            let arguments: Result<Vec<u64>, _> =
                arguments.iter().map(|text| number(text)).collect();
            number(call).and_then(|call| inject::run(process, thread, call, &arguments?))
        }
        ["measure", runs, command @ ..] => measure::run(runs, command),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// A number as the command line spells it.
fn number(text: &str) -> Result<u64, CommandError> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no number").into())
}

/// A 32-bit number as the command line spells it.
fn number32(text: &str) -> Result<u32, CommandError> {
    u32::try_from(number(text)?).map_err(|_| format!("{text} has more than 32 bits").into())
}

fn disk_read(file: &str, numbers: &[&str], in_order: bool) -> Result<(), CommandError> {
    let [bytes, depth, count] = numbers else { return Err("bytes, depth and count".into()) };
    disk::read(file, number(bytes)?, number(depth)?, number(count)?, in_order)
}

fn disk_check(
    file: &str,
    numbers: &[&str],
    act: fn(&str, u64, u64, u64, u64) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let (numbers, jobs) = match numbers {
        [numbers @ .., jobs] if numbers.len() == 3 => (numbers, number(jobs)?),
        _ => (numbers, 1),
    };
    let [size, depth, rounds] = numbers else { return Err("size, depth and rounds".into()) };
    act(file, number(size)?, number(depth)?, number(rounds)?, jobs)
}

fn rings(bar: &str, address: &str, rounds: &str, lenient: bool) -> Result<(), CommandError> {
    rings::run(number(bar)?, number(address)?, number(rounds)?, lenient)
}

fn random_access(
    address: &str,
    length: &str,
    count: &str,
    read_only: bool,
) -> Result<(), CommandError> {
    random_access::run(number(address)?, number(length)?, number(count)?, read_only)
}

fn memory(
    address: &str,
    length: &str,
    byte: &str,
    act: fn(u64, u64, u8) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let byte = u8::try_from(number(byte)?).map_err(|_| format!("{byte} is no byte"))?;
    act(number(address)?, number(length)?, byte)
}

#[cfg(test)]
mod tests {
    use super::{number, number32};

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        for (text, value) in
            [("10", Some(10)), ("0x2c0a0000", Some(0x2c0a_0000)), ("0x", None), ("-1", None)]
        {
            assert_eq!(number(text).ok(), value, "{text}");
        }
        assert!(number32("0x100000000").is_err());
    }
}
