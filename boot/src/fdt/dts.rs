//! Tree → source, for people to read and for `dtc` to compile (dtc's `dts-format.txt`).

use std::fmt::{self, Write};

use super::node::{Node, is_phandle};
use super::value::{Cell, Value};

/// Cells on one line: two entries of `reg` with 64-bit addresses and sizes.
const CELLS_PER_LINE: usize = 8;

/// Bytes on one line.
const BYTES_PER_LINE: usize = 16;

/// The whole tree as a source file that `dtc` accepts.
pub fn to_dts(root: &Node) -> String {
    let mut text = "/dts-v1/;\n\n".to_owned();
    text.push_str(&subtree_to_dts(root));
    text
}

/// One node and what is below it as source: part of a file.
pub fn subtree_to_dts(node: &Node) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_node(&mut text, node, 0);
    text
}

/// Writes `node`, indented by `depth` tabs.
fn write_node(out: &mut String, node: &Node, depth: usize) -> fmt::Result {
    indent(out, depth);
    if let Some(label) = node.get_label() {
        write!(out, "{label}: ")?;
    }
    let name = if node.name().is_empty() { "/" } else { node.name() };
    writeln!(out, "{name} {{")?;
    let inside = depth.saturating_add(1);
    // The blob has no phandles from elsewhere, so the source has none.
    for property in node.properties().iter().filter(|p| !is_phandle(&p.name)) {
        indent(out, inside);
        out.push_str(&property.name);
        write_value(out, &property.value, &mut " = ", inside)?;
        out.push_str(";\n");
    }
    if let Some(phandle) = node.get_phandle() {
        indent(out, inside);
        writeln!(out, "phandle = <{phandle:#x}>;")?;
    }
    for (index, child) in node.children().iter().enumerate() {
        if index > 0 || !node.properties().is_empty() || node.get_phandle().is_some() {
            out.push('\n');
        }
        write_node(out, child, inside)?;
    }
    indent(out, depth);
    out.push_str("};\n");
    Ok(())
}

/// Writes ` = value`, or nothing for an empty one; `lead` goes before its next part.
fn write_value(out: &mut String, value: &Value, lead: &mut &str, depth: usize) -> fmt::Result {
    match value {
        Value::Empty => {}
        Value::Mixed(parts) => {
            parts.iter().try_for_each(|part| write_value(out, part, lead, depth))?;
        }
        Value::Strings(strings) => {
            for string in strings {
                out.push_str(std::mem::replace(lead, ", "));
                write_string(out, string)?;
            }
        }
        Value::Cells(cells) => {
            let cell = |cell: &Cell| match cell {
                Cell::U32(number) => format!("{number:#x}"),
                Cell::Ref(label) => format!("&{label}"),
            };
            let items: Vec<String> = cells.iter().map(cell).collect();
            write_list(out, lead, ['<', '>'], &items, CELLS_PER_LINE, depth);
        }
        Value::Bytes(bytes) => {
            let items: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            write_list(out, lead, ['[', ']'], &items, BYTES_PER_LINE, depth);
        }
    }
    Ok(())
}

/// Writes `<…>` or `[…]`, in several lines where there is much, and nothing where there is nothing.
fn write_list(
    out: &mut String,
    lead: &mut &str,
    [open, close]: [char; 2],
    items: &[String],
    per_line: usize,
    depth: usize,
) {
    if items.is_empty() {
        return;
    }
    out.push_str(std::mem::replace(lead, ", "));
    out.push(open);
    for (number, line) in items.chunks(per_line).enumerate() {
        if number > 0 {
            out.push('\n');
            indent(out, depth.saturating_add(1));
        }
        out.push_str(&line.join(" "));
    }
    out.push(close);
}

/// Writes a string in quotes, with the escapes of C that dtc knows.
fn write_string(out: &mut String, string: &str) -> fmt::Result {
    out.push('"');
    for c in string.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(())
}

/// Writes `depth` tabs.
fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n('\t', depth));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdt::Label;

    #[test]
    fn reads_like_source_written_by_hand() {
        let root = Node::new("")
            .string("model", "a \"b\"\\\n\u{1}\u{e9}")
            .child(Node::new("apb-pclk").label("clk").u32("#clock-cells", 0))
            .child(
                Node::at("dma", 0xc00_0000)
                    .strings("compatible", ["arm,pl330", "arm,primecell"])
                    .reg([(0xc00_0000, 0x1000), (0x1_0000_0000, 0x20), (1, 2)])
                    .cells("mixed", [Cell::from(Label::new("clk")), Cell::from(7)])
                    .flag("dma-coherent")
                    .bytes("mac", (0..17).collect::<Vec<u8>>())
                    .u32("phandle", 9)
                    .bytes("nothing", []),
            );
        assert_eq!(
            to_dts(&root),
            "/dts-v1/;\n\n\
             / {\n\
             \tmodel = \"a \\\"b\\\"\\\\\\n\\x01\u{e9}\";\n\
             \n\
             \tclk: apb-pclk {\n\
             \t\t#clock-cells = <0x0>;\n\
             \t};\n\
             \n\
             \tdma@c000000 {\n\
             \t\tcompatible = \"arm,pl330\", \"arm,primecell\";\n\
             \t\treg = <0x0 0xc000000 0x0 0x1000 0x1 0x0 0x0 0x20\n\
             \t\t\t0x0 0x1 0x0 0x2>;\n\
             \t\tmixed = <&clk 0x7>;\n\
             \t\tdma-coherent;\n\
             \t\tmac = [00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n\
             \t\t\t10];\n\
             \t\tnothing;\n\
             \t};\n\
             };\n"
        );
    }

    #[test]
    fn a_subtree_is_its_node_alone() {
        let node = Node::new("rng").label("rng").flag("x");
        assert_eq!(subtree_to_dts(&node), "rng: rng {\n\tx;\n};\n");
    }
}
