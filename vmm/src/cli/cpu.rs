//! `--cpu-features` and `--gic`.

use arch::CpuFeatures;

/// Which interrupt controller a guest gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GicChoice {
    /// Its version.
    pub version: GicVersion,
    /// Whether it has an ITS.
    pub its: ItsChoice,
}

/// A version of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GicVersion {
    /// GICv3 where the host has it, else GICv2.
    #[default]
    Auto,
    /// GICv2.
    V2,
    /// GICv3.
    V3,
}

/// Whether it has an ITS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ItsChoice {
    /// With PCI functions, where the host has it.
    #[default]
    Auto,
    /// It has.
    On,
    /// It hasn't.
    Off,
}

/// Parses `VERSION[,its=…]`.
pub(super) fn gic(text: &str) -> Result<GicChoice, String> {
    let (version, its) = match text.split_once(',') {
        Some((version, option)) => (version, Some(option)),
        None => (text, None),
    };
    let version = match version {
        "auto" => GicVersion::Auto,
        "2" => GicVersion::V2,
        "3" => GicVersion::V3,
        _ => return Err("auto, 2 or 3 is needed, and perhaps ,its=on".into()),
    };
    let its = match its {
        None | Some("its=auto") => ItsChoice::Auto,
        Some("its=on") if version == GicVersion::V2 => {
            return Err("a GICv2 has no ITS: 3,its=on is needed".into());
        }
        Some("its=on") => ItsChoice::On,
        Some("its=off") => ItsChoice::Off,
        Some(_) => return Err("its=on, its=off or its=auto may follow the version".into()),
    };
    Ok(GicChoice { version, its })
}

/// Parses `-NAME[,-NAME…]`: all features but these; `NAME` has one of those before it back.
pub(super) fn features(text: &str) -> Result<CpuFeatures, String> {
    let mut features = CpuFeatures::ALL;
    for word in text.split(',') {
        let (name, has) = word.strip_prefix('-').map_or((word, true), |name| (name, false));
        let name = name.strip_prefix('+').unwrap_or(name);
        match name {
            "sve" => features.sve = has,
            "pauth" => features.pauth = has,
            "pmu" => features.pmu = has,
            _ => return Err("sve, pauth and pmu can be left out, as in -sve,-pmu".into()),
        }
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gic_has_a_version_and_perhaps_an_its() {
        let choice = |version, its| Ok(GicChoice { version, its });
        for (text, expected) in [
            ("auto", choice(GicVersion::Auto, ItsChoice::Auto)),
            ("2", choice(GicVersion::V2, ItsChoice::Auto)),
            ("3,its=on", choice(GicVersion::V3, ItsChoice::On)),
            ("auto,its=on", choice(GicVersion::Auto, ItsChoice::On)),
            ("3,its=off", choice(GicVersion::V3, ItsChoice::Off)),
            ("2,its=off", choice(GicVersion::V2, ItsChoice::Off)),
        ] {
            assert_eq!(gic(text), expected, "{text}");
        }
        for text in ["", "4", "2,its=on", "3,its=", "3,", "its=on", "3,its=on,its=on"] {
            assert!(gic(text).is_err(), "{text}");
        }
    }

    #[test]
    fn features_are_left_out_by_name() {
        assert_eq!(
            features("-sve,-pauth"),
            Ok(CpuFeatures { pmu: true, ..CpuFeatures::default() })
        );
        assert_eq!(features("-pmu,pmu"), Ok(CpuFeatures::ALL));
        for text in ["", "-", "sme", "-sve,", "--sve"] {
            assert!(features(text).is_err(), "{text}");
        }
    }
}
