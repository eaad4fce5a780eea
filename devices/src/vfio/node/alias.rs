//! Aliases: the numbers by which drivers know their devices, such as 2 by `serial2` (Devicetree
//! Specification, 3.3 "/aliases node"; Linux `of_alias_get_id`, without which some don't probe).

use boot::fdt::Node;
use boot::order;

/// An alias in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Its name, such as `serial2`.
    pub name: String,
    /// The path of the node, such as `/serial@c000000`.
    pub path: String,
    /// Whether an option chose the name, rather than the host.
    pub chosen: bool,
}

/// A name that an option chose, and that something else has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("alias={name} can't be the alias of {path}: {other} has it")]
pub struct AliasTaken {
    /// The name.
    pub name: String,
    /// The node that was to have it.
    pub path: String,
    /// The node that has it.
    pub other: String,
}

/// Whether an option can choose this name (Devicetree Specification, 3.3).
pub fn is_alias_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=31).contains(&name.len()) && name.bytes().all(fits)
}

/// The guest's aliases: those of the machine's `own` nodes, by name and path, and these of assigned
/// devices. What the host calls a device stays, unless the guest has something else of that name: it
/// gets the first number that is free then. A name without a number that is taken is left out.
///
/// # Errors
///
/// Something else has a name that an option chose.
pub fn resolve(own: &[(&str, String)], aliases: Vec<Alias>) -> Result<Vec<Alias>, AliasTaken> {
    let own = own.iter().map(|(name, path)| Alias {
        name: (*name).to_owned(),
        path: path.clone(),
        chosen: false,
    });
    let mut all: Vec<Alias> = own.collect();
    let (chosen, others): (Vec<_>, Vec<_>) = aliases.into_iter().partition(|alias| alias.chosen);
    for alias in chosen {
        if let Some(other) = all.iter().find(|other| other.name == alias.name) {
            let Alias { name, path, .. } = alias;
            return Err(AliasTaken { name, path, other: other.path.clone() });
        }
        all.push(alias);
    }
    let mut names = order::set(all.iter().map(|alias| alias.name.clone()));
    let (free, taken): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|alias| names.insert(alias.name.clone()));
    all.extend(free);
    for alias in taken {
        let stem = alias.name.trim_end_matches(|c: char| c.is_ascii_digit());
        let numbers = (0..=names.len()).filter(|_| stem.len() < alias.name.len());
        let name = numbers.map(|n| format!("{stem}{n}")).find(|name| !names.contains(name));
        if let Some(name) = name {
            names.insert(name.clone());
            all.push(Alias { name, ..alias });
        }
    }
    Ok(all)
}

/// The `aliases` node.
pub fn node(aliases: &[Alias]) -> Node {
    aliases.iter().fold(Node::new("aliases"), |node, a| node.string(&a.name, a.path.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(name: &str, path: &str, chosen: bool) -> Alias {
        Alias { name: name.to_owned(), path: path.to_owned(), chosen }
    }

    #[test]
    fn only_what_is_taken_gets_another_number() {
        let own = [("serial0", "/serial@9000000".to_owned()), ("rtc0", "/rtc@1".to_owned())];
        let wanted = vec![
            alias("serial0", "/a", false),
            alias("serial2", "/b", false),
            alias("serial1", "/c", true),
            alias("ethernet0", "/d", false),
            alias("serial1", "/e", false),
            alias("rtc0", "/f", false),
            alias("console", "/a", false),
            alias("console", "/b", false),
        ];
        let all = resolve(&own, wanted).unwrap();
        let all: Vec<(&str, &str)> = all.iter().map(|a| (&*a.name, &*a.path)).collect();
        let expected = [
            ("serial0", "/serial@9000000"),
            ("rtc0", "/rtc@1"),
            ("serial1", "/c"),
            ("serial2", "/b"),
            ("ethernet0", "/d"),
            ("console", "/a"),
            ("serial3", "/a"),
            ("serial4", "/e"),
            ("rtc1", "/f"),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_chosen_name_that_is_taken_is_an_error() {
        let own = [("serial0", "/serial@9000000".to_owned())];
        let error = resolve(&own, vec![alias("serial0", "/a", true)]).unwrap_err().to_string();
        assert_eq!(error, "alias=serial0 can't be the alias of /a: /serial@9000000 has it");
        assert!(resolve(&own, vec![alias("x1", "/a", true), alias("x1", "/b", true)]).is_err());
    }

    #[test]
    fn names_are_those_of_the_specification() {
        for name in ["serial0", "can-fd1", "rtc"] {
            assert!(is_alias_name(name), "{name}");
        }
        for name in ["", "Serial0", "a_b", "a/b", "a b", &"x".repeat(32)] {
            assert!(!is_alias_name(name), "{name}");
        }
    }
}
