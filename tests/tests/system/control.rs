//! `--control`: the machine as a service of varlink.

use serde_json::Value;
use tests::harness::{
    Board, Failure, Guest, Host, Launch, PLATFORM_DMA, Process, TestResult, payload,
};

use crate::vhost_user::with_programs;

const SOCKET: &str = "/tmp/control";
const NAME: &str = PLATFORM_DMA[0];

/// What the service answers to a call of this method.
fn call(host: &Host, method: &str) -> Result<Value, Failure> {
    call_with(host, method, "{}")
}

/// The same with these parameters.
fn call_with(host: &Host, method: &str, parameters: &str) -> Result<Value, Failure> {
    let call = format!("{{\"method\":\"{method}\",\"parameters\":{parameters}}}");
    let answer = host.sh(&format!("agent call {SOCKET} '{call}'"))?;
    Ok(serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
}

/// The same for systemd's interface.
fn instance(host: &Host, method: &str) -> Result<Value, Failure> {
    call(host, &format!("io.systemd.MachineInstance.{method}"))
}

fn done() -> Value {
    serde_json::json!({ "parameters": {} })
}

#[test]
fn a_machine_is_paused_begun_anew_and_powered_off() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(NAME)?;
    let options = format!(
        "--cpus 2 --control unix:{SOCKET} --on-reset restart --grace 300 --vfio-platform {NAME} \
         --trace {NAME},out=/tmp/trace,start=off"
    );
    let mut guest = host.guest(&options)?;
    assert_eq!(host.sh(&format!("stat -c %a {SOCKET}"))?.trim(), "600");
    // Who is here, reads nothing, and says nothing, or half of something, holds nobody up.
    let mut subscriber = host.start(&format!("exec agent client {SOCKET}"))?.timeout(600);
    subscriber.send(
        "{\"method\":\"io.systemd.MachineInstance.SubscribeEvents\",\"more\":true}\0{\"method\"",
    )?;
    subscriber.wait_for("READY")?;
    let status = |running: bool| {
        let status = if running { "running" } else { "paused" };
        serde_json::json!({ "parameters": { "running": running, "status": status } })
    };
    assert_eq!(instance(&host, "QueryStatus")?, status(true));
    assert_eq!(instance(&host, "Pause")?, done());
    subscriber.wait_for("STOP")?;
    assert_eq!(instance(&host, "QueryStatus")?, status(false));
    // It stands still, and what it is asked for comes when it runs again.
    guest.begin("echo alive")?;
    let vcpu = guest_pid(&host)?;
    host.until(&format!("grep -q '^State:.S' /proc/{vcpu}/status"))?;
    let cpu = || host.sh(&format!("cat /proc/{vcpu}/schedstat"));
    let before = cpu()?;
    for _ in 0..10 {
        assert_eq!(instance(&host, "QueryStatus")?, status(false));
    }
    assert_eq!(cpu()?, before);
    assert_eq!(instance(&host, "Resume")?, done());
    subscriber.wait_for("RESUME")?;
    assert_eq!(guest.finish()?, (0, "alive\n".into()));

    let machine = call(&host, "io.strait.Machine.Describe")?;
    assert_eq!(machine["parameters"]["machine"]["vcpus"], 2, "{machine}");
    let stats = call(&host, "io.strait.Machine.Stats")?;
    assert_eq!(stats["parameters"]["statistics"]["restarts"]["count"], 0, "{stats}");
    let traced = trace_in_between(&host, &mut guest)?;
    assert_eq!(instance(&host, "Reboot")?, done());
    subscriber.wait_for("RESET")?;
    guest.await_shell()?;
    let stats = call(&host, "io.strait.Machine.Stats")?;
    assert_eq!(stats["parameters"]["statistics"]["restarts"]["count"], 1, "{stats}");

    // An event is a struct input_event of 24 bytes, KEY_POWER and a SYN.
    guest.begin("{ echo wai''ts; head -c 48; } </dev/input/event0 >/dev/console; poweroff -f")?;
    guest.process().wait_for("waits")?;
    assert_eq!(instance(&host, "PowerOff")?, done());
    subscriber.wait_for("POWERDOWN")?;
    subscriber.wait_for("SHUTDOWN")?;
    assert_eq!(guest.exit_status()?, 0);
    host.sh(&format!("[ ! -e {SOCKET} ]"))?;
    // What was done before, and in the guest's next life, isn't there.
    let trace = host.sh("cat /tmp/trace")?;
    assert!(trace.contains(" CR0 "), "{trace}");
    let accesses = [" read  ", " write "].map(|word| trace.matches(word).count() as u64);
    assert_eq!(accesses.iter().sum::<u64>(), traced, "{trace}");
    Ok(())
}

