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
        write_value(out, &property.value, inside)?;
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

/// Writes ` = value`, or nothing for an empty one.
fn write_value(out: &mut String, value: &Value, depth: usize) -> fmt::Result {
    let parts = match value {
        Value::Mixed(parts) => parts.as_slice(),
        value => std::slice::from_ref(value),
    };
    let mut lead = " = ";
    for part in parts.iter().filter(|part| !is_empty(part)) {
        out.push_str(lead);
        write_part(out, part, depth)?;
        lead = ", ";
    }
    Ok(())
}

/// Whether a value has no bytes.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Empty => true,
        Value::Cells(cells) => cells.is_empty(),
        Value::Strings(strings) => strings.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Mixed(parts) => parts.iter().all(is_empty),
    }
}

/// Writes what has bytes.
fn write_part(out: &mut String, value: &Value, depth: usize) -> fmt::Result {
    match value {
        Value::Empty => Ok(()),
        Value::Cells(cells) => {
            write_list(out, ['<', '>'], cells, CELLS_PER_LINE, depth, |out, cell| match cell {
                Cell::U32(number) => write!(out, "{number:#x}"),
                Cell::Ref(label) => write!(out, "&{label}"),
            })
        }
        Value::Bytes(bytes) => {
            write_list(out, ['[', ']'], bytes, BYTES_PER_LINE, depth, |out, byte| {
                write!(out, "{byte:02x}")
            })
        }
        Value::Strings(strings) => {
            for (index, string) in strings.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_string(out, string)?;
            }
            Ok(())
        }
        Value::Mixed(parts) => {
            for (index, part) in parts.iter().filter(|part| !is_empty(part)).enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_part(out, part, depth)?;
            }
            Ok(())
        }
    }
}

/// Writes `<…>` or `[…]`, in several lines where there is much.
fn write_list<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: &[T],
    per_line: usize,
    depth: usize,
    write_item: impl Fn(&mut String, &T) -> fmt::Result,
) -> fmt::Result {
    out.push(open);
    for (number, line) in items.chunks(per_line).enumerate() {
        if number > 0 {
            out.push('\n');
            indent(out, depth.saturating_add(1));
        }
        for (index, item) in line.iter().enumerate() {
            if index > 0 {
                out.push(' ');
            }
            write_item(out, item)?;
        }
    }
    out.push(close);
    Ok(())
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
