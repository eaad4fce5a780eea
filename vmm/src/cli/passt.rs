//! `--net passt[,OPTION…]`.

use devices::virtio::net::MacAddress;

use super::values::take_each;

/// A network device whose other end is a passt: what the guest sends leaves by sockets of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PasstOptions {
    /// Its address.
    pub mac: Option<MacAddress>,
    /// The host's TCP ports that lead to the guest, as passt has them.
    pub tcp: Vec<String>,
    /// Its UDP ports.
    pub udp: Vec<String>,
}

/// What follows `passt` in the value of an option, if it begins with that.
pub(super) fn behind_passt(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("passt")?;
    (rest.is_empty() || rest.starts_with(',')).then_some(rest)
}

/// Reads the options, behind a comma each.
pub(super) fn passt(text: &str) -> Result<PasstOptions, String> {
    let mut options = PasstOptions::default();
    let pairs = text.split(',').skip(1).map(|piece| {
        piece
            .split_once('=')
            .ok_or_else(|| format!("`{piece}` is no option of passt; tcp=PORTS is"))
    });
    let given = pairs.collect::<Result<Vec<_>, _>>()?;
    take_each(given, "passt", &["mac"], &["tcp", "udp"], |key, value| {
        match key {
            "mac" => options.mac = Some(value.parse()?),
            "tcp" => options.tcp.push(ports(value)?),
            _ => options.udp.push(ports(value)?),
        }
        Ok(())
    })?;
    Ok(options)
}

/// Ports as passt(1) has them: `2222:22`, `8000-8010`, `127.0.0.1/2222:22`, `all`.
fn ports(text: &str) -> Result<String, String> {
    let is_known = |c: char| c.is_ascii_alphanumeric() || ":-./%~".contains(c);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(is_known) {
        return Err(format!("`{text}` are no ports; 2222:22 is the host's 2222 to the guest's 22"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_program() {
        let parse = |text: &str| behind_passt(text).map(passt);
        assert_eq!(parse("passt"), Some(Ok(PasstOptions::default())));
        let all = "passt,tcp=2222:22,tcp=127.0.0.1/80,udp=53,mac=02:00:00:00:00:01";
        let all = parse(all).unwrap().unwrap();
        assert_eq!(
            (all.tcp, all.udp),
            (vec!["2222:22".into(), "127.0.0.1/80".into()], vec!["53".into()])
        );
        assert_eq!(all.mac.unwrap().to_string(), "02:00:00:00:00:01");
        for text in ["tap=passt", "passtx", "", "pass"] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in [
            "passt,",
            "passt,tcp",
            "passt,tcp=",
            "passt,tcp=-x",
            "passt,tcp=a b",
            "passt,mac=1",
            "passt,x=1",
        ] {
            assert!(parse(text).unwrap().is_err(), "{text}");
        }
    }
}
