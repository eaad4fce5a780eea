//! Overlays made at random, judged by libfdt.

use std::fmt::Write;

use super::judge::assert_agreed;
use super::overlay;
use crate::support::random::Xorshift;

/// Overlays at random.
impl Xorshift {
    /// The source of an overlay; the symbols it defines are added to `symbols`.
    fn overlay(&mut self, number: usize, symbols: &mut Vec<String>) -> String {
        let mut own = Vec::new();
        let mut source = String::new();
        let mut fragments = Vec::new();
        for _ in 0..1 + self.below(3) {
            let target = match self.below(3) {
                0 => self
                    .one_of(&["{/}", "{/clocks}", "{/chosen}", "{/dma-controller@c000000}"])
                    .to_owned(),
                _ => symbols[self.below(symbols.len())].clone(),
            };
            let mut body = String::new();
            self.body(number, 0, &mut own, &mut body);
            fragments.push((target, body));
        }
        for (target, body) in fragments {
            let all: Vec<String> = symbols.iter().chain(&own).cloned().collect();
            let mut body = body;
            while let Some(at) = body.find("&?") {
                let name = format!("&{}", all[self.below(all.len())]);
                body.replace_range(at..at + 2, &name);
            }
            writeln!(source, "&{target} {{ {body} }};").unwrap();
        }
        symbols.extend(own);
        source
    }

    fn body(&mut self, number: usize, depth: usize, own: &mut Vec<String>, out: &mut String) {
        for _ in 0..self.below(4) {
            let name = self.one_of(&["a", "b,c", "#d-cells", "clocks", "status", "reg"]);
            let word = self.below(1 << 30) + (1 << 30);
            let length = self.below(40) + 1;
            let text = "x".repeat(length);
            // No property twice in one node: dtc refuses that.
            if out.rsplit('{').next().is_some_and(|last| last.contains(&format!("{name} ="))) {
                continue;
            }
            match self.below(6) {
                0 => writeln!(out, "{name} = <{word:#x} {word:#x}>;"),
                1 => writeln!(out, "{name} = <&?>;"),
                2 => writeln!(out, "{name} = <{word:#x} &? &?>;"),
                3 => writeln!(out, "{name} = \"{text}\";"),
                4 => writeln!(out, "{name} = \"{text}\", <&? {word:#x}>, [ff], <&?>;"),
                _ => writeln!(out, "{name} = [{:02x} 80 ff];", word & 0xff),
            }
            .unwrap();
        }
        for child in 0..if depth < 3 { self.below(3) } else { 0 } {
            // Some of these are in the tree already, or in another fragment: merged, and without a
            // label, since libfdt forgets the label that the other may have.
            let known =
                self.one_of(&["n", "channel@1", "apb-pclk", "longer-than-most-names-of-nodes@1"]);
            let (label, name) = match self.below(2) {
                0 if child == 0 => (String::new(), known.to_owned()),
                0 => (String::new(), format!("{known}{child}")),
                _ => {
                    let own_name = format!("l{number}_{}", own.len());
                    own.push(own_name.clone());
                    (format!("{own_name}: "), format!("n{own_name}"))
                }
            };
            let mut inner = String::new();
            self.body(number, depth + 1, own, &mut inner);
            writeln!(out, "{label}{name} {{ {inner} }};").unwrap();
        }
    }
}

#[test]
fn random_overlays_come_out_as_libfdt_has_them() {
    let mut random = Xorshift(0x0d7b_0d7b_0d7b_0d7b);
    let mut labels = 0;
    for _ in 0..120 {
        let mut symbols: Vec<String> =
            ["gic", "clocks", "apb_pclk", "_2c0a0000_dma"].map(str::to_owned).into();
        let sources: Vec<String> =
            (0..1 + random.below(3)).map(|n| random.overlay(n, &mut symbols)).collect();
        labels += symbols.len() - 4;
        let blobs: Vec<Vec<u8>> = sources.iter().map(|source| overlay(source)).collect();
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        assert_agreed(&blobs);
    }
    assert!(labels > 200, "the overlays are too small to show anything: {labels} labels");
}
