//! Names that look like a mistyped one.

/// Up to three of `names`, those nearest to `name`: that begin with it, or differ in the fewest
/// letters and in at most three.
pub(super) fn near(name: &str, names: &[String]) -> Vec<String> {
    let mut near: Vec<(usize, &String)> = names
        .iter()
        .map(|other| {
            let begins = !name.is_empty() && other.starts_with(name);
            (if begins { 0 } else { strsim::levenshtein(name, other) }, other)
        })
        .filter(|(distance, other)| *distance <= 3 && *distance < other.len())
        .collect();
    near.sort();
    let nearest = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, _)| *distance == nearest);
    near.into_iter().take(3).map(|(_, other)| other.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nearest_names_are_suggested() {
        let names = ["2c0a0000.dma", "2c0b0000.dma", "9000000.serial", "x"].map(str::to_owned);
        let cases: [(&str, &[&str]); 7] = [
            ("2c0a000.dma", &["2c0a0000.dma"]),
            ("2c0c0000.dma", &["2c0a0000.dma", "2c0b0000.dma"]),
            ("2c0", &["2c0a0000.dma", "2c0b0000.dma"]),
            ("2c0b", &["2c0b0000.dma"]),
            ("9000000.uart", &[]),
            ("", &[]),
            ("gpu", &[]),
        ];
        for (name, expected) in cases {
            assert_eq!(near(name, &names), expected, "{name}");
        }
    }
}