/// Has a guest's driver begin with its device three times, of which the second is traced; how many accesses
/// that were.
fn trace_in_between(host: &Host, guest: &mut Guest) -> Result<u64, Failure> {
    let accesses = || -> Result<u64, Failure> {
        let stats = call(host, "io.strait.Machine.Stats")?;
        let counts = &stats["parameters"]["statistics"]["devices"][NAME];
        Ok(["reads", "writes"].iter().filter_map(|kind| counts[kind].as_u64()).sum())
    };
    let mut counts = Vec::new();
    for on in [false, true, false] {
        let set = call_with(host, "io.strait.Machine.Trace", &format!("{{\"on\":{on}}}"))?;
        assert_eq!(set, done());
        guest.sh("cd /sys/bus/amba/drivers/dma-pl330 && device=$(basename *.dma*) && \
             echo $device >unbind && echo $device >bind")?;
        counts.push(accesses()?);
    }
    let [first, second, third] = counts.as_slice() else { return Ok(0) };
    assert!(*first > 0 && second > first && third > second, "{counts:?}");
    Ok(second - first)
}

/// The process with the guest.
fn guest_pid(host: &Host) -> Result<String, Failure> {
    let pid = host.sh(
        "for vcpu in /proc/[0-9]*/task/*/comm; do grep -qs vcpu0 $vcpu && echo ${vcpu%/comm}; done; true",
    )?;
    Ok(pid.trim().trim_start_matches("/proc/").to_owned())
}

#[test]
fn what_a_machine_has_not_is_an_error_and_it_is_ended_at_once() -> TestResult {
    let host = Board::new().boot()?;
    let launch = Launch::model().does("idle").with(&format!("--control unix:{SOCKET}"));
    let guest = host.launch(&launch)?;
    let trace = call_with(&host, "io.strait.Machine.Trace", "{\"on\":true}")?;
    for (method, answer) in [
        ("PowerOff", instance(&host, "PowerOff")?),
        ("Reboot", instance(&host, "Reboot")?),
        ("Trace", trace),
    ] {
        let error = &answer["error"];
        assert_eq!(*error, "io.systemd.MachineInstance.NotSupported", "{method}");
    }
    let none = instance(&host, "Explode")?;
    assert_eq!(none["error"], "org.varlink.service.MethodNotFound", "{none}");
    // A flood of nonsense ends its own connection.
    host.sh(&format!("yes | head -c 1000000 | agent client {SOCKET} || true"))?;
    // Nobody else's process, even where the file would let it.
    host.sh(&format!("chmod 666 {SOCKET} && chmod 1777 /tmp"))?;
    let terminate = "{\"method\":\"io.systemd.MachineInstance.Terminate\"}";
    let stranger = host.run(&format!("agent as 1000 agent call {SOCKET} '{terminate}'"))?;
    assert_ne!(stranger.status, 0, "{}", stranger.output);
    let info = call(&host, "org.varlink.service.GetInfo")?;
    assert_eq!(info["parameters"]["product"], "strait", "{info}");
    assert_eq!(instance(&host, "Terminate")?, done());
    assert_eq!(guest.exit_status()?, 0);
    host.sh(&format!("[ ! -e {SOCKET} ]"))?;
    Ok(())
}

/// systemd's own client of varlink, that of a Debian system.
const CLIENT: &str = "chroot /debian varlinkctl";

/// The command that has it call a method.
fn varlinkctl(method: &str) -> String {
    format!("{CLIENT} call {SOCKET} {method} '{{}}'")
}

/// The same for systemd's interface.
fn varlinkctl_instance(method: &str) -> String {
    varlinkctl(&format!("io.systemd.MachineInstance.{method}"))
}

/// systemd's client, which prints events from now on.
fn subscribe(host: &Host) -> Result<Process, Failure> {
    let command = varlinkctl_instance("SubscribeEvents").replace(" call ", " --more call ");
    let mut events = host.start(&format!("exec {command}"))?;
    events.wait_for("READY")?;
    Ok(events)
}

/// Checks that there were these events, in this order and no others, until the machine ended.
fn check_events(events: &Process, expected: &[&str]) -> TestResult {
    // It fails where the service goes before the last answer that it waits for.
    events.exit_status()?;
    let said = events.output();
    let words = said.split_once("READY").map_or(&*said, |(_, after)| after).split('"');
    let told: Vec<_> = words.filter(|word| word.starts_with(|c: char| c.is_uppercase())).collect();
    assert_eq!(told, expected, "{said}");
    Ok(())
}

