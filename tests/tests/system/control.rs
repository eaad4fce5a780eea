//! `--control`: the machine as a service of varlink.

use serde_json::Value;
use tests::harness::{Board, Failure, Host, Launch, TestResult};

use crate::vhost_user::with_programs;

const SOCKET: &str = "/tmp/control";

/// What the service answers to a call of this method.
fn call(host: &Host, method: &str) -> Result<Value, Failure> {
    let answer = host.sh(&format!("agent call {SOCKET} '{{\"method\":\"{method}\"}}'"))?;
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
    let options = format!("--cpus 2 --control unix:{SOCKET} --on-reset restart --grace 300");
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
    Ok(())
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
    for method in ["PowerOff", "Reboot"] {
        let error = &instance(&host, method)?["error"];
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

#[test]
fn systemds_own_client_looks_at_a_machine_and_ends_it() -> TestResult {
    let host = with_programs(Board::new())?;
    host.sh("for directory in proc tmp; do mount -o bind /$directory /debian/$directory; done")?;
    let client = "chroot /debian varlinkctl";
    let launch = Launch::model().does("idle");
    let guest = host.launch(&launch.with(&format!("--control unix:{SOCKET} --grace 300")))?;
    let info = host.sh(&format!("{client} info {SOCKET}"))?;
    assert!(info.contains("Product: strait") && info.contains("io.strait.Machine"), "{info}");
    // It checks the description against the language.
    for interface in ["io.systemd.MachineInstance", "io.strait.Machine"] {
        let text = host.sh(&format!("{client} introspect {SOCKET} {interface}"))?;
        assert!(text.contains(&format!("interface {interface}")), "{text}");
    }
    let call = |method: &str| format!("{client} call {SOCKET} {method} '{{}}'");
    let instance = |method: &str| call(&format!("io.systemd.MachineInstance.{method}"));
    let subscribe = instance("SubscribeEvents").replace(" call ", " --more call ");
    let mut events = host.start(&format!("exec {subscribe}"))?;
    events.wait_for("READY")?;
    for (method, event, status) in [("Pause", "STOP", "paused"), ("Resume", "RESUME", "running")] {
        host.sh(&instance(method))?;
        events.wait_for(event)?;
        let said = host.sh(&instance("QueryStatus"))?;
        assert!(said.contains(status), "{said}");
    }
    assert!(host.sh(&call("io.strait.Machine.Describe"))?.contains("device_tree"));
    assert!(host.sh(&call("io.strait.Machine.Stats"))?.contains("restarts"));
    // The guest, which does nothing, doesn't look at its button.
    host.sh(&instance("PowerOff"))?;
    events.wait_for("POWERDOWN")?;
    host.sh(&instance("Terminate"))?;
    events.wait_for("SHUTDOWN")?;
    assert_eq!(guest.exit_status()?, 0);
    Ok(())
}
