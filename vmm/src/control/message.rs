//! Messages of varlink (varlink.org, "Method Call" and "Service Interface"): calls and their replies, in JSON,
//! a zero behind each.

use serde::Deserialize;

/// The interfaces, with their descriptions.
const INTERFACES: [(&str, &str); 3] = [
    ("org.varlink.service", include_str!("org.varlink.service.varlink")),
    ("io.systemd.MachineInstance", include_str!("io.systemd.MachineInstance.varlink")),
    ("io.strait.Machine", include_str!("io.strait.Machine.varlink")),
];

/// What a client asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End it.
    Terminate,
    /// Press its power button.
    PowerOff,
    /// Have it begin anew.
    Reboot,
    /// Have it stand still.
    Pause,
    /// Let it run again.
    Resume,
    /// Whether it runs.
    Status,
    /// What it is made of.
    Describe,
    /// Its counters.
    Stats,
    /// Record what is traced, or don't.
    Trace(bool),
}

/// What the machine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// These parameters, an object in JSON.
    Parameters(String),
    /// It has nothing for that, or not now.
    NotSupported,
}

/// A call, once it is understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// Answered by this message, or by none.
    Answered(Option<String>),
    /// For the machine; whether an answer is wanted.
    Request(Request, bool),
    /// Events with these names are wanted, or all.
    Subscribe(Option<Vec<String>>),
}

/// A call as it comes.
#[derive(Deserialize)]
struct Incoming {
    method: String,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(default)]
    oneway: bool,
    #[serde(default)]
    more: bool,
}

/// The parameters of all methods.
#[derive(Default, Deserialize)]
struct Parameters {
    interface: Option<String>,
    filter: Option<Vec<String>>,
    on: Option<bool>,
}

/// Understands a call, without its zero. `None`: this is none, and nothing can be said about it.
pub fn parse(message: &[u8]) -> Option<Call> {
    let call: Incoming = serde_json::from_slice(message).ok()?;
    let parameters = call.parameters.unwrap_or_default();
    let answered = |reply: String| Call::Answered((!call.oneway).then_some(reply));
    let (interface, method) = call.method.rsplit_once('.').unwrap_or_default();
    let request = match (interface, method) {
        ("io.systemd.MachineInstance", "Terminate") => Request::Terminate,
        ("io.systemd.MachineInstance", "PowerOff") => Request::PowerOff,
        ("io.systemd.MachineInstance", "Reboot") => Request::Reboot,
        ("io.systemd.MachineInstance", "Pause") => Request::Pause,
        ("io.systemd.MachineInstance", "Resume") => Request::Resume,
        ("io.systemd.MachineInstance", "QueryStatus" | "Describe") => Request::Status,
        ("io.strait.Machine", "Describe") => Request::Describe,
        ("io.strait.Machine", "Stats") => Request::Stats,
        ("io.strait.Machine", "Trace") => match parameters.on {
            Some(on) => Request::Trace(on),
            None => return Some(answered(missing("on"))),
        },
        ("io.systemd.MachineInstance", "SubscribeEvents") => {
            return Some(match call.more && !call.oneway {
                true => Call::Subscribe(parameters.filter),
                false => answered(error("org.varlink.service.ExpectedMore", "{}")),
            });
        }
        ("org.varlink.service", "GetInfo") => return Some(answered(info())),
        ("org.varlink.service", "GetInterfaceDescription") => {
            return Some(answered(description(parameters.interface.as_deref())));
        }
        _ => return Some(answered(unknown(interface, &call.method))),
    };
    Some(Call::Request(request, !call.oneway))
}

/// The message that is the answer to a request.
pub fn answered(answer: Answer) -> String {
    match answer {
        Answer::Done => reply("{}"),
        Answer::Parameters(parameters) => reply(&parameters),
        Answer::NotSupported => error("io.systemd.MachineInstance.NotSupported", "{}"),
    }
}

