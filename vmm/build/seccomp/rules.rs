//! Filters as they are written: a line for each rule.
//!
//! ```text
//! CALL [ARGUMENT=VALUE | ARGUMENT&MASK=VALUE]...    # why
//! ```
//!
//! Arguments are counted from 0, and their low 32 bits are compared. Values are numbers or names, which
//! `constants` has, several joined by `|`. A call with more than one line is allowed by each of them.
//! `include NAME` stands for the lines of another file. What isn't allowed ends the process.
//!
//! What follows a line `[devices]` is for guests with devices other than the platform's own, or that may
//! begin anew. A line `[uncached]` has the kernel run the filter for each call, see [`Filter::is_uncached`].

use std::collections::BTreeMap;
use std::fmt::Write;

/// The file that others include.
pub const COMMON: &str = "common";

/// The name of a filter in seccompiler's JSON.
pub const KEY: &str = "filter";

/// Names with their values.
pub struct Names(BTreeMap<String, u64>);

/// What a file says.
#[derive(Default)]
pub struct Filter {
    /// The calls, in the order of their first lines.
    pub calls: Vec<Call>,
    /// The kernel doesn't look which calls are allowed whatever their arguments, when a thread takes the
    /// filter: this would take longer than all the rest. It then runs the filter for these, too. This is for
    /// threads that hardly make any call, or hardly another one than one with arguments.
    pub is_uncached: bool,
    /// A part is for guests with devices.
    pub has_devices: bool,
}

/// A system call with its rules, in JSON; it is allowed whatever its arguments if there is none.
pub struct Call {
    /// Its name.
    pub name: String,
    rules: Vec<String>,
}

impl Names {
    /// Of lines of a name and its value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut names = BTreeMap::new();
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
            if line.is_empty() {
                continue;
            }
            let (name, value) = line.split_once(' ').ok_or_else(|| format!("constants: {line}"))?;
            let value = number(value.trim()).ok_or_else(|| format!("constants: {line}"))?;
            if names.insert(name.to_owned(), value).is_some() {
                return Err(format!("constants: {name} twice"));
            }
        }
        Ok(Self(names))
    }

    fn value(&self, text: &str) -> Option<u64> {
        text.split('|').try_fold(0, |sum, part| {
            Some(sum | number(part).or_else(|| self.0.get(part).copied())?)
        })
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Reads a file, with the part for guests with devices or without.
pub fn parse(
    name: &str,
    with_devices: bool,
    files: &BTreeMap<String, String>,
    names: &Names,
) -> Result<Filter, String> {
    let mut filter = Filter::default();
    add(name, with_devices, files, names, &mut filter)?;
    Ok(filter)
}

fn add(
    name: &str,
    with_devices: bool,
    files: &BTreeMap<String, String>,
    names: &Names,
    filter: &mut Filter,
) -> Result<(), String> {
    let text = files.get(name).ok_or_else(|| format!("there is no {name}.filter"))?;
    for (number, line) in (1..).zip(text.lines()) {
        let failed = |why: &str| format!("{name}.filter:{number}: {why}: {line}");
        let (rule, reason) = line.split_once('#').unwrap_or((line, ""));
        let mut words = rule.split_whitespace();
        let Some(call) = words.next() else { continue };
        match call {
            "[uncached]" => {
                filter.is_uncached = true;
                continue;
            }
            "[devices]" => {
                filter.has_devices = true;
                if with_devices {
                    continue;
                }
                break;
            }
            _ => {}
        }
        if call == "include" {
            let other = words.next().filter(|other| *other != name);
            let other = other.ok_or_else(|| failed("include what?"))?;
            add(other, with_devices, files, names, filter)?;
            continue;
        }
        if reason.trim().is_empty() {
            return Err(failed("a rule without a reason"));
        }
        let conditions = words.map(|word| condition(word, names)).collect::<Option<Vec<_>>>();
        let conditions = conditions.ok_or_else(|| failed("an argument that isn't understood"))?;
        let rule = (!conditions.is_empty()).then(|| format!("[{}]", conditions.join(", ")));
        match filter.calls.iter_mut().find(|known| known.name == call) {
            None => {
                filter.calls.push(Call { name: call.to_owned(), rules: rule.into_iter().collect() })
            }
            Some(known) => match rule {
                // Where it comes first in a file, and again in one that is included.
                None if known.rules.is_empty() => {}
                Some(rule) if known.rules.contains(&rule) => {}
                Some(rule) if !known.rules.is_empty() => known.rules.push(rule),
                _ => return Err(failed("allowed with these arguments, and whatever they are")),
            },
        }
    }
    Ok(())
}

/// An argument's comparison, in JSON.
fn condition(word: &str, names: &Names) -> Option<String> {
    let (left, value) = word.split_once('=')?;
    let value = names.value(value)?;
    let (index, operator) = match left.split_once('&') {
        Some((index, mask)) => {
            (index.parse::<u8>().ok()?, format!(r#"{{"masked_eq": {}}}"#, names.value(mask)?))
        }
        None => (left.parse().ok()?, r#""eq""#.to_owned()),
    };
    Some(format!(r#"{{"index": {index}, "type": "dword", "op": {operator}, "val": {value}}}"#))
}

impl Call {
    /// Whether it isn't allowed whatever its arguments.
    pub fn has_arguments(&self) -> bool {
        !self.rules.is_empty()
    }

    /// A filter of seccompiler's for this call alone.
    pub fn json(&self) -> String {
        let mut rules = String::new();
        let name = &self.name;
        for rule in &self.rules {
            let comma = if rules.is_empty() { "" } else { ", " };
            let _ = write!(rules, r#"{comma}{{"syscall": "{name}", "args": {rule}}}"#);
        }
        if rules.is_empty() {
            rules = format!(r#"{{"syscall": "{name}"}}"#);
        }
        format!(
            r#"{{"{KEY}": {{"mismatch_action": "kill_process", "match_action": "allow", "filter": [{rules}]}}}}"#
        )
    }
}