/// A machine that was asked to end doesn't begin anew, whoever asks for it.
fn is_not_rebooted_once_it_is_to_end(host: &Host) -> TestResult {
    let run =
        format!("run --kernel /k/wait --control unix:{SOCKET} --on-reset restart --grace 900");
    let process = host.start(&format!("exec strait {run} 2>&1"))?;
    host.until(&format!("[ -S {SOCKET} ]"))?;
    host.sh(&varlinkctl_instance("Reboot"))?;
    host.sh(&varlinkctl_instance("PowerOff"))?;
    let answer = host.run(&varlinkctl_instance("Reboot"))?;
    assert!(answer.errors.contains("MachineInstance.NotSupported"), "{answer:?}");
    host.sh(&varlinkctl_instance("Terminate"))?;
    assert_eq!(process.exit_status()?, 0);
    Ok(())
}

/// A machine that doesn't begin anew says so to who asks for it, and goes on.
fn is_not_rebooted(host: &Host) -> TestResult {
    // Its first client comes when the host has no open file left (accept4, ENFILE).
    let short = "exec agent fail /tmp/failed 242 23 1 strait";
    let run = format!("run --kernel /k/wait --control unix:{SOCKET} --on-reset exit");
    let process = host.start(&format!("{short} {run} 2>&1"))?;
    host.until(&format!("[ -S {SOCKET} ]"))?;
    let events = subscribe(host)?;
    for method in ["Reboot", "PowerOff"] {
        let answer = host.run(&varlinkctl_instance(method))?;
        assert_ne!(answer.status, 0, "{method}");
        assert!(answer.errors.contains("MachineInstance.NotSupported"), "{method}: {answer:?}");
    }
    assert!(host.sh(&varlinkctl_instance("Describe"))?.contains("running"));
    host.sh(&varlinkctl_instance("Terminate"))?;
    assert_eq!(process.exit_status()?, 0);
    let said = process.output();
    assert!(said.contains("a client can't be accepted, it is tried again: "), "{said}");
    assert!(host.sh("cat /tmp/failed")?.contains("strait"));
    check_events(&events, &["SHUTDOWN"])
}

#[test]
fn systemds_own_client_steers_a_machine() -> TestResult {
    let host = with_programs(Board::new().file("k/wait", payload::wait()))?;
    host.sh("for directory in proc tmp; do mount -o bind /$directory /debian/$directory; done")?;
    is_not_rebooted(&host)?;
    is_not_rebooted_once_it_is_to_end(&host)?;
    let options = format!("--control unix:{SOCKET} --grace 300 --on-reset restart");
    let mut guest = host.guest(&options)?;
    let info = host.sh(&format!("{CLIENT} info {SOCKET}"))?;
    assert!(info.contains("Product: strait") && info.contains("io.strait.Machine"), "{info}");
    // It checks the description against the language.
    for interface in ["io.systemd.MachineInstance", "io.strait.Machine"] {
        let text = host.sh(&format!("{CLIENT} introspect {SOCKET} {interface}"))?;
        assert!(text.contains(&format!("interface {interface}")), "{text}");
    }
    let mut events = subscribe(&host)?;
    for (method, event, status) in [("Pause", "STOP", "paused"), ("Resume", "RESUME", "running")] {
        host.sh(&varlinkctl_instance(method))?;
        events.wait_for(event)?;
        let said = host.sh(&varlinkctl_instance("QueryStatus"))?;
        assert!(said.contains(status), "{said}");
    }
    assert!(host.sh(&varlinkctl("io.strait.Machine.Describe"))?.contains("device_tree"));
    // What the guest had is gone with its first life.
    guest.sh("touch /tmp/first")?;
    host.sh(&varlinkctl_instance("Reboot"))?;
    guest.await_shell()?;
    guest.sh("[ ! -e /tmp/first ]")?;
    let stats = host.sh(&varlinkctl("io.strait.Machine.Stats"))?;
    let stats: Value = serde_json::from_str(&stats).unwrap_or(Value::String(stats));
    assert_eq!(stats["statistics"]["restarts"]["count"], 1, "{stats}");
    // Nothing in the guest looks at its button.
    host.sh(&varlinkctl_instance("PowerOff"))?;
    events.wait_for("POWERDOWN")?;
    host.sh(&varlinkctl_instance("Terminate"))?;
    assert_eq!(guest.exit_status()?, 0);
    check_events(&events, &["STOP", "RESUME", "RESET", "POWERDOWN", "SHUTDOWN"])
}