/// The message that tells of an event; more follow.
pub fn event(name: &str) -> String {
    format!(r#"{{"parameters":{{"event":{}}},"continues":true}}"#, text(name))
}

/// The parameters that say whether the machine runs.
pub fn status(paused: bool) -> String {
    let status = if paused { "paused" } else { "running" };
    format!(r#"{{"running":{},"status":"{status}"}}"#, !paused)
}

fn reply(parameters: &str) -> String {
    format!(r#"{{"parameters":{parameters}}}"#)
}

fn error(name: &str, parameters: &str) -> String {
    format!(r#"{{"error":"{name}","parameters":{parameters}}}"#)
}

fn info() -> String {
    let interfaces = INTERFACES.map(|(name, _)| format!("\"{name}\"")).join(",");
    let (version, url) = (text(env!("CARGO_PKG_VERSION")), text(env!("CARGO_PKG_REPOSITORY")));
    reply(&format!(
        r#"{{"vendor":"strait","product":"strait","version":{version},"url":{url},"interfaces":[{interfaces}]}}"#
    ))
}

fn description(interface: Option<&str>) -> String {
    let Some(interface) = interface else {
        return missing("interface");
    };
    match INTERFACES.iter().find(|(name, _)| *name == interface) {
        Some((_, description)) => reply(&format!(r#"{{"description":{}}}"#, text(description))),
        None => no_interface(interface),
    }
}

/// The error of a parameter that is missing.
fn missing(parameter: &str) -> String {
    error("org.varlink.service.InvalidParameter", &format!(r#"{{"parameter":"{parameter}"}}"#))
}

/// The error of a method that isn't there.
fn unknown(interface: &str, method: &str) -> String {
    if INTERFACES.iter().any(|(name, _)| *name == interface) {
        let parameters = format!(r#"{{"method":{}}}"#, text(method));
        return error("org.varlink.service.MethodNotFound", &parameters);
    }
    no_interface(interface)
}

fn no_interface(interface: &str) -> String {
    let parameters = format!(r#"{{"interface":{}}}"#, text(interface));
    error("org.varlink.service.InterfaceNotFound", &parameters)
}

/// A text as JSON has it.
fn text(text: &str) -> String {
    // A text can't fail.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn reply_to(message: &str) -> Value {
        match parse(message.as_bytes()) {
            Some(Call::Answered(Some(reply))) => serde_json::from_str(&reply).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn call(method: &str) -> Option<Call> {
        parse(format!(r#"{{"method":"{method}"}}"#).as_bytes())
    }

    #[test]
    fn each_method_of_a_description_is_there_and_no_other() {
        for (name, description) in INTERFACES {
            assert!(description.contains(&format!("\ninterface {name}\n")));
            let methods = description.lines().filter_map(|line| line.strip_prefix("method "));
            for method in methods.filter_map(|line| line.split_once('(')).map(|(name, _)| name) {
                if let Call::Answered(Some(reply)) = call(&format!("{name}.{method}")).unwrap() {
                    assert!(!reply.contains("NotFound"), "{method}: {reply}");
                }
            }
            let none = reply_to(&format!(r#"{{"method":"{name}.None","parameters":null}}"#));
            assert_eq!(none["error"], "org.varlink.service.MethodNotFound");
            assert_eq!(none["parameters"]["method"], format!("{name}.None"));
        }
        for method in ["", ".", "Pause", "io.systemd.Pause", "io.systemd.MachineInstance."] {
            let error = reply_to(&format!(r#"{{"method":"{method}"}}"#))["error"].to_string();
            assert!(error.contains("NotFound"), "{method}: {error}");
        }
    }

    #[test]
    fn the_service_describes_itself() {
        let info = reply_to(r#"{"method":"org.varlink.service.GetInfo"}"#);
        assert_eq!(info["parameters"]["interfaces"].as_array().unwrap().len(), 3);
        let get = r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":"#;
        let text = reply_to(&format!(r#"{get}{{"interface":"io.strait.Machine"}}}}"#));
        assert_eq!(text["parameters"]["description"], INTERFACES[2].1);
        let none = reply_to(&format!(r#"{get}{{"interface":"x\"y"}}}}"#));
        assert_eq!(none["parameters"]["interface"], "x\"y");
        assert_eq!(reply_to(&format!("{get}{{}}}}"))["parameters"]["parameter"], "interface");
    }

    #[test]
    fn requests_are_answered_unless_they_are_one_way() {
        let pause = "io.systemd.MachineInstance.Pause";
        assert_eq!(call(pause), Some(Call::Request(Request::Pause, true)));
        let oneway = parse(format!(r#"{{"method":"{pause}","oneway":true,"x":[1]}}"#).as_bytes());
        assert_eq!(oneway, Some(Call::Request(Request::Pause, false)));
        let trace =
            |on: &str| parse(format!(r#"{{"method":"io.strait.Machine.Trace"{on}}}"#).as_bytes());
        let on = trace(r#","parameters":{"on":true}"#);
        assert_eq!(on, Some(Call::Request(Request::Trace(true), true)));
        assert!(matches!(trace(""), Some(Call::Answered(Some(e))) if e.contains("InvalidParam")));
        let oneway = parse(br#"{"method":"a.b","oneway":true}"#);
        assert_eq!(oneway, Some(Call::Answered(None)));
        for wrong in ["", "null", "[]", "{}", r#"{"method":1}"#, r#"{"method":"a.b"}x"#, "\u{0}"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        // As deep as it likes.
        assert_eq!(parse("[".repeat(100_000).as_bytes()), None);
    }

    #[test]
    fn events_come_where_more_is_asked_for() {
        let subscribe = |rest: &str| {
            let call =
                format!(r#"{{"method":"io.systemd.MachineInstance.SubscribeEvents"{rest}}}"#);
            parse(call.as_bytes()).unwrap()
        };
        assert_eq!(subscribe(r#","more":true"#), Call::Subscribe(None));
        let filter = subscribe(r#","more":true,"parameters":{"filter":["STOP"]}"#);
        assert_eq!(filter, Call::Subscribe(Some(vec!["STOP".into()])));
        assert!(
            matches!(subscribe(""), Call::Answered(Some(reply)) if reply.contains("ExpectedMore"))
        );
        let event: Value = serde_json::from_str(&event("STOP")).unwrap();
        assert_eq!(
            (&event["parameters"]["event"], &event["continues"]),
            (&"STOP".into(), &true.into())
        );
        let status: Value =
            serde_json::from_str(&answered(Answer::Parameters(status(true)))).unwrap();
        assert_eq!(status["parameters"]["running"], false);
    }
}
