//! `strait device test --report FILE.html`: one page, for people who sign and keep it. It needs no other
//! file, and prints.

use std::fmt::{self, Display, Formatter, Write};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use devices::vfio::selftest::Check;

use super::test::Verdict;

/// How it looks, on a screen and on paper.
const STYLE: &str = "body{font:11pt sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;width:100%;margin:.5em 0}\
    td,th{border:1px solid #999;padding:.2em .5em;text-align:left;vertical-align:top}\
    pre{font:8.5pt monospace;background:#f4f4f4;padding:.5em;white-space:pre-wrap}\
    .pass{color:#060}.fail{color:#a00;font-weight:bold}tr{break-inside:avoid}\
    .sign td{height:3em;width:50%}@media print{body{margin:0;max-width:none}}";

/// The page: of a verdict, with what `strait device show` says of the device.
pub struct Report<'a> {
    /// What was found.
    pub verdict: &'a Verdict,
    /// The device as it is described: plan and tree.
    pub details: &'a str,
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Verdict { name, iommu, report, .. } = self.verdict;
        write!(
            f,
            "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\
             <style>{STYLE}</style>\n<h1>{0}: {1}</h1>\n<table>\n",
            Text(name),
            Outcome(self.verdict.passed())
        )?;
        for (what, value) in [
            ("test", report.test.to_owned()),
            ("IOMMU by", iommu.name().to_owned()),
            ("strait", env!("CARGO_PKG_VERSION").to_owned()),
            ("kernel", file("/proc/version")),
            ("host", host()),
            ("tested", utc(SystemTime::now())),
        ] {
            writeln!(f, "<tr><th>{what}<td>{}", Text(&value))?;
        }
        f.write_str("</table>\n<h2>Tests</h2>\n")?;
        checks(f, &report.checks)?;
        if !report.channels.is_empty() {
            f.write_str(
                "<table>\n<tr><th>channel<th>transfers<th>bytes<th>interrupts<th>bytes a second\
                 <th>result\n",
            )?;
            for row in &report.channels {
                let failure = row.failure.as_deref().unwrap_or("pass");
                writeln!(
                    f,
                    "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
                    row.channel,
                    row.transfers,
                    row.bytes,
                    row.interrupts,
                    row.bytes_per_second,
                    Text(failure)
                )?;
            }
            f.write_str("</table>\n")?;
        }
        f.write_str("<h2>Isolation</h2>\n")?;
        match &report.isolation {
            Some(isolation) => {
                let outcome = Outcome(isolation.passed);
                writeln!(f, "<p>{outcome}: {}, {}", isolation.address, isolation.target)?;
                checks(f, &isolation.checks)?;
                writeln!(f, "<pre>{}</pre>", Text(&isolation.host_log.join("\n")))?;
            }
            None => f.write_str("<p>Not tested: strait can't have this device do DMA.\n")?,
        }
        write!(
            f,
            "<h2>Device, plan and tree</h2>\n<pre>{}</pre>\n<h2>Signed off</h2>\n\
             <table class=\"sign\"><tr><td>Name, date<td>Name, date</table>\n</html>\n",
            Text(self.details.trim_end())
        )
    }
}

fn checks(f: &mut Formatter<'_>, checks: &[Check]) -> fmt::Result {
    f.write_str("<table>\n")?;
    for Check { what, detail, passed } in checks {
        writeln!(f, "<tr><td>{}<td>{}<td>{}", Outcome(*passed), Text(what), Text(detail))?;
    }
    f.write_str("</table>\n")
}

/// Passed or failed.
struct Outcome(bool);

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (class, word) = if self.0 { ("pass", "passed") } else { ("fail", "FAILED") };
        write!(f, "<span class=\"{class}\">{word}</span>")
    }
}

/// A text as HTML has it.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '\n' | '\t' => f.write_char(c),
            c if c.is_control() => f.write_char('\u{fffd}'),
            c => f.write_char(c),
        })
    }
}

/// The text of a file, on one line.
fn file(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim_matches(['\0', '\n', ' ']).to_owned()
}

/// The machine: its name in the device tree or in SMBIOS, and the host's name.
fn host() -> String {
    let model = file("/proc/device-tree/model");
    let model = if model.is_empty() { file("/sys/class/dmi/id/product_name") } else { model };
    format!("{} ({model})", file("/proc/sys/kernel/hostname"))
}

/// A moment as a date and a time of UTC (ISO 8601), by the proleptic Gregorian calendar.
fn utc(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, time) = (seconds / 86400, seconds % 86400);
    // Years begin in March, so that a leap day is their last: eras of 400 years have 146 097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + carry;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use devices::vfio::iommu::Backend;
    use devices::vfio::selftest::{ChannelResult, Isolation, TestReport};

    use super::*;

    #[test]
    fn moments_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_795_694_400, "2026-11-26 12:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn the_page_has_all_that_was_found_and_nothing_from_elsewhere() {
        let mut report = TestReport::new("PL330");
        report.add("interrupts <1>", Ok::<_, String>("8 & more"));
        report.channels = vec![ChannelResult { channel: 3, ..ChannelResult::default() }];
        let mut isolation = Isolation { address: "0x80001000".into(), ..Isolation::default() };
        isolation.host_log.push("event 0x10 received:".into());
        report.isolation = Some(isolation);
        let verdict = Verdict::new("1.dma".into(), Backend::Container, report);
        let page = Report { verdict: &verdict, details: "reg = <0x0>;\u{1b}[1m" }.to_string();
        for wanted in [
            "<h1>1.dma: <span class=\"fail\">FAILED</span></h1>",
            "<td>interrupts &lt;1&gt;<td>8 &amp; more",
            "<tr><td>3<td>0",
            "0x80001000",
            "event 0x10 received:",
            "reg = &lt;0x0&gt;;\u{fffd}[1m",
        ] {
            assert!(page.contains(wanted), "{wanted}: {page}");
        }
        for elsewhere in ["http", "src=", "href="] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
    }
}
