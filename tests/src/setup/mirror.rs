//! Which mirrors of Debian's archive the system's own package sources name (sources.list(5)).

use std::fs;
use std::path::{Path, PathBuf};

/// Suites in which Debian publishes its main archive, beside the system's own code name.
const SUITES: [&str; 10] = [
    "bookworm",
    "trixie",
    "forky",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "sid",
    "duke",
];

/// The path in which Debian's keyring lies, without the ending that says its format.
const KEYRING: &str = "debian-archive-keyring";

/// One source of packages.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Paths, fingerprints or a key; nothing if any trusted key will do.
    signed_by: Option<String>,
}

/// The mirrors of Debian's main archive that the files below `etc` (the system's is `/etc/apt`)
/// name, the likeliest first. Others' archives and those of Debian's security team aren't among
/// them.
pub(super) fn of_system(etc: &Path, codename: Option<&str>) -> Vec<String> {
    let mut files = vec![etc.join("sources.list")];
    let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
    parts.sort();
    files.append(&mut parts);
    let sources = files.iter().flat_map(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("list") => parse_lines(&text),
            Some("sources") => parse_stanzas(&text),
            _ => Vec::new(),
        }
    });
    mirrors(sources, codename)
}

/// The mirrors among `sources`.
fn mirrors(sources: impl Iterator<Item = Source>, codename: Option<&str>) -> Vec<String> {
    let mut found: Vec<(bool, String)> = Vec::new();
    for source in sources.filter(|source| source.is_debian(codename)) {
        let is_signed = source.signed_by.is_some();
        for uri in source.uris.iter().filter(|uri| is_fetched_directly(uri)) {
            let uri = uri.trim_end_matches('/').to_owned();
            if !found.iter().any(|(_, known)| *known == uri) {
                found.push((!is_signed, uri));
            }
        }
    }
    // The sort is stable: what names Debian's keyring comes first, else in the files' order.
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, uri)| uri).collect()
}

impl Source {
    fn is_debian(&self, codename: Option<&str>) -> bool {
        let suite =
            |suite: &String| Some(suite.as_str()) == codename || SUITES.contains(&suite.as_str());
        self.suites.iter().any(suite)
            && self.components.iter().any(|component| component == "main")
            && self.signed_by.as_ref().is_none_or(|keys| keys.contains(KEYRING))
    }
}

/// Not a disc, nor a file that lists mirrors.
fn is_fetched_directly(uri: &str) -> bool {
    ["http://", "https://", "file:", "ftp://"].iter().any(|scheme| uri.starts_with(scheme))
}

/// The one-line format.
fn parse_lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix("-src").unwrap_or(rest);
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.map(str::to_owned),
    })
}

/// The deb822 format.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza = Vec::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            sources.extend(parse_stanza(&stanza));
            stanza.clear();
        } else if !line.starts_with('#') {
            stanza.push(line);
        }
    }
    sources
}

fn parse_stanza(lines: &[&str]) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with(char::is_whitespace) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.trim());
    let words = |name| -> Vec<String> {
        field(name).unwrap_or("").split_whitespace().map(str::to_owned).collect()
    };
    let is_enabled = !field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    is_enabled.then(|| Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sources: Vec<Source>) -> Vec<String> {
        mirrors(sources.into_iter(), Some("bookworm"))
    }

    #[test]
    fn the_one_line_format_is_understood() {
        let table: [(&str, &[&str]); 12] = [
            ("deb http://m.example/debian bookworm main", &["http://m.example/debian"]),
            ("deb http://m.example/debian/ bookworm main contrib", &["http://m.example/debian"]),
            ("deb-src\thttps://m.example/debian stable main # why", &["https://m.example/debian"]),
            (
                "deb [ arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg ] \
                 http://m.example/debian bookworm main",
                &["http://m.example/debian"],
            ),
            ("deb [signed-by=/etc/apt/keyrings/other.asc] http://o.example/ bookworm main", &[]),
            ("deb http://o.example/linux/debian bookworm stable", &[]),
            ("deb http://o.example/security bookworm-security main", &[]),
            ("deb cdrom:[Debian 12]/ bookworm main", &[]),
            ("deb mirror+file:/etc/apt/mirrors/debian.list bookworm main", &[]),
            ("# deb http://m.example/debian bookworm main", &[]),
            ("debug http://m.example/debian bookworm main", &[]),
            ("deb [broken http://m.example/debian bookworm main", &[]),
        ];
        for (line, expected) in table {
            assert_eq!(of(parse_lines(line)), expected, "{line}");
        }
    }

    #[test]
    fn the_stanza_format_is_understood() {
        let text = "\
Types: deb
# a comment
URIs: http://a.example/debian http://b.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://a.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: No
URIs: http://off.example/debian
Suites: bookworm
Components: main

types: deb
uris: http://other.example/debian
suites: bookworm
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 AAAA
";
        let expected = ["http://a.example/debian", "http://b.example/debian"];
        assert_eq!(of(parse_stanzas(text)), expected);
    }

    #[test]
    fn what_names_debians_keyring_comes_first_and_nothing_comes_twice() {
        let lines = "\
deb http://plain.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://signed.example/debian bookworm main
deb http://plain.example/debian/ bookworm main
";
        let expected = ["http://signed.example/debian", "http://plain.example/debian"];
        assert_eq!(of(parse_lines(lines)), expected);
    }

    #[test]
    fn a_derivatives_own_suite_counts_only_under_its_code_name() {
        let line = "deb http://m.example/debian somename main";
        assert_eq!(of(parse_lines(line)), Vec::<String>::new());
        let own = mirrors(parse_lines(line).into_iter(), Some("somename"));
        assert_eq!(own, ["http://m.example/debian"]);
    }
}
