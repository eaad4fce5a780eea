//! Names that look like a mistyped one.

/// Up to three of `names`, those nearest to `name`: that begin with it, or differ in the fewest
/// letters and in at most three.
pub(super) fn near(name: &str, names: &[String]) -> Vec<String> {
    let mut near: Vec<(usize, &String)> = names
        .iter()
        .map(|other| {
            let begins = !name.is_empty() && other.starts_with(name);
            (if begins { 0 } else { distance(name, other) }, other)
        })
        .filter(|(distance, other)| *distance <= 3 && *distance < other.len())
        .collect();
    near.sort();
    let nearest = near.first().map_or(0, |(distance, _)| *distance);
    near.retain(|(distance, _)| *distance == nearest);
    near.into_iter().take(3).map(|(_, other)| other.clone()).collect()
}

/// How many letters must be added, dropped or changed to make `a` of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    // How far the letters of `a` so far are from each beginning of `b`.
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for letter in a.chars() {
        let mut diagonal = row.first().copied().unwrap_or(0);
        let mut left = diagonal + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (other, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let change = diagonal + usize::from(letter != *other);
            diagonal = *above;
            left = change.min(left + 1).min(diagonal + 1);
            *above = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_changed_letters() {
        let cases = [
            ("", "", 0),
            ("abc", "abc", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ];
        for (a, b, expected) in cases {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

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
